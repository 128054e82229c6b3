"""What every object store can say and do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class BucketView:
    """One site's bucket now: how many objects, how many bytes, and the newest change (ISO 8601 UTC or None)."""

    site: str
    objects: int
    bytes: int
    newest: str | None
    copied: Mapping[str, str] = field(default_factory=dict)
    """source site -> ISO 8601 UTC: all that the source held then is here, where the copier leaves such a mark."""


@runtime_checkable
class Storage(Protocol):
    """One bucket a site, the active one copied to the others."""

    async def view(self, site: str) -> BucketView:
        """Raises Unreachable, Rejected."""
        ...

    async def probe(self, site: str, nonce: str) -> None:
        """Write an object under the probe prefix, read it back, delete it. Raises Unreachable, Rejected."""
        ...

    async def source(self, site: str) -> str | None:
        """The site whose objects are copied into ``site``'s bucket; None when nothing is. Raises Unreachable."""
        ...

    async def set_source(self, site: str, source: str | None) -> None:
        """Change where ``site``'s bucket is copied from; None stops the copying, so that it may be written."""
        ...


@dataclass(frozen=True)
class Replicating:
    """How far the store's own replication of ``source``'s bucket into ``site``'s has come.

    Attributes:
        versioned: site -> versioning is on; replication needs it at both ends.
        rules: enabled rules that copy the whole bucket there; one with a filter does not count.
        statuses: of the newest objects of the source, as many as were asked for: status -> how many. ``PENDING``,
            ``COMPLETED``, ``FAILED``, ``REPLICA`` (came from elsewhere), ``NONE`` (written before there was a rule).
        failed: some keys of those that failed.
        time_control_s: within which S3 Replication Time Control is bound to have copied; None without it.
        until: all that the source held then is here, by the store's own metric (ISO 8601 UTC); None without one.
        latency_s: the largest delay in that metric's newest minute.
    """

    site: str
    source: str
    versioned: Mapping[str, bool]
    rules: tuple[str, ...]
    statuses: Mapping[str, int] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    time_control_s: float | None = None
    until: str | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Compared:
    """``site``'s bucket against ``source``'s, object by object, without relight's own.

    Attributes:
        objects: in the source now.
        missing: of those, not at the site in any version: they would be lost.
        hidden: of those, at the site behind a delete marker: nothing is lost, an older version is there.
        different: at both with another size, or found to differ when they were read.
        extra: at the site only (a deletion that was not copied, or something written there).
        sampled: how many were read at both and compared byte by byte.
        examples: what -> some keys.
    """

    objects: int
    missing: int = 0
    hidden: int = 0
    different: int = 0
    extra: int = 0
    sampled: int = 0
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@runtime_checkable
class Replicated(Protocol):
    """A store that copies by itself (S3 replication), and keeps versions."""

    async def replicating(self, site: str, source: str, sample: int) -> Replicating:
        """Raises Unreachable where one of the two does not answer, Rejected."""
        ...

    async def replicated_until(self, site: str, source: str) -> tuple[str | None, float | None]:
        """``until`` and ``latency_s`` of ``Replicating``, asked for at ``site`` only: the source may be dark."""
        ...

    async def compare(self, site: str, source: str, sample: int) -> Compared:
        """Every key of both; ``sample`` objects, spread over all, are read. Raises Unreachable, Rejected."""
        ...


@runtime_checkable
class Routed(Protocol):
    """One name before the buckets of all sites, that leads to those whose site is active."""

    def sites(self) -> tuple[str, ...]: ...

    async def active(self) -> Mapping[str, bool]:
        """Site -> requests are sent there. Raises Unreachable, Contradiction (other buckets than in the settings)."""
        ...

    async def route(self, old: Mapping[str, bool], new: Mapping[str, bool]) -> None:
        """All sites at once. Raises Contradiction where it is not ``old``, BadInput for none active, EffectUnknown."""
        ...
