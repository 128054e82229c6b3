"""Better Stack's incident webhook. No signature is documented: the token goes last into the URL.

Their own example has an ``acknowledged_at`` before its ``started_at``, so only the time of the event itself is used.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Delivery, Evidence, Kind, Malformed, listed, moment, part, text, texts
from flows.intake.source import Source

KINDS: dict[str, Kind] = {
    "started": "firing",
    "reopened": "firing",
    "resolved": "resolved",
    "acknowledged": "acknowledged",
}


class BetterStack(Source):
    """Incidents; what it sends of monitors and of who is on call is noted as unknown."""

    name: ClassVar[str] = "betterstack"

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        data = part(part(body).get("data"))
        said = text(part(body).get("event"))
        if not said or not data:
            raise Malformed("no `event` and `data`: is it Better Stack's webhook?")
        facts = part(data.get("attributes"))
        incident = text(data.get("type")).removesuffix("s") == "incident"
        kind: Kind = KINDS.get(said.lower(), "unknown") if incident else "unknown"
        regions = listed(facts.get("regions"))
        began = moment(facts.get("started_at"))
        monitor = part(part(part(data.get("relationships")).get("monitor")).get("data"))
        labels = {
            "alertname": facts.get("name"),
            "url": facts.get("url"),
            "team": facts.get("team_name"),
            "monitor_id": monitor.get("id"),
            "regions": ",".join(sorted(regions)),
        }
        identity = text(data.get("id"))
        return (
            Alert(
                kind=kind,
                fingerprint=identity,
                # one that is opened again keeps its id and start: only a start of its own makes it another episode
                started_at=moment(facts.get("reopened_at")) or began if said == "reopened" else began,
                observed_at=moment(facts.get("resolved_at")) if kind == "resolved" else began,
                title=text(facts.get("name")),
                labels=texts(labels),
                annotations=texts({"cause": facts.get("cause")}),
                evidence=Evidence(vantages_failed=(len(regions) or None) if kind == "firing" else None),
                closes="fingerprint",
            ),
        )


SOURCE = BetterStack
