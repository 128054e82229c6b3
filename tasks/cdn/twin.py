"""Simulated twin of a distribution: compare-and-set, and a change that is in effect only after a while."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.cdn.protocol import Cdn, Edge
from tasks.contract import Surroundings
from tasks.errors import LostCompare
from tasks.simulation import Simulation
from tasks.world import World

DEPLOY_S = 0.5
INVALIDATE_S = 0.3


class CdnTwin:
    """Fulfils ``Cdn``. The first site's origin serves at first."""

    def __init__(self, real: Cdn, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        world.origin.setdefault(self._name, (real.sites()[0], -1e9, 1))

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    def control_plane(self) -> str:
        return self._real.control_plane()

    def check(self, site: str) -> str | None:
        return None  # the world has no origins; the balancers' sites are checked by their own steps

    async def edge(self) -> Edge:
        def look() -> Edge:
            site, since, version = self._world.origin[self._name]
            deployed = self._world.now >= since + DEPLOY_S
            return Edge("distribution", site, {"*": site}, deployed=deployed, version=str(version))

        return await self._sim.read(self._name, "edge", look)

    async def switch(self, site: str, version: str) -> None:
        def effect() -> None:
            newest = self._world.origin[self._name][2]
            if version != str(newest):
                raise LostCompare(f"expected version {version}, found {newest}")
            self._world.origin[self._name] = (site, self._world.now, newest + 1)

        await self._sim.change(self._name, f"switch {site}", effect)

    async def invalidate(self, reference: str, paths: Sequence[str]) -> None:
        def effect() -> None:
            self._world.invalidated.setdefault(f"{self._name} {reference}", self._world.now)

        await self._sim.change(self._name, "invalidate", effect)

    async def invalidated(self, reference: str) -> bool | None:
        def look() -> bool | None:
            since = self._world.invalidated.get(f"{self._name} {reference}")
            return None if since is None else self._world.now >= since + INVALIDATE_S

        return await self._sim.read(self._name, "invalidated", look)


TWINS = ((Cdn, CdnTwin),)
