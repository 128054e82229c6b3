"""What every source of cost can say. Amounts are US dollars; a day is a UTC day; what was not billed yet is not 0."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, Protocol, runtime_checkable

Kind = Literal["instance", "storage", "bandwidth", "other"]


@dataclass(frozen=True)
class Spend:
    """What one kind of usage of one component cost on one day.

    Attributes:
        site, component: as tagged; empty where nothing is.
        usage: the biller's own name of it (``USE1-BoxUsage:t3.large``).
        quantity: in the biller's unit of that usage; hours for instances.
        spot: bought on the spot market, and may be taken away at two minutes' notice.
        estimated: the bill of that day is not final.
    """

    day: date
    site: str
    component: str
    kind: Kind
    usage: str
    usd: float
    quantity: float
    spot: bool
    estimated: bool


@dataclass(frozen=True)
class Anomaly:
    """Spend that the biller did not expect. ``usd``: above what it expected, so far. ``ended``: None: it goes on."""

    id: str
    what: str
    started: str
    ended: str | None
    usd: float
    expected_usd: float | None


@dataclass(frozen=True)
class Advice:
    """A right-sizing recommendation. ``to``: instance type; empty: it could be ended."""

    resource: str
    site: str
    component: str
    now: str
    to: str
    usd_a_month: float
    saves_usd_a_month: float
    why: str


@runtime_checkable
class Cost(Protocol):
    """A source of cost."""

    async def spend(self, days: int) -> tuple[Spend, ...]:
        """The last ``days`` whole days, oldest first. Raises Unreachable, NotYet, Rejected."""
        ...

    async def anomalies(self, days: int) -> tuple[Anomaly, ...]:
        """That ended within ``days``, or go on. Raises Unreachable, NotYet, Rejected."""
        ...

    async def advice(self) -> tuple[Advice, ...]:
        """Right-sizing of instances. Raises Unreachable, NotYet, Rejected."""
        ...
