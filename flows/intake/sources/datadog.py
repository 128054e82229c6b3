"""Datadog's webhook integration. Its body is a template of the user: ``deployments/alerts/datadog.json`` is ours.

The body that Datadog proposes has no transition, no tags and no key of the alert, and is refused. Its button "Test
notifications" sends ``Triggered``; only the words of title and body give it away.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from flows.intake.event import Alert, Delivery, Kind, Malformed, epoch, listed, text, texts
from flows.intake.source import Source

KINDS: dict[str, Kind] = {
    "triggered": "firing",
    "re-triggered": "firing",
    "recovered": "resolved",
    "no data": "no_data",
    "re-no data": "no_data",
}
"""Warn is below what was asked for, and Renotify says again what was said: neither triggers. See ``SEVERITY``."""
SEVERITY = {"triggered": "critical", "re-triggered": "critical", "warn": "warning", "re-warn": "warning"}
_HEAD = re.compile(r"^(?:\[[^\]]*\]\s*)+")


class Datadog(Source):
    """A monitor that names ``@webhook-NAME``. A token goes into the webhook's custom headers."""

    name: ClassVar[str] = "datadog"

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if not isinstance(body, dict) or "alert_transition" not in body:
            raise Malformed("no `alert_transition`: give the webhook the payload of deployments/alerts/datadog.json")
        transition = text(body.get("alert_transition")).lower()
        title = text(body.get("title"))
        tags = listed(body.get("tags") or body.get("event_tags"))
        scope = listed(body.get("alert_scope"))
        labels = {k: v for k, _, v in (t.partition(":") for t in (*tags, *scope)) if v}
        labels |= texts({"alertname": _HEAD.sub("", title), "alert_id": body.get("alert_id")})
        labels |= texts({"host": body.get("hostname"), "event_type": body.get("event_type")})
        cycle = text(body.get("alert_cycle_key"))
        happened = epoch(body.get("date"))
        identity = (text(body.get("alert_id")), ",".join(sorted(scope)))
        return (
            Alert(
                kind=KINDS.get(transition, "unknown"),
                fingerprint=text(body.get("aggreg_key")) or ("/".join(identity) if identity[0] else ""),
                cycle=cycle,
                started_at=happened,
                basis="state_change",
                observed_at=epoch(body.get("last_updated")) or happened,
                severity=text(body.get("alert_priority")) or SEVERITY.get(transition, ""),
                title=title,
                labels=labels,
                annotations=texts({"body": body.get("body"), "transition": body.get("alert_transition")}),
                links=texts({"event": body.get("link")}),
                test=_test(title, text(body.get("body"))),
                trigger=happened is not None,
                closes="episode" if cycle else "fingerprint",
            ),
        )


def _test(title: str, body: str) -> str:
    if "[test]" in title.lower():
        return "[TEST] in its title: Test notifications of a monitor"
    if "test notification triggered by" in body.lower():
        return "its body says that a person asked for a test notification"
    return ""


SOURCE = Datadog
