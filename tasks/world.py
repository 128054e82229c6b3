"""The world that the simulated twins show: database nodes, balancers, poolers, servers, names, buckets, clients.

One plain model of a two-site web system, as small as the failure semantics of the real parts allow. Nothing here fails
by itself: faults are the simulation's. What must always hold is noted here where only the world can see it (a write
acknowledged by two primaries, a promotion beside a living one) in ``violations``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tasks.capacity.protocol import Scaling
from tasks.database._sizes import PoolLimits
from tasks.database.protocol import Durability
from tasks.errors import Contradiction, NotYet, Rejected, Unreachable
from tasks.migrations.protocol import Applied
from tasks.world_parts import ASYNC, Bucket, Node, Record
from tasks.zones.protocol import RRset

ANCHOR = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
STALE_AFTER_S = 1.5
SESSIONS_WAIT_S = 0.05
IDENTITY = "7000000000000000001"
RELEASES = FIRST, _ = ("1", "2")
"""The releases that are there; the first one runs."""
WEIGHT = 100
START_S = 0.5
STOP_S = 0.2
DRAIN_S = 0.3
"""How long the longest request goes on."""
REQUESTS_S = 100.0
"""What a site's servers answer together, a second."""
DATABASE_POOL = "db"
"""The balancer pool whose servers are database nodes; every other pool holds application servers."""


@dataclass
class Data:
    """Everything there is, and how the database behaves. Sites and nodes by name."""

    sites: tuple[str, ...]
    nodes: dict[str, Node] = field(default_factory=dict)
    apart: dict[str, Node] = field(default_factory=dict)
    """Environment that is no site (staging) -> its database, which nobody follows and which follows nobody."""
    declared: Durability = ASYNC
    admin: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    """(site, pool) -> server -> ready, drain or maint."""
    running: dict[str, set[str]] = field(default_factory=dict)
    """site -> its application servers that run."""
    least: dict[str, int] = field(default_factory=dict)
    """site -> how many must serve."""
    ready_since: dict[str, float] = field(default_factory=dict)
    started: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Server that was started -> release it was started from, and when it is ready; else ``FIRST``, and it was."""
    ended: dict[str, float] = field(default_factory=dict)
    """Server that was stopped -> when its process has ended."""
    links: dict[str, str] = field(default_factory=dict)
    """site -> release that its servers start from; ``FIRST`` where none was chosen."""
    weights: dict[tuple[str, str], int] = field(default_factory=dict)
    """Site of a balancer and application server -> its weight; ``WEIGHT`` where none was set."""
    open_until: dict[str, float] = field(default_factory=dict)
    """Application server that was drained -> when its last request has ended."""
    answered: dict[str, float] = field(default_factory=dict)
    """Application server -> requests since its start."""
    counted: dict[str, float] = field(default_factory=dict)
    """site -> until when ``answered`` is counted."""
    origin: dict[str, tuple[str, float, int]] = field(default_factory=dict)
    """Component of a content delivery network -> site it fetches from, since when, version."""
    invalidated: dict[str, float] = field(default_factory=dict)
    """Component and reference of an invalidation -> when."""
    caches: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    """Component and site of a cache -> key -> what is kept."""
    scaling: dict[tuple[str, str], Scaling] = field(default_factory=dict)
    """Component and site of a group -> its rules."""
    refreshes: dict[tuple[str, str], tuple[str, str, str, float]] = field(default_factory=dict)
    """Component and site of a group -> the newest refresh: version, version before, status, since when."""
    deregistered: set[str] = field(default_factory=set)
    """Application servers that were taken out of their target group."""
    paused: set[str] = field(default_factory=set)
    autovacuum: dict[str, tuple[bool, int]] = field(default_factory=lambda: {"public.events": (True, 500)})
    """table -> is it vacuumed, and after how many changed rows. Not as the plan says: there is something to do."""
    pools: dict[str, PoolLimits] = field(default_factory=dict)
    """site -> limits of its pooler; ``POOL`` where they were never set."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    routes: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Component -> site -> the one name before all buckets leads there."""
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    serial: int = 1
    lease: tuple[str, float] | None = None
    """The record of a lease's store, and when it was written."""
    cached: dict[tuple[str, str], tuple[RRset, float]] = field(default_factory=dict)
    site_at: dict[str, str] = field(default_factory=dict)
    """address -> site."""
    switches: dict[str, dict[str, bool]] = field(default_factory=dict)
    """component -> site -> its switch is on."""
    pointed: dict[tuple[str, str, str], RRset] = field(default_factory=dict)
    """(name, type, site) -> the record set that points the name at the site."""
    down: set[str] = field(default_factory=set)
    """Sites that are gone as a whole."""
    acknowledged: list[int] = field(default_factory=list)
    written_at: dict[int, float] = field(default_factory=dict)
    """Write -> when."""
    given_up: set[int] = field(default_factory=set)
    """Acknowledged writes that a restore took away again, within the loss budget."""
    rpo_s: float = 0.0
    """Of the database: what a restore may take away."""
    schema: dict[tuple[int, str], Applied] = field(default_factory=dict)
    """Number and phase of a migration -> its record in the database."""
    rehearsed: dict[str, str] = field(default_factory=dict)
    """File of a migration that went well on a copy -> its sha256."""
    locked: set[str] = field(default_factory=set)
    """Files of migrations that will find their tables locked, once."""
    executed: Counter[str] = field(default_factory=Counter)
    """File of a migration -> how often it was applied, less how often it was taken back."""
    restoring: bool = False
    restores: int = 0
    probes: list[str] = field(default_factory=list)
    promotions: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    """What would be a violation, had nobody waived the rule by name."""
    waived: Callable[[str], bool] = lambda _rule: False
    """Rule (``loss``, ``fence``) -> it was waived by name."""
    _newest_ack: int = 0
    _written: int = 0

    @property
    def now(self) -> float:
        """Seconds of the loop's clock."""
        return asyncio.get_running_loop().time()

    def utc(self, at: float | None = None) -> datetime:
        """The world's time as a record has it."""
        return ANCHOR + timedelta(seconds=self.now if at is None else at)

    def violate(self, what: str) -> None:
        """Note a broken invariant, once."""
        if what not in self.violations:
            self.violations.append(what)

    def two_writers(self, what: str) -> None:
        """Note it as broken, or as accepted by whoever waived the proof of a fence."""
        if not self.waived("fence"):
            self.violate(f"one writer: {what}")
        elif what not in self.accepted:
            self.accepted.append(what)

    # ---- the database ----

    def streams(self, node: Node) -> bool:
        """``node`` gets what its upstream writes, now."""
        up = self.nodes.get(node.upstream or "")
        return bool(
            up is not None and node.answers and node.replica and up.answers and not up.replica
            and up.timeline == node.timeline and up.site not in self.down
        )  # fmt: skip

    def commit(self, node: Node, n: int | None) -> bool:
        """A write at ``node``; True when it may be acknowledged (every standby that was promised has it)."""
        if not node.writable:
            raise Rejected(f"{node.name} takes no writes")
        if n is not None:
            node.log.append(n)
            self.written_at[n] = self.now
        node.last_commit = self.now
        following = [r for r in self.nodes.values() if r.upstream == node.name and self.streams(r)]
        for replica in following:
            replica.log = node.log[: len(node.log) - replica.behind]
            replica.last_commit = self.now
            replica.note = node.note
        promise = node.live
        if promise.method == "async":
            return True
        return sum(r.name in promise.standbys and not r.behind for r in following) >= promise.needed

    def acknowledge(self, node: Node, n: int) -> None:
        """A client heard that write ``n`` is safe."""
        if node.timeline < self._newest_ack:
            self.two_writers(f"{node.name} acknowledged a write on timeline {node.timeline} after a newer primary")
            if self.waived("fence"):
                return  # lost with the old primary, as accepted
        self._newest_ack = max(self._newest_ack, node.timeline)
        self.acknowledged.append(n)

    def promote(self, node: Node) -> None:
        """The effect of a promotion, and what must be true in that very moment."""
        if not node.answers:
            raise Unreachable(f"{node.name} does not answer")
        if not node.replica:
            raise Rejected(f"{node.name} is no replica any more")
        others = [o.name for o in self.nodes.values() if o is not node and o.may_write]
        if [o for o in others if self.nodes[o].writable]:
            raise Contradiction(f"{', '.join(others)} takes writes")
        if others:
            self.two_writers(f"{node.name} was promoted while {', '.join(others)} was not fenced")
        lost = set(self.acknowledged) - set(node.log)
        if lost and not self.waived("loss"):
            self.violate(f"loss budget: promoting {node.name} lost {len(lost)} acknowledged writes")
        node.replica, node.upstream = False, None
        node.timeline = max(n.timeline for n in self.nodes.values()) + 1
        node.read_only, node.behind = False, 0
        node.live = ASYNC  # its standbys are gone: promotion goes before durability
        node.note = (node.name, ASYNC)
        self.promotions[node.name] += 1

    def give_up(self, name: str, writes: Iterable[int]) -> None:
        """What a restore takes away is within the loss budget, or somebody waived it."""
        lost = set(self.acknowledged) & set(writes)
        oldest_s = max((self.now - self.written_at[n] for n in lost), default=0.0)
        if oldest_s > self.rpo_s and not self.waived("loss"):
            self.violate(f"loss budget: restoring {name} took away a write that was {oldest_s:.0f} s old")
        self.given_up |= lost

    def follow(self, node: Node, upstream: Node) -> None:
        """Point ``node`` at ``upstream``; it streams if its history is part of that one's."""
        node.upstream = upstream.name
        if node.timeline != upstream.timeline and node.log == upstream.log[: len(node.log)]:
            node.timeline = upstream.timeline
        if node.timeline == upstream.timeline:
            node.log = list(upstream.log[: len(upstream.log) - node.behind])

    def primaries(self) -> list[Node]:
        """Nodes that take writes now."""
        return [n for n in self.nodes.values() if n.writable]


@dataclass
class World(Data):
    """The same, with the ways of clients through it: balancers, application servers, names."""

    def servers(self, site: str, pool: str) -> dict[str, str]:
        """Server -> admin state. Raises Unreachable where the balancer is gone."""
        if site in self.down or (site, pool) not in self.admin:
            raise Unreachable(f"balancer of {site} does not answer")
        return self.admin[site, pool]

    def serving(self, server: str) -> bool:
        """An application server (``west-app1``) passes its check."""
        site = server.rpartition("-app")[0]
        ready = max(self.ready_since[site], self.started.get(server, (FIRST, 0.0))[1])
        return site not in self.down and server in self.running[site] and self.now >= ready

    def ready(self, server: str) -> bool:
        """As its /readyz: it serves, and its database answers."""
        try:
            self.routed(server.rpartition("-app")[0])
        except Unreachable:
            return False
        return self.serving(server)

    def release(self, server: str) -> str | None:
        """What an application server says that it runs; None where nothing answers."""
        site = server.rpartition("-app")[0]
        alive = server in self.running.get(site, ()) or self.now < self.ended.get(server, 0.0)
        return self.started.get(server, (FIRST, 0.0))[0] if alive and site not in self.down else None

    def start(self, server: str) -> None:
        """One by one. Raises NotYet while its last process ends."""
        site = server.rpartition("-app")[0]
        if self.now < self.ended.get(server, 0.0):
            raise NotYet(f"{server} is still stopping")
        if server not in self.running[site]:
            self.running[site].add(server)
            self.started[server] = (self.links.get(site, FIRST), self.now + START_S)
            self.answered[server] = 0.0

    def stop(self, server: str) -> None:
        """One by one. What it was answering is lost."""
        site = server.rpartition("-app")[0]
        if server not in self.running[site]:
            return
        takers = [at for (at, _), admin in self.admin.items() if at not in self.down and admin.get(server) == "ready"]
        if self.serving(server) and takers:
            self.violate(f"no request lost: {server} was stopped while {', '.join(takers)} sends to it")
        elif self.now < self.open_until.get(server, 0.0):
            self.violate(f"no request lost: {server} was stopped before its last one had ended")
        self.running[site].discard(server)
        self.ended[server] = self.now + STOP_S

    def routed(self, site: str) -> Node:
        """The database node that ``site``'s balancer sends to. Raises Unreachable, Rejected."""
        if site in self.apart:
            return self.apart[site]
        ready = [s for s, admin in self.servers(site, DATABASE_POOL).items() if admin == "ready"]
        found = [self.nodes[s] for s in ready if self.nodes[s].answers and self.nodes[s].site not in self.down]
        if not found:
            raise Unreachable(f"no database server is ready at {site}")
        return found[0]

    def apps(self, site: str, pool: str) -> list[str]:
        """Application servers that the balancer of ``site`` sends to. Raises Unreachable for none."""
        found = [s for s, admin in self.servers(site, pool).items() if admin == "ready" and self.serving(s)]
        if not found:
            raise Unreachable(f"no application server is ready at {site}")
        return found

    async def request(self, site: str, within_s: float, write: int | None) -> tuple[str, Node]:
        """A client's request at ``site``'s front door. Raises Unreachable when it gets no good answer in time."""
        until = self.now + within_s
        pool = next(p for s, p in self.admin if s == site and p != DATABASE_POOL)
        app = self.apps(site, pool)[0]
        while app.rpartition("-app")[0] in self.paused:
            if self.now + SESSIONS_WAIT_S > until:
                raise Unreachable("no answer: the pooler holds queries")
            await asyncio.sleep(SESSIONS_WAIT_S)
        node = self.routed(app.rpartition("-app")[0])
        if write is not None and not self.commit(node, write):
            await asyncio.sleep(max(0.0, until - self.now))
            raise Unreachable("no answer: the commit waits for a standby")
        return app, node

    async def clients(self, name: tuple[str, str], every_s: float = 0.1) -> None:
        """Writes through the public name for ever, as the load client of the lab does."""
        while True:
            await asyncio.sleep(every_s)
            self._written += 1
            number = self._written
            try:
                site = self.site_at[self.resolve("clients", *name).targets[0]]
                _, node = await self.request(site, 1.0, number)
            except (Unreachable, Rejected):
                continue
            self.acknowledge(node, number)

    # ---- names ----

    def resolve(self, resolver: str, name: str, rdtype: str) -> RRset:
        """As a caching resolver answers. Raises Unreachable for a name that does not exist."""
        kept = self.cached.get((resolver, name))
        if kept is not None and kept[1] > self.now:
            return kept[0]
        found = self.records.get((name, rdtype))
        if found is None:
            raise Unreachable(f"{name} does not exist")
        self.cached[resolver, name] = (found.rrset, self.now + found.rrset.ttl)
        return found.rrset

    def sites_of(self, addresses: Iterable[str]) -> set[str]:
        """The sites that ``addresses`` are in."""
        return {self.site_at[a] for a in addresses if a in self.site_at}
