"""What a database or a pooler can say and do about its sizes: autovacuum of each table, limits of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class TableVacuum:
    """Autovacuum of one table, as it takes effect (the table's own setting, else the server's).

    Attributes:
        table: ``schema.name``.
        enabled, threshold: changed rows before a vacuum (``autovacuum_vacuum_threshold``), as in force.
        server_enabled: ``autovacuum`` of the server; off, no table's setting helps.
        ours: the account may change it (it owns the table, or is a member of its owner).
    """

    table: str
    enabled: bool
    threshold: int
    server_enabled: bool
    ours: bool


@dataclass(frozen=True)
class PoolLimits:
    """Server connections of a pool. ``maximum``: of the whole database, 0 is no limit. ``size``: of each user.

    ``minimum`` None: the pooler keeps none, and cannot be told to; it opens connections as they are asked for.
    """

    minimum: int | None
    size: int
    maximum: int

    def __str__(self) -> str:
        most = self.maximum or "any number of"
        return f"up to {most}" if self.minimum is None else f"{self.minimum} to {most}"


@runtime_checkable
class Vacuumed(Protocol):
    """A database whose tables are vacuumed by the server itself."""

    async def autovacuum(self, node: str) -> tuple[TableVacuum, ...]:
        """Every ordinary table of the system's database. Raises Unreachable, Rejected."""
        ...

    async def set_autovacuum(
        self, node: str, table: str, *, enabled: bool, threshold: int, lock_timeout_s: float
    ) -> None:
        """Set it on primary ``node``. Raises NotYet where the table's lock is not had in time (nothing was changed),
        Rejected, Unreachable, EffectUnknown.
        """
        ...


@runtime_checkable
class SizedPool(Protocol):
    """A pooler with limits that can be changed while it runs, one a site."""

    async def pool_limits(self, site: str) -> PoolLimits:
        """As in force. Raises Unreachable."""
        ...

    async def set_pool_limits(self, site: str, limits: PoolLimits) -> str:
        """Change them without a restart; how, and how long it lasts. Raises Unreachable, Rejected, EffectUnknown."""
        ...
