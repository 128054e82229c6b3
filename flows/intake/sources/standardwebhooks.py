"""Standard Webhooks (standardwebhooks.com): what anything can send that can compute an HMAC. Our generic source.

The id, the time and the body are signed together, so a copy is old after five minutes, and known by its id before that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Any, ClassVar

from flows.intake import plain
from flows.intake.event import Alert, Auth, Delivery, Denied, Malformed, moment, part, text
from flows.intake.signatures import SignedSettings, also_by_token, timely
from flows.intake.source import Source, SourceSettings
from tasks.errors import MissingSecret
from tasks.quantities import Duration
from tasks.secrets import resolve


class StandardSettings(SignedSettings):
    """As ``SignedSettings``. A secret is written ``whsec_`` and base64, of 24 to 64 bytes.

    Attributes:
        tolerance: how far the signed time may be from ours.
    """

    tolerance: Duration = 300.0


class StandardWebhooks(Source):
    """``{"type": …, "timestamp": …, "data": {…}}`` with an alert of our own words as its data."""

    name: ClassVar[str] = "standardwebhooks"
    Settings: ClassVar[type[SourceSettings]] = StandardSettings

    async def authenticate(self, delivery: Delivery) -> Auth:
        settings: StandardSettings = self.settings
        if not settings.secrets:
            raise Denied("this endpoint has no `secrets`; Standard Webhooks are always signed")
        identity, at = delivery.header("webhook-id"), delivery.header("webhook-timestamp")
        shown = [s.removeprefix("v1,") for s in delivery.header("webhook-signature").split() if s.startswith("v1,")]
        if not identity or not at or not shown:
            raise Denied("no webhook-id, webhook-timestamp and webhook-signature of version v1")
        key = _signer(shown, f"{identity}.{at}.".encode() + delivery.body, settings)
        if key is None:
            raise Denied("webhook-signature is not that of this id, time and body", status=403)
        timely(moment(at), delivery, settings.tolerance, "webhook-timestamp")
        also_by_token(delivery, settings)
        return Auth(method="standard webhooks", key_id=key, verified=True, replay_protected=True)

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        return delivery.header("webhook-id")

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        data = part(body).get("data")
        if data is None:
            raise Malformed("no `data`: expected {type, timestamp, data}, as in docs/alerts.md")
        found = plain.read(data, at=part(body).get("timestamp"))
        kind = text(part(body).get("type"))
        return (found.model_copy(update={"annotations": {**found.annotations, **({"type": kind} if kind else {})}}),)


def _signer(shown: list[str], message: bytes, settings: StandardSettings) -> str | None:
    """The number of the secret that signed; compared in constant time. Raises MissingSecret."""
    found = None
    for number, reference in enumerate(settings.secrets, 1):
        written = resolve(reference).get_secret_value()
        try:
            secret = base64.b64decode(written.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise MissingSecret(
                f"secret {reference} is not whsec_ and base64; make one with openssl rand -base64 32"
            ) from None
        wanted = base64.b64encode(hmac.new(secret, message, hashlib.sha256).digest())
        for one in shown:
            if hmac.compare_digest(one.encode("ascii", "replace"), wanted):
                found = f"secret {number}"
    return found


SOURCE = StandardWebhooks
