"""What every DNS provider can say and do. Terms are those of RFC 1035, 2136 and 2308."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class RRset:
    """A record set: ``name`` absolute with trailing dot, ``ttl`` seconds, ``values`` in presentation form, sorted."""

    name: str
    rdtype: str
    ttl: int
    values: tuple[str, ...]


@dataclass(frozen=True)
class Owned:
    """A record set together with the epoch TXT that says which run wrote it last, read in one moment."""

    rrset: RRset | None
    epoch: int | None
    """None: no epoch record yet."""
    serial: int


@dataclass(frozen=True)
class Answer:
    """What one server said. ``rrset`` None with ``rcode`` NOERROR is NODATA; ``error`` set means no usable answer."""

    server: str
    rcode: str
    rrset: RRset | None
    serial: int | None = None
    authoritative: bool = False
    error: str = ""
    note: str = ""
    """What the server added in words, for example an extended error (RFC 8914) such as ``Stale Answer``."""


@dataclass(frozen=True)
class Access:
    """That the primary would take a change from us now, found out without changing anything."""

    primary: str
    mname: str
    """The primary as the zone itself names it (SOA MNAME); may differ where the primary is hidden."""
    serial: int
    skew_s: float
    """The primary's clock minus ours, as signed in its answer; whole seconds on the wire."""
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Zone(Protocol):
    """One zone that relight may change, only at names that its settings allow."""

    def servers(self) -> tuple[str, ...]:
        """Authoritative servers to verify at, as ``host:port``."""
        ...

    def resolvers(self) -> tuple[str, ...]:
        """Caching resolvers to verify through, as ``host:port``."""
        ...

    def names(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of every record set that relight may change here."""
        ...

    def wanted(self, name: str, rdtype: str, site: str) -> RRset:
        """The record set that points ``name`` at ``site``, as the system file has it. Raises BadInput for others."""
        ...

    async def read(self, name: str, rdtype: str) -> Owned:
        """From the primary server. Raises Unreachable, Rejected."""
        ...

    async def swap(self, old: Owned, new: RRset, epoch: int) -> None:
        """Replace exactly ``old`` by ``new`` and the epoch TXT by ``epoch``, in one atomic change.

        Raises LostCompare when the zone no longer holds ``old`` or its epoch, LeaseHeld when the zone's epoch is
        newer than ``epoch``, Rejected for TSIG or policy, EffectUnknown when the reply was lost, Unreachable.
        Raises BadInput for an empty ``new`` and for names or types that the settings do not allow.
        """
        ...

    async def check_access(self, name: str, rdtype: str) -> Access:
        """Prove credentials and reach with a change that cannot happen. Raises Unreachable, Rejected, BadInput."""
        ...

    async def ask(self, server: str, name: str, rdtype: str) -> Answer:
        """Ask one authoritative server or resolver. Never raises for one that is down: see ``Answer.error``."""
        ...
