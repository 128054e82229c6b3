"""Simulated twin of the sites' instances, with the failure semantics of ``supervisord``."""

from __future__ import annotations

from collections.abc import Callable

from tasks.capacity.protocol import Capacity, Elastic, Instance, Limits, Refresh, Rolling, Scaling, Startable
from tasks.contract import Facts, Surroundings
from tasks.errors import BadInput, Rejected, SafetyRefusal, Unreachable
from tasks.simulation import Simulation
from tasks.world import FIRST, START_S, World


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
            running = self._world.running[site]
            return tuple(
                Instance(n, site, f"{n}:1", running=n in running, ready=self._world.ready(n)) for n in self._names(site)
            )

        return await self._sim.read(self._name, f"instances {site}", look)

    def _names(self, site: str) -> list[str]:
        return [f"{site}-app{n}" for n in range(1, self.limits(site).maximum + 1)]

    def _there(self, site: str) -> None:
        if site in self._world.down:
            raise Unreachable(f"the supervisor of {site} does not answer")

    async def scale(self, site: str, count: int) -> None:
        limits = self.limits(site)
        if not limits.minimum <= count <= limits.maximum:
            raise BadInput(f"{count} is outside {limits.minimum} to {limits.maximum}")

        def effect() -> None:
            self._there(site)
            running = self._world.running[site]
            alive = [n for n in self._names(site) if n in running]
            idle = [n for n in self._names(site) if n not in running][: max(0, count - len(alive))]
            if idle:
                self._world.ready_since[site] = self._world.now + START_S
                self._world.started |= dict.fromkeys(idle, (self._world.links.get(site, FIRST), 0.0))
            self._world.running[site] = {*alive[:count], *idle}

        await self._sim.change(self._name, f"scale {site} {count}", effect)


class SingleTwin(CapacityTwin):
    """Fulfils ``Capacity`` and ``Startable``."""

    async def stop(self, site: str, instance: str) -> None:
        await self._one(site, instance, "stop", self._world.stop)

    async def start(self, site: str, instance: str) -> None:
        await self._one(site, instance, "start", self._world.start)

    async def _one(self, site: str, instance: str, verb: str, act: Callable[[str], None]) -> None:
        def effect() -> None:
            self._there(site)
            if instance not in self._names(site):
                raise BadInput(f"no instance {instance!r} at {site}")
            act(instance)

        await self._sim.change(self._name, f"{verb} {instance}", effect)


REFRESH_S = 0.5
_PLANNED = Scaling(1, 10, None, None, None, None, None, None)


class GroupTwin(CapacityTwin):
    """Fulfils ``Capacity``, ``Elastic`` and ``Refreshing``: a group that also has rules and a version."""

    async def explain(self, site: str) -> Facts:
        def look() -> Facts:
            self._there(site)
            return {"desired": len(self._world.running[site]), "suspended": [], "last_launch_failed": None}

        return await self._sim.read(self._name, f"explain {site}", look)

    async def scaling(self, site: str) -> tuple[Scaling, int]:
        def look() -> tuple[Scaling, int]:
            self._there(site)
            return self._world.scaling.get((self._name, site), _PLANNED), len(self._world.running[site])

        return await self._sim.read(self._name, f"scaling {site}", look)

    async def set_scaling(self, site: str, wanted: Scaling) -> None:
        def effect() -> None:
            self._there(site)
            running = len(self._world.running[site])
            if running > wanted.maximum:
                raise SafetyRefusal(f"a maximum of {wanted.maximum} would stop some of {running}")
            self._world.scaling[self._name, site] = wanted

        await self._sim.change(self._name, f"set_scaling {site}", effect)

    async def quota(self, site: str) -> tuple[float, float]:
        return await self._sim.read(self._name, f"quota {site}", lambda: (64.0, 2.0 * self.limits(site).maximum))

    async def versions(self, site: str) -> dict[str, str]:
        def look() -> dict[str, str]:
            self._there(site)
            version = self._refreshed(site)[1]
            return {name: version for name in self._names(site) if name in self._world.running[site]}

        return await self._sim.read(self._name, f"versions {site}", look)

    async def newest_refresh(self, site: str) -> Refresh | None:
        def look() -> Refresh | None:
            self._there(site)
            return self._refreshed(site)[0]

        return await self._sim.read(self._name, f"newest_refresh {site}", look)

    async def start_refresh(self, site: str, how: Rolling) -> None:
        def effect() -> None:
            self._there(site)
            going, version = self._refreshed(site)
            if going is not None and going.going:
                if going.version == how.version and going.status != "RollbackInProgress":
                    return
                raise Rejected(f"a refresh to version {going.version} is {going.status}")
            self._world.refreshes[self._name, site] = (how.version, version, "InProgress", self._world.now)

        await self._sim.change(self._name, f"start_refresh {site} {how.version}", effect)

    async def roll_back(self, site: str) -> None:
        def effect() -> None:
            self._there(site)
            going, version = self._refreshed(site)
            if going is None or going.status != "InProgress":
                raise Rejected("no refresh goes on")
            self._world.refreshes[self._name, site] = (going.version, version, "RollbackInProgress", self._world.now)

        await self._sim.change(self._name, f"roll_back {site}", effect)

    def _refreshed(self, site: str) -> tuple[Refresh | None, str]:
        """The newest refresh, and the version that every instance runs now."""
        found = self._world.refreshes.get((self._name, site))
        if found is None:
            return None, "1"
        to, before, status, since = found
        over = self._world.now >= since + REFRESH_S
        ends = {"InProgress": "Successful", "RollbackInProgress": "RollbackSuccessful"}
        status = ends[status] if over else status
        version = to if status == "Successful" else before
        return Refresh("refresh", status, 100 if over else 0, to), version


TWINS = ((Elastic, GroupTwin), (Startable, SingleTwin), (Capacity, CapacityTwin))
