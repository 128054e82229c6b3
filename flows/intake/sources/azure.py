"""Azure Monitor's action groups, with the common alert schema.

A *secure webhook* carries a token that Entra issued to Azure's own application for ours; a plain one only what is in
its URL. Azure retries 408, 429, 503, 504 and lost connections, not 500, and then is silent for 15 minutes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import model_validator

from flows.intake import bearer
from flows.intake.event import (
    Alert,
    Auth,
    Delivery,
    Denied,
    Evidence,
    Kind,
    Malformed,
    listed,
    moment,
    part,
    text,
    texts,
)
from flows.intake.fetch import Outside
from flows.intake.source import Source, SourceSettings, by_token

SCHEMA = "azureMonitorCommonAlertSchema"
SENDER = "461e8683-5575-4561-ac7f-899cc907d62a"
"""The application "AzNS AAD Webhook", as which action groups call secure webhooks, in every tenant."""
TEST_SUBSCRIPTION = "/subscriptions/11111111-1111-1111-1111-111111111111/"
KINDS: dict[str, Kind] = {"fired": "firing", "resolved": "resolved"}


class AzureSettings(SourceSettings):
    """As ``SourceSettings``. With a tenant, nothing but a secure webhook's token is taken.

    Attributes:
        tenant: id of the Entra tenant.
        audience: application id URI of the application that stands for this endpoint (``api://…``).
        sender: id of the application that calls; Azure's own.
    """

    tenant: str = ""
    audience: str = ""
    sender: str = SENDER

    @model_validator(mode="after")
    def _both(self) -> AzureSettings:
        if bool(self.tenant) != bool(self.audience):
            raise ValueError("tenant and audience go together")
        if self.tenant and not self.tenant.replace("-", "").isalnum():
            raise ValueError("tenant: expected the id of an Entra tenant")
        return self


class Azure(Source):
    """An action of an action group: Webhook, or Secure Webhook."""

    name: ClassVar[str] = "azure"
    Settings: ClassVar[type[SourceSettings]] = AzureSettings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.outside = Outside()

    async def authenticate(self, delivery: Delivery) -> Auth:
        settings: AzureSettings = self.settings
        if not settings.tenant:
            return by_token(delivery, settings)
        login = "https://login.microsoftonline.com"
        issuer = bearer.Issuer(
            f"{login}/{settings.tenant}/discovery/v2.0/keys",
            (f"https://sts.windows.net/{settings.tenant}/", f"{login}/{settings.tenant}/v2.0"),
            settings.audience,
        )
        found = await bearer.claims(delivery, issuer, self.outside)
        # version 1 of a token says appid, version 2 azp
        if settings.sender not in (found.get("appid"), found.get("azp")):
            raise Denied("the token is of another application than Azure's action groups", status=403)
        return Auth(method="entra token", key_id=settings.sender, verified=True)

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        data = part(part(body).get("data"))
        facts = part(data.get("essentials"))
        if text(part(body).get("schemaId")) != SCHEMA or not facts:
            raise Malformed("not the common alert schema: switch it on for this action of the action group")
        kind: Kind = KINDS.get(text(facts.get("monitorCondition")).lower(), "unknown")
        condition = part(part(data.get("alertContext")).get("condition"))
        parts = condition.get("allOf")
        criteria = [part(c) for c in parts] if isinstance(parts, list) else []
        targets = listed(facts.get("alertTargetIDs"))
        labels: dict[str, str] = {}
        for one in criteria:
            labels |= texts({"metric": one.get("metricName")})
            dimensions = one.get("dimensions")
            for d in dimensions if isinstance(dimensions, list) else []:
                labels |= texts({text(part(d).get("name")): part(d).get("value")})
        labels |= texts({"alertname": facts.get("alertRule"), "service": facts.get("monitoringService")})
        labels |= texts({"signal": facts.get("signalType"), "target": targets[0].rpartition("/")[2] if targets else ""})
        identity = text(facts.get("alertId"))
        fired, ended = moment(facts.get("firedDateTime")), moment(facts.get("resolvedDateTime"))
        test = identity.startswith(TEST_SUBSCRIPTION)
        return (
            Alert(
                kind=kind,
                fingerprint=identity,
                cycle=identity,  # one alert fires once
                started_at=fired,
                observed_at=ended if kind == "resolved" else fired,
                severity=text(facts.get("severity")),
                title=text(facts.get("alertRule")),
                labels=labels,
                annotations=texts({"description": facts.get("description")}),
                evidence=Evidence(vantages_failed=_failed_locations(criteria)),
                test="a subscription of ones: Test of an action group" if test else "",
                trigger=fired is not None,
            ),
        )


def _failed_locations(criteria: list[dict[str, Any]]) -> int | None:
    """An availability test says from how many places it failed."""
    for one in criteria:
        value = one.get("metricValue")
        named = text(one.get("metricName")).lower().replace(" ", "") in ("failedlocation", "failedlocations")
        if named and isinstance(value, int | float) and 0 <= value < 1000:
            return int(value)
    return None


SOURCE = Azure
