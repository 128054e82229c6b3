"""Simulated twin of the sites' balancers, with the failure semantics of ``haproxy``."""

from __future__ import annotations

from collections.abc import Callable

from tasks.contract import Surroundings
from tasks.errors import BadInput
from tasks.simulation import Simulation
from tasks.traffic.protocol import Balancer, Server
from tasks.world import DATABASE_POOL, World


class BalancerTwin:
    """Fulfils ``Balancer``."""

    def __init__(self, real: Balancer, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        self.closes_sessions = real.closes_sessions

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    def _server(self, pool: str, name: str, admin: str) -> Server:
        if pool == DATABASE_POOL:
            node = self._world.nodes[name]
            site, up = node.site, node.answers and node.site not in self._world.down
        else:
            site, up = name.rpartition("-app")[0], self._world.serving(name)
        return Server(pool, name, site, f"{name}:1", admin, up=up, weight=1, sessions=0)

    async def servers(self, site: str, pool: str) -> tuple[Server, ...]:
        def look() -> tuple[Server, ...]:
            return tuple(self._server(pool, n, a) for n, a in self._world.servers(site, pool).items())

        return await self._sim.read(self._name, f"servers {site} {pool}", look)

    async def set_admin(self, site: str, pool: str, server: str, admin: str) -> None:
        def effect() -> None:
            servers = self._world.servers(site, pool)
            if server not in servers:
                raise BadInput(f"pool {pool} of {site} has no server {server}")
            servers[server] = admin

        await self._change(f"set_admin {site} {pool}/{server} {admin}", effect)

    async def set_weight(self, site: str, pool: str, server: str, weight: int) -> None:
        await self._change(f"set_weight {site} {pool}/{server}", lambda: None)

    async def close_sessions(self, site: str, pool: str, server: str) -> None:
        await self._change(f"close_sessions {site} {pool}/{server}", lambda: None)

    async def persist(self, site: str) -> None:
        await self._change(f"persist {site}", lambda: None)

    async def _change(self, what: str, effect: Callable[[], None]) -> None:
        await self._sim.change(self._name, what, effect)


TWINS = ((Balancer, BalancerTwin),)
