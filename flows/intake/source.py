"""The contract of a source: who sent this, and what does it say? One file a sender in ``flows/intake/sources``."""

from __future__ import annotations

import base64
import binascii
import hmac
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from flows.intake import sources as _sources
from flows.intake.event import Alert, Auth, Delivery, Denied
from tasks.errors import BadInput
from tasks.quantities import Duration
from tasks.secrets import SecretRef, resolve


class SourceSettings(BaseModel):
    """What every source has. Several tokens or secrets may be live at once, so that they can be changed.

    Attributes:
        tokens: shown as ``Authorization: Bearer``, as the password of ``Authorization: Basic``, as
            ``X-Relight-Token``, or as the last part of the path, ``/alerts/ENDPOINT/TOKEN`` (which is never logged).
        unauthenticated: take what anybody sends. Only where relight listens on a loopback address.
        max_age: how old an event may be to trigger anything.
        watchdog: an alert that must come at least so often, by the name of its ``alertname`` label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    tokens: tuple[SecretRef, ...] = ()
    unauthenticated: bool = False
    max_age: Duration = Field(default=900.0, gt=0)
    watchdog: str = ""
    watchdog_every: Duration = Field(default=300.0, gt=0)


@dataclass(frozen=True)
class Handshake:
    """A delivery that is no alert and has an answer of its own. ``headers`` go into it."""

    status: int
    said: str
    headers: tuple[tuple[str, str], ...] = ()


class Source(ABC):
    """A sender of alerts. Subclasses live one a file, named as ``name``, and are found by it."""

    name: ClassVar[str]
    Settings: ClassVar[type[SourceSettings]] = SourceSettings
    most_bytes: ClassVar[int] = 1 << 20

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    async def authenticate(self, delivery: Delivery) -> Auth:
        """Recognise the sender by its raw bytes. Raises Denied, Unavailable, MissingSecret."""
        return by_token(delivery, self.settings)

    async def handshake(self, delivery: Delivery, body: Any) -> Handshake | None:
        """The answer to a delivery that is no alert (a confirmation, say), once authenticated; None where it is one."""
        return None

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        """The sender's own id of this delivery, the same when it is sent again; empty: the hash of the body."""
        return ""

    @abstractmethod
    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        """The alerts in a parsed body. Raises Malformed where it is not what this sender sends."""


def by_token(delivery: Delivery, settings: SourceSettings) -> Auth:
    """One of the live tokens, wherever it is shown. Raises Denied."""
    if not settings.tokens:
        if settings.unauthenticated:
            return Auth(method="none", verified=True)
        raise Denied("this endpoint has no token to check against; give it `tokens`, or `unauthenticated: true`")
    shown = list(_shown(delivery))
    if not shown:
        raise Denied("no token; send Authorization: Bearer, Basic, X-Relight-Token, or put it last in the path")
    key = matching(shown, settings.tokens)
    if key is None:
        raise Denied("the token is not one of this endpoint", status=403)
    return Auth(method="token", key_id=key, verified=True)


def _shown(delivery: Delivery) -> Iterable[str]:
    scheme, _, rest = delivery.header("authorization").partition(" ")
    if scheme.lower() == "bearer":
        yield rest.strip()
    elif scheme.lower() == "basic":
        try:
            yield base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return
    if delivery.header("x-relight-token"):
        yield delivery.header("x-relight-token")
    if delivery.token:
        yield delivery.token


def matching(shown: Iterable[str], references: tuple[str, ...]) -> str | None:
    """The number of the live secret that one of ``shown`` is, as ``secret 1``. Compares in constant time."""
    found = None
    tried = [s.encode() for s in shown]
    for number, reference in enumerate(references, 1):
        secret = resolve(reference).get_secret_value().encode()
        for one in tried:
            if hmac.compare_digest(one, secret):
                found = f"secret {number}"
    return found


def signed(shown: Iterable[str], message: bytes, references: tuple[str, ...], algorithm: str = "sha256") -> str | None:
    """The number of the live secret with whose HMAC (RFC 2104, hex) of ``message`` one of ``shown`` is signed."""
    found = None
    tried = [s.strip().lower().encode("ascii", "replace") for s in shown]
    for number, reference in enumerate(references, 1):
        secret = resolve(reference).get_secret_value().encode()
        wanted = hmac.new(secret, message, algorithm).hexdigest().encode()
        for one in tried:
            if hmac.compare_digest(one, wanted):
                found = f"secret {number}"
    return found


def known() -> dict[str, type[Source]]:
    """Name -> source, of every file in ``flows/intake/sources``."""
    found = {}
    for module in pkgutil.iter_modules(_sources.__path__):
        loaded = importlib.import_module(f"{_sources.__name__}.{module.name}")
        found[loaded.SOURCE.name] = loaded.SOURCE
    return found


def of(name: str) -> type[Source]:
    """The source called ``name``. Raises BadInput."""
    sources = known()
    if name not in sources:
        raise BadInput(f"no source {name!r}; there are {', '.join(sorted(sources))}")
    return sources[name]
