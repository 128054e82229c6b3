"""Simulated twins of the database's Protocols, with the failure semantics of the providers that fulfil them.

``DatabaseTwin``: ``postgresql``. ``ServedTwin``: ``rds``. ``GlobalTwin``: ``aurora``. ``PoolerTwin``: ``pgbouncer``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.contract import Surroundings
from tasks.database._plans import Planning
from tasks.database._pooler_twin import PoolerTwin
from tasks.database._sizes import TableVacuum
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
from tasks.errors import Contradiction, NotYet, Rejected, Unreachable
from tasks.simulation import Simulation
from tasks.world import IDENTITY, STALE_AFTER_S, Node, World

COMMAND_S = 0.05
"""Of a pooler whose limits were never set; not as the plan says."""
REJOIN_S = 2.0


class _Cluster:
    """What the twin says and does to the nodes, without any fault."""

    def __init__(self, real: Database, world: World) -> None:
        self._real, self._world = real, world

    def nodes(self, site: str | None = None) -> tuple[str, ...]:
        return self._real.nodes(site)

    def site_of(self, node: str) -> str:
        return self._real.site_of(node)

    def vantages(self) -> tuple[str, ...]:
        return self._real.vantages()

    def durability(self) -> Durability:
        return self._real.durability()

    def _view(self, name: str) -> NodeView:
        world, node = self._world, self._world.nodes[name]
        if not node.up:
            return NodeView(name, node.site, "refused", why="connection refused")
        if not node.answers:
            return NodeView(name, node.site, "silent", why="no answer within 1 s")
        streaming, heard_s = (self._receiver(node)) if node.replica else (None, None)
        upstream = world.nodes.get(node.upstream or "")
        return NodeView(
            name,
            node.site,
            "answers",
            in_recovery=node.replica,
            read_only=None if node.replica else node.read_only,
            system_identifier=IDENTITY,
            timeline=node.timeline,
            lsn=node.lsn,
            replayed_lsn=node.lsn if node.replica else None,
            last_commit_at=world.utc(node.last_commit) if node.replica else None,
            upstream=node.upstream if node.replica else None,
            streaming=streaming,
            heard_age_s=heard_s,
            upstream_lsn=upstream.lsn if streaming and upstream else None,
        )

    def _receiver(self, node: Node) -> tuple[bool, float]:
        """A WAL receiver notices a dead primary at once, and one that hangs only by its silence."""
        up = self._world.nodes.get(node.upstream or "")
        if self._world.streams(node):
            return True, 0.1
        if up is not None and up.up and up.hung_since is not None and not up.replica:
            silent_s = self._world.now - up.hung_since
            return silent_s < STALE_AFTER_S, silent_s
        return False, self._world.now - node.last_commit

    def _answering(self, name: str) -> Node:
        node = self._world.nodes[name]
        if not node.answers:
            raise Unreachable(f"{name} does not answer")
        return node

    def _one_primary(self, name: str, but: str) -> Node:
        node = self._answering(name)
        others = [n.name for n in self._world.primaries() if n.name not in (name, but)]
        if not node.writable or others:
            raise Contradiction(f"{name} is not the one primary that takes writes ({', '.join(others)})")
        return node

    def _no_successor(self, name: str) -> Node:
        mine = self._world.nodes[name]
        for other in self._world.nodes.values():
            if other is not mine and other.answers and (not other.replica or other.timeline > mine.timeline):
                raise Rejected(f"{name} stays fenced: {other.name} is a primary, or on a newer timeline")
        return mine


class _Told(_Cluster):
    """Fulfils ``Database`` and ``Witnessed``."""

    def __init__(self, real: Database, around: Surroundings, world: World, simulation: Simulation) -> None:
        super().__init__(real, world)
        self._name, self._sim = around.component, simulation

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def view(self, node: str, vantage: str | None = None) -> NodeView:
        silent = NodeView(node, self.site_of(node), "silent", why="no answer")
        what = f"view {node}{f' from {vantage}' if vantage else ''}"
        return await self._sim.read(self._name, what, lambda: self._view(node), lambda _why: silent)

    async def live_durability(self, node: str) -> Durability:
        return await self._sim.read(self._name, f"live_durability {node}", lambda: self._answering(node).live)

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        def look() -> WriteProbe:
            seen = self._view(node)
            said = {"refused": "gone", "silent": "silent"}.get(seen.reach)
            outcome = said or ("refused" if seen.in_recovery or seen.read_only else "accepted")
            return WriteProbe(vantage, node, outcome, seen.why, f"{vantage}:{node}")  # type: ignore[arg-type]

        silent = WriteProbe(vantage, node, "silent", "no answer", f"{vantage}:{node}")
        return await self._sim.read(self._name, f"try_write {node} from {vantage}", look, lambda _why: silent)

    async def ask_host(self, node: str) -> WriteProbe | None:
        def look() -> WriteProbe:
            there = self._world.nodes[node]
            if there.site in self._world.down:
                return WriteProbe("host", node, "silent", "host unreachable", f"host of {node}")
            said = "runs" if there.up else "held" if there.held else "gone"
            return WriteProbe("host", node, said, "", f"host of {node}")  # type: ignore[arg-type]

        silent = WriteProbe("host", node, "silent", "no answer", f"host of {node}")
        return await self._sim.read(self._name, f"ask_host {node}", look, lambda _why: silent)

    async def fence(self, node: str, *, orderly: bool) -> str:
        def effect() -> str:
            there = self._world.nodes[node]
            if there.answers and there.replica:
                raise Rejected(f"{node} is a replica")
            if there.site in self._world.down:
                if there.up:
                    raise Unreachable(f"no means fenced {node}: its host does not answer")
                return "nothing listens there"
            if orderly and there.up and not there.answers:
                raise Unreachable(f"{node} does not shut down")
            there.up, there.held, there.hung_since = False, True, None
            return f"host command {'stop' if orderly else 'kill'}"

        return await self._sim.change(self._name, f"fence {node}", effect, COMMAND_S)

    async def unfence(self, node: str) -> None:
        def effect() -> None:
            there = self._no_successor(node)
            there.up, there.held = True, False
            if there.replica:
                raise Rejected(f"{node} is no primary")
            there.read_only = False

        await self._sim.change(self._name, f"unfence {node}", effect, COMMAND_S)

    async def promote(self, node: str) -> None:
        await self._sim.change(self._name, f"promote {node}", lambda: self._world.promote(self._world.nodes[node]))

    async def follow(self, node: str, upstream: str) -> None:
        def effect() -> None:
            source = self._one_primary(upstream, node)
            there = self._answering(node)
            if not there.replica:
                raise Rejected(f"{node} is no replica")
            there.read_only = False
            self._world.follow(there, source)

        await self._sim.change(self._name, f"follow {node}", effect)

    async def rejoin(self, node: str, upstream: str) -> str:
        def effect() -> str:
            source = self._one_primary(upstream, node)
            there = self._world.nodes[node]
            if there.hung_since is not None or there.site in self._world.down:
                raise Unreachable(f"{node} can neither follow nor be stopped")
            if there.writable or there.timeline > source.timeline:
                raise Contradiction(f"{node} takes writes itself, or is on a newer timeline; fence it first")
            was = there.up and there.replica
            there.up, there.held, there.replica, there.read_only = True, False, True, False
            there.log = list(source.log[: len(source.log) - there.behind])
            there.timeline, there.upstream = source.timeline, upstream
            return "follow" if was else "rewind"

        return await self._sim.change(self._name, f"rejoin {node}", effect, REJOIN_S)


class _Hosted(_Told):
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


class _Drained(_Told):
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


class LimitedTwin(_Told):
    """A service that lets nobody promote (Supabase). Restores are not simulated."""

    def cannot(self, verb: str) -> str:
        return self._real.cannot(verb) if isinstance(self._real, Limited) else ""

    async def promote(self, node: str) -> None:
        raise Rejected(f"{node} cannot be promoted: {self.cannot('promote')}")


TWINS = (
    (Limited, LimitedTwin),
    (Operated, DatabaseTwin),
    (Drained, ServedTwin),
    (Witnessed, GlobalTwin),
    (Database, DatabaseTwin),
    (Pooler, PoolerTwin),
)
"""The first that fits: what a provider can do tells which twin it has."""
