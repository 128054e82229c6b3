"""Simulated twin of the sites' buckets, with the failure semantics of ``s3``."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.contract import Surroundings
from tasks.errors import BadInput, Contradiction, Unreachable
from tasks.simulation import Simulation
from tasks.storage.protocol import BucketView, Compared, Replicated, Replicating, Routed, Storage
from tasks.world import World
from tasks.world_parts import Bucket

COPY_EVERY_S = 1.0


class StorageTwin:
    """Fulfils ``Storage``."""

    def __init__(self, real: Storage, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _bucket(self, site: str) -> Bucket:
        if site in self._world.down:
            raise Unreachable(f"the store of {site} does not answer")
        bucket = self._world.buckets[site]
        source = bucket.source
        if source and source not in self._world.down:  # the copier's last pass
            bucket.objects = max(bucket.objects, self._world.buckets[source].objects)
            bucket.copied[source] = self._world.now - self._world.now % COPY_EVERY_S
        return bucket

    async def view(self, site: str) -> BucketView:
        def look() -> BucketView:
            found = self._bucket(site)
            marks = {s: self._world.utc(at).isoformat() for s, at in found.copied.items()}
            return BucketView(site, found.objects, 100 * found.objects, None, marks)

        return await self._sim.read(self._name, f"view {site}", look)

    async def probe(self, site: str, nonce: str) -> None:
        def effect() -> None:
            self._bucket(site)

        await self._sim.change(self._name, f"probe {site}", effect)

    async def source(self, site: str) -> str | None:
        return await self._sim.read(self._name, f"source {site}", lambda: self._bucket(site).source)

    async def set_source(self, site: str, source: str | None) -> None:
        def effect() -> None:
            self._bucket(site).source = source

        await self._sim.change(self._name, f"set_source {site} {source}", effect)


class ReplicatedTwin(StorageTwin):
    """Fulfils ``Storage`` and ``Replicated``: what the copier has not brought yet is pending and missing."""

    async def replicating(self, site: str, source: str, sample: int) -> Replicating:
        def look() -> Replicating:
            lacks = self._lacks(site, source)
            left = max(0, min(sample, self._world.buckets[source].objects) - lacks)
            found = {"PENDING": min(lacks, sample), "COMPLETED": left}
            return Replicating(
                site,
                source,
                {site: True, source: True},
                ("rule",),
                {k: n for k, n in found.items() if n},
                until=self._until(site, source),
            )

        return await self._sim.read(self._name, f"replicating {site} {source}", look)

    async def replicated_until(self, site: str, source: str) -> tuple[str | None, float | None]:
        def look() -> tuple[str | None, float | None]:
            self._bucket(site)
            return self._until(site, source), None

        return await self._sim.read(self._name, f"replicated_until {site} {source}", look)

    async def compare(self, site: str, source: str, sample: int) -> Compared:
        def look() -> Compared:
            lacks, objects = self._lacks(site, source), self._world.buckets[source].objects
            return Compared(objects, missing=lacks, sampled=min(sample, objects - lacks))

        return await self._sim.read(self._name, f"compare {site} {source}", look)

    def _lacks(self, site: str, source: str) -> int:
        here, there = self._bucket(site), self._bucket(source)
        return max(0, there.objects - here.objects)

    def _until(self, site: str, source: str) -> str | None:
        at = self._world.buckets[site].copied.get(source)
        return None if at is None else self._world.utc(at).isoformat()


class RoutedTwin:
    """Fulfils ``Routed``; the first site is active at first."""

    def __init__(self, real: Routed, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    def _now(self) -> dict[str, bool]:
        first = {s: n == 0 for n, s in enumerate(self.sites())}
        return dict(self._world.routes.get(self._name, first))

    async def active(self) -> Mapping[str, bool]:
        return await self._sim.read(self._name, "active", self._now)

    async def route(self, old: Mapping[str, bool], new: Mapping[str, bool]) -> None:
        if not any(new.values()) or set(new) != set(self.sites()):
            raise BadInput(f"{dict(new)} must name each site, and at least one as active")

        def effect() -> None:
            if self._now() != new and self._now() != old:
                raise Contradiction(f"the routes are {self._now()}, not {dict(old)}")
            self._world.routes[self._name] = dict(new)

        await self._sim.change(self._name, f"route {dict(new)}", effect)


TWINS = ((Routed, RoutedTwin), (Replicated, ReplicatedTwin), (Storage, StorageTwin))
