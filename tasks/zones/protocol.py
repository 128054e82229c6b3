"""What every DNS provider can say and do. Terms are those of RFC 1035, 2136 and 2308."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tasks.zones import _routing as routing


@dataclass(frozen=True)
class RRset:
    """A record set: ``name`` absolute with trailing dot, ``ttl`` seconds, ``values`` in presentation form, sorted.

    Where a provider has more than values (aliases, weights, failover), each value describes one of its record sets: see
    ``tasks.zones._routing``. ``ttl`` is then how long a cache may hold any of it.
    """

    name: str
    rdtype: str
    ttl: int
    values: tuple[str, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses, or the names of other things, that clients are led to; for plain values, those."""
        return routing.targets(self.values)


@dataclass(frozen=True)
class Served:
    """What a server answers where a record set is in.

    Attributes:
        any_of: sorted values, one of which is the whole answer.
        ttl: of an authoritative answer; None where it is not the record set's own (an alias has that of its target).
        part: an answer may be some of the values only (a load balancer gives some of its addresses at a time).
    """

    any_of: tuple[tuple[str, ...], ...]
    ttl: int | None
    part: bool = False

    def fits(self, values: tuple[str, ...]) -> bool:
        """``values`` of an answer are what was expected."""
        if self.part:
            return any(set(values) & set(each) for each in self.any_of)
        return values in self.any_of

    def __str__(self) -> str:
        return " or ".join(" ".join(each) for each in self.any_of) or "nothing"


@dataclass(frozen=True)
class Owned:
    """A record set together with the epoch TXT that says which run wrote it last, read in one moment."""

    rrset: RRset | None
    epoch: int | None
    """None: no epoch record yet."""
    serial: int | None
    """None where a change does not move it (Route 53)."""


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
    serial: int | None
    skew_s: float
    """The primary's clock minus ours, as signed in its answer; whole seconds on the wire."""
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Switchboard(Protocol):
    """One on/off switch a site, made beforehand, that name servers everywhere follow without a control plane.

    A name whose failover or weighted record sets have these switches as health checks leads to the sites that are on.
    """

    def sites(self) -> tuple[str, ...]:
        """Those that have a switch."""
        ...

    def names(self) -> tuple[str, ...]:
        """The names that follow these switches, absolute."""
        ...

    def reached_at(self, site: str) -> tuple[str, ...]:
        """Addresses or names that clients are led to while ``site`` is on. Raises BadInput for an unknown one."""
        ...

    def needs(self) -> tuple[str, ...]:
        """What a flip goes through, each a region or an endpoint, for people and for the dependency audit."""
        ...

    async def states(self) -> Mapping[str, bool]:
        """Site -> it is on, asked now. Raises Unreachable, Rejected."""
        ...

    async def flip(self, old: Mapping[str, bool], new: Mapping[str, bool], by: Flipping) -> None:
        """Make ``new`` true where ``old`` is true; no moment in between has every site off.

        Raises LostCompare where ``old`` is not true any more, LeaseHeld where a newer epoch flipped last (as far as the
        provider can keep one), SafetyRefusal naming the safety rule that said no, NotYet, EffectUnknown, Unreachable.
        """
        ...


@dataclass(frozen=True)
class Flipping:
    """Who flips. ``override``: safety rules may be overridden; only where a person waived them by name."""

    epoch: int
    override: bool = False


@dataclass(frozen=True)
class Pace:
    """How many requests a move of every name sends, and how many a second are taken from the whole account."""

    requests: int
    per_s: float


@runtime_checkable
class Paced(Protocol):
    """A zone whose keeper takes only so many requests."""

    def pace(self) -> Pace: ...


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

    async def in_sync(self, name: str, within_s: float) -> None:
        """Return when every authoritative server has what this process last swapped in at ``name``.

        Only what the provider can be asked about: at once where servers are simply asked (``ask``), or where nothing
        was changed. Raises NotYet after ``within_s``, Unreachable.
        """
        ...

    async def served(self, rrset: RRset) -> Served:
        """What clients get where ``rrset`` is in; what is behind an alias is looked up now. Raises Unreachable."""
        ...

    def control_plane(self) -> str:
        """What a change goes through besides the zone's own servers, for people; empty where there is nothing."""
        ...

    async def check_access(self, name: str, rdtype: str) -> Access:
        """Prove credentials and reach with a change that cannot happen. Raises Unreachable, Rejected, BadInput."""
        ...

    async def ask(self, server: str, name: str, rdtype: str) -> Answer:
        """Ask one authoritative server or resolver. Never raises for one that is down: see ``Answer.error``."""
        ...
