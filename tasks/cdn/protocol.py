"""What every content delivery network can say and do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Edge:
    """A distribution as it is configured now."""

    name: str
    site: str | None
    """Whose origin every path is fetched from; None where they differ, or where it is nobody's."""
    origins: Mapping[str, str]
    """path pattern (``*`` for the default) -> origin."""
    deployed: bool
    """What is configured is in effect at every edge."""
    version: str
    """Changes with each change: for compare-and-set."""


@runtime_checkable
class Cdn(Protocol):
    """One distribution with an origin in each site."""

    def sites(self) -> tuple[str, ...]: ...

    def control_plane(self) -> str:
        """The region that every change goes through."""
        ...

    def check(self, site: str) -> str | None:
        """URL that answers well while the site's origin is healthy; None where the system file has none."""
        ...

    async def edge(self) -> Edge:
        """Raises Unreachable, Rejected, SafetyRefusal (not marked), BadInput (an origin that is not there)."""
        ...

    async def switch(self, site: str, version: str) -> None:
        """Every path that is fetched from some site's origin is fetched from this one's.

        Returns when it is configured, not when it is deployed. Raises LostCompare when ``version`` is not the newest.
        """
        ...

    async def invalidate(self, reference: str, paths: Sequence[str]) -> None:
        """What is cached of ``paths`` is not served any more. The same reference again is the same invalidation."""
        ...

    async def invalidated(self, reference: str) -> bool | None:
        """Completed? None for one that is not known."""
        ...
