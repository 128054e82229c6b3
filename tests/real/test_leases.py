"""One run per system, whatever keeps the lease: the same tests against a file, PostgreSQL, S3 and a zone, all real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.engine import processes, safety
from flows.engine.lease import FileLease, Holder, elapsed
from flows.engine.lease import acknowledged as file_acknowledged
from flows.engine.storelease import StoreLease, acknowledged
from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.errors import LeaseHeld, LostCompare, Rejected, SafetyRefusal, Unreachable
from tasks.leases.protocol import Held, LastRun, LeaseStore
from tasks.leases.twin import LeaseTwin
from tasks.simulation import Process, Simulation, enter
from tasks.world import World

sys.path.insert(0, str(Path(__file__).parent))
import iam
import lease_backends as backends

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
PROVIDER_NAME = "leases.s3"
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
ENDED = LastRun("run-1", "succeeded", "2026-01-01T12:00:00+00:00", automatic=True)


class FilePlace:
    """The lease in the state folder."""

    ttl_s = 2.0

    def __init__(self, folder):
        self.folder = folder

    @contextlib.asynccontextmanager
    async def engine(self):
        async def take(run_id, **more):
            return FileLease.acquire(self.folder / "toy", Holder(run_id, NOW, ttl_s=self.ttl_s, **more))

        yield take

    async def acknowledge(self, change):
        return file_acknowledged(self.folder / "toy", change)


class StorePlace:
    """The lease in a store; each engine has a provider of its own."""

    def __init__(self, backend):
        self.backend = backend
        self.ttl_s = backend.store().ttl_s

    @contextlib.asynccontextmanager
    async def engine(self):
        store = self.backend.store()

        async def take(run_id, **more):
            return await StoreLease.acquire("toy", store, Holder(run_id, NOW, **more), LoopClock())

        try:
            yield take
        finally:
            await store.aclose()

    async def acknowledge(self, change):
        store = self.backend.store()
        try:
            return await acknowledged(store, change)
        finally:
            await store.aclose()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Starts a real store when it is first asked for."""
    found = {}
    with contextlib.ExitStack() as stack:

        def of(name):
            if name not in found:
                found[name] = stack.enter_context(getattr(backends, name)(tmp_path_factory.mktemp(name)))
            return found[name]

        yield of


def empty(backend):
    """Holding nothing yet, over a link that works."""
    backend.link.start()
    backend.link.lose_after, backend.link.lost = None, 0
    backend.fresh()
    return backend


STORES = ("postgres", "s3", "zone")


@pytest.fixture(params=STORES)
def store(request, opened):
    backend = empty(opened(request.param))
    yield backend
    backend.link.cut()


@pytest.fixture(params=("file", *STORES))
def place(request, opened, tmp_path):
    if request.param == "file":
        yield FilePlace(tmp_path)
        return
    backend = empty(opened(request.param))
    yield StorePlace(backend)
    backend.link.cut()


async def later(seconds):
    """Until so many seconds have passed: time itself is what is waited for."""
    await asyncio.sleep(seconds)


def test_one_holds_it_past_its_ttl_and_the_other_is_told_who(place):
    async def story():
        async with place.engine() as mine, place.engine() as other:
            lease = await mine("run-1", doing=lambda _run: "at step promote")
            keeping = asyncio.create_task(lease.keep(LoopClock()))
            await later(place.ttl_s * 1.5)
            lease.check()
            with pytest.raises(LeaseHeld) as e:
                await other("run-2", doing=lambda _run: "at step promote")
            text = str(e.value)
            assert "system toy already has a run: run-1" in text
            assert f"process {os.getpid()} on {processes.me().host}" in text
            assert "since 2026-01-01T12:00:00+00:00, at step promote" in text
            assert e.value.exit_code == 3
            lease.check()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await lease.end(ENDED)
            with pytest.raises(LeaseHeld):
                lease.check()
            next_ = await other("run-2")
            assert (next_.epoch, next_.last) == (2, ENDED)
            await next_.end(None)
            third = await mine("run-3", floor=40)
            assert (third.epoch, third.last) == (41, ENDED)  # run-2 changed nothing
            await third.end(None)

    asyncio.run(story())


def test_one_that_does_not_renew_is_taken_over_and_told(place):
    async def story():
        async with place.engine() as mine, place.engine() as other:
            old = await mine("old")
            new = None
            began = elapsed()
            while new is None:
                with contextlib.suppress(LeaseHeld):
                    new = await other("new")
                await asyncio.sleep(0.05)
            assert place.ttl_s * 0.9 < elapsed() - began < place.ttl_s * 2 + 30
            assert (new.epoch, new.last.run_id, new.last.verdict) == (2, "old", "died")
            new.check()
            with pytest.raises(LeaseHeld):
                old.check()
            if isinstance(old, StoreLease):
                assert "is at epoch 2: new (process" in str(await old.why())
            await old.end(ENDED)
            new.check()
            await new.end(None)
            assert (await mine("third")).last.run_id == "old"

    asyncio.run(story())


RACERS = 6


def test_of_many_at_the_same_moment_one_wins(place):
    def race(i, start, over):
        async def run():
            async with place.engine() as take:
                start.wait(60)
                try:
                    lease = await take(f"run-{i}")
                except LeaseHeld:
                    over.wait(120)
                    return None
                keeping = asyncio.create_task(lease.keep(LoopClock()))
                await asyncio.to_thread(over.wait, 120)
                lease.check()
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                await lease.end(None)
                return lease.epoch

        try:
            return asyncio.run(run())
        except BaseException:
            over.abort()  # let nobody wait for one that failed
            raise

    epochs = []
    with ThreadPoolExecutor(RACERS) as threads:
        for _ in range(4):
            start, over = threading.Barrier(RACERS), threading.Barrier(RACERS)
            races = [threads.submit(race, i, start, over) for i in range(RACERS)]
            errors = [e for r in races if (e := r.exception()) and not isinstance(e, threading.BrokenBarrierError)]
            assert errors == []
            epochs += [r.result() for r in races if r.result()]
    assert epochs == [1, 2, 3, 4]


HOLDER = """
import asyncio, json, sys
from datetime import UTC, datetime
from pathlib import Path
from flows.engine.lease import FileLease, Holder
from flows.engine.storelease import StoreLease
from tasks import catalog
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.contract import Surroundings

async def main():
    holder = Holder("their-run", datetime.now(UTC), ttl_s=15.0)
    if sys.argv[1] == "file":
        lease = FileLease.acquire(Path(sys.argv[2]), holder)
    else:
        cls = catalog.provider(sys.argv[1])
        around = Surroundings("toy", "lease", (), LoopClock(), lambda name: None)
        store = cls(cls.Settings.model_validate(json.loads(sys.argv[2])), around)
        lease = await StoreLease.acquire("toy", store, holder, LoopClock())
    keeping = asyncio.create_task(lease.keep(LoopClock()))
    print(lease.epoch, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_killed_engine_of_this_machine_is_taken_over_at_once(place):
    words = ["file", str(place.folder / "toy")] if isinstance(place, FilePlace) else None
    words = words or [place.backend.name, json.dumps({**place.backend.settings(), "ttl": "15s"})]
    with subprocess.Popen([sys.executable, "-c", HOLDER, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "1\n"

            async def refused():
                async with place.engine() as mine:
                    with pytest.raises(LeaseHeld, match=f"their-run .process {process.pid} on"):
                        await mine("mine")

            asyncio.run(refused())
        finally:
            process.kill()
        # not reaped yet: a zombie is dead, too

        async def taken():
            async with place.engine() as mine:
                began = elapsed()
                lease = await mine("mine")
                assert (lease.epoch, lease.last.run_id, lease.last.verdict) == (2, "their-run", "died")
                assert elapsed() - began < 10, "it waited for the ttl"

        backends.until(lambda: processes._stat(process.pid)[0] == "Z")
        asyncio.run(taken())


def test_a_person_acknowledges_the_last_run(place):
    async def story():
        async with place.engine() as mine:
            lease = await mine("run-1")
            await lease.end(ENDED)
            held = await place.acknowledge(safety.acknowledge("run-1", "J. Doe", NOW))
            assert held.last == replace(ENDED, acknowledged_by="J. Doe", acknowledged_at="2026-01-01T12:00:00+00:00")
            lease = await mine("run-2")
            assert (lease.epoch, lease.last) == (2, held.last)

    asyncio.run(story())


# ---- what only a store has ----


def test_the_flag_in_the_record_stops_the_engine_that_runs_and_lets_it_go_on(store):
    place = StorePlace(store)

    async def until_allowed(lease, *, wanted):
        while True:
            said = ""
            try:
                lease.check()
            except SafetyRefusal as e:
                said = str(e)
            if (said == "") is wanted:
                return said
            await later(0.05)

    async def story():
        async with place.engine() as mine:
            lease = await mine("run-1")
            keeping = asyncio.create_task(lease.keep(LoopClock()))
            try:
                lease.check()
                await place.acknowledge(lambda held, _gone: replace(held, paused="a switch burns"))
                async with asyncio.timeout(90):
                    said = await until_allowed(lease, wanted=False)
                    assert "paused: a switch burns" in said
                    assert "relight unpause --system toy" in said
                    await place.acknowledge(lambda held, _gone: replace(held, paused=""))
                    await until_allowed(lease, wanted=True)
                assert (lease.epoch, lease.held.run_id) == (1, "run-1")
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(story())


def test_compare_and_set(store):
    async def story():
        one, other = store.store(), store.store()
        assert isinstance(one, LeaseStore)
        assert await one.read() == (None, None)
        first, second = Held(1, "a", token="x"), Held(2, "b", token="y" * 300)
        with pytest.raises(LostCompare):
            await one.swap(first, second)
        began = elapsed()
        await one.swap(None, first)
        with pytest.raises(LostCompare):
            await other.swap(None, second)
        held, age_s = await other.read()
        assert held == first
        assert (age_s is not None) == store.aged
        await other.swap(first, second)  # longer than one string of a TXT can be
        with pytest.raises(LostCompare):
            await one.swap(first, replace(first, epoch=3))
        assert (await one.read())[0] == second
        if store.aged:
            await later(2.5)
            age_s = (await one.read())[1]
            assert 1 <= age_s <= elapsed() - began + 2  # S3 knows whole seconds
        await one.aclose()
        await other.aclose()

    asyncio.run(story())


def test_a_lost_reply_is_settled_by_looking(store):
    async def story():
        place = StorePlace(store)
        async with place.engine() as mine:
            store.link.lose_after = store.writes
            lease = await mine("mine")
            assert store.link.lost == 1
            await lease.renew()
            lease.check()
            store.link.lose_after = store.writes
            await lease.renew()
            assert store.link.lost == 2
            lease.check()
            assert lease.held.renewals == 2
            store.link.lose_after = store.writes
            await lease.end(ENDED)
            assert store.link.lost == 3
            assert ((await mine("next")).epoch, lease.held.last) == (2, ENDED)

    asyncio.run(story())


def test_a_store_that_goes_away_stops_the_run_in_time(store):
    async def story():
        async with StorePlace(store).engine() as mine:
            lease = await mine("mine")
            keeping = asyncio.create_task(lease.keep(LoopClock()))
            store.link.cut()
            ran_out = None
            while ran_out is None:
                try:
                    lease.check()
                except LeaseHeld as e:
                    ran_out = str(e)
                await asyncio.sleep(0.02)
            assert "ran out" in ran_out
            assert "relight resume mine" in ran_out
            with pytest.raises(Unreachable):
                await mine("other")
            store.link.start()
            while True:  # nobody took over: it goes on
                with contextlib.suppress(LeaseHeld):
                    lease.check()
                    break
                await asyncio.sleep(0.02)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await lease.end(None)

    asyncio.run(story())


def test_what_relight_did_not_write_is_left_alone(store):
    async def story():
        async with StorePlace(store).engine() as mine:
            await (await mine("first")).end(None)
            store.scribble("not a lease")
            with pytest.raises(Rejected, match="holds no lease of this relight"):
                await mine("second")

    asyncio.run(story())


def test_without_the_right_to_write_it_says_so(store):
    async def story():
        forbidden = store.forbidden()
        with pytest.raises(Rejected, match="lease") as e:
            await forbidden.swap(None, Held(1, "x"))
        assert not isinstance(e.value, LostCompare)
        await forbidden.aclose()

    asyncio.run(story())


# ---- the twin of proofs ----


async def told(store: LeaseStore) -> list[object]:
    """What came of each call."""
    a, b, c = Held(1, "run-a", token="a", ttl_s=9.0), Held(2, "run-b", token="b"), Held(3, "run-c", token="c")
    said: list[object] = [await store.read()]
    for old, new in ((b, a), (None, a), (None, b), (b, c), (a, b), (a, b), (b, replace(b, released=False)), (b, c)):
        try:
            await store.swap(old, new)
            said.append("written")
        except LostCompare:
            said.append("lost")
        held, age_s = await store.read()
        said.append((held, age_s is None or 0.0 <= age_s < 60.0))
    return said


def test_the_twin_of_proofs_tells_the_same_story(store):
    async def real():
        one = store.store()
        try:
            return await told(one)
        finally:
            await one.aclose()

    async def twin():
        world = World(("west", "east"))
        enter(Process("engine"))
        around = Surroundings("toy", "lease", world.sites, LoopClock(), lambda _name: None)
        return await told(LeaseTwin(store.store(), around, world, Simulation()))

    said = asyncio.run(real())
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(twin()) == said


def test_the_policy_of_the_lease_in_a_bucket_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
