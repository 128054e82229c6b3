"""Simulated twin of the sites' instances, with the failure semantics of ``supervisord``."""

from __future__ import annotations

from tasks.capacity.protocol import Capacity, Instance, Limits
from tasks.contract import Surroundings
from tasks.errors import BadInput, Unreachable
from tasks.simulation import Simulation
from tasks.world import World

START_S = 0.5


class CapacityTwin:
    """Fulfils ``Capacity``. Instances are named ``SITE-appN``, as the balancers' servers are."""

    def __init__(self, real: Capacity, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def limits(self, site: str) -> Limits:
        return self._real.limits(site)

    async def instances(self, site: str) -> tuple[Instance, ...]:
        def look() -> tuple[Instance, ...]:
            self._there(site)
            found = []
            for number in range(1, self.limits(site).maximum + 1):
                name, running = f"{site}-app{number}", number <= self._world.running[site]
                found.append(Instance(name, site, f"{name}:1", running=running, ready=self._ready(site, name)))
            return tuple(found)

        return await self._sim.read(self._name, f"instances {site}", look)

    def _ready(self, site: str, name: str) -> bool:
        """As /readyz: it serves, and its database answers."""
        try:
            self._world.routed(site)
        except Unreachable:
            return False
        return self._world.serving(name)

    def _there(self, site: str) -> None:
        if site in self._world.down:
            raise Unreachable(f"the supervisor of {site} does not answer")

    async def scale(self, site: str, count: int) -> None:
        limits = self.limits(site)
        if not limits.minimum <= count <= limits.maximum:
            raise BadInput(f"{count} is outside {limits.minimum} to {limits.maximum}")

        def effect() -> None:
            self._there(site)
            if count > self._world.running[site]:
                self._world.ready_since[site] = self._world.now + START_S
            self._world.running[site] = count

        await self._sim.change(self._name, f"scale {site} {count}", effect)


TWINS = ((Capacity, CapacityTwin),)
