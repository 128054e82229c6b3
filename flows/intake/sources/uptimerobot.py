"""UptimeRobot's webhook. Its body is a template of the user: ``deployments/alerts/uptimerobot.json`` is ours.

A variable that UptimeRobot does not know comes as it was written, ``*alertType*``, and is nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Delivery, Kind, Malformed, epoch, text, texts
from flows.intake.source import Source

KINDS: dict[str, Kind] = {"1": "firing", "2": "resolved"}
"""3 is a certificate that will expire."""


class UptimeRobot(Source):
    """A token goes last into the URL. Keys are read however they are spelled: ``alertType``, ``alert_type``."""

    name: ClassVar[str] = "uptimerobot"

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if not isinstance(body, dict):
            raise Malformed("the body is no object: switch on `Send as JSON`")
        found = {str(k).replace("_", "").lower(): v for k, v in body.items()}
        if "alerttype" not in found:
            raise Malformed("no `alertType`: give the webhook the body of deployments/alerts/uptimerobot.json")
        happened = epoch(found.get("alertdatetime"))
        name = text(found.get("monitorfriendlyname"))
        labels = {
            "alertname": name,
            "monitor_id": found.get("monitorid"),
            "url": found.get("monitorurl"),
            "state": found.get("alerttypefriendlyname"),
        }
        return (
            Alert(
                kind=KINDS.get(text(found.get("alerttype")), "unknown"),
                fingerprint=text(found.get("monitorid")) or text(found.get("monitorurl")),
                started_at=happened,
                basis="state_change",
                observed_at=happened,
                title=f"{name}: {text(found.get('alertdetails'))}".strip(": "),
                labels=texts(labels),
                annotations=texts({"details": found.get("alertdetails"), "lasted": found.get("alertfriendlyduration")}),
                trigger=happened is not None,
                closes="fingerprint",  # `up` says when it came up, not when it had gone down
            ),
        )


SOURCE = UptimeRobot
