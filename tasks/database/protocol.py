"""What every database provider can say and do, whatever the engine behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

Reach = Literal["answers", "refused", "silent"]
"""``refused``: the host answered that nothing listens (RST). ``silent``: no answer in time, which proves nothing."""


@dataclass(frozen=True)
class NodeView:
    """One node as one vantage point sees it at one moment. LSNs are byte positions; None is "could not tell"."""

    node: str
    site: str
    reach: Reach
    why: str = ""
    """The error in words where ``reach`` is not ``answers``."""
    in_recovery: bool | None = None
    """``pg_is_in_recovery()``: False is a primary."""
    read_only: bool | None = None
    """True where the node refuses new writes although it is a primary (fenced)."""
    system_identifier: str | None = None
    timeline: int | None = None
    lsn: int | None = None
    """Primary: current WAL position. Replica: the further of received and replayed."""
    replayed_lsn: int | None = None
    last_commit_at: datetime | None = None
    """Commit time, on the primary's clock, of the last transaction replayed."""
    upstream: str | None = None
    """Node name that a replica follows (from primary_conninfo), where it can be told."""
    streaming: bool | None = None
    """Replica: its WAL receiver is connected and heard from the primary within the provider's ``stale_after``."""
    heard_age_s: float | None = None
    """Replica: seconds since the last message from the primary."""
    upstream_lsn: int | None = None
    """Replica: the last position that the primary told it of (``latest_end_lsn``)."""


@dataclass(frozen=True)
class WriteProbe:
    """A test write to one node through one vantage point."""

    vantage: str
    node: str
    outcome: Literal["accepted", "refused", "gone", "silent", "runs"]
    """``refused``: the server said no. ``gone``: nothing listens there. ``silent``: no answer, which proves nothing.
    ``runs``: its host says that its process runs."""
    detail: str = ""
    address: str = ""
    """``host:port`` that was tried: two vantage points that use the same one are one witness, not two."""


@dataclass(frozen=True)
class Standby:
    """A standby as its primary sees it (``pg_stat_replication``)."""

    node: str
    """``application_name``: the node's name where it was set up by relight."""
    state: str
    sync_state: str
    flush_lsn: int | None


@dataclass(frozen=True)
class RoundTrip:
    """A committed write and its reading back on another connection, as a client of the pooler sees them."""

    nonce: str
    read_back: str | None
    in_recovery: bool
    system_identifier: str
    timeline: int | None


@dataclass(frozen=True)
class Durability:
    """What an acknowledged commit was promised: on ``needed`` of ``standbys`` before the acknowledgement."""

    method: Literal["async", "first", "any"]
    needed: int
    standbys: tuple[str, ...]


@runtime_checkable
class Database(Protocol):
    """A replicated database: nodes in sites, one primary. Every call is bounded by the provider's own time-outs."""

    def nodes(self, site: str | None = None) -> tuple[str, ...]:
        """Configured node names, of one site or of all, in the order of the file."""
        ...

    def site_of(self, node: str) -> str: ...

    def vantages(self) -> tuple[str, ...]:
        """Names of the places this database can be probed from."""
        ...

    def durability(self) -> Durability:
        """What the system file declares."""
        ...

    async def view(self, node: str, vantage: str | None = None) -> NodeView:
        """How a node looks. Never raises for a node that is down: that is what ``reach`` says."""
        ...

    async def live_durability(self, node: str) -> Durability:
        """What the node itself is configured with. Raises Unreachable."""
        ...

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        """Attempt a write that leaves nothing behind where it is refused. Never raises for a node that is down."""
        ...

    async def fence(self, node: str, *, orderly: bool) -> str:
        """Stop ``node`` from taking writes, by the strongest means configured; returns which one worked.

        ``orderly``: shut down so that the standbys receive everything first (planned switchover).
        Raises Unreachable or Rejected when no means worked.
        """
        ...

    async def unfence(self, node: str) -> None:
        """Reverse ``fence``, only for a node that is still the newest primary."""
        ...

    async def promote(self, node: str) -> None:
        """Make a replica the primary and return when it takes writes. Raises EffectUnknown if the reply is lost."""
        ...

    async def follow(self, node: str, upstream: str) -> None:
        """Point replica ``node`` at ``upstream`` and return; streaming is for the caller to wait for."""
        ...

    async def rejoin(self, node: str, upstream: str) -> str:
        """Bring a diverged or stopped node back as a replica of ``upstream``; returns how: start, rewind or copy."""
        ...


@runtime_checkable
class Witnessed(Protocol):
    """Besides the network, somebody else can say whether a node lives: its host, or the service that runs it."""

    async def ask_host(self, node: str) -> WriteProbe | None:
        """What the host says of its process: ``gone``, ``runs`` or ``silent``. None where there is none to ask."""
        ...


@runtime_checkable
class Drained(Protocol):
    """Writes can be brought to an end while the node lives on, so that its replicas receive everything."""

    async def quiesce(self, node: str) -> int:
        """Make primary ``node`` read only, end its clients, and return the position that no write can pass any more.

        Raises Unreachable, Rejected, EffectUnknown.
        """
        ...


@runtime_checkable
class Operated(Protocol):
    """What a provider can do besides when relight operates the servers itself (a managed service does not let it)."""

    async def standbys(self, node: str) -> tuple[Standby, ...]:
        """Who streams from ``node`` now, as it says itself. Raises Unreachable."""
        ...

    async def promised(self, node: str) -> tuple[str, Durability] | None:
        """(primary, what it promises) as noted in the replicated data that ``node`` holds; None without a note.

        The note outlives the primary. Raises Unreachable.
        """
        ...

    async def set_durability(self, node: str, wanted: Durability) -> None:
        """Change what primary ``node`` promises, and note it in the data. Raises Unreachable, Rejected."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A service that does not let its users do everything that the Protocols name."""

    def cannot(self, verb: str) -> str:
        """Why ``verb`` (``promote`` …) is not possible, and what to do instead; empty where it is."""
        ...


@dataclass(frozen=True)
class Backups:
    """What can be restored. ``earliest`` and ``latest`` bound the point in time; None where there is none."""

    point_in_time: bool
    earliest: datetime | None
    latest: datetime | None
    completed: tuple[datetime, ...]
    """Moments of the backups that are complete, newest first."""


@runtime_checkable
class Restorable(Protocol):
    """A database that can be made what it was at an earlier moment, in place."""

    def restores(self) -> str:
        """The node that a restore is of."""
        ...

    async def backups(self) -> Backups:
        """Raises Unreachable, NotYet, Rejected."""
        ...

    async def restore(self, to: datetime) -> None:
        """Begin, unless one is going on, and return when it is done. Raises Rejected, EffectUnknown."""
        ...


@dataclass(frozen=True)
class Standing:
    """What a server is set to and how it fares, read at one moment.

    Attributes:
        parameters: PostgreSQL's own names -> values as ``SHOW`` gives them.
        now: the server's clock.
        version: as the server tells it.
        archive_failing: since when WAL could not be archived last, where it failed after the last success.
    """

    parameters: Mapping[str, str]
    now: datetime
    version: str
    archive_failing: str = ""


@runtime_checkable
class Inspected(Protocol):
    """A server whose settings can be read."""

    async def standing(self, node: str) -> Standing:
        """Raises Unreachable, Rejected."""
        ...


@dataclass(frozen=True)
class Backed:
    """When the newest backup was complete, and when one was last restored for a test; None: nobody says."""

    completed_at: datetime | None
    restored_at: datetime | None


@runtime_checkable
class BackedUp(Protocol):
    """Somebody keeps backups of it and says so."""

    async def backed(self, node: str) -> Backed | None:
        """None where the component has no way to know. Raises Unreachable, Rejected."""
        ...


@runtime_checkable
class Restartable(Protocol):
    """Nodes that can be restarted from outside."""

    async def started_at(self, node: str) -> datetime:
        """When the server started, as it says itself. Raises Unreachable."""
        ...

    async def restart(self, node: str) -> None:
        """Begin a restart and return. A node with a standby of its own (Multi-AZ) fails over to it."""
        ...


@runtime_checkable
class Pooler(Protocol):
    """A connection pooler in front of the database, one a site (PgBouncer)."""

    def sites(self) -> tuple[str, ...]:
        """Sites that have a pooler."""
        ...

    async def paused(self, site: str) -> bool:
        """True when new queries are held. Raises Unreachable."""
        ...

    async def pause(self, site: str) -> None:
        """Hold new queries and wait for running transactions to end. Raises NotYet, Unreachable."""
        ...

    async def resume(self, site: str) -> None: ...

    async def target(self, site: str) -> str:
        """``host:port`` that the pooler sends the system's database to."""
        ...

    async def round_trip(self, site: str, nonce: str) -> RoundTrip:
        """Commit ``nonce`` through the pooler and read it back on a second connection. Raises Unreachable, Rejected,
        EffectUnknown when the answer to the commit is lost.
        """
        ...
