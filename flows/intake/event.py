"""What comes in, and the one shape that every alert of every sender is brought into.

Only what is certain becomes certain here: what a sender means by a word that is not known is *unknown*, which never
triggers anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["firing", "resolved", "acknowledged", "no_data", "error", "suppressed", "test", "config", "unknown"]
Basis = Literal["fired_at", "active_at", "state_change", "received"]
Closes = Literal["episode", "fingerprint"]

SKEW = timedelta(minutes=5)
"""A sender's time further in the future than this is no time to trust."""


class Refused(Exception):
    """A delivery that is not taken. ``status``: the HTTP answer; ``retry_s``: for ``Retry-After``."""

    status = 400

    def __init__(self, why: str, *, status: int | None = None, retry_s: int | None = None) -> None:
        super().__init__(why)
        self.status = self.status if status is None else status
        self.retry_s = retry_s


class Malformed(Refused):
    """The body is not what this sender sends: 400."""


class Denied(Refused):
    """It cannot be told that the sender is who it should be: 401, or 403 where it can be told that it is not."""

    status = 401


class Unavailable(Refused):
    """Something that is needed to take it is not there now (a certificate, the disk): 503, so that it is sent again."""

    status = 503


@dataclass(frozen=True)
class Delivery:
    """One request, as received.

    Attributes:
        endpoint: the name in the path, ``/alerts/ENDPOINT``; token: what follows it in the path, if anything does.
        headers: names in lower case.
        query: parameters of the URL; the last of several.
        body: raw bytes, decompressed.
        received_at: aware UTC.
        peer: address of the sender.
    """

    endpoint: str
    body: bytes
    received_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    token: str = ""
    peer: str = ""

    def header(self, name: str) -> str:
        """Empty where it is missing."""
        return self.headers.get(name.lower(), "")


class Auth(BaseModel):
    """How the sender was recognised.

    Attributes:
        method: ``none`` where nothing had to be shown.
        key_id: which of several live secrets, never the secret.
        replay_protected: the sender's own signature covers a time.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    key_id: str = ""
    verified: bool = False
    replay_protected: bool = False


class Evidence(BaseModel):
    """What a sender says about how it knows. None where it says nothing."""

    model_config = ConfigDict(frozen=True)

    vantages_failed: int | None = None
    vantages_total: int | None = None
    m_of_n: str | None = None


class Alert(BaseModel):
    """One alert as its source reads it, before it is tied to a delivery.

    Attributes:
        fingerprint: the sender's own key of this alert, as sent; empty where there is none.
        cycle: the sender's key of this one episode, where it has one; else the start says which episode it is.
        started_at: when the sender says it began; None where it does not. ``basis``: what that time is.
        observed_at: when the sender last looked; None where it does not say.
        suppressed_by: the maintenance window or alarm that suppresses its actions; empty while none does.
        truncated: the delivery may leave alerts out, so absence says nothing.
        test: why this is a test delivery; empty where it is none.
        trigger: may propose a run at all: a format without the facts for it is for people's eyes only.
        closes: what ends where this is resolved: this episode; or, for a sender that does not say which one ended,
            every earlier one of this fingerprint.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    fingerprint: str = ""
    cycle: str = ""
    started_at: datetime | None = None
    basis: Basis = "fired_at"
    observed_at: datetime | None = None
    severity: str = ""
    title: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    links: dict[str, str] = {}
    evidence: Evidence = Evidence()
    suppressed_by: str = ""
    truncated: bool = False
    test: str = ""
    trigger: bool = True
    closes: Closes = "episode"


class Event(BaseModel):
    """An alert of a delivery, normalised. Times are aware UTC.

    Attributes:
        source: kind of sender; ``endpoint``: which configured one.
        transport_id: the sender's id of the delivery, else the hash of its body: the same one sent again has the same.
        episode_key: of this alert from its beginning to its end; unique for ever.
        age_s: from ``observed_at`` to ``received_at``; how old the news was.
        clock_skew_s: how far in the future the sender's clock is; 0 where it is not.
        time_trusted: False where it is further than ``SKEW``: such an event never triggers.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    endpoint: str
    transport_id: str
    episode_key: str
    fingerprint: str
    kind: Kind
    started_at: datetime
    started_at_basis: Basis
    observed_at: datetime
    received_at: datetime
    age_s: float
    clock_skew_s: float = 0.0
    time_trusted: bool = True
    severity: str = ""
    title: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    links: dict[str, str] = {}
    evidence: Evidence = Evidence()
    suppressed_by: str = ""
    truncated: bool = False
    is_test: bool = False
    test_why: str = ""
    may_trigger: bool = True
    closes: Closes = "episode"
    auth: Auth
    raw_sha256: str

    def subject(self) -> str:
        """One line for people."""
        what = self.title or self.labels.get("alertname") or self.fingerprint or "an alert"
        return f"{what} ({self.kind}, {self.endpoint})"


def normalise(alert: Alert, delivery: Delivery, auth: Auth, source: str, transport_id: str = "") -> Event:
    """Tie ``alert`` to its delivery. An event without a start of its own started when it was received."""
    digest = hashlib.sha256(delivery.body).hexdigest()
    received = delivery.received_at
    started, basis = (alert.started_at, alert.basis) if alert.started_at else (received, "received")
    observed = alert.observed_at or (alert.started_at if alert.kind == "firing" else None) or received
    ahead = max(started, observed) - received
    trusted = ahead <= SKEW
    fingerprint = alert.fingerprint or _fingerprint(alert)
    test = alert.test or _asked_to_test(delivery)
    episode = (
        delivery.endpoint,
        fingerprint,
        alert.cycle or (started.isoformat(timespec="milliseconds") if alert.started_at else "undated"),
    )
    return Event(
        source=source,
        endpoint=delivery.endpoint,
        transport_id=transport_id or digest,
        episode_key=hashlib.sha256("\n".join(episode).encode()).hexdigest(),
        fingerprint=fingerprint,
        kind="test" if test and alert.kind == "firing" else alert.kind,
        started_at=started if trusted else received,
        started_at_basis=basis if trusted else "received",
        observed_at=observed if trusted else received,
        received_at=received,
        age_s=max(0.0, (received - observed).total_seconds()) if trusted else 0.0,
        clock_skew_s=max(0.0, ahead.total_seconds()),
        time_trusted=trusted,
        severity=alert.severity,
        title=alert.title,
        labels=alert.labels,
        annotations=alert.annotations,
        links=alert.links,
        evidence=alert.evidence,
        suppressed_by=alert.suppressed_by,
        truncated=alert.truncated,
        is_test=bool(test),
        test_why=test,
        # without a start or a cycle nobody can tell this episode from the next one
        may_trigger=alert.trigger and bool(alert.started_at or alert.cycle),
        closes=alert.closes,
        auth=auth,
        raw_sha256=digest,
    )


def _asked_to_test(delivery: Delivery) -> str:
    """For a sender whose own test cannot be told from an alert: ``?test=1`` on its URL, or a header of ours."""
    if delivery.query.get("test") or delivery.header("x-relight-test"):
        return "its URL or header says that it is a test"
    return ""


def _fingerprint(alert: Alert) -> str:
    """For a sender without one: of what names the alert."""
    named = "\n".join(f"{k}={v}" for k, v in sorted(alert.labels.items())) or alert.title
    return hashlib.sha256(named.encode()).hexdigest()[:16]


# ---- reading what senders send ----


def text(value: Any) -> str:
    """A value as text. Empty for None, and for a template's variable that its sender did not fill in."""
    if value is None or isinstance(value, dict | list):
        return ""
    found = str(value).strip().encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written down
    return "" if _unfilled(found) else found


def _unfilled(found: str) -> bool:
    """``*word*`` (UptimeRobot), ``{MACRO.NAME}`` (Zabbix), ``{{x}}``, ``$VAR`` (Datadog)."""
    if len(found) < 2 or any(c.isspace() for c in found):
        return False
    star = found[0] == found[-1] == "*" and found[1:-1].isalnum()
    macro = found[0] == "{" and found[-1] == "}"
    dollar = found[0] == "$" and found[1:].replace("_", "").isalnum() and found[1:].upper() == found[1:]
    return star or macro or dollar


def texts(value: Any) -> dict[str, str]:
    """A flat object as labels; empty where it is none."""
    return {text(k): text(v) for k, v in value.items() if text(v)} if isinstance(value, dict) else {}


def part(value: Any) -> dict[str, Any]:
    """An object as it is; empty where it is none."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[str]:
    """The texts of a list, or of one text with commas."""
    if isinstance(value, str):
        value = value.split(",")
    return [t for t in map(text, value) if t] if isinstance(value, list) else []


def moment(value: Any, *, unit_s: float = 1.0) -> datetime | None:
    """A sender's time as aware UTC: ISO 8601 text, or a number of ``unit_s`` seconds since 1970. None where it is none.

    A year below 1970 is how Go and others write "no time"; it is none (and some of them cannot be converted at all).
    """
    try:
        if isinstance(value, str) and not value.strip().lstrip("-").replace(".", "", 1).isdigit():
            found = datetime.fromisoformat(value.strip())
            if found.year < 1970:
                return None
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        if isinstance(value, bool) or value is None:
            return None
        seconds = float(value) * unit_s
        return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
    except (ValueError, OverflowError, OSError, TypeError):
        return None


def epoch(value: Any) -> datetime | None:
    """A number of seconds, milli-, micro- or nanoseconds since 1970, whichever a sender mixes; told by its size."""
    try:
        size = 0.0 if isinstance(value, bool) or value is None else abs(float(value))
    except (ValueError, TypeError, OverflowError):
        return moment(value)
    unit_s = next((u for most, u in ((1e11, 1.0), (1e14, 1e-3), (1e17, 1e-6)) if size < most), 1e-9)
    return moment(value, unit_s=unit_s)
