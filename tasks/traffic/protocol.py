"""What every load balancer can say and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from tasks.contract import Facts


@dataclass(frozen=True)
class Server:
    """One server behind a balancer, now."""

    pool: str
    name: str
    site: str
    """Site the server itself runs in (a balancer in west may hold a server of east)."""
    address: str
    admin: str
    """``ready``, ``drain`` or ``maint``: what an operator asked for; ``mixed``: ready at some listeners of the pool."""
    up: bool
    """The balancer's own health check, where it has one: passes (or there is no check)."""
    weight: int
    sessions: int
    members: tuple[str, ...] = ()
    """Where one entry stands for many (a target group): those of them that pass their check."""
    canary: bool = False
    """It is for trying a release: never made ready, only weighed (``Weighted``), and drained with the others."""


TAKES = frozenset({"ready", "mixed"})
"""Admin states in which new connections may come."""


@dataclass(frozen=True)
class Target:
    """One member of a server that stands for many: an instance id or an address.

    ``state``: ``initial``, ``healthy``, ``unhealthy``, ``draining`` … as the balancer says it, with its ``reason``.
    """

    name: str
    port: int
    state: str
    reason: str = ""


@runtime_checkable
class Balancer(Protocol):
    """One load balancer a site, each with named pools (HAProxy backends, ELB target groups)."""

    closes_sessions: ClassVar[bool]
    """It can cut connections that are open: without that, it cannot promise that nobody writes to an old primary."""

    def sites(self) -> tuple[str, ...]:
        """Sites that have a balancer."""
        ...

    async def servers(self, site: str, pool: str) -> tuple[Server, ...]:
        """Raises Unreachable when the balancer's control interface does not answer, BadInput for an unknown pool."""
        ...

    async def set_admin(self, site: str, pool: str, server: str, admin: str) -> None:
        """``ready``, ``drain`` or ``maint``. Raises Unreachable, Rejected, EffectUnknown."""
        ...

    async def set_weight(self, site: str, pool: str, server: str, weight: int) -> None: ...

    async def close_sessions(self, site: str, pool: str, server: str) -> None:
        """Cut the connections that are still open to ``server`` (a kept-alive connection never moves by itself)."""
        ...

    async def persist(self, site: str) -> None:
        """Write the running server state to where a reload of the balancer reads it back."""
        ...


@runtime_checkable
class Members(Protocol):
    """A balancer whose servers stand for many targets."""

    def groups(self, site: str, pool: str) -> dict[str, str]:
        """Server -> site that its targets run in."""
        ...

    async def explain(self, site: str, pool: str) -> Facts:
        """What else decides where requests go: cross-zone balancing, stickiness, deregistration delay."""
        ...

    async def targets(self, site: str, pool: str, server: str) -> tuple[Target, ...]: ...

    async def deregister(self, site: str, pool: str, server: str, target: Target) -> None:
        """It gets nothing new; what is open may end within the deregistration delay (``draining``)."""
        ...

    async def register(self, site: str, pool: str, server: str, target: Target) -> None: ...


Weights = dict[str, dict[str, int]]
"""Label of a route (a listener's default action, or a rule) -> server -> weight."""


@runtime_checkable
class Weighted(Members, Protocol):
    """A balancer with a canary beside the servers of a pool."""

    def canary(self, site: str, pool: str) -> str:
        """The server of the pool that is its canary. Raises BadInput where it has none."""
        ...

    async def weights(self, site: str, pool: str) -> Weights:
        """Every route of the pool, with the servers that it names. Raises Unreachable, BadInput, SafetyRefusal."""
        ...

    async def set_weights(self, site: str, pool: str, weights: Weights) -> None:
        """At every route that is named, or at none. Raises UnhealthyTarget rather than send to nobody healthy, BadInput
        for a route that is not there (any more), Rejected, EffectUnknown.
        """
        ...
