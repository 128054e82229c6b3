"""Zabbix, by a media type of type webhook: ``deployments/alerts/zabbix.yaml`` is its script.

``{EVENT.DATE}`` and ``{EVENT.TIME}`` have no zone; where ``{EVENT.TIMESTAMP}`` is not known to the server,
``time_zone`` says which it is. Without either an event has no age, and triggers nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import field_validator

from flows.intake.body import strict_json
from flows.intake.event import Alert, Delivery, Kind, Malformed, epoch, text, texts
from flows.intake.source import Source, SourceSettings

VALUES: dict[str, Kind] = {
    "1": "firing",
    "0": "resolved",
    "problem": "firing",
    "resolved": "resolved",
    "ok": "resolved",
}
_EVENT = re.compile(r"[?&]eventid=(\d+)")


class ZabbixSettings(SourceSettings):
    """As ``SourceSettings``.

    Attributes:
        time_zone: of the Zabbix server, as in ``Europe/Vienna``, for senders that send no number of seconds.
    """

    time_zone: str = ""

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            if name:
                ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is no time zone; expected a name such as Europe/Vienna") from None
        return name


class Zabbix(Source):
    """The script shows a token as ``Authorization: Bearer``."""

    name: ClassVar[str] = "zabbix"
    Settings: ClassVar[type[SourceSettings]] = ZabbixSettings

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if not isinstance(body, dict) or not ("value" in body or "status" in body):
            raise Malformed("no `value` or `status`: use the script deployments/alerts/zabbix.yaml")
        said = text(body.get("value")) or text(body.get("status"))
        kind: Kind = VALUES.get(said.lower(), "unknown")
        if text(body.get("update_status")) == "1":  # an operator wrote something, closed it, or took it on
            kind = "acknowledged" if text(body.get("acknowledged")).lower() == "yes" else "unknown"
        link = _EVENT.search(text(body.get("link")))
        event = text(body.get("event_id")) or (link[1] if link else "")
        began = epoch(body.get("timestamp")) or self._local(body)
        sent = epoch(body.get("sent_at"))
        labels = {
            "alertname": body.get("name") or body.get("trigger"),
            "trigger_id": body.get("trigger_id"),
            "host": body.get("host") or body.get("hostname"),
            "severity": body.get("severity"),
        }
        return (
            Alert(
                kind=kind,
                fingerprint=event,
                cycle=event,
                started_at=began,
                observed_at=sent or (began if kind == "firing" else None),
                severity=text(body.get("severity")).lower(),
                title=text(body.get("name")) or text(body.get("trigger")),
                labels=_tags(body.get("tags")) | texts(labels),
                annotations=texts({"item": body.get("item"), "operational_data": body.get("opdata")}),
                links=texts({"event": body.get("link")}),
                test=_test(body),
                trigger=bool(began or sent),
            ),
        )

    def _local(self, body: dict[str, Any]) -> datetime | None:
        """``2021.08.27`` and ``12:51:50`` in the server's zone."""
        written = f"{text(body.get('date'))} {text(body.get('time'))}".strip().replace(".", "-")
        if not self.settings.time_zone:
            return None
        try:
            found = datetime.fromisoformat(written)
            if found.year < 1970:
                return None
            return found.replace(tzinfo=found.tzinfo or ZoneInfo(self.settings.time_zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            return None


def _tags(value: Any) -> dict[str, str]:
    """``{EVENT.TAGSJSON}``: a list of tag and value, as JSON, or as text that holds it."""
    if isinstance(value, str):
        try:
            value = strict_json(value.encode("utf-8", "replace"))
        except Malformed:
            return {}
    found: dict[str, str] = {}
    for one in value if isinstance(value, list) else []:
        if isinstance(one, dict):
            found |= texts({text(one.get("tag")): one.get("value")})
    return found


def _test(body: dict[str, Any]) -> str:
    """The Test button of a media type gives its script the macros as they are written."""
    if any(str(body.get(k)).strip() == f"{{EVENT.{name}}}" for k, name in (("value", "VALUE"), ("event_id", "ID"))):
        return "its macros are not filled in: the Test button of a media type"
    return ""


SOURCE = Zabbix
