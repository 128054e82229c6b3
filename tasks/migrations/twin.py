"""Simulated twin of what keeps migrations, with the failure semantics of ``postgresql``.

The files are the real ones; what they say is not looked at. The record is one, and every server that answers has it.
While the copy is made somebody's report takes a lock on every table, and each file finds it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tasks.contract import Facts, Surroundings
from tasks.errors import EffectUnknown, NotYet, Rejected, SafetyRefusal, Unreachable
from tasks.migrations.protocol import Applied, File, Limits, Migrations, Risk, Target
from tasks.simulation import Simulation
from tasks.world import IDENTITY, World
from tasks.world_parts import Node

COPY_S = 3.0
BUILD_S = 1.0


class MigrationsTwin:
    """Fulfils ``Migrations``."""

    def __init__(self, real: Migrations, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        self._files: tuple[File, ...] = ()

    async def aclose(self) -> None:
        """Nothing is held open."""

    def database(self) -> str:
        return self._real.database()

    def files(self) -> tuple[File, ...]:
        self._files = self._files or self._real.files()  # reading SQL takes its time
        return self._files

    def left_behind(self) -> tuple[str, ...]:
        return ()

    async def applied(self, node: str) -> tuple[Applied, ...]:
        def look() -> tuple[Applied, ...]:
            self._answering(node)
            found = sorted(self._world.schema.values(), key=lambda a: (a.number, a.phase))
            return tuple(found)

        return await self._sim.read(self._name, f"applied {node}", look)

    async def risks(self, node: str, files: tuple[File, ...], big_bytes: int) -> tuple[Risk, ...]:
        def look() -> tuple[Risk, ...]:
            self._answering(node)
            return ()

        return await self._sim.read(self._name, f"risks {node}", look)

    async def apply(self, to: Target, file: File, limits: Limits, *, back: bool = False) -> None:
        """One effect, also of what runs CONCURRENTLY, whose record is ``begun`` meanwhile."""
        held = file.name in self._world.locked and not back
        takes_s = limits.lock_s if held else BUILD_S if file.concurrent else 0.0

        def effect() -> None:
            if held:
                self._world.locked.discard(file.name)
                raise NotYet(f"{to.node}: {file.name} did not get its lock within {limits.lock_s:g} s and gave up")
            self._run(to, file, back=back)

        what = f"{'take back' if back else 'apply'} {file.name}"
        await self._sim.change(self._name, what, effect, takes_s)

    async def rehearse(
        self, source: str, files: tuple[File, ...], limits: Limits, said: Callable[[str], None]
    ) -> Facts:
        await asyncio.sleep(COPY_S)

        def look() -> Facts:
            self._answering(source)
            self._world.rehearsed |= {f.name: f.sha256 for f in files}
            self._world.locked |= {f.name for f in files if not f.concurrent}
            measured = [
                {"file": f.name, "seconds": 0.01, "statements": [], "locks": {}, "rewritten": {}} for f in files
            ]
            rehearsed = {f.name: f.sha256 for f in files}
            return {"source": source, "copy_s": COPY_S, "copy_bytes": 1, "rehearsed": rehearsed, "measured": measured}

        return await self._sim.read(self._name, f"rehearse {source}", look)

    # ---- effects ----

    def _run(self, to: Target, file: File, *, back: bool = False) -> None:
        """The statements and the record, together."""
        there, key = self._primary(to), (file.number, file.phase)
        if self._over(key, back=back):
            return
        self._in_order(file, back=back)
        self._world.executed[file.name] += -1 if back else 1
        if self._world.executed[file.name] not in (0, 1):
            self._world.violate(f"no effect doubled: {file.name} was applied to a schema that has it")
        if back:
            self._world.schema.pop(key, None)
        else:
            at = str(self._world.utc())
            self._world.schema[key] = Applied(*key, file.title, file.sha256, "applied", to.run, at)
        if not self._world.commit(there, None):
            raise EffectUnknown(f"{file.name}: the commit waits for a standby; its record in the database tells")

    def _over(self, key: tuple[int, str], *, back: bool) -> bool:
        """Another engine was first."""
        return (key in self._world.schema) != back

    def _in_order(self, file: File, *, back: bool) -> None:
        if back:
            later = [n for n, p in self._world.schema if p == file.phase and n > file.number]
            if later:
                self._world.violate(
                    f"migrations in order: {file.name} was taken back while {max(later):04d} is applied"
                )
            return
        if self._world.rehearsed.get(file.name) != file.sha256:
            self._world.violate(f"rehearsed first: {file.name} was applied without having been tried on a copy")
        earlier = [f for f in self.files() if f.phase == file.phase and f.number < file.number]
        if open_ := [f.name for f in earlier if (f.number, f.phase) not in self._world.schema]:
            self._world.violate(f"migrations in order: {file.name} was applied before {', '.join(open_)}")

    def _answering(self, name: str) -> Node:
        node = self._world.nodes[name]
        if not node.answers or node.site in self._world.down:
            raise Unreachable(f"{name} does not answer")
        return node

    def _primary(self, to: Target) -> Node:
        node = self._answering(to.node)
        if node.replica or node.read_only or to.identity != IDENTITY:
            raise SafetyRefusal(f"{to.node} is a standby, fenced or another database; nothing was applied")
        if not node.writable:
            raise Rejected(f"{to.node} takes no writes")
        return node


TWINS = ((Migrations, MigrationsTwin),)
