"""Simulated twins of what holds the releases, with the failure semantics of ``folders``, and of load tests."""

from __future__ import annotations

import asyncio

from tasks.contract import Surroundings
from tasks.deploy.protocol import Answer, Load, Loaded, LoadTests, Releases
from tasks.errors import BadInput, Unreachable
from tasks.simulation import Simulation
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

    async def run(self, site: str, load: Load) -> Loaded:
        url = await self.target(site)
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


TWINS = ((Releases, ReleasesTwin), (LoadTests, LoadTwin))
