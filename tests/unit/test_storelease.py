"""The lease in a store, in virtual time: replies are lost, late and slow, and there are never two engines at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from flows.engine import safety
from flows.engine.lease import Holder
from flows.engine.storelease import StoreLease, acknowledged
from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.errors import BadInput, EffectUnknown, LeaseHeld, LostCompare, Rejected, Unreachable
from tasks.leases.protocol import Engine, Held, LastRun, LeaseStore, Mandate

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
TTL = 10.0


@dataclass
class Shelf:
    """One record, kept as text. ``script``: how the next swaps go: ok, lost (landed, no reply), vanish (neither),
    late:N (no reply, lands N seconds later), slow:N, away. ``aged`` False: a store without a clock.
    """

    ttl_s: float = TTL
    aged: bool = True
    script: list[str] = field(default_factory=list)
    text: str | None = None
    written_at: float = 0.0
    away: bool = False
    where: str = "the shelf"
    late: list[asyncio.Task[None]] = field(default_factory=list)

    async def read(self):
        await asyncio.sleep(0.01)
        if self.away:
            raise Unreachable("the shelf is away")
        if self.text is None:
            return None, None
        age = asyncio.get_running_loop().time() - self.written_at
        return Held.decode(self.text, self.where), age if self.aged else None

    async def swap(self, old, new):
        how = self.script.pop(0) if self.script else "ok"
        kind, _, seconds = how.partition(":")
        if self.away or kind == "away":
            raise Unreachable("the shelf is away")
        if kind == "vanish":
            await asyncio.sleep(1)
            raise EffectUnknown("no reply")
        if kind == "late":
            self.late.append(asyncio.create_task(self._land(old, new, float(seconds))))
            await asyncio.sleep(1)
            raise EffectUnknown("no reply")
        await asyncio.sleep(float(seconds) if kind == "slow" else 0.01)
        self._put(old, new)
        if kind == "tired":
            await asyncio.sleep(float(seconds))
        if kind == "lost":
            await asyncio.sleep(1)
            raise EffectUnknown("no reply")

    async def _land(self, old, new, seconds):
        await asyncio.sleep(seconds)
        try:
            self._put(old, new)
        except LostCompare:
            return

    def _put(self, old, new):
        if self.text != (None if old is None else old.encode()):
            raise LostCompare("something else is there")
        self.text, self.written_at = new.encode(), asyncio.get_running_loop().time()


def since():
    return asyncio.get_running_loop().time()


def holder(run_id, **more):
    return Holder(run_id, NOW, elapsed=since, **{"gone": lambda _engine: False, **more})


async def take(shelf, run_id, **more):
    return await StoreLease.acquire("lab", shelf, holder(run_id, **more), LoopClock(NOW))


def virtually(story):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story())


def test_a_shelf_is_a_store():
    assert isinstance(Shelf(), LeaseStore)


def test_one_holds_it_and_the_other_is_told_who():
    async def story():
        shelf = Shelf()
        mine = await take(shelf, "run-1", doing=lambda _run: "at step promote")
        mine.check()
        keeping = asyncio.create_task(mine.keep(LoopClock()))
        await asyncio.sleep(35)  # much longer than the ttl
        mine.check()
        with pytest.raises(LeaseHeld) as e:
            await take(shelf, "run-2")
        assert "system lab already has a run: run-1 (process" in str(e.value)
        assert "at step promote" in str(e.value)
        assert "since 2026-01-01T12:00:00+00:00" in str(e.value)
        assert e.value.exit_code == 3
        keeping.cancel()
        await mine.end(LastRun("run-1", "succeeded", "2026-01-01T12:01:00+00:00"))
        with pytest.raises(LeaseHeld, match="gave its lease"):
            mine.check()
        next_ = await take(shelf, "run-2")
        assert (next_.epoch, next_.last.run_id, next_.last.verdict) == (2, "run-1", "succeeded")

    virtually(story)


def test_the_epoch_starts_above_what_zones_saw():
    async def story():
        shelf, epochs = Shelf(), []
        for floor in (0, 40, 7):
            lease = await take(shelf, "run", floor=floor)
            epochs.append(lease.epoch)
            await lease.end(None)
        assert epochs == [1, 41, 42]

    virtually(story)


@pytest.mark.parametrize("aged", [True, False])
def test_one_that_stands_still_stops_before_another_starts(aged):
    async def story():
        shelf = Shelf(aged=aged)
        said = []
        old = await take(shelf, "old")  # and never renews
        await asyncio.sleep(7.5)
        old.check()
        if aged:
            with pytest.raises(LeaseHeld, match=r"if it died there, this can be tried again in 2\.\ds"):
                await take(shelf, "new")
        await asyncio.sleep(1)
        with pytest.raises(LeaseHeld, match=r"ran out .* ago \(this engine stood still\)"):
            old.check()
        if aged:
            await asyncio.sleep(2)
        before = since()
        new = await take(shelf, "new", say=said.append)
        assert since() - before == pytest.approx(0.03 if aged else TTL, abs=1)
        assert bool(said) != aged
        assert (new.epoch, new.last.run_id, new.last.verdict) == (2, "old", "died")
        await old.renew()
        with pytest.raises(LeaseHeld, match=r"epoch 1, and system lab is at epoch 2: new \(process .* took over"):
            old.check()
        await old.end(LastRun("old", "failed", "2026-01-01T12:01:00+00:00"))
        new.check()
        assert (await shelf.read())[0] == new.held  # what has lost it writes nothing

    virtually(story)


def test_it_wakes_up_and_says_who_took_over():
    async def story():
        shelf = Shelf()
        old = await take(shelf, "run-1")
        await asyncio.sleep(TTL + 1)
        await take(shelf, "run-1")  # a supervisor resumed the run
        why = await old.why()
        assert "at epoch 2: run-1 (process" in str(why)
        assert "goes on with it" in str(why)

    virtually(story)


def test_without_a_clock_in_the_store_a_renewal_is_seen_by_watching():
    async def story():
        shelf = Shelf(aged=False)
        mine = await take(shelf, "mine")
        keeping = asyncio.create_task(mine.keep(LoopClock()))
        before = since()
        with pytest.raises(LeaseHeld, match="renewed its lease while this engine watched"):
            await take(shelf, "other")
        assert since() - before < TTL / 3
        keeping.cancel()

    virtually(story)


def test_a_process_of_this_machine_that_is_gone_is_taken_over_at_once():
    async def story():
        shelf = Shelf(aged=False)
        await take(shelf, "died")
        before = since()
        new = await take(shelf, "new", gone=lambda engine: engine.pid > 0)
        assert (new.epoch, since() - before < 0.1) == (2, True)

    virtually(story)


def test_one_that_died_and_had_changed_nothing_is_not_the_last_run():
    async def story():
        shelf = Shelf()
        first = await take(shelf, "first")
        await first.end(LastRun("first", "succeeded", "2026-01-01T11:00:00+00:00"))
        await take(shelf, "died")
        new = await take(shelf, "new", gone=lambda _engine: True, changed=lambda run: run != "died")
        assert new.last.run_id == "first"

    virtually(story)


@pytest.mark.parametrize("how", ["lost", "vanish", "late:0.5", "late:1.005", "late:1.025", "late:5"])
def test_a_lost_reply_is_settled_by_looking(how):
    async def story():
        shelf = Shelf(script=[how])
        mine = await take(shelf, "mine")
        mine.check()
        assert (await shelf.read())[0].token == mine.held.token
        await asyncio.sleep(6)
        mine.check()
        shelf.script = [how]
        await mine.renew()
        await mine.renew()
        await asyncio.sleep(7)
        mine.check()
        shelf.script = [how]
        await mine.end(None)
        await asyncio.sleep(6)
        assert (await take(shelf, "next")).epoch == 2

    virtually(story)


def test_a_late_reply_makes_no_lease_longer():
    """What counts is when the write may have landed, not when its answer came."""

    async def story():
        shelf = Shelf(script=["tired:6"])
        mine = await take(shelf, "mine")
        await asyncio.sleep(2.5)
        with pytest.raises(LeaseHeld):
            mine.check()
        shelf.script = ["tired:6"]
        await mine.renew()
        mine.check()
        await asyncio.sleep(2.5)
        with pytest.raises(LeaseHeld):
            mine.check()

    virtually(story)


def test_a_store_that_is_away_stops_the_run_in_time_and_says_why():
    async def story():
        shelf = Shelf()
        mine = await take(shelf, "mine")
        keeping = asyncio.create_task(mine.keep(LoopClock()))
        await asyncio.sleep(5)
        shelf.away = True
        await asyncio.sleep(6)
        mine.check()
        await asyncio.sleep(3)
        with pytest.raises(LeaseHeld, match=r"ran out .* ago \(the shelf is away\).*relight resume mine"):
            mine.check()
        shelf.away = False  # nobody took over meanwhile
        await asyncio.sleep(1)
        mine.check()
        shelf.away = True
        said = []
        mine.holder = replace(mine.holder, say=said.append)
        keeping.cancel()
        await mine.end(None)
        assert "could not be given up (the shelf is away); it runs out by itself in 10s" in said[0]

    virtually(story)


def test_away_at_the_start_no_run_begins():
    async def story():
        shelf = Shelf()
        shelf.away = True
        with pytest.raises(Unreachable):
            await take(shelf, "mine")

    virtually(story)


def test_what_relight_did_not_write_is_not_overwritten():
    async def story():
        for text in ("", "{}", '{"epoch": 7}', "null", '{"epoch":7,"run_id":"x","colour":1}'):
            with pytest.raises(Rejected, match="holds no lease of this relight"):
                await take(Shelf(text=text), "mine")

    virtually(story)


def test_a_person_acknowledges_while_a_run_goes_on():
    async def story():
        shelf = Shelf()
        first = await take(shelf, "first")
        await first.end(LastRun("first", "succeeded", "2026-01-01T11:00:00+00:00", automatic=True))
        mine = await take(shelf, "mine")
        await acknowledged(shelf, safety.acknowledge("first", "J. Doe", NOW))
        await mine.renew()
        await mine.renew()
        mine.check()
        await mine.end(None)
        held, _ = await shelf.read()
        assert (held.last.acknowledged_by, held.last.acknowledged_at) == ("J. Doe", "2026-01-01T12:00:00+00:00")
        with pytest.raises(BadInput, match="the last one is first"):
            await acknowledged(shelf, safety.acknowledge("other", "J. Doe", NOW))

    virtually(story)


def test_acknowledging_one_that_goes_on_or_died():
    async def story():
        shelf = Shelf()
        await take(shelf, "mine", automatic=True)
        with pytest.raises(BadInput, match="has not ended"):
            await acknowledged(shelf, safety.acknowledge("mine", "J. Doe", NOW), lambda _engine: False)
        held = await acknowledged(shelf, safety.acknowledge("mine", "J. Doe", NOW), lambda _engine: True)
        assert (held.last.verdict, held.last.automatic, held.last.acknowledged_by) == ("died", True, "J. Doe")
        assert (await take(shelf, "next")).last == held.last

    virtually(story)


def test_the_record_is_the_same_text_for_the_same_record():
    held = Held(3, "r", Engine("h", 1, 2, "m"), last=LastRun("q", "failed", "2026-01-01T11:00:00+00:00"))
    assert Held.decode(held.encode(), "x") == held
    assert held.encode().isascii()


# ---- whatever happens, never two ----


FAULTS = ["ok"] * 6 + ["lost", "vanish", "late:0.5", "late:4", "late:15", "slow:1", "slow:6", "tired:6", "away"]


@dataclass
class Weather:
    """Three engines that come, stand still, die and wake up for 200 s over a store in which everything goes wrong."""

    dice: random.Random
    aged: bool
    live: list[StoreLease] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    overlaps: list[tuple[float, list[int]]] = field(default_factory=list)
    ends: float = 0.0

    async def story(self):
        self.ends = since() + 200
        shelf = Shelf(aged=self.aged, script=[self.dice.choice(FAULTS) for _ in range(2000)])
        engines = [asyncio.create_task(self.engine(shelf, f"run-{i}")) for i in range(3)]
        while not all(t.done() for t in engines):
            await asyncio.sleep(0.05)
            if len(now := self.acting()) > 1:
                self.overlaps.append((since(), now))
        await asyncio.gather(*engines)
        for task in shelf.late:
            task.cancel()

    async def engine(self, shelf, name):
        await asyncio.sleep(self.dice.uniform(0, 20))
        while since() < self.ends:
            try:
                lease = await take(shelf, name)
            except (LeaseHeld, Unreachable, EffectUnknown):
                await asyncio.sleep(self.dice.uniform(0.1, 5))
                continue
            await self.hold(lease)

    async def hold(self, lease):
        self.taken.append(lease.epoch)
        self.live.append(lease)
        keeping = asyncio.create_task(lease.keep(LoopClock()))
        await asyncio.sleep(self.dice.uniform(0, 30))
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        fate = self.dice.choice(["ends", "dies", "stands still"])
        if fate == "stands still":
            await asyncio.sleep(self.dice.uniform(0, 30))  # it wakes up, with its lease in its hand
        if fate != "dies":
            await lease.end(None)
        self.live.remove(lease)

    def acting(self):
        found = []
        for lease in self.live:
            with contextlib.suppress(LeaseHeld):
                lease.check()
                found.append(lease.epoch)
        return found


@pytest.mark.parametrize("aged", [True, False])
@pytest.mark.parametrize("seed", range(15))
def test_never_two_at_once(seed, aged):
    weather = Weather(random.Random(seed * 2 + aged), aged)
    virtually(weather.story)
    assert weather.overlaps == []
    assert len(weather.taken) >= 3
    assert len(set(weather.taken)) == len(weather.taken), "an epoch was given twice"


def mandate(run_id):
    times = ("2026-01-01T12:00:00+00:00",) * 3
    return Mandate(run_id, "failover", "forced", {"failed": "west", "target": "east"}, "digest", *times, waivers={})


def test_what_a_run_was_asked_to_do_is_in_the_record_before_it_acts_and_says_how_it_ended():
    async def story():
        shelf = Shelf()
        mine = await take(shelf, "run-1")
        await mine.charge(mandate("run-1"))
        assert (await shelf.read())[0].mandate == mandate("run-1")
        await mine.end(None, "failed")
        assert (await shelf.read())[0].mandate == replace(mandate("run-1"), ended="failed")
        # one that begins nothing (a cool-down refuses it, say) leaves it as it was
        idle = await take(shelf, "run-2")
        await idle.renew()
        await idle.end(None)
        held = (await shelf.read())[0]
        assert (held.run_id, held.mandate.run_id, held.mandate.ended) == ("run-2", "run-1", "failed")

    virtually(story)


def test_a_charge_that_is_lost_is_written_by_the_next_renewal_and_stops_nothing():
    async def story():
        for how in ("lost", "vanish", "away"):
            shelf = Shelf()
            mine = await take(shelf, "run-1")
            shelf.script += [how, how]
            await mine.charge(mandate("run-1"))
            mine.check()
            await mine.renew()
            assert (await shelf.read())[0].mandate == mandate("run-1"), how
            await mine.end(None, "succeeded")
            assert (await shelf.read())[0].mandate.ended == "succeeded", how

    virtually(story)


def test_a_charge_beside_a_renewal_is_written():
    async def story():
        shelf = Shelf()
        mine = await take(shelf, "run-1")
        await asyncio.gather(mine.renew(), mine.charge(mandate("run-1")))
        assert (await shelf.read())[0].mandate == mandate("run-1")
        mine.check()

    virtually(story)


def test_what_may_not_begin_takes_no_lease():
    async def story():
        shelf = Shelf()
        first = await take(shelf, "run-1")
        await first.end(None)
        before = shelf.text

        def never(_held):
            raise BadInput("not this one")

        with pytest.raises(BadInput, match="not this one"):
            await take(shelf, "run-2", may=never)
        assert shelf.text == before

    virtually(story)
