"""CloudEvents 1.0 over HTTP (cloudevents/spec: http-protocol-binding, http-webhook): structured, binary and batch.

The data is an alert of our own words (``docs/alerts.md``), or anything, where ``firing`` and ``resolved`` say what the
type of an event means.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar
from urllib.parse import unquote

from flows.intake import plain
from flows.intake.body import strict_json
from flows.intake.event import Alert, Delivery, Denied, Malformed, moment, part, text, texts
from flows.intake.source import Handshake, Source, SourceSettings

NEEDED = ("id", "source", "type", "specversion")


class CloudEventsSettings(SourceSettings):
    """As ``SourceSettings``.

    Attributes:
        firing: types of events that say that something fires; resolved: that it is over. Empty: the data's ``status``
            says it.
        origins: senders that may ask whether they may deliver (``WebHook-Request-Origin``); empty: any with a token.
    """

    firing: tuple[str, ...] = ()
    resolved: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class CloudEvents(Source):
    """A token as ``Authorization: Bearer``, as the webhook specification wants it, or last in the path."""

    name: ClassVar[str] = "cloudevents"
    Settings: ClassVar[type[SourceSettings]] = CloudEventsSettings

    async def handshake(self, delivery: Delivery, body: Any) -> Handshake | None:
        """Abuse protection (http-webhook, 4). A ``WebHook-Request-Callback`` is never called: it may lead anywhere."""
        if delivery.method != "OPTIONS":
            return None
        origin = delivery.header("webhook-request-origin")
        if not origin or (self.settings.origins and origin not in self.settings.origins):
            raise Denied("the origin that asks is none of this endpoint's `origins`", status=403)
        headers = [("WebHook-Allowed-Origin", origin), ("Allow", "POST, OPTIONS")]
        if delivery.header("webhook-request-rate"):
            headers.append(("WebHook-Allowed-Rate", "*"))
        return Handshake(200, f"{origin} may deliver", tuple(headers))

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        events = _events(body, delivery)
        return "\n".join(f"{text(e.get('source'))} {text(e.get('id'))}" for e in events)

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        return tuple(self._one(e) for e in _events(body, delivery))

    def _one(self, event: dict[str, Any]) -> Alert:
        missing = [k for k in NEEDED if not text(event.get(k))]
        if missing:
            raise Malformed(f"no {', '.join(missing)}: is it a CloudEvent?")
        if text(event["specversion"]) != "1.0":
            raise Malformed(f"specversion {text(event['specversion'])!r} is not known; expected 1.0")
        what, settings = text(event["type"]), self.settings
        kind = "firing" if what in settings.firing else "resolved" if what in settings.resolved else ""
        data = _data(event)
        if (settings.firing or settings.resolved) and not kind:
            kind = "unknown"
        sent = moment(event.get("time"))
        found = plain.read(part(data), kind=kind, at=event.get("time"))
        origin, subject = text(event["source"]), text(event.get("subject"))
        return found.model_copy(
            update={
                "fingerprint": found.fingerprint or f"{origin} {subject}".strip(),
                "started_at": found.started_at or (sent if found.kind == "firing" else None),
                "title": found.title or f"{what} {subject}".strip(),
                "labels": found.labels | texts({"origin": origin, "type": what, "subject": subject}),
            }
        )


def _events(body: Any, delivery: Delivery) -> list[dict[str, Any]]:
    """The events of a delivery in any of the three modes, each with its attributes and ``data``. Raises Malformed."""
    kind = delivery.header("content-type").partition(";")[0].strip().lower()
    if kind.startswith("application/cloudevents-batch"):
        if not isinstance(body, list) or not all(isinstance(e, dict) for e in body):
            raise Malformed("a batch is a list of events")
        return list(body)
    if kind.startswith("application/cloudevents"):
        if not isinstance(body, dict):
            raise Malformed("the body is no event")
        return [body]
    if delivery.header("ce-id"):
        found = {k[3:]: unquote(v) for k, v in delivery.headers.items() if k.startswith("ce-")}
        return [{**found, "data": body}]
    raise Malformed("neither Content-Type application/cloudevents+json, nor -batch+json, nor headers ce-…")


def _data(event: dict[str, Any]) -> Any:
    if "data_base64" not in event:
        return event.get("data")
    try:
        raw = base64.b64decode(text(event["data_base64"]), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("data_base64 is not base64") from None
    return strict_json(raw)


SOURCE = CloudEvents
