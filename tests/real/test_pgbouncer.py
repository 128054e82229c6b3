"""PgBouncer's console and a client's way through it, against a real PgBouncer in front of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database.pgbouncer import PROVIDER
from tasks.database.protocol import Pooler
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, Unreachable

sys.path.insert(0, str(Path(__file__).parent))
from hanging import hang
from patience import until
from pg_cluster import PORT, Cluster, need

pytestmark = pytest.mark.real

HOST, LISTEN = "127.0.8.15", 7432
INI = """
[databases]
venue = host=127.0.8.31 port={port} dbname=postgres
[pgbouncer]
listen_addr = {host}
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
admin_users = relight
pool_mode = transaction
server_login_retry = 1
query_wait_timeout = 100
"""


class Bouncer:
    def __init__(self, cluster) -> None:
        self.cluster = cluster
        folder = cluster.folder / "pgbouncer"
        folder.mkdir()
        values = {"port": PORT, "host": HOST, "listen": LISTEN, "folder": folder}
        (folder / "ini").write_text(INI.format(**values))
        (folder / "users").write_text('"relight" "relight-secret"\n')
        group = pwd.getpwnam(cluster.account).pw_gid if cluster.account else None
        argv = [need("pgbouncer"), "-q", str(folder / "ini")]
        more = {"user": cluster.account, "group": group, "extra_groups": []} if cluster.account else {}
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log, cwd="/", **more)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            self.client("pgbouncer").close()
        except psycopg.OperationalError:
            assert self.process.poll() is None, (self.cluster.folder / "pgbouncer" / "log").read_text()
            return False
        return True

    def client(self, database="venue"):
        return psycopg.connect(
            host=HOST,
            port=LISTEN,
            user="relight",
            password="relight-secret",
            dbname=database,
            autocommit=True,
            connect_timeout=30,
            prepare_threshold=None,
        )

    def pause_until_resumed(self) -> None:
        with contextlib.suppress(psycopg.Error), self.client("pgbouncer") as console:
            console.execute("PAUSE venue")

    def pause_was_asked_for(self) -> bool:
        with psycopg.ClientCursor(self.client("pgbouncer"), row_factory=dict_row) as cursor:
            rows = cursor.execute("SHOW DATABASES").fetchall()
            cursor.connection.close()
        return any(row["name"] == "venue" and str(row["paused"]) == "1" for row in rows)

    def close(self) -> None:
        self.process.kill()  # also ends one that is stopped
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as found:
        yield found


@pytest.fixture
def bouncer(cluster):
    found = Bouncer(cluster)
    try:
        yield found
    finally:
        found.close()
        (cluster.folder / "pgbouncer" / "log").unlink()
        for name in ("ini", "users"):
            (cluster.folder / "pgbouncer" / name).unlink()
        (cluster.folder / "pgbouncer").rmdir()


def run(bouncer, work, **settings):
    async def main():
        secret = bouncer.cluster.folder / "relight"
        secret.write_text("relight-secret\n")
        base = {
            "database": "venue",
            "user": "relight",
            "password": f"file:{secret}",
            "sites": {"west": f"{HOST}:{LISTEN}", "east": f"{HOST}:{LISTEN + 1}"},
            "timeout": "15s",
            "pause_timeout": "15s",
            "round_trip_timeout": "15s",
        }
        around = Surroundings("t", "pooler", ("west", "east"), LoopClock(), lambda _: None)
        return await work(PROVIDER(PROVIDER.Settings.model_validate({**base, **settings}), around))

    return asyncio.run(main())


async def quickest(work):
    """How long ``work`` took, of three times the first below 4.5 s: a machine stands still once, psycopg each time."""
    for _ in range(3):
        began = time.monotonic()
        await work()
        took_s = time.monotonic() - began
        if took_s < 4.5:
            break
    return took_s


def test_pause_holds_queries_and_resume_lets_them_go(bouncer):
    ended = threading.Event()

    def query():
        with bouncer.client() as client:
            client.execute("SELECT 1")
        ended.set()

    async def work(pooler):
        assert isinstance(pooler, Pooler)
        assert not await pooler.paused("west")
        await pooler.pause("west")
        assert await pooler.paused("west")
        await pooler.pause("west")  # again, after a crash: it is so
        waiting = threading.Thread(target=query)
        waiting.start()
        assert not await asyncio.to_thread(ended.wait, 0.4)
        await pooler.resume("west")
        assert not await pooler.paused("west")
        await pooler.resume("west")
        assert await asyncio.to_thread(ended.wait, 60)
        await asyncio.to_thread(waiting.join)
        assert await pooler.target("west") == f"127.0.8.31:{PORT}"

    run(bouncer, work)


def test_a_pause_that_an_open_transaction_prevents_is_bounded_and_taken_back(bouncer):
    async def work(pooler):
        async def refused():
            with pytest.raises(NotYet, match=r"did not end within 0\.7 s; the pause was taken back"):
                await pooler.pause("west")

        assert await quickest(refused) < 4.5
        assert not await pooler.paused("west")

    with bouncer.client() as open_one, open_one.transaction():
        open_one.execute("SELECT 1")
        run(bouncer, work, pause_timeout="700ms")
        open_one.execute("SELECT 1")  # it was not disturbed


def test_a_pause_under_way_is_not_taken_for_one_that_holds(bouncer):
    """As after a crash in the middle of one: new queries wait already, but a transaction still writes."""

    async def work(pooler):
        assert not await pooler.paused("west")

    with bouncer.client() as open_one, open_one.transaction():
        open_one.execute("SELECT 1")
        asking = threading.Thread(target=bouncer.pause_until_resumed)
        asking.start()
        until(bouncer.pause_was_asked_for)
        run(bouncer, work)
        run(bouncer, lambda pooler: pooler.resume("west"))
    bouncer.process.kill()  # PgBouncer 1.18 answers a PAUSE that was resumed only when it could have paused
    asking.join(60)
    assert not asking.is_alive()


def test_a_hung_pgbouncer_blocks_nobody_longer_than_the_time_out(bouncer):
    async def work(pooler):
        hang(bouncer.process.pid)
        for call in (pooler.paused, pooler.pause, pooler.resume, pooler.target):

            async def refused(call=call):
                with pytest.raises(Unreachable):
                    await call("west")

            assert await quickest(refused) < 4.5
        os.kill(bouncer.process.pid, signal.SIGCONT)

    run(bouncer, work, timeout="500ms")


def test_a_server_that_hangs_behind_the_pooler_blocks_nobody_longer_than_the_time_out(bouncer):
    async def work(pooler):
        async def refused():
            with pytest.raises((EffectUnknown, Unreachable)):
                await pooler.round_trip("west", "n")

        bouncer.cluster.signal("west-pg1", signal.SIGSTOP)
        try:
            assert await quickest(refused) < 4.5
        finally:
            bouncer.cluster.signal("west-pg1", signal.SIGCONT)

    run(bouncer, lambda p: p.round_trip("west", "first"))  # a server connection is there
    run(bouncer, work, timeout="500ms", round_trip_timeout="1s")


def test_a_round_trip_is_committed_and_read_back_on_the_primary(bouncer):
    trip = run(bouncer, lambda pooler: pooler.round_trip("west", "nonce-1"))
    assert (trip.nonce, trip.read_back, trip.in_recovery, trip.timeline) == ("nonce-1", "nonce-1", False, 1)
    assert bouncer.cluster.query("west-pg1", "SELECT count(*) FROM relight_probe WHERE nonce = 'nonce-1'") == [(1,)]


def test_errors_name_what_is_wrong(bouncer):
    with pytest.raises(Unreachable, match=r"PgBouncer of east \(127.0.8.15:7433\)"):
        run(bouncer, lambda pooler: pooler.paused("east"))
    with pytest.raises(BadInput, match="no PgBouncer in site 'north'"):
        run(bouncer, lambda pooler: pooler.paused("north"))
    with pytest.raises(BadInput, match=r"has no database 'other'; it has pgbouncer, venue"):
        run(bouncer, lambda pooler: pooler.paused("west"), database="other")
    with pytest.raises((Unreachable, Rejected)) as e:
        run(bouncer, lambda pooler: pooler.paused("west"), user="nobody")
    assert "relight-secret" not in str(e.value)
