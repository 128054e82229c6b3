"""Simulated twin of the sites' balancers, with the failure semantics of ``haproxy``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.contract import Facts, Surroundings
from tasks.errors import BadInput, UnhealthyTarget
from tasks.simulation import Simulation
from tasks.traffic.protocol import Balancer, Members, Server, Target, Weights
from tasks.world import DATABASE_POOL, DRAIN_S, WEIGHT, World


class BalancerTwin:
    """Fulfils ``Balancer``."""

    def __init__(self, real: Balancer, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        self.closes_sessions = real.closes_sessions

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    def _server(self, at: str, pool: str, name: str, admin: str) -> Server:
        if pool == DATABASE_POOL:
            node = self._world.nodes[name]
            up = node.answers and node.site not in self._world.down
            return Server(pool, name, node.site, f"{name}:1", admin, up=up, weight=1, sessions=0)
        site, weight = name.rpartition("-app")[0], self._world.weights.get((at, name), WEIGHT)
        ends = self._world.now < self._world.open_until.get(name, 0.0)
        up = self._world.serving(name)
        return Server(pool, name, site, f"{name}:1", admin, up=up, weight=weight, sessions=int(ends))

    async def servers(self, site: str, pool: str) -> tuple[Server, ...]:
        def look() -> tuple[Server, ...]:
            return tuple(self._server(site, pool, n, a) for n, a in self._world.servers(site, pool).items())

        return await self._sim.read(self._name, f"servers {site} {pool}", look)

    async def set_admin(self, site: str, pool: str, server: str, admin: str) -> None:
        def effect() -> None:
            servers = self._world.servers(site, pool)
            if server not in servers:
                raise BadInput(f"pool {pool} of {site} has no server {server}")
            if pool != DATABASE_POOL and servers[server] == "ready" != admin and self._world.serving(server):
                self._world.open_until[server] = self._world.now + DRAIN_S
            servers[server] = admin

        await self._change(f"set_admin {site} {pool}/{server} {admin}", effect)

    async def set_weight(self, site: str, pool: str, server: str, weight: int) -> None:
        def effect() -> None:
            if server not in self._world.servers(site, pool):
                raise BadInput(f"pool {pool} of {site} has no server {server}")
            if pool != DATABASE_POOL:
                self._world.weights[site, server] = weight

        await self._change(f"set_weight {site} {pool}/{server} {weight}", effect)

    async def close_sessions(self, site: str, pool: str, server: str) -> None:
        await self._change(f"close_sessions {site} {pool}/{server}", lambda: None)

    async def persist(self, site: str) -> None:
        await self._change(f"persist {site}", lambda: None)

    async def _change(self, what: str, effect: Callable[[], None]) -> None:
        await self._sim.change(self._name, what, effect)


class GroupsTwin(BalancerTwin):
    """Fulfils ``Balancer`` and ``Weighted``: a server is all application servers of a site, as a target group is."""

    def __init__(self, real: Any, around: Surroundings, world: World, simulation: Simulation) -> None:
        super().__init__(real, around, world, simulation)
        self._groups: Any = real

    async def servers(self, site: str, pool: str) -> tuple[Server, ...]:
        def look() -> tuple[Server, ...]:
            admin = self._world.servers(site, pool)
            found = []
            for name, where in self._groups.groups(site, pool).items():
                mine = [n for n in admin if n.startswith(f"{where}-app")]
                healthy = tuple(n for n in mine if self._world.serving(n))
                ready = all(admin[n] == "ready" for n in mine)
                found.append(
                    Server(
                        pool, name, where, name, "ready" if ready else "drain",
                        up=bool(healthy), weight=1, sessions=0, members=healthy,
                    )
                )  # fmt: skip
            return tuple(found)

        return await self._sim.read(self._name, f"servers {site} {pool}", look)

    async def set_admin(self, site: str, pool: str, server: str, admin: str) -> None:
        def effect() -> None:
            servers, groups = self._world.servers(site, pool), self._groups.groups(site, pool)
            if server not in groups:
                raise BadInput(f"pool {pool} of {site} has no target group {server}")
            mine = [n for n in servers if n.startswith(f"{groups[server]}-app")]
            if admin == "ready" and not any(self._world.serving(n) for n in mine):
                raise UnhealthyTarget(f"{server} has no healthy target")
            if admin != "ready" and not any(a == "ready" for n, a in servers.items() if n not in mine):
                raise UnhealthyTarget(f"without {server} nobody would be left")
            servers.update(dict.fromkeys(mine, "ready" if admin == "ready" else "drain"))

        await self._change(f"set_admin {site} {pool}/{server} {admin}", effect)

    def groups(self, site: str, pool: str) -> dict[str, str]:
        found: dict[str, str] = self._groups.groups(site, pool)
        return found

    async def explain(self, site: str, pool: str) -> Facts:
        def look() -> Facts:
            self._world.servers(site, pool)
            return {"deregistration_delay_s": dict.fromkeys(self._groups.groups(site, pool), 300)}

        return await self._sim.read(self._name, f"explain {site} {pool}", look)

    async def targets(self, site: str, pool: str, server: str) -> tuple[Target, ...]:
        def look() -> tuple[Target, ...]:
            if server not in self._groups.groups(site, pool):  # the canary: one target of its own
                return (Target(server, 80, "unhealthy" if site in self._world.down else "healthy"),)
            where = self._groups.groups(site, pool)[server]
            out = self._world.deregistered
            names = [n for n in self._world.servers(site, pool) if n.startswith(f"{where}-app") and n not in out]
            return tuple(Target(n, 80, "healthy" if self._world.serving(n) else "unhealthy") for n in names)

        return await self._sim.read(self._name, f"targets {site} {pool}/{server}", look)

    def canary(self, site: str, pool: str) -> str:
        found: str = self._groups.canary(site, pool)
        return found

    async def weights(self, site: str, pool: str) -> Weights:
        """One route, to all of them."""

        def look() -> Weights:
            admin, canary = self._world.servers(site, pool), self.canary(site, pool)
            ready = {where for n, a in admin.items() for where in (n.rpartition("-app")[0],) if a == "ready"}
            groups = self._groups.groups(site, pool).items()
            given = {name: WEIGHT if where in ready else 0 for name, where in groups}
            return {"listener": {**given, canary: self._world.weights.get((site, canary), 0)}}

        return await self._sim.read(self._name, f"weights {site} {pool}", look)

    async def set_weights(self, site: str, pool: str, weights: Weights) -> None:
        """Only the canary's: a twin shows no canary that has everything."""
        canary = self.canary(site, pool)

        def effect() -> None:
            self._world.servers(site, pool)
            for given in weights.values():
                self._world.weights[site, canary] = given[canary]

        await self._change(f"set_weights {site} {pool} {weights}", effect)

    async def deregister(self, site: str, pool: str, server: str, target: Target) -> None:
        await self._change(f"deregister {site} {target.name}", lambda: self._world.deregistered.add(target.name))

    async def register(self, site: str, pool: str, server: str, target: Target) -> None:
        await self._change(f"register {site} {target.name}", lambda: self._world.deregistered.discard(target.name))


TWINS = ((Members, GroupsTwin), (Balancer, BalancerTwin))
