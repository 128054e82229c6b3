"""Simulated twin of a source of metrics: calm values, and unknown where nothing answers."""

from __future__ import annotations

from tasks.contract import Surroundings
from tasks.metrics.protocol import Metrics, Reading, Series, unknown
from tasks.simulation import Simulation
from tasks.world import World

CALM = 0.001
"""Below every threshold of the plan, whatever the unit."""


class MetricsTwin:
    """Fulfils ``Metrics``."""

    def __init__(self, real: Metrics, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._around, self._world, self._sim = real, around, world, simulation

    async def aclose(self) -> None:
        """Nothing is held open."""

    def metrics(self) -> tuple[str, ...]:
        return self._real.metrics()

    async def now(self, metric: str, over_s: float | None = None) -> tuple[Reading, ...]:
        sites = self._around.sites

        def look() -> tuple[Reading, ...]:
            at = self._world.utc(self._world.now)
            return tuple(
                Reading(metric, s, "no-data", why=f"nothing of {s} answers")
                if s in self._world.down
                else Reading(metric, s, "ok", CALM, at, 0.0)
                for s in sites
            )

        return await self._sim.read(
            self._around.component, f"now {metric}", look, lambda why: unknown(metric, sites, "no-answer", why)
        )

    async def series(self, metric: str, window_s: float, step_s: float) -> tuple[Series, ...]:
        def look() -> tuple[Series, ...]:
            at = self._world.utc(self._world.now)
            return tuple(
                Series(metric, s, ((at, CALM),), step_s) for s in self._around.sites if s not in self._world.down
            )

        return await self._sim.read(self._around.component, f"series {metric}", look)


TWINS = ((Metrics, MetricsTwin),)
