"""What a database can say of the work it does: statements, tables, indexes; and a vacuum that nobody waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Statement:
    """A statement as the server counts it, its constants replaced by ``$1``. Times in seconds since ``Workload.since``.

    Attributes:
        share: of the time of all statements, percent.
        hit, read: blocks found in the server's cache, and not. temp: blocks spilled to disk.
    """

    id: str
    text: str
    calls: int
    total_s: float
    mean_s: float
    worst_s: float
    rows: int
    hit: int
    read: int
    temp: int
    share: float


@dataclass(frozen=True)
class TableUse:
    """A table's size and use. ``table``: ``schema.name``, quoted. Counts since the statistics began.

    Attributes:
        scanned_rows: rows that sequential scans read.
        vacuum_at, analyze_at: dead or changed rows at which autovacuum itself would come.
        frozen_age: transactions since it was frozen; wraparound at two thousand million.
        ours: the account may vacuum it.
    """

    table: str
    rows: int
    bytes: int
    scans: int
    scanned_rows: int
    index_scans: int
    dead: int
    changed: int
    vacuum_at: float
    analyze_at: float
    vacuumed_at: datetime | None
    analyzed_at: datetime | None
    frozen_age: int
    ours: bool


@dataclass(frozen=True)
class IndexUse:
    """An index. ``key``: its columns, operator classes and predicate as one text: equal for a duplicate.

    Attributes:
        wanted: it enforces something (primary key, unique, exclusion) or is a replica's identity: never advised away.
        wasted: share of it that is empty, percent; None where that was not measured.
    """

    index: str
    table: str
    bytes: int
    scans: int
    wanted: bool
    valid: bool
    key: str
    definition: str
    wasted: float | None = None


@dataclass(frozen=True)
class Workload:
    """A node's work. ``since``: when the counters began; None where the server cannot tell.

    Attributes:
        hit_ratio: blocks found in the server's cache, percent; None where nothing was read.
        missing: what could not be read -> why: unknown, not absent.
    """

    node: str
    at: datetime
    since: datetime | None
    version: str
    statements: tuple[Statement, ...]
    tables: tuple[TableUse, ...]
    indexes: tuple[IndexUse, ...]
    hit_ratio: float | None
    cache_bytes: int
    database_bytes: int
    connections: int
    idle: int
    max_connections: int
    missing: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Reviewed(Protocol):
    """A database that says what it does."""

    async def workload(self, node: str) -> Workload:
        """Read-only. What the account may not see is in ``missing``. Raises Unreachable."""
        ...

    async def plan(self, node: str, statement: str) -> dict[str, Any]:
        """The generic plan of a statement with ``$n`` in it; nothing is executed. Raises Rejected, Unreachable."""
        ...

    async def vacuum(self, node: str, table: str, *, lock_timeout_s: float, timeout_s: float) -> None:
        """Vacuum and analyze, gently, without giving space back. Safe to repeat.

        Raises NotYet where the table is locked (nothing was done), Rejected on a replica, EffectUnknown where it was
        cut off: what was vacuumed until then stays so.
        """
        ...
