"""What every simulated twin of a database shares: how its nodes look, and what servers of one's own do."""

from __future__ import annotations

from tasks.contract import Surroundings
from tasks.database.protocol import Database, Durability, NodeView, WriteProbe
from tasks.errors import Contradiction, Rejected, Unreachable
from tasks.simulation import Simulation
from tasks.world import IDENTITY, STALE_AFTER_S, World
from tasks.world_parts import Node

COMMAND_S = 0.05
REJOIN_S = 2.0


class Cluster:
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


class Told(Cluster):
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
