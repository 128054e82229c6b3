"""Simulated twin of a source of metrics: calm values, and unknown where nothing answers."""

from __future__ import annotations

from datetime import datetime

from tasks.contract import Surroundings
from tasks.metrics.protocol import Counted, Counts, Metrics, Reading, Requests, Series, Served, unknown
from tasks.simulation import Simulation
from tasks.world import DATABASE_POOL, REQUESTS_S, WEIGHT, World

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


class CountedTwin(MetricsTwin):
    """Fulfils ``Metrics`` and ``Counted``: a canary that does as well as what is beside it."""

    async def counted(self, site: str, since: datetime) -> tuple[Counts, Counts]:
        def look() -> tuple[Counts, Counts]:
            past_s = max(0.0, (self._world.utc(self._world.now) - since).total_seconds())
            answered = 0 if site in self._world.down else int(REQUESTS_S * past_s / 10)
            return Counts(answered, 0), Counts(9 * answered, 0)

        return await self._sim.read(self._around.component, f"counted {site}", look)


QUICK = (0.025, 0.05, float("inf"))
"""Buckets; every request is in the first one: what is simulated are servers that do as well as each other."""


class RequestsTwin(MetricsTwin):
    """Fulfils ``Metrics`` and ``Requests``: a steady load, shared by weight among those that serve, as seen now."""

    async def served(self, site: str) -> dict[str, Served]:
        def look() -> dict[str, Served]:
            world = self._world
            pool = next((p for s, p in world.admin if s == site and p != DATABASE_POOL), "")
            serve = {n: world.weights.get((site, n), WEIGHT) for n in world.apps(site, pool)}
            since_s = world.now - world.counted.get(site, world.now)
            world.counted[site] = world.now
            for name, weight in serve.items():
                more = REQUESTS_S * since_s * weight / sum(serve.values())
                world.answered[name] = world.answered.get(name, 0.0) + more
            counts = {n: int(world.answered.get(n, 0.0)) for n in sorted(world.running[site])}
            return {n: Served(count, 0, QUICK, (count, 0, 0)) for n, count in counts.items()}

        return await self._sim.read(self._around.component, f"served {site}", look)


TWINS = (
    (Requests, RequestsTwin),
    (Counted, CountedTwin),
    (Metrics, MetricsTwin),
)
