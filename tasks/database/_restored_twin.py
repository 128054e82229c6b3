"""Simulated twin of a project at a service that lets nobody promote, and restores in place (Supabase)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

from tasks.database._told import COMMAND_S, Told
from tasks.database.protocol import Backups, Limited, Restorable, WriteProbe
from tasks.errors import EffectUnknown, Rejected, Unreachable
from tasks.world import ANCHOR, World

RESTORE_S = 20.0
LATEST_S = 60.0
"""How old the newest moment is that can be restored."""
KEPT = timedelta(days=7)
POLL_S = 5.0


class LimitedTwin(Told):
    """Fulfils ``Database``, ``Limited`` and ``Restorable``. The fence is by SQL: it needs a server that answers."""

    def cannot(self, verb: str) -> str:
        return self._real.cannot(verb) if isinstance(self._real, Limited) else ""

    async def promote(self, node: str) -> None:
        raise Rejected(f"{node} cannot be promoted: {self.cannot('promote')}")

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        """The service starts a dead server again by itself."""
        seen = await super().try_write(node, vantage)
        return replace(seen, outcome="silent") if seen.outcome == "gone" else seen

    async def ask_host(self, node: str) -> WriteProbe | None:
        return None

    async def fence(self, node: str, *, orderly: bool) -> str:
        def effect() -> str:
            there = self._answering(node)
            if there.replica:
                raise Rejected(f"{node} is a replica")
            there.read_only = True
            return "read only"

        return await self._sim.change(self._name, f"fence {node}", effect, COMMAND_S)

    async def unfence(self, node: str) -> None:
        def effect() -> None:
            there = self._no_successor(node)
            if not there.answers or there.replica:
                raise Unreachable(f"{node} does not answer as a primary")
            there.read_only = False

        await self._sim.change(self._name, f"unfence {node}", effect, COMMAND_S)

    # ---- restore ----

    def restores(self) -> str:
        return self._real.restores() if isinstance(self._real, Restorable) else self.nodes()[0]

    def _kept(self) -> Backups:
        latest = self._world.utc(self._world.now - LATEST_S)
        return Backups(point_in_time=True, earliest=latest - KEPT, latest=latest, completed=(latest,))

    async def backups(self) -> Backups:
        return await self._sim.read(self._name, "backups", self._kept)

    async def restore(self, to: datetime) -> None:
        """As the provider: begun unless one is going on, then looked at until it is over."""

        def effect() -> None:
            if self._world.restoring:
                return
            kept = self._kept()
            if not (kept.earliest and kept.latest and kept.earliest <= to <= kept.latest):
                raise Rejected(f"{to} is outside of what is kept")
            begin(self._world, self.restores(), to)

        await self._sim.change(self._name, f"restore {self.restores()}", effect)
        for _ in range(int(RESTORE_S / POLL_S) + 2):
            if not await self._sim.read(self._name, "project", lambda: self._world.restoring):
                return
            await asyncio.sleep(POLL_S)
        raise EffectUnknown("the project was told to restore itself, and is at it")


def begin(world: World, name: str, to: datetime) -> None:
    """The project is away for a while, then it is what it was, on a new timeline."""
    node, until = world.nodes[name], (to - ANCHOR).total_seconds()
    world.give_up(name, [n for n in node.log if world.written_at.get(n, -1e9) > until])
    world.restoring, node.up, node.held = True, False, True
    world.restores += 1

    def over() -> None:
        node.log = [n for n in node.log if world.written_at.get(n, -1e9) <= until]
        node.timeline += 1
        node.up, node.held, node.hung_since, node.read_only = True, False, None, False
        for other in world.nodes.values():
            if other is not node and other.replica:
                other.upstream, other.timeline, other.log = name, node.timeline, list(node.log)
        world.restoring = False

    asyncio.get_running_loop().call_later(RESTORE_S, over)
