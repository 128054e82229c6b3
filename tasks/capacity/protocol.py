"""What every provider of instances can say and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tasks.contract import Facts


@dataclass(frozen=True)
class Instance:
    name: str
    site: str
    address: str
    """``host:port`` it serves on; an instance id where only its balancer knows the port."""
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
class Startable(Protocol):
    """A group whose instances can be stopped and started one by one. Both return when asked for, not when done."""

    async def stop(self, site: str, instance: str) -> None:
        """One that does not run is left alone. Raises BadInput for an unknown one, Unreachable, EffectUnknown."""
        ...

    async def start(self, site: str, instance: str) -> None:
        """One that runs is left alone. Raises NotYet while it is still stopping, and as ``stop``; Rejected."""
        ...


@dataclass(frozen=True)
class Scaling:
    """By which rules a group scales by itself; None where there is no such rule. Times in seconds, cpu in percent."""

    minimum: int
    maximum: int
    cooldown_s: int | None
    target_cpu: float | None
    up: int | None
    up_cooldown_s: int | None
    down: int | None
    down_cooldown_s: int | None


@runtime_checkable
class Elastic(Protocol):
    """A group that scales by rules of its own."""

    async def explain(self, site: str) -> Facts:
        """What else decides whether it scales: suspended processes, zones, types, the warm pool, last failures."""
        ...

    async def scaling(self, site: str) -> tuple[Scaling, int]:
        """The rules, and how many instances are asked for now."""
        ...

    async def set_scaling(self, site: str, wanted: Scaling) -> None:
        """Raises SafetyRefusal where it would stop instances that run."""
        ...

    async def quota(self, site: str) -> tuple[float, float]:
        """What the account may run in the site's region, and what the group needs at its maximum, in vCPUs."""
        ...


@dataclass(frozen=True)
class Refresh:
    """A replacement of all instances. ``status`` as AWS names it; ``percent`` done; ``version`` it goes to."""

    name: str
    status: str
    percent: int
    version: str
    reason: str = ""

    @property
    def going(self) -> bool:
        return self.status in ("Pending", "InProgress", "Baking", "Cancelling", "RollbackInProgress")


@dataclass(frozen=True)
class Rolling:
    """How instances are replaced. ``minimum_healthy`` and ``maximum_healthy``: percent of the wanted count."""

    version: str
    minimum_healthy: int
    maximum_healthy: int
    warmup_s: int


@runtime_checkable
class Refreshing(Protocol):
    """A group whose instances are replaced by ones of another version."""

    async def versions(self, site: str) -> dict[str, str]:
        """Instance -> version it runs."""
        ...

    async def newest_refresh(self, site: str) -> Refresh | None: ...

    async def start_refresh(self, site: str, how: Rolling) -> None:
        """One that goes on to the same version is left alone. Raises Rejected where another one goes on."""
        ...

    async def roll_back(self, site: str) -> None:
        """The refresh that goes on turns round. Raises Rejected for none."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A group that has limits of its own (an Auto Scaling group), beside what the system file says."""

    async def live_limits(self, site: str) -> Limits:
        """As the group has them now. Raises Unreachable."""
        ...

    async def set_limits(self, site: str, limits: Limits) -> None:
        """Raises SafetyRefusal where that would stop instances, Unreachable, Rejected, EffectUnknown."""
        ...
