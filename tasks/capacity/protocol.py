"""What every provider of instances can say and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Instance:
    name: str
    site: str
    address: str
    """``host:port`` it serves on."""
    running: bool
    ready: bool
    """Its own readiness check passes."""


@dataclass(frozen=True)
class Limits:
    minimum: int
    maximum: int


@runtime_checkable
class Capacity(Protocol):
    """A scalable group of instances in each site."""

    def limits(self, site: str) -> Limits: ...

    async def instances(self, site: str) -> tuple[Instance, ...]:
        """Existing instances, running or not. Raises Unreachable."""
        ...

    async def scale(self, site: str, count: int) -> None:
        """Ask for ``count`` running instances; dead ones are replaced. Returns when asked for, not when ready.

        Raises BadInput outside the limits, Unreachable, Rejected (no capacity), EffectUnknown.
        """
        ...


@runtime_checkable
class Limited(Protocol):
    """A group that has limits of its own (an Auto Scaling group), beside what the system file says."""

    async def live_limits(self, site: str) -> Limits:
        """As the group has them now. Raises Unreachable."""
        ...

    async def set_limits(self, site: str, limits: Limits) -> None:
        """Raises Unreachable, Rejected, EffectUnknown."""
        ...
