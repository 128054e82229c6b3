"""Simulated twin of the sites' buckets, with the failure semantics of ``s3``."""

from __future__ import annotations

from tasks.contract import Surroundings
from tasks.errors import Unreachable
from tasks.simulation import Simulation
from tasks.storage.protocol import BucketView, Storage
from tasks.world import Bucket, World

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


TWINS = ((Storage, StorageTwin),)
