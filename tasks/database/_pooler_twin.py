"""Simulated twin of the sites' poolers, with the failure semantics of ``pgbouncer``."""

from __future__ import annotations

from tasks.contract import Surroundings
from tasks.database._sizes import PoolLimits
from tasks.database.protocol import Pooler, RoundTrip
from tasks.errors import Rejected, Unreachable
from tasks.simulation import Simulation
from tasks.world import IDENTITY, World

POOL = PoolLimits(10, 50, 50)


class PoolerTwin:
    """Fulfils ``Pooler`` and ``SizedPool``: one in each site, behind the site's balancer."""

    def __init__(self, real: Pooler, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    def _there(self, site: str) -> None:
        if site in self._world.down:
            raise Unreachable(f"the pooler of {site} does not answer")

    async def paused(self, site: str) -> bool:
        def look() -> bool:
            self._there(site)
            return site in self._world.paused

        return await self._sim.read(self._name, f"paused {site}", look)

    async def pause(self, site: str) -> None:
        def effect() -> None:
            self._there(site)
            self._world.paused.add(site)

        await self._sim.change(self._name, f"pause {site}", effect)

    async def resume(self, site: str) -> None:
        def effect() -> None:
            self._there(site)
            self._world.paused.discard(site)

        await self._sim.change(self._name, f"resume {site}", effect)

    async def target(self, site: str) -> str:
        def look() -> str:
            self._there(site)
            return self._world.routed(site).name

        return await self._sim.read(self._name, f"target {site}", look)

    async def pool_limits(self, site: str) -> PoolLimits:
        def look() -> PoolLimits:
            self._there(site)
            return self._world.pools.get(site, POOL)

        return await self._sim.read(self._name, f"pool_limits {site}", look)

    async def set_pool_limits(self, site: str, limits: PoolLimits) -> str:
        def effect() -> str:
            self._there(site)
            self._world.pools[site] = limits
            return "SET"

        return await self._sim.change(self._name, f"set_pool_limits {site}", effect)

    async def round_trip(self, site: str, nonce: str) -> RoundTrip:
        def effect() -> RoundTrip:
            self._there(site)
            if site in self._world.paused:
                raise Unreachable(f"the pooler of {site} holds queries")
            node = self._world.routed(site)
            if not node.writable:
                raise Rejected(f"{node.name} takes no writes")
            if not self._world.commit(node, None):
                raise Unreachable(f"the commit at {node.name} waits for a standby")
            return RoundTrip(nonce, nonce, in_recovery=False, system_identifier=IDENTITY, timeline=node.timeline)

        return await self._sim.change(self._name, f"round_trip {site}", effect)
