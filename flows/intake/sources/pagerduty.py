"""PagerDuty webhooks v3 (developer.pagerduty.com: webhooks, their behaviour, their signatures).

The signature covers no time, and a delivery may come 48 hours late, in order behind earlier ones: the age of the event
decides. Three answers of 4xx in a row switch the subscription off for a day.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Auth, Delivery, Kind, Malformed, moment, part, text, texts
from flows.intake.signatures import SignedSettings, plainly
from flows.intake.source import Source, SourceSettings

KINDS: dict[str, Kind] = {
    "incident.triggered": "firing",
    "incident.reopened": "firing",
    "incident.resolved": "resolved",
    "incident.acknowledged": "acknowledged",
    "pagey.ping": "test",
    "service.created": "config",
    "service.updated": "config",
    "service.deleted": "config",
}
"""Every other type (annotated, escalated, priority_updated …) is a note about an incident, and triggers nothing."""
HEADER = "X-PagerDuty-Signature"


class PagerDutySettings(SignedSettings):
    """As ``SignedSettings``.

    Attributes:
        people: an incident that a person opened may trigger as well; otherwise only those of a monitor may.
        services: ids of the services whose incidents may trigger; empty: any.
    """

    people: bool = False
    services: tuple[str, ...] = ()


class PagerDuty(Source):
    """A webhook subscription of a service, a team or the account."""

    name: ClassVar[str] = "pagerduty"
    Settings: ClassVar[type[SourceSettings]] = PagerDutySettings
    most_bytes: ClassVar[int] = 1 << 18

    async def authenticate(self, delivery: Delivery) -> Auth:
        pieces = [p.strip().partition("=") for p in delivery.header(HEADER).split(",")]
        return plainly(delivery, self.settings, HEADER, [value for version, _, value in pieces if version == "v1"])

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        # the event's id is signed, the header is not; both stay the same when it is sent again
        found = text(part(part(body).get("event")).get("id"))
        return found or delivery.header("x-webhook-id")

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        event = part(part(body).get("event"))
        what, data = text(event.get("event_type")), part(event.get("data"))
        if not what or not isinstance(event.get("data"), dict):
            raise Malformed("no `event` with event_type and data: is it a webhook of version 3?")
        service, agent = part(data.get("service")), part(event.get("agent"))
        happened = moment(event.get("occurred_at"))
        kind = KINDS.get(what, "unknown")
        people = text(agent.get("type")).startswith("user")
        services = self.settings.services
        labels = {
            "alertname": data.get("title"),
            "event_type": what,
            "service": service.get("summary"),
            "service_id": service.get("id"),
            "incident_key": data.get("incident_key"),
            "agent_type": agent.get("type"),
            "client": part(event.get("client")).get("name"),
            "urgency": data.get("urgency"),
            "priority": part(data.get("priority")).get("summary"),
        }
        return (
            Alert(
                kind=kind,
                fingerprint=text(data.get("id")),
                started_at=_began(what, data) or (happened if kind == "firing" else None),
                observed_at=happened,
                severity=text(part(data.get("priority")).get("summary")) or text(data.get("urgency")),
                title=text(data.get("title")),
                labels=texts(labels),
                links=texts({"incident": data.get("html_url")}),
                test="pagey.ping: Send Test Event of a webhook subscription" if kind == "test" else "",
                trigger=(self.settings.people or not people) and (not services or text(service.get("id")) in services),
                # a reopened incident that ends says when it was first opened, not when it was reopened
                closes="fingerprint",
            ),
        )


def _began(what: str, data: dict[str, Any]) -> Any:
    if what == "incident.reopened":
        return moment(data.get("reopened_at"))
    return moment(data.get("created_at"))


SOURCE = PagerDuty
