"""What every load balancer can say and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Server:
    """One server behind a balancer, now."""

    pool: str
    name: str
    site: str
    """Site the server itself runs in (a balancer in west may hold a server of east)."""
    address: str
    admin: str
    """``ready``, ``drain`` or ``maint``: what an operator asked for."""
    up: bool
    """The balancer's own health check, where it has one: passes (or there is no check)."""
    weight: int
    sessions: int


@runtime_checkable
class Balancer(Protocol):
    """One load balancer a site, each with named pools (HAProxy backends, ELB target groups)."""

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
