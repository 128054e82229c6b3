"""Signatures by a shared secret (HMAC), for the senders that have one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from flows.intake.event import Auth, Delivery, Denied
from flows.intake.source import SourceSettings, by_token, signed
from tasks.secrets import SecretRef

AHEAD = timedelta(minutes=5)


class SignedSettings(SourceSettings):
    """As ``SourceSettings``; where both tokens and secrets are given, both must be shown.

    Attributes:
        secrets: the sender signs with one of these. Several may be live, so that they can be changed.
    """

    secrets: tuple[SecretRef, ...] = ()


def by_hmac(delivery: Delivery, settings: SignedSettings, header: str, shown: Iterable[str], message: bytes) -> str:
    """Which secret signed ``message`` (hex HMAC-SHA256); ``header``: what the signature came in. Raises Denied."""
    tried = [s for s in shown if s.strip()]
    if not tried:
        raise Denied(f"no signature in {header}; give the sender the secret of this endpoint")
    key = signed(tried, message, settings.secrets)
    if key is None:
        raise Denied(f"the signature in {header} is not that of this body by a secret of this endpoint", status=403)
    also_by_token(delivery, settings)
    return key


def also_by_token(delivery: Delivery, settings: SourceSettings) -> None:
    """Beside a signature, a token must be shown where the endpoint has one. Raises Denied."""
    if settings.tokens:
        by_token(delivery, settings)


def timely(said: datetime | None, delivery: Delivery, tolerance_s: float, where: str) -> datetime:
    """A signed time, near enough to now. Raises Denied: an older one may be a copy that somebody sends again."""
    if said is None:
        raise Denied(f"no time in {where}, which the signature covers")
    off = delivery.received_at - said
    if off > timedelta(seconds=tolerance_s) or -off > AHEAD:
        raise Denied(
            f"the signed time in {where} is {abs(off.total_seconds()):.0f} s off; is a clock wrong?", status=403
        )
    return said


def plainly(delivery: Delivery, settings: SignedSettings, header: str, shown: Iterable[str]) -> Auth:
    """A signature of the raw body alone, or only a token where the endpoint has no secret. Raises Denied."""
    if not settings.secrets:
        return by_token(delivery, settings)
    return Auth(method="hmac", key_id=by_hmac(delivery, settings, header, shown, delivery.body), verified=True)
