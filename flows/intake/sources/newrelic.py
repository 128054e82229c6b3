"""New Relic's workflows, by a webhook destination. ``createdAt``: when an issue began; ``updatedAt``: its freshness."""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Delivery, Kind, Malformed, epoch, listed, text, texts
from flows.intake.source import Source

KINDS: dict[str, Kind] = {
    "created": "firing",
    "activated": "firing",
    "acknowledged": "acknowledged",
    "closed": "resolved",
}


class NewRelic(Source):
    """The default payload template, or ``deployments/alerts/newrelic.json``."""

    name: ClassVar[str] = "newrelic"

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if not isinstance(body, dict) or "state" not in body or "id" not in body:
            raise Malformed("no `id` and `state`: keep them in the payload template of the workflow")
        conditions = listed(body.get("alertConditionNames"))
        created = epoch(body.get("createdAt"))
        labels = {
            "alertname": (conditions or [""])[0],
            "policy": ",".join(listed(body.get("alertPolicyNames"))),
            "entities": ",".join(listed(body.get("impactedEntities"))),
            "workflow": body.get("workflowName"),
        }
        identity = text(body.get("id"))
        return (
            Alert(
                kind=KINDS.get(text(body.get("state")).lower(), "unknown"),
                fingerprint=identity,
                cycle=identity,
                started_at=created,
                observed_at=epoch(body.get("updatedAt")) or created,
                severity=text(body.get("priority")).lower(),
                title=text(body.get("title")),
                labels=texts(body.get("labels")) | texts(labels),
                links=texts({"issue": body.get("issueUrl")}),
                trigger=created is not None,
            ),
        )


SOURCE = NewRelic
