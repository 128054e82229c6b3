"""Approvals that are signed where the approver is: no server, no identity provider, only a secret both sides know.

``relight1.BODY.MAC``: BODY is base64url JSON with ``run``, ``step``, ``decision``, ``by``, ``expires`` (Unix seconds),
``nonce`` and ``why``; MAC is HMAC-SHA256 (RFC 2104) over a fixed prefix and BODY as it stands, so there is one way to
read what was signed. Compared in constant time (``hmac.compare_digest``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from tasks.errors import BadInput, Rejected

Decision = Literal["approve", "reject"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
VERSION = "relight1"
LEAST_SECRET = 16
"""Characters: a shorter one could be guessed from one token."""
MOST_TOKEN = 4096
MOST_WHY = 500
FOR = timedelta(minutes=15)
"""How long a token can be handed in, where nothing else is said."""


class Words(BaseModel):
    """What a token says. ``expires``: Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(min_length=1, max_length=200)
    step: str = Field(min_length=1, max_length=64)
    decision: Decision
    by: str = Field(min_length=1, max_length=100)
    expires: int
    nonce: str = Field(min_length=8, max_length=64)
    why: str = Field(default="", max_length=MOST_WHY)


@dataclass(frozen=True)
class Wish:
    """What somebody wants to sign. ``expires``: aware."""

    run: str
    step: str
    decision: Decision
    by: str
    expires: datetime
    why: str = ""


def usable(secret: SecretStr, name: str) -> bytes:
    """The bytes to sign with. Raises BadInput where ``secret`` is too short; ``name`` is whose it is."""
    value = secret.get_secret_value()
    if len(value) < LEAST_SECRET:
        raise BadInput(f"the secret of {name} has {len(value)} characters; expected at least {LEAST_SECRET}")
    return value.encode()


def mint(wish: Wish, secret: SecretStr) -> str:
    """A token. Raises BadInput for a wish that cannot be written, or a secret that is too short."""
    try:
        words = Words(
            run=wish.run,
            step=wish.step,
            decision=wish.decision,
            by=wish.by,
            expires=int(wish.expires.timestamp()),
            nonce=secrets.token_urlsafe(12),
            why=wish.why,
        )
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise BadInput(f"this cannot be signed: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    body = _encode(words.model_dump_json().encode())
    return f"{VERSION}.{body}.{_encode(_mac(body, usable(secret, wish.by)))}"


def read(token: str) -> Words:
    """What a token says, not whether it is true. Raises Rejected for what is no token."""
    if len(token) > MOST_TOKEN:
        raise Rejected(f"this is no token: {len(token)} characters, expected at most {MOST_TOKEN}")
    version, _, rest = token.strip().partition(".")
    body, _, mac = rest.partition(".")
    if version != VERSION or not body or not mac:
        raise Rejected(f"this is no token: expected {VERSION}.BODY.MAC, as relight approve --sign prints")
    try:
        return Words.model_validate(json.loads(_decode(body)))
    except (ValueError, binascii.Error, RecursionError) as e:
        raise Rejected("this is no token: its body cannot be read; was it cut off when it was copied?") from e


def signed_by(token: str, secret: SecretStr, name: str) -> bool:
    """Was ``token`` signed with the secret of ``name``? In constant time. Raises BadInput for a secret too short."""
    _, body, mac = (*token.strip().split("."), "", "")[:3]
    try:
        given = _decode(mac)
    except (ValueError, binascii.Error):
        given = b""
    return hmac.compare_digest(given, _mac(body, usable(secret, name)))


def digest(text: str) -> str:
    """A short name for what was handed in; says nothing about it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _mac(body: str, key: bytes) -> bytes:
    return hmac.new(key, f"{VERSION}\n{body}".encode(), hashlib.sha256).digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
