"""Sentry's metric alerts, by an internal integration. It waits one second for the answer, and sends nothing twice.

Neither the time nor the id in its headers is signed: a copy is known by the hash of its body.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Auth, Delivery, Kind, Malformed, listed, moment, part, text, texts
from flows.intake.signatures import SignedSettings, plainly
from flows.intake.source import Source, SourceSettings

KINDS: dict[str, Kind] = {"critical": "firing", "resolved": "resolved"}
"""A warning is a lower threshold of the same incident: it is noted, and the critical one still triggers after it."""
HEADER = "Sentry-Hook-Signature"


class Sentry(Source):
    """``secrets``: the integration's client secret."""

    name: ClassVar[str] = "sentry"
    Settings: ClassVar[type[SourceSettings]] = SignedSettings

    async def authenticate(self, delivery: Delivery) -> Auth:
        return plainly(delivery, self.settings, HEADER, [delivery.header(HEADER)])

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        action, data = text(part(body).get("action")), part(part(body).get("data"))
        if not action or not isinstance(part(body).get("data"), dict):
            raise Malformed("no `action` and `data`: is it a webhook of Sentry?")
        resource = delivery.header("sentry-hook-resource")
        found = part(data.get("metric_alert"))
        if not found:
            title = f"{resource or 'something'} {action}"
            return (Alert(kind="config" if resource == "installation" else "unknown", title=title, trigger=False),)
        rule = part(found.get("alert_rule"))
        labels = {
            "alertname": rule.get("name"),
            "rule_id": rule.get("id"),
            "environment": rule.get("environment"),
            "projects": ",".join(listed(found.get("projects"))),
            "severity": action if action != "resolved" else None,
        }
        identity, kind = text(found.get("id")), KINDS.get(action.lower(), "unknown")
        started = moment(found.get("date_started"))
        seen = moment(found.get("date_closed")) if kind == "resolved" else moment(found.get("date_detected"))
        return (
            Alert(
                kind=kind,
                fingerprint=identity,
                cycle=identity,
                started_at=started,
                observed_at=seen,
                severity=action if kind != "resolved" else "",
                title=text(data.get("description_title")) or text(rule.get("name")),
                labels=texts(labels),
                annotations=texts({"description": data.get("description_text")}),
                links=texts({"alert": data.get("web_url")}),
                trigger=bool(started or seen),
            ),
        )


SOURCE = Sentry
