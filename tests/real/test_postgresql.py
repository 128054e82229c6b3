"""The PostgreSQL provider against real servers that are killed, stopped with SIGSTOP, fenced, promoted and rejoined."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psycopg
import pytest
from pydantic import ValidationError

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database._durability import ASYNC, parse
from tasks.database._session import Broken, NoConnection, Server, ask
from tasks.database.postgresql import PROVIDER
from tasks.database.protocol import Database, Drained, Operated, Witnessed
from tasks.errors import BadInput, Contradiction, EffectUnknown, Rejected, Unreachable
from tasks.hosts.local import PROVIDER as LOCAL

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from pg_cluster import PORT, Cluster

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

WEST, EAST = parse("FIRST 1 (west-pg1)"), parse("FIRST 1 (east-pg1)")


@pytest.fixture
def cluster():
    with Cluster('FIRST 1 ("east-pg1")') as found:
        yield found


@pytest.fixture
def asynchronous():
    with Cluster() as found:
        yield found


def run(cluster, work, **settings):
    """``work(provider)`` in an event loop of its own, with the cluster's host commands."""

    async def main():
        parts = {}
        around = Surroundings("t", "database", ("west", "east"), LoopClock(), parts.__getitem__)
        parts["hosts"] = LOCAL(LOCAL.Settings.model_validate(cluster.host_settings()), around)
        return await work(PROVIDER(PROVIDER.Settings.model_validate(cluster.settings(**settings)), around))

    return asyncio.run(main())


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended since it was listed
        return ""


def tell(pids, number):
    """A signal to each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def timed(awaitable):
    began = time.monotonic()
    try:
        return await awaitable, time.monotonic() - began
    except (EffectUnknown, Unreachable) as e:
        return e, time.monotonic() - began


async def quickest(call, limit_s):
    """As ``timed``, of three calls the first within ``limit_s``: a machine stands still once, psycopg each time."""
    for _ in range(3):
        found, took_s = await timed(call())
        if took_s < limit_s:
            break
    return found, took_s


def test_views_probes_and_durability_of_a_healthy_cluster(cluster):
    async def work(db):
        assert isinstance(db, Database)
        assert all(isinstance(db, p) for p in (Witnessed, Drained, Operated))
        while True:
            views = {n: await db.view(n) for n in db.nodes()}
            primary, replica = views["west-pg1"], views["east-pg1"]
            if replica.replayed_lsn == primary.lsn and replica.streaming and replica.heard_age_s < 1.5:
                break
        assert (primary.in_recovery, primary.read_only, primary.timeline, primary.upstream) == (False, False, 1, None)
        assert (replica.in_recovery, replica.upstream, replica.streaming) == (True, "west-pg1", True)
        assert len({v.system_identifier for v in views.values()}) == 1
        assert (replica.lsn, replica.upstream_lsn) == (primary.lsn, primary.lsn)
        assert replica.heard_age_s >= 0
        assert db.vantages() == ("direct", "east", "west")
        assert await db.live_durability("west-pg1") == EAST == db.durability()
        assert {s.node: s.sync_state for s in await db.standbys("west-pg1")} == {
            "east-pg1": "sync",
            "west-pg2": "async",
        }
        probes = [await db.try_write("west-pg1", v) for v in db.vantages()]
        assert [p.outcome for p in probes] == ["accepted"] * 3
        assert len({p.address for p in probes}) == 2
        assert (await db.try_write("east-pg1", "direct")).outcome == "refused"
        assert (await db.ask_host("west-pg1")).outcome == "runs"

    run(cluster, work)
    assert cluster.query("west-pg1", "SELECT count(*) FROM relight_probe") == [(0,)]  # probes leave nothing


def test_a_probe_is_accepted_although_commits_hang(cluster):
    cluster.command("kill", "east-pg1")
    assert run(cluster, lambda db: db.try_write("west-pg1", "direct")).outcome == "accepted"


def test_what_proves_nothing_is_silent(cluster):
    with cluster.admin("west-pg1") as admin:
        admin.execute("ALTER TABLE relight_probe RENAME TO other")
    probe = run(cluster, lambda db: db.try_write("west-pg1", "direct"))
    assert (probe.outcome, "42P01" in probe.detail) == ("silent", True)
    with cluster.admin("west-pg1") as admin:
        admin.execute("ALTER ROLE relight PASSWORD 'another'")
    view = run(cluster, lambda db: db.view("west-pg1"))
    assert (view.reach, view.in_recovery) == ("answers", None)
    assert "password authentication failed" in view.why
    assert "relight-secret" not in view.why


@pytest.mark.parametrize("which", ["postmaster", "backend too"])
def test_a_hung_server_never_blocks_longer_than_the_time_outs(cluster, which):
    """A backend that is stopped after the connection was made is what psycopg's own cancelling waits 5 s for."""

    async def work(db):
        server = db._server("west-pg1")
        pids: list[int] = []

        async def stop_then_ask(connection):
            pids.extend(cluster.pids("west-pg1") if which == "backend too" else cluster.pids("west-pg1")[:1])
            pids.append(connection.pgconn.backend_pid)
            tell(pids, signal.SIGSTOP)
            await connection.execute("SELECT 1")

        try:
            error, took_s = await timed(ask(server, stop_then_ask))
            assert isinstance(error, Broken)
            assert 1.9 < took_s < 6.5, "2 s, and not psycopg's 5 s on top"
            for call in (lambda: db.view("west-pg1"), lambda: db.try_write("west-pg1", "east")):
                found, took_s = await quickest(call, 4.5)
                assert (getattr(found, "reach", None) or found.outcome) == "silent"
                assert took_s < 4.5
        finally:
            tell(pids, signal.SIGCONT)

    run(cluster, work, connect_timeout="2s", query_timeout="2s")


def test_a_call_that_is_cancelled_ends_at_once_although_the_backend_hangs(cluster):
    async def cancelled(db):
        stopped: list[int] = []
        asked = asyncio.Event()

        async def hang(connection):
            stopped.append(connection.pgconn.backend_pid)
            os.kill(stopped[0], signal.SIGSTOP)
            asked.set()
            await connection.execute("SELECT 1")

        task = asyncio.ensure_future(ask(db._server("west-pg1"), hang))
        await asked.wait()
        await asyncio.sleep(0.05)  # the query is under way
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        os.kill(stopped[0], signal.SIGCONT)

    async def work(db):
        _, took_s = await quickest(lambda: cancelled(db), 4.5)
        assert took_s < 4.5

    run(cluster, work)


def test_refused_is_a_real_refusal_and_anything_else_is_silent(cluster):
    async def work(db):
        async def nothing(_):
            return None

        def at(address):
            return Server("x", address, "postgres", "relight", None, 5.0, 15.0)

        reaches = {}
        listener = await asyncio.start_server(lambda _r, w: w.close(), "127.0.8.99", 7499)
        for name, address in (("refused", "127.0.8.98:7498"), ("closes", "127.0.8.99:7499")):
            with pytest.raises(NoConnection) as e:
                await ask(at(address), nothing)
            reaches[name] = e.value.reach
        listener.close()
        assert reaches == {"refused": "refused", "closes": "silent"}
        cluster.command("kill", "west-pg1")
        assert (await db.view("west-pg1")).reach == "refused"
        assert [(await db.try_write("west-pg1", v)).outcome for v in db.vantages()] == ["gone"] * 3
        assert (await db.ask_host("west-pg1")).outcome == "gone"

    run(cluster, work)


def test_forced_fence_kills_a_hung_primary_and_takes_sql_where_the_host_is_out_of_reach(cluster):
    (cluster.folder / "unreachable").touch()

    async def by_sql(db):
        with cluster.client("west-pg1") as client:
            means = await db.fence("west-pg1", orderly=False)
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")  # its connection was ended
        assert "default_transaction_read_only" in means
        assert [(await db.try_write("west-pg1", v)).outcome for v in db.vantages()] == ["refused"] * 3
        assert (await db.view("west-pg1")).read_only
        await db.unfence("west-pg1")
        assert (await db.try_write("west-pg1", "direct")).outcome == "accepted"

    run(cluster, by_sql)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), cluster.client("east-pg1") as client:
        client.execute("INSERT INTO rows VALUES (1)")
    cluster.signal("west-pg1", signal.SIGSTOP)
    with pytest.raises(Unreachable, match=r"no means fenced west-pg1.*Cut its network"):
        run(cluster, lambda db: db.fence("west-pg1", orderly=False), connect_timeout="1s")
    (cluster.folder / "unreachable").unlink()
    means, took_s = run(cluster, lambda db: timed(db.fence("west-pg1", orderly=False)), connect_timeout="1s")
    assert means == "host command kill"
    assert took_s < 15
    assert run(cluster, lambda db: db.view("west-pg1")).reach == "refused"


def test_fencing_a_replica_is_refused(cluster):
    for orderly in (True, False):
        with pytest.raises(Rejected, match="is a replica"):
            run(cluster, lambda db, orderly=orderly: db.fence("east-pg1", orderly=orderly))
    assert run(cluster, lambda db: db.view("east-pg1")).streaming


def test_orderly_switch_loses_nothing_and_can_be_taken_back_before_the_promotion(asynchronous):
    cluster = asynchronous

    async def work(db):
        with cluster.client("west-pg1") as client:
            for n in range(200):
                client.execute("INSERT INTO rows VALUES (%s)", (n,))
        final = await db.quiesce("west-pg1")
        assert await db.fence("west-pg1", orderly=True) == "host command stop"
        assert (await db.view("east-pg1")).lsn >= final
        await db.unfence("west-pg1")
        assert (await db.try_write("west-pg1", "direct")).outcome == "accepted"
        await db.quiesce("west-pg1")
        await db.fence("west-pg1", orderly=True)
        await db.promote("east-pg1")
        with pytest.raises(Rejected, match="stays fenced: east-pg1 is a primary"):
            await db.unfence("west-pg1")
        assert (await db.view("west-pg1")).reach == "refused"
        assert await db.rejoin("west-pg1", "east-pg1") != ""

    run(cluster, work)
    assert cluster.query("east-pg1", "SELECT count(*) FROM rows") == [(200,)]


def test_promotion_frees_commits_from_a_standby_that_is_gone_and_notes_it(cluster):
    async def work(db):
        cluster.command("kill", "west-pg1")
        assert await db.live_durability("east-pg1") == WEST  # as configured; with it the first commit would hang
        error, took_s = await timed(db.promote("east-pg1"))
        assert error is None
        assert took_s < 15
        view = await db.view("east-pg1")
        assert (view.in_recovery, view.read_only, view.timeline) == (False, False, 2)
        assert await db.live_durability("east-pg1") == ASYNC
        assert await db.promised("east-pg1") == ("east-pg1", ASYNC)
        with cluster.client("east-pg1") as client:
            client.execute("INSERT INTO rows VALUES (1)")
        with pytest.raises(Rejected, match="no replica any more"):
            await db.promote("east-pg1")

    run(cluster, work)


def test_promotion_beside_a_living_primary_is_refused(cluster):
    with pytest.raises(Contradiction, match="west-pg1 takes writes as primary"):
        run(cluster, lambda db: db.promote("east-pg1"))
    assert cluster.query("east-pg1", "SELECT pg_is_in_recovery()") == [(True,)]


def test_promotion_without_the_grant_says_what_to_grant(cluster):
    with cluster.admin("west-pg1") as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_promote(boolean, integer) FROM relight")
    until(
        lambda: (
            not cluster.query(
                "east-pg1", "SELECT 1 WHERE has_function_privilege('pg_promote(boolean,integer)', 'EXECUTE')"
            )
        )
    )
    cluster.command("kill", "west-pg1")
    with pytest.raises(Rejected, match=r"pg_promote.*grant it to relight"):
        run(cluster, lambda db: db.promote("east-pg1"))


def test_a_promotion_whose_server_dies_is_unknown_not_failed(cluster):
    async def work(db):
        cluster.command("kill", "west-pg1")
        startup = next(p for p in cluster.pids("east-pg1") if "startup" in title(p))
        os.kill(startup, signal.SIGSTOP)  # takes the signal of pg_promote and does nothing
        try:
            with pytest.raises(EffectUnknown):
                await db.promote("east-pg1")
        finally:
            os.kill(startup, signal.SIGCONT)

    run(cluster, work, promote_timeout="300ms")


def test_follow_rejoin_and_protect_after_a_failover(cluster):
    async def work(db):
        cluster.command("kill", "west-pg1")
        await db.promote("east-pg1")
        await db.follow("west-pg2", "east-pg1")
        views = []
        while not views or not (views[-1].streaming and views[-1].timeline == 2):
            views.append(await db.view("west-pg2"))
            assert len(views) < 2000
        assert views[-1].upstream == "east-pg1"
        how = await db.rejoin("west-pg1", "east-pg1")
        assert how.startswith("rewind")
        await db.set_durability("east-pg1", WEST)
        assert await db.live_durability("east-pg1") == WEST
        with cluster.client("east-pg1") as client:
            client.execute("INSERT INTO rows VALUES (1)")  # acknowledged, so west-pg1 has it, and the note before it
        assert await db.promised("west-pg1") == ("east-pg1", WEST)
        cluster.command("kill", "west-pg1")
        assert await db.rejoin("west-pg1", "east-pg1") == "start"
        assert await db.rejoin("west-pg1", "east-pg1") == "follow"

    run(cluster, work)
    assert "secret" not in str(
        cluster.query("west-pg1", "SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'")
    )


def test_protect_that_nobody_fulfils_says_that_commits_hang(cluster):
    async def work(db):
        cluster.command("kill", "west-pg1")
        await db.promote("east-pg1")
        with pytest.raises(Exception, match="commits there hang until they do"):
            await db.set_durability("east-pg1", WEST)
        assert await db.promised("east-pg1") == ("east-pg1", ASYNC)

    run(cluster, work, query_timeout="6s")  # half of that is waited for them


def test_rejoin_says_how_much_of_a_diverged_node_is_discarded(asynchronous):
    cluster = asynchronous

    async def work(db):
        # east-pg1 is cut off while the primary goes on, then west-pg2 has more than east-pg1, which is promoted
        cluster.command("stop", "east-pg1")
        with cluster.client("west-pg1") as client:
            client.execute("INSERT INTO rows SELECT generate_series(1, 1000)")
        until(lambda: cluster.query("west-pg2", "SELECT count(*) FROM rows") == [(1000,)])
        cluster.command("kill", "west-pg1")
        cluster.command("start", "east-pg1")
        await db.promote("east-pg1")
        ahead = await db.view("west-pg2")
        fork = (await db.view("east-pg1")).lsn
        assert ahead.lsn > fork - 100_000
        how = await db.rejoin("west-pg2", "east-pg1")
        assert how.startswith("rewind (after: west-pg2 follows east-pg1 and does not stream")
        assert "bytes that it wrote on timeline 1 after 0/" in how
        view = await db.view("west-pg2")
        assert (view.streaming, view.timeline, view.upstream) == (True, 2, "east-pg1")

    run(cluster, work, stale_after="4s")  # twice that is waited until it streams, before it is rewound
    assert cluster.query("west-pg2", "SELECT count(*) FROM rows") == [(0,)]


def test_rejoin_touches_no_primary_and_needs_one(cluster):
    with pytest.raises(Contradiction, match="east-pg1 is no primary that takes writes: it is a replica"):
        run(cluster, lambda db: db.rejoin("west-pg1", "east-pg1"))
    with cluster.admin("east-pg1") as admin:
        admin.execute("SELECT pg_promote()")
    with pytest.raises(Contradiction, match="takes writes as a primary itself; fence it first"):
        run(cluster, lambda db: db.rejoin("west-pg1", "east-pg1"))
    with pytest.raises(Contradiction, match="both take writes as primaries"):
        run(cluster, lambda db: db.follow("west-pg2", "east-pg1"))
    assert cluster.query("west-pg1", "SELECT pg_is_in_recovery()") == [(False,)]


def test_another_database_at_a_configured_address_is_never_followed_or_promoted(cluster):
    strange = {**cluster.settings()["nodes"]}
    with Other(cluster) as other:
        strange["east-pg1"] = {"site": "east", "address": other.address}
        cluster.command("kill", "west-pg1")
        with pytest.raises((Contradiction, Rejected), match=r"system identifier|no replica"):
            run(cluster, lambda db: db.promote("west-pg2"), nodes=strange, synchronous="")


class Other:
    """A server that was initialised on its own."""

    def __init__(self, cluster) -> None:
        self.cluster, self.data, self.address = cluster, cluster.folder / "other", f"127.0.8.77:{PORT + 1}"

    def __enter__(self):
        self.cluster._run(
            "/usr/lib/postgresql/15/bin/initdb", "-D", str(self.data), "-U", "relight", "-A", "trust", "-N"
        )
        options = f"-c listen_addresses=127.0.8.77 -p {PORT + 1} -k {self.data} -c default_transaction_read_only=on"
        self.cluster._run(
            "/usr/lib/postgresql/15/bin/pg_ctl",
            "-D",
            str(self.data),
            "-w",
            "-o",
            options,
            "-l",
            f"{self.data}/log",
            "start",
        )
        with psycopg.connect(host="127.0.8.77", port=PORT + 1, user="relight", dbname="postgres"):
            pass
        return self

    def __exit__(self, *_):
        self.cluster._run(
            "/usr/lib/postgresql/15/bin/pg_ctl", "-D", str(self.data), "-m", "immediate", "stop", check=False
        )


def test_settings_are_checked_when_the_file_loads(tmp_path):
    base = {"database": "d", "user": "u", "nodes": {"a-1": {"site": "west", "address": "127.0.8.1:1"}}}
    for wrong, message in (
        ({"unknown": 1}, "Extra inputs"),
        ({"synchronous": "FIRST 1 (b)"}, "synchronous names b"),
        ({"synchronous": "FIRST 2 (a-1)"}, "asks for 2 of 1"),
        ({"nodes": {"a": {"site": "west", "address": "nowhere"}}}, "expected host:port"),
        ({"nodes": {n: {"site": "west", "address": "h:1"} for n in ("a-1", "a_1")}}, "share a replication slot"),
        ({"password": "hunter2"}, "reference to a secret"),
    ):
        with pytest.raises(ValidationError, match=message):
            PROVIDER.Settings.model_validate({**base, **wrong})

    async def build(settings):
        return PROVIDER(
            PROVIDER.Settings.model_validate(settings), Surroundings("t", "db", ("west",), LoopClock(), lambda _: None)
        )

    async def unknown():
        await (await build({**base, "nodes": {"a": {"site": "north", "address": "h:1"}}})).view("a")

    with pytest.raises(BadInput, match="nodes are in sites north"):
        asyncio.run(unknown())

    async def unset():
        nodes = {"a": {"site": "west", "address": "$RELIGHT_NOT_SET:1"}}
        await (await build({**base, "nodes": nodes})).view("a")

    with pytest.raises(BadInput, match=r"RELIGHT_NOT_SET.*is not set"):
        asyncio.run(unset())
