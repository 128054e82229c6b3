"""Simulated twins of the database's Protocols, with the failure semantics of the providers that fulfil them.

``DatabaseTwin``: ``postgresql``. ``ServedTwin``: ``rds``. ``GlobalTwin``: ``aurora``. ``LimitedTwin``: ``supabase``.
``PoolerTwin``: ``pgbouncer``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.database._plans import Planning
from tasks.database._pooler_twin import PoolerTwin
from tasks.database._restored_twin import LimitedTwin
from tasks.database._sizes import TableVacuum
from tasks.database._told import COMMAND_S, Told
from tasks.database.protocol import (
    Database,
    Drained,
    Durability,
    Limited,
    NodeView,
    Operated,
    Pooler,
    Standby,
    Witnessed,
    WriteProbe,
)
from tasks.errors import NotYet, Rejected, Unreachable


class _Hosted(Told):
    """Servers that a service runs: it starts a dead one again by itself, so that only its own fence is a proof."""

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        seen = await super().try_write(node, vantage)
        return replace(seen, outcome="silent") if seen.outcome == "gone" else seen

    async def ask_host(self, node: str) -> WriteProbe | None:
        def look() -> WriteProbe:
            there = self._world.nodes[node]
            if there.site in self._world.down:
                return WriteProbe("host", node, "silent", "the service does not answer", f"service of {node}")
            return WriteProbe("host", node, "gone" if there.held else "runs", "", f"service of {node}")

        silent = WriteProbe("host", node, "silent", "no answer", f"service of {node}")
        return await self._sim.read(self._name, f"ask_host {node}", look, lambda _why: silent)

    async def fence(self, node: str, *, orderly: bool) -> str:
        """Orderly: read only, so that what was written still reaches the replicas. Forced: the quarantine."""

        def effect() -> str:
            there = self._world.nodes[node]
            if there.site in self._world.down:
                raise Unreachable(f"no means fenced {node}: the service does not answer")
            if there.answers and there.replica:
                raise Rejected(f"{node} is a replica")
            if orderly and there.answers:
                there.read_only = True
                return "read only"
            there.up, there.held, there.hung_since = False, True, None
            return "a security group that admits nobody, and a restart"

        return await self._sim.change(self._name, f"fence {node}", effect, COMMAND_S)


class _Drained(Told):
    """Fulfils ``Drained`` too."""

    async def quiesce(self, node: str) -> int:
        def effect() -> int:
            there = self._answering(node)
            if there.replica:
                raise Rejected(f"{node} is a replica")
            there.read_only = True
            return there.lsn

        return await self._sim.change(self._name, f"quiesce {node}", effect)


class DatabaseTwin(_Drained):
    """Fulfils ``Database``, ``Witnessed``, ``Drained``, ``Operated``, ``Vacuumed`` and ``Planned``."""

    async def standbys(self, node: str) -> tuple[Standby, ...]:
        def look() -> tuple[Standby, ...]:
            self._answering(node)
            following = [n for n in self._world.nodes.values() if n.upstream == node and self._world.streams(n)]
            return tuple(Standby(n.name, "streaming", "async", n.lsn) for n in following)

        return await self._sim.read(self._name, f"standbys {node}", look)

    async def promised(self, node: str) -> tuple[str, Durability] | None:
        return await self._sim.read(self._name, f"promised {node}", lambda: self._answering(node).note)

    async def set_durability(self, node: str, wanted: Durability) -> None:
        def effect() -> None:
            there = self._answering(node)
            if there.replica:
                raise Rejected(f"{node} is a replica")
            there.live = wanted
            following = [n.name for n in self._world.nodes.values() if n.upstream == node and self._world.streams(n)]
            if sum(s in following for s in wanted.standbys) < wanted.needed:
                raise NotYet(f"{node} waits for {wanted.needed} of {', '.join(wanted.standbys)}")
            there.note = (node, wanted)

        await self._sim.change(self._name, f"set_durability {node}", effect)

    async def autovacuum(self, node: str) -> tuple[TableVacuum, ...]:
        def look() -> tuple[TableVacuum, ...]:
            self._answering(node)
            found = sorted(self._world.autovacuum.items())
            return tuple(TableVacuum(t, on, rows, server_enabled=True, ours=True) for t, (on, rows) in found)

        return await self._sim.read(self._name, f"autovacuum {node}", look)

    async def set_autovacuum(
        self, node: str, table: str, *, enabled: bool, threshold: int, lock_timeout_s: float
    ) -> None:
        def effect() -> None:
            if self._answering(node).replica or table not in self._world.autovacuum:
                raise Rejected(f"{node} is a replica, or has no table {table}")
            self._world.autovacuum[table] = (enabled, threshold)

        await self._sim.change(self._name, f"set_autovacuum {node} {table}", effect)

    async def top_statements(self, node: str, most: int) -> tuple[str, ...]:
        def look() -> tuple[str, ...]:
            self._answering(node)
            return ("SELECT $1",)

        return await self._sim.read(self._name, f"top_statements {node}", look)

    async def planning(self, node: str) -> Planning:
        def look() -> Planning:
            self._answering(node)
            return Planning({}, (None, None))

        return await self._sim.read(self._name, f"planning {node}", look)

    async def plan(self, node: str, statement: str) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            self._answering(node)
            return {"Node Type": "Result"}

        return await self._sim.read(self._name, f"plan {node}", look)


class ServedTwin(_Drained, _Hosted):
    """Instances that a service runs, with replicas that keep the source they were made from (RDS)."""

    async def follow(self, node: str, upstream: str) -> None:
        def effect() -> None:
            raise Rejected(f"{node} keeps the source it was made from")

        await self._sim.change(self._name, f"follow {node}", effect)


class GlobalTwin(_Hosted):
    """Clusters of a global database (Aurora): no positions, and the others follow a new writer by themselves."""

    async def view(self, node: str, vantage: str | None = None) -> NodeView:
        seen = await super().view(node, vantage)
        bare = replace(seen, lsn=None, replayed_lsn=None, upstream_lsn=None, timeline=None, system_identifier=None)
        # The lag of one that streams is measured now; of one that lost its source, when it last had something.
        return replace(bare, last_commit_at=self._world.utc()) if seen.streaming else bare

    async def live_durability(self, node: str) -> Durability:
        return self.durability()

    async def promote(self, node: str) -> None:
        def effect() -> None:
            there = self._world.nodes[node]
            self._world.promote(there)
            for other in self._world.nodes.values():
                if other is not there and other.answers and not other.writable:
                    other.replica, other.read_only, other.upstream = True, False, node
                    other.log, other.timeline = list(there.log), there.timeline

        await self._sim.change(self._name, f"promote {node}", effect)

    async def follow(self, node: str, upstream: str) -> None:
        def effect() -> None:
            source, there = self._one_primary(upstream, node), self._world.nodes[node]
            if there.upstream != source.name or not there.answers:
                raise NotYet(f"{node} is brought back by the service")

        await self._sim.change(self._name, f"follow {node}", effect)


TWINS = (
    (Limited, LimitedTwin),
    (Operated, DatabaseTwin),
    (Drained, ServedTwin),
    (Witnessed, GlobalTwin),
    (Database, DatabaseTwin),
    (Pooler, PoolerTwin),
)
"""The first that fits: what a provider can do tells which twin it has."""
