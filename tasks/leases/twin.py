"""Simulated twin of a lease's store, with the failure semantics of ``postgresql``, ``s3`` and ``rfc2136``."""

from __future__ import annotations

from tasks.contract import Surroundings
from tasks.errors import LostCompare
from tasks.leases.protocol import Held, LeaseStore
from tasks.leases.rfc2136 import ZoneLease
from tasks.simulation import Simulation
from tasks.world import World


class LeaseTwin:
    """Fulfils ``LeaseStore``. The record is text, as in the real ones; a zone has no clock."""

    def __init__(self, real: LeaseStore, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        self._aged = not isinstance(real, ZoneLease)

    @property
    def ttl_s(self) -> float:
        return self._real.ttl_s

    @property
    def where(self) -> str:
        return self._real.where

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def read(self) -> tuple[Held | None, float | None]:
        def look() -> tuple[Held | None, float | None]:
            found = self._world.lease
            if found is None:
                return None, None
            text, written_at = found
            return Held.decode(text, self.where), self._world.now - written_at if self._aged else None

        return await self._sim.read(self._name, "read", look)

    async def swap(self, old: Held | None, new: Held) -> None:
        def effect() -> None:
            found = self._world.lease
            if (found and found[0]) != (old and old.encode()):
                raise LostCompare(f"{self.where} is not what it was; it was written in between")
            self._world.lease = (new.encode(), self._world.now)

        await self._sim.change(self._name, "swap", effect)


TWINS = ((LeaseStore, LeaseTwin),)
