"""Google Cloud Monitoring: a webhook channel, or a Pub/Sub channel with a push subscription.

A webhook is recognised by a token, or basic authentication. A push carries a token that Google signed for one audience
and one service account (Pub/Sub: "Authentication for push subscriptions").
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, ClassVar

from pydantic import model_validator

from flows.intake import bearer
from flows.intake.body import strict_json
from flows.intake.event import Alert, Auth, Delivery, Denied, Kind, Malformed, epoch, moment, part, text, texts
from flows.intake.fetch import Outside
from flows.intake.source import Source, SourceSettings, by_token

KEYS = "https://www.googleapis.com/oauth2/v3/certs"
ISSUERS = ("https://accounts.google.com", "accounts.google.com")
KINDS: dict[str, Kind] = {"open": "firing", "closed": "resolved", "acknowledged": "acknowledged"}
_INCIDENT = re.compile(r"/incidents/([^/?#]+)")


class GcpSettings(SourceSettings):
    """As ``SourceSettings``. With an audience, nothing but a push with its token is taken.

    Attributes:
        audience: of the push subscription's token.
        service_account: e-mail address of the account that the push subscription authenticates as.
    """

    audience: str = ""
    service_account: str = ""

    @model_validator(mode="after")
    def _both(self) -> GcpSettings:
        if bool(self.audience) != bool(self.service_account):
            raise ValueError(
                "audience and service_account go together: anybody at Google can get a token for an audience"
            )
        return self


class Gcp(Source):
    """Incidents of an alerting policy."""

    name: ClassVar[str] = "gcp"
    Settings: ClassVar[type[SourceSettings]] = GcpSettings

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.outside = Outside()

    async def authenticate(self, delivery: Delivery) -> Auth:
        settings: GcpSettings = self.settings
        if not settings.audience:
            return by_token(delivery, settings)
        found = await bearer.claims(delivery, bearer.Issuer(KEYS, ISSUERS, settings.audience), self.outside)
        if found.get("email") != settings.service_account or found.get("email_verified") is not True:
            raise Denied("the token is of another service account than this endpoint's", status=403)
        return Auth(method="google token", key_id=settings.service_account, verified=True)

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        message = part(part(body).get("message"))
        return text(message.get("messageId")) or text(message.get("message_id"))

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        published = None
        if isinstance(body, dict) and "incident" not in body and isinstance(body.get("message"), dict):
            published = moment(body["message"].get("publishTime") or body["message"].get("publish_time"))
            body = _pushed(body["message"].get("data"))
        incident = part(body).get("incident")
        if not isinstance(incident, dict):
            raise Malformed("no `incident`: is it a notification of Cloud Monitoring?")
        return (_read(incident, text(part(body).get("version")), published),)


def _read(incident: dict[str, Any], version: str, published: Any) -> Alert:
    state = text(incident.get("state"))
    kind = KINDS.get(state.lower(), "unknown")
    link = _INCIDENT.search(text(incident.get("url")))
    identity = text(incident.get("incident_id")) or (link[1] if link else "")
    began, ended = epoch(incident.get("started_at")), epoch(incident.get("ended_at"))
    resource = part(incident.get("resource"))
    policy, condition = text(incident.get("policy_name")), text(incident.get("condition_name"))
    labels = texts(incident.get("policy_user_labels")) | texts(resource.get("labels"))
    labels |= texts({"alertname": policy or condition, "condition": condition, "resource_type": resource.get("type")})
    labels |= texts({"project": incident.get("scoping_project_id"), "resource": incident.get("resource_name")})
    metadata = part(part(incident.get("metadata")).get("system_labels"))
    return Alert(
        kind=kind,
        fingerprint=identity,
        cycle=identity,
        started_at=began,
        observed_at=published or (ended if kind == "resolved" else began),
        severity=text(incident.get("severity")) or text(metadata.get("severity")),
        title=text(incident.get("summary")) or policy or condition,
        labels=labels,
        annotations=texts({"documentation": part(incident.get("documentation")).get("subject")}),
        links=texts({"incident": incident.get("url")}),
        test='version "test": Test connection of a notification channel' if version.lower() == "test" else "",
        trigger=bool(began or published),
    )


def _pushed(data: Any) -> Any:
    """The notification inside of a Pub/Sub message. Raises Malformed."""
    try:
        raw = base64.b64decode(data.encode() if isinstance(data, str) else b"", validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("the data of the Pub/Sub message is not base64") from None
    return strict_json(raw)


SOURCE = Gcp
