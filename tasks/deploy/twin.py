"""Simulated twins of what holds the releases (with the failure semantics of ``folders``), staging, and load tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from tasks.capacity.twin import SingleTwin
from tasks.contract import Surroundings
from tasks.deploy.protocol import Answer, Environment, Fleet, Load, Loaded, LoadTests, Releases
from tasks.errors import BadInput, Unreachable
from tasks.simulation import Simulation
from tasks.traffic.twin import BalancerTwin
from tasks.world import DATABASE_POOL, FIRST, RELEASES, World


class ReleasesTwin:
    """Fulfils ``Releases``. There are the releases ``1``, which runs at first, and ``2``."""

    def __init__(self, real: Releases, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def available(self, site: str) -> tuple[str, ...]:
        return await self._sim.read(self._name, f"available {site}", lambda: RELEASES)

    async def chosen(self, site: str) -> str:
        return await self._sim.read(self._name, f"chosen {site}", lambda: self._world.links.get(site, FIRST))

    async def switch(self, site: str, version: str) -> None:
        def effect() -> None:
            if version not in RELEASES:
                raise BadInput(f"no release {version!r} for {site}; there are: {', '.join(RELEASES)}")
            self._world.links[site] = version

        await self._sim.change(self._name, f"switch {site} {version}", effect)

    async def ask(self, address: str) -> Answer:
        name = address.rpartition(":")[0]

        def look() -> Answer:
            version = self._world.release(name)
            ready = version is not None and self._world.ready(name)
            return Answer(version, ready=ready, why="" if ready else f"{name} is not ready")

        return await self._sim.read(self._name, f"ask {name}", look, lambda why: Answer(None, ready=False, why=why))


PACE = 4
"""Requests a second of each visitor."""


class LoadTwin:
    """Fulfils ``LoadTests``. Where nobody serves every request fails: that is a result, as it is for locust."""

    def __init__(self, real: LoadTests, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        self._sites = around.sites

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def target(self, site: str) -> str:
        def look() -> str:
            if site not in self._sites:
                raise BadInput(f"no site {site!r}; known: {', '.join(self._sites)}")
            return f"http://{site}"

        return await self._sim.read(self._name, f"target {site}", look)

    async def allowed(self, url: str) -> None:
        """Load may go everywhere here."""

    async def run(self, url: str, load: Load) -> Loaded:
        host = urlsplit(url).hostname or ""
        site = self._world.site_at.get(host, host)
        await asyncio.sleep(load.for_s)

        def look() -> Loaded:
            count = int(load.users * load.for_s * PACE)
            failed = 0 if self._serves(site) else count
            return Loaded(count, failed, 0.02, {f"GET {url}": (count, failed)})

        return await self._sim.read(self._name, f"run {site}", look)

    def _serves(self, site: str) -> bool:
        try:
            pool = next(p for s, p in self._world.admin if s == site and p != DATABASE_POOL)
            return any(self._world.ready(n) for n in self._world.apps(site, pool))
        except Unreachable:
            return False


class EnvironmentTwin:
    """Fulfils ``Environment``: of the twins that a site's parts have. Its place in the world is its name."""

    def __init__(self, real: Environment, around: Surroundings, world: World, simulation: Simulation) -> None:
        self.name, self.url = real.name, real.url
        self._world, self._sim = world, simulation
        parts, here = real.fleet(), replace(around, sites=(real.name,))
        capacity = SingleTwin(parts.capacity, here, world, simulation)
        balancer: Any = BalancerTwin(parts.balancer, here, world, simulation)
        self._fleet = Fleet(ReleasesTwin(parts.releases, here, world, simulation), capacity, capacity, balancer)

    async def aclose(self) -> None:
        """Nothing is held open."""

    def fleet(self) -> Fleet:
        return self._fleet

    async def front(self) -> Answer:
        def look() -> Answer:
            pool = next(p for s, p in self._world.admin if s == self.name)
            try:
                return Answer(self._world.release(self._world.apps(self.name, pool)[0]), ready=True)
            except Unreachable as e:
                return Answer(None, ready=False, why=str(e))

        return await self._sim.read(self.name, "front", look, lambda why: Answer(None, ready=False, why=why))


TWINS = ((Releases, ReleasesTwin), (LoadTests, LoadTwin), (Environment, EnvironmentTwin))
