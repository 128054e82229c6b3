"""Opsgenie's outgoing webhook (end of support announced). ``createdAt`` is in ms, ``updatedAt`` may be in ns."""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Delivery, Kind, Malformed, epoch, listed, part, text, texts
from flows.intake.source import Source

KINDS: dict[str, Kind] = {"create": "firing", "close": "resolved", "acknowledge": "acknowledged"}
"""Delete is none of them: that an alert was deleted does not say that its cause is gone."""


class Opsgenie(Source):
    """A token goes into the integration's custom headers."""

    name: ClassVar[str] = "opsgenie"

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        alert = part(part(body).get("alert"))
        action = text(part(body).get("action"))
        if not action or not alert:
            raise Malformed("no `action` and `alert`: is it Opsgenie's webhook integration?")
        priority = text(alert.get("priority"))
        details = texts(alert.get("details"))
        labels = {
            "alertname": alert.get("message"),
            "alias": alert.get("alias"),
            "entity": alert.get("entity"),
            "origin": alert.get("source"),
            "integration": part(body).get("integrationName"),
        }
        created = epoch(alert.get("createdAt"))
        return (
            Alert(
                kind=KINDS.get(action.lower(), "unknown"),
                fingerprint=text(alert.get("alias")) or text(alert.get("alertId")),
                cycle=text(alert.get("alertId")),  # an alias is used again, an id is not
                started_at=created,
                observed_at=epoch(alert.get("updatedAt")) or created,
                severity=f"P{priority}" if priority.isdigit() else priority,
                title=text(alert.get("message")),
                labels=details | dict.fromkeys(listed(alert.get("tags")), "true") | texts(labels),
                annotations=texts({"description": alert.get("description")}),
                trigger=created is not None,
            ),
        )


SOURCE = Opsgenie
