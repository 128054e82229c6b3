"""Simulated twin of a source of cost: nothing is billed in a simulated world."""

from __future__ import annotations

from tasks.contract import Surroundings
from tasks.cost.protocol import Advice, Anomaly, Cost, Spend
from tasks.metrics.protocol import CATALOGUE, Reading, Series, unknown
from tasks.simulation import Simulation
from tasks.world import World


class CostTwin:
    """Fulfils ``Cost``, and ``Metrics`` for the cost metrics."""

    def __init__(self, real: Cost, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._name, self._sim = around.component, simulation

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def spend(self, days: int) -> tuple[Spend, ...]:
        return await self._sim.read(self._name, f"spend {days}", lambda: ())

    async def anomalies(self, days: int) -> tuple[Anomaly, ...]:
        return await self._sim.read(self._name, f"anomalies {days}", lambda: ())

    async def advice(self) -> tuple[Advice, ...]:
        return await self._sim.read(self._name, "advice", lambda: ())

    def metrics(self) -> tuple[str, ...]:
        return tuple(m.name for m in CATALOGUE.values() if m.domain == "cost")

    async def now(self, metric: str, over_s: float | None = None) -> tuple[Reading, ...]:
        nothing = unknown(metric, ("",), "no-data", "nothing is billed in a simulated world")
        return await self._sim.read(self._name, f"now {metric}", lambda: nothing, lambda _why: nothing)

    async def series(self, metric: str, window_s: float, step_s: float) -> tuple[Series, ...]:
        return await self._sim.read(self._name, f"series {metric}", lambda: ())


TWINS = ((Cost, CostTwin),)
