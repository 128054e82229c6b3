"""Bearer tokens that an identity provider signed: JSON Web Tokens (RFC 7519), RS256 only (RFC 7518, 3.3).

The algorithm is ours to say, not the token's; the key is one of the issuer's published set (RFC 7517), found by its id.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

from flows.intake.body import strict_json
from flows.intake.event import Delivery, Denied, Malformed, Unavailable
from flows.intake.fetch import Outside

LEEWAY_S = 60.0
MOST_CHARACTERS = 8192
RENEW_S = 60.0
"""A key id that is not in the kept set may be new: the set is read again, but not more often than this."""


@dataclass(frozen=True)
class Issuer:
    """Whose tokens are taken. ``keys``: URL of its key set; ``names``: what ``iss`` may say; ``audience``: for whom."""

    keys: str
    names: tuple[str, ...]
    audience: str


async def claims(delivery: Delivery, issuer: Issuer, outside: Outside) -> dict[str, Any]:
    """What the token in ``Authorization`` says, once it is proven. Raises Denied, Unavailable."""
    scheme, _, token = delivery.header("authorization").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Denied("no Authorization: Bearer with a token of the identity provider")
    token = token.strip()
    if len(token) > MOST_CHARACTERS or token.count(".") != 2:
        raise _denied("is none")
    head, said, signature = token.split(".")
    header = _object(head)
    if header.get("alg") != "RS256" or "crit" in header:
        raise _denied("is not signed with RS256")
    key = await _key(str(header.get("kid", "")), issuer, outside)
    try:
        key.verify(_decoded(signature), f"{head}.{said}".encode(), PKCS1v15(), SHA256())
    except InvalidSignature:
        raise _denied("is not signed by its issuer") from None
    found = _object(said)
    _check(found, issuer, delivery.received_at)
    return found


def _check(found: dict[str, Any], issuer: Issuer, now: datetime) -> None:
    """RFC 7519, 4.1. Raises Denied."""
    at = now.timestamp()
    audience = found.get("aud")
    if found.get("iss") not in issuer.names:
        raise _denied(f"is of another issuer than {' or '.join(issuer.names)}")
    if issuer.audience not in (audience if isinstance(audience, list) else [audience]):
        raise _denied(f"is not meant for {issuer.audience}")
    expires, begins = _number(found.get("exp")), _number(found.get("nbf", 0))
    if expires is None or begins is None:
        raise _denied("has no time when it expires")
    if expires <= at - LEEWAY_S:
        raise _denied(f"expired {at - expires:.0f} s ago")
    if begins > at + LEEWAY_S:
        raise _denied(f"is valid only in {begins - at:.0f} s")


async def _key(kid: str, issuer: Issuer, outside: Outside) -> RSAPublicKey:
    found = _among(await outside.kept(issuer.keys), kid)
    if found is None:
        found = _among(await outside.kept(issuer.keys, RENEW_S), kid)
    if found is None:
        raise _denied("is signed with a key that its issuer does not publish")
    return found


def _among(raw: bytes, kid: str) -> RSAPublicKey | None:
    try:
        document = strict_json(raw)
    except Malformed as e:
        raise Unavailable(f"the issuer's key set is none: {e}", retry_s=60) from e
    keys = document.get("keys") if isinstance(document, dict) else None
    for key in keys if isinstance(keys, list) else []:
        right = isinstance(key, dict) and key.get("kid") == kid and key.get("kty") == "RSA"
        if kid and right and key.get("use", "sig") == "sig" and key.get("alg", "RS256") == "RS256":
            modulus, exponent = (int.from_bytes(_decoded(str(key.get(n, "")))) for n in ("n", "e"))
            try:
                made = RSAPublicNumbers(exponent, modulus).public_key()
            except ValueError as e:
                raise Unavailable(f"the issuer's key {kid} is none: {e}", retry_s=60) from e
            return made if made.key_size >= 2048 else None
    return None


def _object(piece: str) -> dict[str, Any]:
    try:
        found = strict_json(_decoded(piece))
    except Malformed as e:
        raise _denied("is none") from e
    if not isinstance(found, dict):
        raise _denied("is none")
    return found


def _decoded(piece: str) -> bytes:
    """Base64url without padding. Raises Denied."""
    try:
        return base64.b64decode(piece.encode() + b"=" * (-len(piece) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _denied("is none") from None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _denied(why: str) -> Denied:
    return Denied(f"the token of the identity provider {why}", status=403)
