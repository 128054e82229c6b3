"""Simulated twin of the sites' caches, with the failure semantics of ``redis``."""

from __future__ import annotations

from tasks.cache.protocol import Cache
from tasks.contract import Surroundings
from tasks.errors import Unreachable
from tasks.simulation import Simulation
from tasks.world import World

FLUSHED = "relight:flushed"


class CacheTwin:
    """Fulfils ``Cache``. A cache is gone with its site."""

    def __init__(self, real: Cache, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    async def flushed_by(self, site: str) -> str | None:
        return await self._sim.read(self._name, f"flushed_by {site}", lambda: self._kept(site).get(FLUSHED))

    async def flush(self, site: str, run_id: str) -> None:
        def effect() -> None:
            kept = self._kept(site)
            kept.clear()
            kept[FLUSHED] = run_id

        await self._sim.change(self._name, f"flush {site}", effect)

    async def has(self, site: str, key: str) -> bool:
        return await self._sim.read(self._name, f"has {site} {key}", lambda: key in self._kept(site))

    async def warm(self, site: str, key: str) -> None:
        def effect() -> None:
            self._kept(site)[key] = "kept"

        await self._sim.change(self._name, f"warm {site} {key}", effect)

    def _kept(self, site: str) -> dict[str, str]:
        if site in self._world.down:
            raise Unreachable(f"the cache of {site} does not answer")
        return self._world.caches.setdefault((self._name, site), {})


TWINS = ((Cache, CacheTwin),)
