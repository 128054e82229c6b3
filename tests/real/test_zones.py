"""What every zone must do: one suite, for real BIND, Route 53 behind its strict layer, and the simulated twin.

A ground is a zone with ``app.venue.test.`` pointing at west and 1,200 other names, in which a test can make faults. The
twin that ``relight prove`` uses must not be kinder than the real ones, and they must not differ from each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import replace

import pytest
import test_rfc2136 as bind
from hanging import hang
from lease_backends import LINK, Link
from patience import until
from strict_route53 import strict_route53

from flows.engine import places, system
from flows.engine.scenario import Twins, world_of
from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo, Surroundings
from tasks.errors import BadInput, EffectUnknown, LeaseHeld, LostCompare, Rejected, RelightError, Unreachable
from tasks.simulation import Process, ProcessClock, Simulation, enter
from tasks.world_parts import Record
from tasks.zones import _watch as watch
from tasks.zones.protocol import Owned, RRset, Zone
from tasks.zones.route53 import PROVIDER as ROUTE53

pytestmark = pytest.mark.real
NAME, EPOCHS = "app.venue.test.", "_relight.app.venue.test."
OTHERS = 1200


class Ground:
    """``zone``: what is tested, made by ``run``. Names and values are those of its own settings.

    ``quick``: a short time-out, for the test that runs into it; the others must not, on a busy machine either.
    """

    zone: Zone

    def run(self, test, *, quick=False):
        raise NotImplementedError

    def by_hand(self, values=None, epoch=None):
        """Somebody else writes the record set, or its epoch, without asking."""
        raise NotImplementedError

    def lose(self):
        """The answer to the next change is lost; the change happens."""
        raise NotImplementedError

    @contextlib.contextmanager
    def refusing(self):
        """Nothing is taken: no connection, or throttled."""
        raise NotImplementedError

    @contextlib.contextmanager
    def hung(self):
        """Changes are not answered in time; whether they happen later is open."""
        raise NotImplementedError

    def changes(self):
        """How many changes happened so far."""
        raise NotImplementedError


class Bind(Ground):
    def __init__(self, dns_):
        self.dns = dns_
        self.link = Link(bind.PRIMARY)
        self.link.start()

    def run(self, test, *, quick=False):
        self._as_at_first()

        async def main():
            self.zone = bind.provider(self.dns.folder, primary=f"{LINK[0]}:{LINK[1]}", timeout="1s" if quick else "15s")
            await test(self)

        asyncio.run(main())

    def _as_at_first(self):
        def fill(update):
            update.replace(NAME, 2, "A", bind.WEST)
            update.delete(EPOCHS, "TXT")

        bind.by_hand(fill)
        until(lambda: bind.answer(bind.SECONDARY) == {bind.WEST})

    def by_hand(self, values=None, epoch=None):
        def fill(update):
            if values:
                update.delete(NAME, "A")
                for value in values:
                    update.add(NAME, 2, "A", value)
            if epoch is not None:
                update.replace(EPOCHS, 2, "TXT", f'"epoch={epoch} owner=relight"')

        bind.by_hand(fill)

    def lose(self):
        self.link.lose_after = lambda data: len(data) > 4 and (data[4] >> 3) & 0xF == 5

    @contextlib.contextmanager
    def refusing(self):
        self.link.cut()
        try:
            yield
        finally:
            self.link.start()

    @contextlib.contextmanager
    def hung(self):
        pid = self.dns.processes["primary"].pid
        hang(pid)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def changes(self):
        reply = bind.dns.query.udp(
            bind.dns.message.make_query("venue.test.", "SOA"), bind.PRIMARY[0], port=bind.PRIMARY[1]
        )
        return reply.answer[0][0].serial


class Aws(Ground):
    def __init__(self, strict):
        self.strict = strict

    def run(self, test, *, quick=False):
        strict = self.strict
        strict.front.clear()
        strict.sync_s, strict.page = 0.15, 100
        record = {"Type": "A", "TTL": 2, "ResourceRecords": [{"Value": bind.WEST}]}
        others = ({"Name": f"n{n:04}.venue.test.", **record} for n in range(OTHERS))
        self.id = strict.zone("venue.test.", {"Name": NAME, **record}, *others)
        settings = {
            "hosted_zone": self.id, "zone": "venue.test.", "servers": list(strict.servers),
            "resolvers": [strict.servers[1]], "requests_per_s": 1000, "poll": "20ms", "patience": "300ms",
            "timeout": "2s" if quick else "15s",
            "names": {NAME: {"ttl": 2, "A": {"west": [bind.WEST], "east": [bind.EAST]}}},
        }  # fmt: skip

        async def main():
            around = Surroundings("test", "dns", ("west", "east"), LoopClock(), lambda _name: None)
            self.zone = ROUTE53(ROUTE53.Settings.model_validate(settings), around)
            try:
                await test(self)
            finally:
                await self.zone.aclose()

        asyncio.run(main())

    def by_hand(self, values=None, epoch=None):
        changes = [("DELETE", r) for r in self.strict.holds(self.id, NAME, "A")] if values else []
        if values:
            records = [{"Value": v} for v in values]
            changes.append(("CREATE", {"Name": NAME, "Type": "A", "TTL": 2, "ResourceRecords": records}))
        if epoch is not None:
            text = [{"Value": f'"epoch={epoch} owner=relight"'}]
            changes.append(("UPSERT", {"Name": EPOCHS, "Type": "TXT", "TTL": 2, "ResourceRecords": text}))
        self.strict.by_hand(self.id, *changes)

    def lose(self):
        self.strict.front.order("ChangeResourceRecordSets", "lost")

    @contextlib.contextmanager
    def refusing(self):
        self.strict.front.order("ChangeResourceRecordSets", *["Throttling", "PriorRequestNotComplete"] * 20)
        yield
        self.strict.front._faults.clear()

    @contextlib.contextmanager
    def hung(self):
        before = self.changes()
        self.strict.front.order("ChangeResourceRecordSets", 3.0)
        yield
        until(lambda: self.changes() > before)  # it was on its way

    def changes(self):
        return len(self.strict._history[self.id])


class Twin(Ground):
    def run(self, test, *, quick=False):
        async def main():
            enter(Process("test"))
            loaded, clock, self.simulation = system.load(places.system_file("lab")), ProcessClock(), Simulation()
            self.world = world_of(loaded, clock)
            for n in range(OTHERS):
                name = f"n{n:04}.venue.test."
                self.world.records[name, "A"] = Record(RRset(name, "A", 2, ("127.0.0.1",)))
            twins = Twins(loaded, clock, self.world, self.simulation)
            self.zone = twins("dns")
            self.world.records[NAME, "A"] = Record(self.zone.wanted(NAME, "A", "west"))
            await test(self)
            await twins.aclose()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())

    def by_hand(self, values=None, epoch=None):
        now = self.world.records[NAME, "A"]
        rrset = replace(now.rrset, values=tuple(sorted(values))) if values else now.rrset
        self.world.records[NAME, "A"] = Record(rrset, now.epoch if epoch is None else epoch, self.world.now, now.rrset)

    def lose(self):
        self._deviate("lost")

    @contextlib.contextmanager
    def refusing(self):
        self._deviate("error")
        yield

    @contextlib.contextmanager
    def hung(self):
        self._deviate("timeout")
        yield

    def _deviate(self, how):
        self.simulation.deviations = {len(self.simulation.trace) + 1: how}

    def changes(self):
        return self.world.serial


@pytest.fixture(scope="module")
def grounds(tmp_path_factory, moto):
    with contextlib.ExitStack() as stack:
        more = "".join(f"n{n:04} IN A 127.0.7.10\n" for n in range(OTHERS))
        named = Bind(stack.enter_context(bind.running(tmp_path_factory.mktemp("bind"), more)))
        stack.callback(named.link.cut)
        yield {"rfc2136": named, "route53": Aws(stack.enter_context(strict_route53(moto))), "twin": Twin()}


@pytest.fixture(params=["rfc2136", "route53", "twin"])
def ground(request, grounds):
    return grounds[request.param]


def context(zone):
    clock = LoopClock()
    run = RunInfo("r1", "test", "failover", "forced", 3, "2026-01-01T00:00:00+00:00")
    return Context(run, clock, {"west": "west", "east": "east"}, lambda _n: zone, clock.monotonic() + 90)


async def now(g):
    found = await g.zone.read(NAME, "A")
    return found.rrset.values, found.epoch


def pair(g):
    return (g.zone.wanted(NAME, "A", site) for site in ("west", "east"))


def test_a_swap_replaces_record_set_and_epoch_and_a_repetition_does_nothing(ground):
    async def story(g):
        west, east = pair(g)
        old = await g.zone.read(NAME, "A")
        assert old.rrset == west
        before = g.changes()
        await g.zone.swap(old, east, 3)
        assert await now(g) == (east.values, 3)
        assert g.changes() == before + 1
        await g.zone.swap(old, east, 3)  # as after a lost reply, or a crash
        assert await now(g) == (east.values, 3)
        assert g.changes() == before + 1, "no effect twice"
        await g.zone.swap(await g.zone.read(NAME, "A"), west, 4)
        assert await now(g) == (west.values, 4)

    ground.run(story)


def test_a_lost_reply_is_settled_by_looking(ground):
    async def story(g):
        _, east = pair(g)
        old = await g.zone.read(NAME, "A")
        before = g.changes()
        g.lose()
        await g.zone.swap(old, east, 3)
        assert await now(g) == (east.values, 3)
        assert g.changes() == before + 1
        await g.zone.in_sync(NAME, 60)

    ground.run(story, quick=True)  # by BIND, what is lost is a time-out


def test_refused_for_now_is_retryable_and_changed_nothing(ground):
    async def story(g):
        west, east = pair(g)
        old = await g.zone.read(NAME, "A")
        before = g.changes()
        with g.refusing(), pytest.raises(RelightError) as e:
            await g.zone.swap(old, east, 3)
        assert e.value.retryable
        assert e.value.state_known
        assert await now(g) == (west.values, None if old.epoch is None else old.epoch)
        assert g.changes() == before
        await g.zone.swap(old, east, 3)
        assert await now(g) == (east.values, 3)

    ground.run(story)


def test_no_answer_in_time_is_unknown_and_repeating_is_safe(ground):
    async def story(g):
        _, east = pair(g)
        old = await g.zone.read(NAME, "A")
        before = g.changes()
        with g.hung(), pytest.raises(EffectUnknown):
            await g.zone.swap(old, east, 3)
        for _ in range(100):  # what was on its way may come first, or now
            with contextlib.suppress(Unreachable, EffectUnknown):
                await g.zone.swap(old, east, 3)
                break
        assert await now(g) == (east.values, 3)
        assert g.changes() == before + 1

    ground.run(story, quick=True)


def test_eventually_every_server_and_resolver_says_it(ground):
    async def story(g):
        _, east = pair(g)
        await g.zone.swap(await g.zone.read(NAME, "A"), east, 3)
        ctx = context(g.zone)
        for look in (watch.authoritative(ctx, g.zone, east, serial=None, may_be_gone=False),):
            await look  # at once, some may not have it yet; they are named
        await g.zone.in_sync(NAME, 60)
        for _ in range(2000):
            found = await watch.authoritative(ctx, g.zone, east, serial=None, may_be_gone=False)
            through = await watch.cached(ctx, g.zone, east, may_be_gone=False)
            if not found.open and not through.open:
                break
            await asyncio.sleep(0.02)
        assert (found.open, through.open) == ((), ())
        assert set(found.facts) == set(g.zone.servers())

    ground.run(story)


@pytest.mark.parametrize("half", ["record", "epoch"])
def test_half_of_what_was_compared_moved_and_nothing_changes(ground, half):
    async def story(g):
        west, east = pair(g)
        old = await g.zone.read(NAME, "A")
        if half == "record":
            g.by_hand(values=("127.0.7.98", "127.0.7.99"))
        else:
            g.by_hand(epoch=2)
        moved = await now(g)
        with pytest.raises(LostCompare):
            await g.zone.swap(old, east, 3)
        assert await now(g) == moved
        g.by_hand(values=east.values)
        with pytest.raises(LostCompare):  # the wanted values are there, and it is not this run that wrote them
            await g.zone.swap(old, east, 3)
        assert west.values != east.values

    ground.run(story)


def test_a_stale_epoch_never_writes(ground):
    async def story(g):
        west, east = pair(g)
        first = await g.zone.read(NAME, "A")
        await g.zone.swap(first, east, 7)
        with pytest.raises(LeaseHeld):
            await g.zone.swap(await g.zone.read(NAME, "A"), west, 6)
        with pytest.raises(LeaseHeld):  # one that still believes in the first state
            await g.zone.swap(first, west, 6)
        with pytest.raises(LostCompare):
            await g.zone.swap(replace(await g.zone.read(NAME, "A"), epoch=5), west, 8)
        assert await now(g) == (east.values, 7)

    ground.run(story)


def test_a_name_is_never_left_without_a_record(ground):
    async def story(g):
        before = await now(g)
        with pytest.raises(BadInput, match="without a record"):
            await g.zone.swap(await g.zone.read(NAME, "A"), RRset(NAME, "A", 2, ()), 3)
        assert await now(g) == before

    ground.run(story)


def test_two_at_once_and_one_wins(ground):
    async def story(g):
        west, east = pair(g)
        old = await g.zone.read(NAME, "A")
        wanted = [RRset(NAME, "A", 2, (f"127.0.7.{100 + n}",)) for n in range(1, 5)]
        results = await asyncio.gather(
            *(g.zone.swap(old, w, n) for n, w in enumerate(wanted, 1)), return_exceptions=True
        )
        won = [n for n, r in enumerate(results, 1) if r is None]
        assert len(won) == 1, results
        assert all(isinstance(r, LostCompare | LeaseHeld) for r in results if r is not None), results
        assert await now(g) == (wanted[won[0] - 1].values, won[0])
        assert west.values != east.values

    ground.run(story)


def test_what_is_not_there_is_nothing(ground):
    async def story(g):
        assert (await g.zone.read(NAME, "CNAME")).rrset is None
        assert (await g.zone.read("nothing.venue.test.", "A")) == Owned(
            None, None, (await g.zone.read(NAME, "A")).serial
        )
        with pytest.raises((BadInput, Rejected)):
            g.zone.wanted("nothing.venue.test.", "A", "west")

    ground.run(story)


def test_one_name_among_more_than_a_thousand(ground):
    async def story(g):
        for n in (0, 777, OTHERS - 1):
            found = await g.zone.read(f"n{n:04}.venue.test.", "A")
            assert found.rrset.name == f"n{n:04}.venue.test."
            assert len(found.rrset.values) == 1
        access = await g.zone.check_access(NAME, "A")
        assert access.primary

    ground.run(story)
