"""What stands in the world of the simulated twins: database nodes, buckets, record sets. See ``tasks/world.py``."""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.database.protocol import Durability
from tasks.zones.protocol import RRset

ASYNC = Durability("async", 0, ())


@dataclass
class Node:
    """One database server. ``log`` holds the numbers of the writes it has; its position is its length."""

    name: str
    site: str
    replica: bool = True
    upstream: str | None = None
    up: bool = True
    hung_since: float | None = None
    held: bool = False
    """Kept down: it does not come back by itself."""
    read_only: bool = False
    timeline: int = 1
    log: list[int] = field(default_factory=list)
    behind: int = 0
    """Writes that an asynchronous replica lags."""
    last_commit: float = 0.0
    live: Durability = ASYNC
    note: tuple[str, Durability] | None = None

    @property
    def answers(self) -> bool:
        return self.up and self.hung_since is None

    @property
    def writable(self) -> bool:
        return self.answers and not self.replica and not self.read_only

    @property
    def may_write(self) -> bool:
        """Not proven harmless: a hung process may go on at any moment."""
        return self.up and not self.replica and not self.read_only

    @property
    def lsn(self) -> int:
        return 1000 + 10 * len(self.log)


@dataclass
class Bucket:
    """One site's objects: how many, where from, and the copier's mark."""

    objects: int = 10
    source: str | None = None
    copied: dict[str, float] = field(default_factory=dict)


@dataclass
class Record:
    """A record set, who wrote it last, and since when (for secondaries that lag)."""

    rrset: RRset
    epoch: int | None = None
    since: float = -1e9
    before: RRset | None = None
