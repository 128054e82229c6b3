"""The simulated twins and the real providers tell the same story, call by call, of the same system file.

Each story below goes through one Protocol: what it answers, which error it raises, what is true afterwards. It is told
once by the real lab and once by the simulated world, and the two transcripts must be equal. What ``prove`` finds is
worth as much as this.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flows.engine import places, system
from flows.engine.providers import Components
from flows.engine.scenario import Twins, world_of
from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.database._durability import parse
from tasks.database._sizes import PoolLimits
from tasks.errors import RelightError
from tasks.health.twin import NetworkTwin
from tasks.migrations.protocol import Limits, Target
from tasks.network import Ask, Sockets
from tasks.simulation import Process, ProcessClock, Simulation, enter
from tasks.zones.protocol import Owned, RRset

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
NAME = "app.venue.test."
Story = Callable[["Teller"], Awaitable[None]]


def public(error: RelightError) -> str:
    """The class of the tree in ``tasks.errors``; a provider may have a narrower one of its own."""
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == "tasks.errors")


class Teller:
    """Writes down what came of each call."""

    def __init__(self, components: Components, network: Any, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.components, self.network, self.sleep = components, network, sleep
        self.told: list[tuple[str, Any]] = []

    async def tell(self, label: str, call: Awaitable[Any], show: Callable[[Any], Any] = lambda found: found) -> Any:
        try:
            found = await call
        except RelightError as e:
            self.told.append((label, public(e)))
            return None
        self.told.append((label, show(found)))
        return found

    async def becomes(self, label: str, look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Wait until ``look`` gives ``wanted``: what is true in the end counts, not when."""
        seen = None
        for _ in range(1200):
            try:
                seen = await look()
            except RelightError as e:
                seen = public(e)
            if seen == wanted:
                break
            await self.sleep(0.05)
        self.told.append((label, seen))


# ---- the database ----


def seen(view: Any) -> dict[str, Any]:
    return {
        k: getattr(view, k) for k in ("node", "site", "reach", "in_recovery", "read_only", "upstream", "streaming")
    } | {"timeline": view.timeline, "positioned": view.lsn is not None}


def dead_or_held(probe: Any) -> str:
    return "not running" if probe.outcome in ("gone", "held") else probe.outcome


async def database(t: Teller) -> None:
    db = t.components("database")
    for node in db.nodes():
        await t.tell(f"view {node}", db.view(node), seen)
        for vantage in db.vantages():
            await t.tell(f"write to {node} from {vantage}", db.try_write(node, vantage), lambda p: p.outcome)
        await t.tell(f"host of {node}", db.ask_host(node), lambda p: p.outcome)
    await t.tell("durability", db.live_durability("west-pg1"))
    await t.tell("durability of a replica", db.live_durability("east-pg1"))
    await t.tell("standbys", db.standbys("west-pg1"), lambda s: sorted((x.node, x.state) for x in s))
    vacuum = {"enabled": True, "threshold": 60, "lock_timeout_s": 1.0}
    await t.tell("autovacuum of a replica", db.set_autovacuum("east-pg1", "public.events", **vacuum))
    await t.tell("of no table", db.set_autovacuum("west-pg1", "public.nothing", **vacuum))
    await t.tell("autovacuum", db.set_autovacuum("west-pg1", "public.events", **vacuum))
    await t.tell("it is set", db.autovacuum("west-pg1"), lambda ts: [x for x in ts if x.table == "public.events"])
    await t.tell("promote beside a living primary", db.promote("east-pg1"))
    await t.tell("quiesce a replica", db.quiesce("east-pg1"))
    await t.tell("fence a replica", db.fence("east-pg1", orderly=False))
    await t.tell("follow a replica", db.follow("west-pg2", "east-pg1"))
    await t.tell("rejoin the primary itself", db.rejoin("west-pg1", "east-pg1"))
    await t.tell("quiesce", db.quiesce("west-pg1"), lambda lsn: lsn > 0)
    await t.tell("quiesced", db.view("west-pg1"), seen)
    await t.tell("quiesced refuses", db.try_write("west-pg1", "direct"), lambda p: p.outcome)
    await t.tell("unfence", db.unfence("west-pg1"))
    await t.tell("unfenced", db.view("west-pg1"), seen)
    await t.tell("orderly fence", db.fence("west-pg1", orderly=True))
    await t.tell("fenced", db.view("west-pg1"), lambda v: v.reach)
    await t.tell("fenced, its host", db.ask_host("west-pg1"), dead_or_held)
    await t.tell("unfence a stopped one", db.unfence("west-pg1"))
    await t.tell("it is back", db.view("west-pg1"), seen)
    await t.tell("forced fence", db.fence("west-pg1", orderly=False))
    await t.tell("dead", db.try_write("west-pg1", "direct"), lambda p: p.outcome)
    await t.tell("quiesce a dead one", db.quiesce("west-pg1"))
    await t.tell("promised", db.promised("east-pg1"))
    await t.tell("promote", db.promote("east-pg1"))
    await t.tell("promoted", db.view("east-pg1"), seen)
    await t.tell("promoted takes writes", db.try_write("east-pg1", "direct"), lambda p: p.outcome)
    await t.tell("promote it again", db.promote("east-pg1"))
    await t.tell("promote another one", db.promote("east-pg2"))
    await t.tell("unfence the old primary", db.unfence("west-pg1"))
    await t.tell("follow", db.follow("east-pg2", "east-pg1"))

    def streams(node: str) -> Callable[[], Awaitable[Any]]:
        async def look() -> Any:
            view = await db.view(node)
            return view.upstream, view.streaming, view.timeline

        return look

    await t.becomes("it streams", streams("east-pg2"), ("east-pg1", True, 2))
    await t.tell("rejoin", db.rejoin("west-pg1", "east-pg1"), bool)
    await t.tell("rejoin another", db.rejoin("west-pg2", "east-pg1"), bool)
    await t.becomes("it streams again", streams("west-pg1"), ("east-pg1", True, 2))
    await t.tell("protect", db.set_durability("east-pg1", parse("FIRST 1 (west-pg1)")))
    await t.tell("protected", db.live_durability("east-pg1"))
    await t.tell("noted", db.promised("east-pg1"))
    await t.tell("protect a replica", db.set_durability("west-pg1", parse("")))


# ---- the way of the clients ----


async def zone(t: Teller) -> None:
    dns = t.components("dns")
    west, east = (dns.wanted(NAME, "A", s) for s in ("west", "east"))
    before = await t.tell("read", dns.read(NAME, "A"), lambda o: (o.rrset, o.epoch))
    epoch = (before.epoch or 0) + 7
    await t.tell("read what is not there", dns.read(NAME, "CNAME"), lambda o: o.rrset)
    await t.tell("access", dns.check_access(NAME, "A"), lambda a: a.primary)
    await t.tell("empty", dns.swap(before, RRset(NAME, "A", 5, ()), epoch))
    await t.tell("ask a resolver", dns.ask(dns.resolvers()[0], NAME, "A"), lambda a: a.rrset and a.rrset.values)
    await t.tell("swap", dns.swap(before, east, epoch))
    await t.tell("swapped", dns.read(NAME, "A"), lambda o: (o.rrset, o.epoch == epoch))
    await t.tell("stale compare", dns.swap(before, west, epoch + 1))
    now = await dns.read(NAME, "A")
    await t.tell("older epoch", dns.swap(now, west, epoch - 1))
    await t.tell("wrong old values", dns.swap(Owned(west, epoch, now.serial), west, epoch + 1))
    for server in dns.servers():

        async def answer(server: str = server) -> Any:
            found = await dns.ask(server, NAME, "A")
            return found.authoritative, found.rrset

        await t.becomes(f"{server} serves", answer, (True, east))

    async def cached() -> Any:
        return (await dns.ask(dns.resolvers()[0], NAME, "A")).rrset.values

    await t.becomes("resolvers follow", cached, east.values)
    await t.tell("back", dns.swap(await dns.read(NAME, "A"), west, epoch + 2))
    await t.tell("nobody there", dns.ask("127.0.0.1:5399", NAME, "A"), lambda a: bool(a.error) or "an answer")


async def pooler(t: Teller) -> None:
    pool = t.components("pooler")
    await t.tell("passes", pool.paused("west"))
    await t.tell("round trip", pool.round_trip("west", "n1"), lambda r: (r.read_back, r.in_recovery, r.timeline))
    await t.tell("pause", pool.pause("west"))
    await t.tell("pause again", pool.pause("west"))
    await t.tell("holds", pool.paused("west"))
    await t.tell("resume", pool.resume("west"))
    await t.tell("resume again", pool.resume("west"))
    await t.tell("passes again", pool.paused("west"))
    await t.tell("limits", pool.set_pool_limits("west", PoolLimits(10, 40, 60)), bool)
    await t.tell("limited", pool.pool_limits("west"))
    await t.tell("limits as they were", pool.set_pool_limits("west", PoolLimits(20, 100, 100)), bool)
    await t.tell("limited as before", pool.pool_limits("west"))


async def balancer(t: Teller) -> None:
    lb = t.components("traffic")

    def shown(servers: Any) -> list[tuple[str, str, str, bool]]:
        return sorted((s.name, s.site, s.admin, s.admin == "ready" and s.up) for s in servers)

    await t.tell("database pool", lb.servers("west", "db"), shown)
    await t.tell("out", lb.set_admin("west", "db", "west-pg1", "maint"))
    await t.tell("it is out", lb.servers("west", "db"), lambda s: next(x.admin for x in s if x.name == "west-pg1"))
    await t.tell("drain", lb.set_admin("west", "db", "west-pg1", "drain"))
    await t.tell("it drains", lb.servers("west", "db"), lambda s: next(x.admin for x in s if x.name == "west-pg1"))
    await t.tell("sessions", lb.close_sessions("west", "db", "west-pg1"))
    await t.tell("in", lb.set_admin("west", "db", "west-pg1", "ready"))

    async def serving() -> Any:
        found = next(s for s in await lb.servers("west", "db") if s.name == "west-pg1")
        return found.admin, found.up

    await t.becomes("it serves", serving, ("ready", True))
    await t.tell("persist", lb.persist("west"))


async def capacity(t: Teller) -> None:
    group = t.components("capacity")

    async def ready() -> Any:
        found = await group.instances("west")
        return sum(i.running for i in found), sum(i.ready for i in found)

    await t.becomes("at first", ready, (2, 2))
    await t.tell("too many", group.scale("west", 11))
    await t.tell("one more", group.scale("west", 3))
    await t.becomes("three", ready, (3, 3))
    await t.tell("the same again", group.scale("west", 3))
    await t.tell("one less", group.scale("west", 2))
    await t.becomes("two", ready, (2, 2))


async def staging(t: Teller) -> None:
    environment = t.components("staging")
    fleet, here, one, two = environment.fleet(), environment.name, "staging-app1", "staging-app2"

    async def front() -> Any:
        said = await environment.front()
        return said.version, said.ready

    async def ready() -> Any:
        return sorted(i.name for i in await fleet.capacity.instances(here) if i.running and i.ready)

    async def started() -> Any:
        await fleet.starter.start(here, one)  # NotYet while it still stops
        return "started"

    def shown(servers: Any) -> list[tuple[str, str, str]]:
        return sorted((s.name, s.site, s.admin) for s in servers)

    await t.becomes("at first", front, ("1", True))
    await t.tell("servers", fleet.balancer.servers(here, "app"), shown)
    await t.tell("no instance of a site", fleet.capacity.instances("west"))
    await t.tell("switch", fleet.releases.switch(here, "2"))
    await t.tell("chosen", fleet.releases.chosen(here))
    await t.tell("start", fleet.starter.start(here, two))
    await t.becomes("two", ready, [one, two])
    await t.tell("drain", fleet.balancer.set_admin(here, "app", one, "drain"))
    await t.tell("stop", fleet.starter.stop(here, one))
    await t.becomes("the front door follows", front, ("2", True))
    await t.tell("back", fleet.releases.switch(here, "1"))
    await t.becomes("start again", started, "started")
    await t.becomes("both", ready, [one, two])
    await t.tell("ready", fleet.balancer.set_admin(here, "app", one, "ready"))
    await t.tell("drain the other", fleet.balancer.set_admin(here, "app", two, "drain"))
    await t.tell("stop it", fleet.starter.stop(here, two))
    await t.becomes("as before", front, ("1", True))
    await t.tell("as it was", fleet.balancer.set_admin(here, "app", two, "ready"))


async def storage(t: Teller) -> None:
    store = t.components("storage")
    await t.tell("west is copied from", store.source("west"))
    await t.tell("east is copied from", store.source("east"))
    await t.tell("stop", store.set_source("east", None))
    await t.tell("stopped", store.source("east"))
    await t.tell("probe", store.probe("east", "n1"))
    await t.tell("start", store.set_source("east", "west"))
    await t.tell("copied again", store.source("east"))
    await t.tell("view", store.view("east"), lambda v: (v.site, v.objects >= 0))


async def migrations(t: Teller) -> None:
    """Of the first file; it is taken back, so the lab is as before."""
    kept, node, limits = t.components("migrations"), "west-pg1", Limits(60, 60, 60)
    first = next(f for f in kept.files() if f.phase == "expand")
    identity = (await t.components("database").view(node)).system_identifier
    here = Target(node, identity, "r1")

    def shown(found: Any) -> Any:
        return [(a.number, a.phase, a.title, a.sha256, a.state, a.run) for a in found]

    await t.tell("nothing at first", kept.applied(node), shown)
    await t.tell("no risk", kept.risks(node, (first,), 2**20))
    await t.tell("a standby", kept.apply(Target("east-pg1", identity, "r1"), first, limits))
    await t.tell("another database", kept.apply(Target(node, "1234", "r1"), first, limits))
    await t.tell("still nothing", kept.applied(node), shown)
    await t.tell("apply", kept.apply(here, first, limits))
    await t.tell("apply again", kept.apply(Target(node, identity, "r2"), first, limits))
    await t.tell("applied once", kept.applied(node), shown)
    await t.becomes("at the standby too", lambda: seen_at(kept, "east-pg1"), 1)
    await t.tell("take back", kept.apply(here, first, limits, back=True))
    await t.tell("take back again", kept.apply(here, first, limits, back=True))
    await t.tell("nothing again", kept.applied(node), shown)


async def seen_at(kept: Any, node: str) -> int:
    return len(await kept.applied(node))


async def network(t: Teller) -> None:
    net, host = t.network, NAME.rstrip(".")
    (address,) = t.components("dns").wanted(NAME, "A", "west").values
    url = f"http://{address}:8080"
    resolver = t.components("dns").resolvers()[0]
    await t.becomes("lookup", lambda: net.lookup(NAME, resolver, within_s=20), (address,))
    await t.tell("lookup of nothing", net.lookup("nothing.venue.test.", resolver, within_s=20))
    await t.tell("connect", net.tcp(f"{address}:8080", within_s=20))
    await t.tell("connect to nobody", net.tcp("127.0.9.9:9", within_s=20))
    await t.tell("ready", net.http(Ask("GET", f"{url}/readyz", host), within_s=20), lambda r: r.status)
    body = json.dumps({"n": 1, "client": "twin", "payload": "x"}).encode()
    await t.tell("read nothing", net.http(Ask("GET", f"{url}/events/twin/1", host), within_s=20), lambda r: r.status)
    written = Ask("POST", f"{url}/events", host, {"Content-Type": "application/json"}, body)
    await t.tell("write", net.http(written, within_s=20), lambda r: (r.status, json.loads(r.text)["site"]))
    await t.tell(
        "read", net.http(Ask("GET", f"{url}/events/twin/1", host), within_s=20), lambda r: json.loads(r.text)["payload"]
    )
    await t.tell("nobody", net.http(Ask("GET", "http://127.0.9.9:9/"), within_s=20))


# ---- both tellers ----


def by_the_lab(story: Story) -> list[tuple[str, Any]]:
    async def main() -> list[tuple[str, Any]]:
        clock = LoopClock()
        components = Components(system.load(places.system_file("lab")), clock)
        teller = Teller(components, Sockets(), asyncio.sleep)
        try:
            await story(teller)
        finally:
            await components.aclose()
        return teller.told

    return asyncio.run(main())


def by_the_twins(story: Story) -> list[tuple[str, Any]]:
    async def main() -> list[tuple[str, Any]]:
        enter(Process("test"))
        loaded, clock, simulation = system.load(places.system_file("lab")), ProcessClock(), Simulation()
        world = world_of(loaded, clock)
        teller = Teller(Twins(loaded, clock, world, simulation), NetworkTwin(world, simulation), asyncio.sleep)
        await story(teller)
        return teller.told

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("story", [zone, pooler, balancer, capacity, staging, storage, migrations, network, database])
def test_both_tell_the_same_story(story: Story, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.env.items():
        monkeypatch.setenv(name, value)
    assert os.environ["RELIGHT_LAB"]
    if story is staging:
        lab.do("release", "2")
    real, simulated = by_the_lab(story), by_the_twins(story)
    assert len(real) == len(simulated)
    differ = [(one[0], one[1], other[1]) for one, other in zip(real, simulated, strict=True) if one != other]
    assert differ == [], "(what, the real one, the twin)"
