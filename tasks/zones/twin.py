"""Simulated twins of a zone and of switches, as the real ones fail: compare-and-set, a secondary, a cache."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, LeaseHeld, LostCompare, Unreachable
from tasks.simulation import Simulation
from tasks.world import World
from tasks.world_parts import Record
from tasks.zones.protocol import Access, Answer, Flipping, Owned, RRset, Served, Switchboard, Zone

TRANSFER_S = 0.2
"""How long a secondary lags."""


class ZoneTwin:
    """Fulfils ``Zone``."""

    def __init__(self, real: Zone, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component

    async def aclose(self) -> None:
        """Nothing is held open."""

    def servers(self) -> tuple[str, ...]:
        return self._real.servers()

    def resolvers(self) -> tuple[str, ...]:
        return self._real.resolvers()

    def names(self) -> tuple[tuple[str, str], ...]:
        return self._real.names()

    def wanted(self, name: str, rdtype: str, site: str) -> RRset:
        return self._real.wanted(name, rdtype, site)

    async def read(self, name: str, rdtype: str) -> Owned:
        return await self._sim.read(self._name, f"read {name} {rdtype}", lambda: self._owned(name, rdtype))

    def _owned(self, name: str, rdtype: str) -> Owned:
        found = self._world.records.get((name, rdtype))
        return Owned(found.rrset, found.epoch, self._world.serial) if found else Owned(None, None, self._world.serial)

    async def swap(self, old: Owned, new: RRset, epoch: int) -> None:
        if not new.values:
            raise BadInput(f"refusing to leave {new.name} {new.rdtype} without a record")

        def effect() -> None:
            now = self._owned(new.name, new.rdtype)
            if now.epoch is not None and now.epoch > epoch:
                raise LeaseHeld(f"{new.name} was written by epoch {now.epoch}, this run has {epoch}")
            if (now.rrset and now.rrset.values, now.epoch) != (old.rrset and old.rrset.values, old.epoch):
                if now.rrset == new and now.epoch == epoch:
                    return  # it is this very change, whose reply was lost
                raise LostCompare(f"{new.name} {new.rdtype} is not what it was")
            self._world.serial += 1
            self._world.records[new.name, new.rdtype] = Record(new, epoch, self._world.now, now.rrset)
            self._healthy(new)

        try:
            await self._sim.change(self._name, f"swap {new.name} {new.rdtype}", effect)
        except EffectUnknown:
            # as the real one: what was lost is looked for before anybody is told that it is unknown
            now = await self.read(new.name, new.rdtype)
            if (now.rrset, now.epoch) != (new, epoch):
                raise

    def _healthy(self, new: RRset) -> None:
        for site in self._world.sites_of(new.targets):
            try:
                pool = next(p for s, p in self._world.admin if s == site and p != "db")
                self._world.apps(site, pool)
            except Unreachable as e:
                self._world.violate(f"DNS never to an unhealthy target: {new.name} was pointed at {site}: {e}")

    async def in_sync(self, name: str, within_s: float) -> None:
        """Servers are asked themselves."""

    async def served(self, rrset: RRset) -> Served:
        return Served((rrset.targets,), rrset.ttl)

    def control_plane(self) -> str:
        return self._real.control_plane()

    async def check_access(self, name: str, rdtype: str) -> Access:
        return await self._sim.read(
            self._name, f"check_access {name}", lambda: Access(self.servers()[0], "ns1.", self._world.serial, 0.0)
        )

    async def ask(self, server: str, name: str, rdtype: str) -> Answer:
        authoritative = server in self.servers()

        def look() -> Answer:
            if not authoritative and server not in self.resolvers():
                return Answer(server, "", None, error="no answer")
            if not authoritative:
                return Answer(server, "NOERROR", _as_served(self._world.resolve(server, name, rdtype)))
            record = self._world.records.get((name, rdtype))
            if record is None:
                return Answer(server, "NXDOMAIN", None, self._world.serial, authoritative=True)
            late = server != self.servers()[0] and self._world.now - record.since < TRANSFER_S
            rrset = record.before if late and record.before else record.rrset
            return Answer(server, "NOERROR", _as_served(rrset), self._world.serial - late, authoritative=True)

        return await self._sim.read(
            self._name, f"ask {server} {name}", look, lambda why: Answer(server, "", None, error=why)
        )


class SwitchboardTwin:
    """Fulfils ``Switchboard``: names follow when one site alone is on."""

    def __init__(self, real: Switchboard, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        first = around.sites[0]
        world.switches.setdefault(self._name, {site: site == first for site in real.sites()})

    async def aclose(self) -> None:
        """Nothing is held open."""

    def sites(self) -> tuple[str, ...]:
        return self._real.sites()

    def names(self) -> tuple[str, ...]:
        return self._real.names()

    def reached_at(self, site: str) -> tuple[str, ...]:
        return self._real.reached_at(site)

    def needs(self) -> tuple[str, ...]:
        return self._real.needs()

    async def states(self) -> Mapping[str, bool]:
        return await self._sim.read(self._name, "states", self._now)

    def _now(self) -> dict[str, bool]:
        return dict(self._world.switches[self._name])

    async def flip(self, old: Mapping[str, bool], new: Mapping[str, bool], by: Flipping) -> None:
        if not any(new.values()):
            raise BadInput("refusing to turn every site off")

        def effect() -> None:
            now = self._now()
            if now == new:
                return
            if now != old:
                raise LostCompare(f"the switches are {now}")
            self._world.switches[self._name] = dict(new)
            on = [site for site, state in new.items() if state]
            for (name, rdtype), record in list(self._world.records.items()):
                rrset = self._world.pointed.get((name, rdtype, on[0])) if len(on) == 1 else None
                if rrset is not None:
                    self._world.records[name, rdtype] = Record(rrset, record.epoch, self._world.now, record.rrset)

        try:
            await self._sim.change(self._name, "flip", effect)
        except EffectUnknown:
            if await self.states() != new:
                raise


def _as_served(rrset: RRset) -> RRset:
    return RRset(rrset.name, rrset.rdtype, rrset.ttl, rrset.targets)


TWINS = ((Zone, ZoneTwin), (Switchboard, SwitchboardTwin))
