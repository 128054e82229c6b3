"""Migrations on real PostgreSQL servers: rehearsed on a real copy, applied, locked out, cut off, taken back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo, Surroundings
from tasks.database.postgresql import PROVIDER as DATABASE
from tasks.errors import BadInput, NotYet, Rejected, SafetyRefusal
from tasks.hosts.local import PROVIDER as LOCAL
from tasks.migrations._guardian import PREFIX
from tasks.migrations.actions import Apply, Rehearse
from tasks.migrations.postgresql import PROVIDER
from tasks.migrations.protocol import Limits, Target

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from pg_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SYSTEM = "SELECT system_identifier::text FROM pg_control_system()"
SCHEMA = """
DROP TABLE IF EXISTS relight_migrations, seats, orders;
CREATE TABLE seats (id int, row text, sold boolean);
INSERT INTO seats SELECT n, 'row ' || n, false FROM generate_series(1, 20000) n;
CREATE TABLE orders (id int PRIMARY KEY);
ANALYZE seats;
"""


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as found:
        with found.admin("west-pg1") as admin:
            admin.execute("GRANT CREATE ON SCHEMA public TO relight")
        (found.folder / "replicator").write_text("replica-secret\n")
        yield found


class Ground:
    """A cluster with a folder of migrations; each test begins with the same tables and an empty record."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        # pytest's own folder is closed to the servers' account
        self.copies = Path(tempfile.mkdtemp(prefix="copies-", dir=cluster.folder))
        self.copies.chmod(0o755)
        self.earlier = ()
        with cluster.client("west-pg1") as db:
            db.execute(SCHEMA)

    def write(self, **files):
        for name, text in files.items():
            (self.folder / f"{name.replace('__', '.')}.sql").write_text(text)

    def do(self, work, **roles):
        """``work(migrations, ctx)`` in a loop of its own."""

        async def main():
            clock, parts = LoopClock(), {}
            around = Surroundings("t", "database", ("west", "east"), clock, parts.__getitem__, self.folder)
            parts["hosts"] = LOCAL(LOCAL.Settings.model_validate(self.cluster.host_settings()), around)
            password = f"file:{self.cluster.folder}/replicator"
            settings = self.cluster.settings(replication_password=password)
            parts["database"] = DATABASE(DATABASE.Settings.model_validate(settings), around)
            found = {"folder": str(self.folder), "rehearsal": {"folder": str(self.copies)}}
            parts["migrations"] = PROVIDER(PROVIDER.Settings.model_validate(found), around)
            run = RunInfo("r1", "t", "migrate", "forced", 1, clock.utc().isoformat())
            roles_of = {"active": "west", "target": "east", "west": "west", "east": "east", **roles}
            ctx = Context(run, clock, roles_of, parts.__getitem__, clock.monotonic() + 200, earlier=self.earlier)
            return await work(parts["migrations"], ctx)

        return asyncio.run(main())

    def act(self, action):
        async def work(_kept, ctx):
            before = await action.observe(ctx)
            done = None if before.holds else await action.apply(ctx, before)
            return before, done, await action.confirm(ctx)

        return self.do(work)

    def rehearse(self, **more):
        # what a file may block by default is less than a busy machine stands still for
        before, done, after = self.act(Rehearse(phase="expand", **{"most_blocked": "60s", **more}))
        facts = {**before.facts, **(done or {})}
        self.earlier = (Done("rehearse", "migrations.rehearse", "done", facts),)
        assert after.holds
        return facts

    def apply(self, **more):
        return self.act(Apply(phase="expand", **{"tries": 1, **more}))

    def record(self, node="west-pg1"):
        query = "SELECT number, state FROM relight_migrations ORDER BY 1"
        try:
            return self.cluster.query(node, query)
        except psycopg.errors.UndefinedTable:
            return []

    def columns(self, table="seats"):
        query = "SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
        return set(self.cluster.query("west-pg1", query + " AND NOT attisdropped", table)[0][0])

    def left(self):
        return list(self.copies.glob(f"{PREFIX}*"))


@pytest.fixture
def ground(cluster, tmp_path):
    return Ground(cluster, tmp_path)


def test_rehearsed_on_the_real_data_then_applied_then_already(ground):
    ground.write(**{
        "0001_price__expand": "ALTER TABLE seats ADD COLUMN price int DEFAULT 7; COMMENT ON COLUMN seats.price IS ';'",
        "0002_row__expand": "CREATE INDEX CONCURRENTLY seats_row ON seats (row)",
        "0003_count__expand": "CREATE TABLE counted AS SELECT count(*) AS n FROM seats",
        "0003_count__expand__down": "DROP TABLE counted",
    })  # fmt: skip
    facts = ground.rehearse()
    assert facts["source"] == "east-pg1", "a standby is burdened, not the primary"
    by_file = {m["file"]: m for m in facts["measured"]}
    assert by_file["0001_price.expand.sql"]["locks"]["seats"]["mode"] == "AccessExclusiveLock"
    assert by_file["0002_row.expand.sql"]["locks"] == {}
    assert all(m["rewritten"] == {} and m["seconds"] >= 0 for m in facts["measured"])
    assert (ground.left(), ground.record(), ground.columns()) == ([], [], {"id", "row", "sold"})

    before, done, after = ground.apply()
    assert (len(before.changes), after.holds) == (3, True)
    assert set(done["tries"].values()) == {1}
    assert ground.record() == [(1, "applied"), (2, "applied"), (3, "applied")]
    assert ground.cluster.query("west-pg1", "SELECT n FROM counted") == [(20000,)]
    until(lambda: len(ground.record("east-pg1")) == 3)
    assert ground.apply()[0].holds, "already"

    async def undo(_kept, ctx):
        evidence = {"system_identifier": before.facts["system_identifier"]}
        await Apply(phase="expand").undo(ctx, evidence)

    with pytest.raises(Rejected, match=r"0002_row\.expand\.sql has no down file"):
        ground.do(undo)
    assert ground.record() == [(1, "applied"), (2, "applied")], "newest first, as far as there is a way"
    assert ground.cluster.query("west-pg1", "SELECT to_regclass('counted')") == [(None,)]

    ground.write(**{"0001_price__expand": "ALTER TABLE seats ADD COLUMN price int DEFAULT 8"})
    with pytest.raises(BadInput, match="was changed after it was applied"):
        ground.apply()


def test_a_lock_that_another_session_holds_is_given_up_and_named_and_nothing_is_half_applied(ground):
    ground.write(**{"0001_two__expand": "ALTER TABLE orders ADD COLUMN at date; ALTER TABLE seats ADD COLUMN at date"})
    ground.rehearse()
    with ground.cluster.client("west-pg1") as holder, holder.transaction():
        holder.execute("SELECT 'the long report', count(*) FROM seats")
        pid = holder.info.backend_pid
        with pytest.raises(NotYet, match=rf"held by pid {pid} \(relight.* since .* UTC: SELECT 'the long report'") as e:
            ground.apply(lock_timeout="300ms")
        (told,) = e.value.facts["holders"]
        assert (told["pid"], told["state"]) == (pid, "idle in transaction")
        assert (ground.record(), ground.columns("orders"), ground.columns()) == ([], {"id"}, {"id", "row", "sold"})
        with ground.cluster.client("west-pg1") as other:  # nobody queues any more, although the holder still holds
            other.execute("SET statement_timeout = '30s'")
            other.execute("UPDATE seats SET sold = true WHERE id = 1")
    assert ground.apply()[2].holds


def test_it_tries_again_until_the_lock_is_free(ground):
    ground.write(**{"0001_a__expand": "ALTER TABLE seats ADD COLUMN at date"})
    ground.rehearse()
    with ground.cluster.client("west-pg1") as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT FROM seats")

        async def work(_kept, ctx):
            action = Apply(phase="expand", tries=50, lock_timeout="100ms", pause="50ms")
            said = []

            def report(line):
                said.append(line)
                if "try 3" in line:
                    holder.execute("ROLLBACK")

            ctx = replace(ctx, report=report)
            return await action.apply(ctx, await action.observe(ctx)), said

        done, said = ground.do(work)
    assert done["tries"]["0001_a.expand.sql"] >= 3
    assert any("try 3 of 50" in line for line in said)


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("ALTER TABLE seats ALTER COLUMN id TYPE bigint", "change-type"),
        ("ALTER TABLE seats ADD COLUMN k uuid DEFAULT gen_random_uuid()", "volatile-default"),
        ("ALTER TABLE seats ALTER COLUMN id SET NOT NULL", "set-not-null"),
        ("CREATE INDEX i ON seats (id)", "index-without-concurrently"),
    ],
)
def test_what_locks_a_big_table_is_refused_before_anything_is_copied(ground, statement, rule):
    ground.write(**{"0001_a__expand": statement})
    with pytest.raises(SafetyRefusal, match=rf"{rule} on seats"):
        ground.rehearse(big=0)
    ground.write(**{"0001_a__expand": f"-- relight: accept {rule}: nobody is here at night\n{statement}"})
    assert ground.do(lambda kept, _ctx: kept.risks("west-pg1", kept.files(), 0)) == ()


def test_what_the_server_knows_to_be_harmless_is_not_refused(ground):
    ground.write(**{
        "0001_at__expand": "ALTER TABLE seats ADD COLUMN at timestamptz DEFAULT now()",
        "0002_id__expand": "ALTER TABLE seats ALTER COLUMN id SET NOT NULL",
    })  # fmt: skip
    with ground.cluster.client("west-pg1") as db:
        db.execute("ALTER TABLE seats ADD CHECK (id IS NOT NULL)")
    assert ground.do(lambda kept, _ctx: kept.risks("west-pg1", kept.files(), 0)) == ()


def test_what_no_list_knows_is_found_by_the_rehearsal(ground):
    hidden = "DO $$ BEGIN EXECUTE 'ALTER TABLE seats ALTER COLUMN id TYPE bigint'; END $$"
    ground.write(**{"0001_a__expand": hidden})
    with pytest.raises(SafetyRefusal, match=r"on a copy .*rewrote seats .*accept it by name: rewrite"):
        ground.rehearse(big=0)
    with pytest.raises(SafetyRefusal, match="held AccessExclusiveLock on seats"):
        ground.rehearse(most_blocked="1ms")
    assert ground.left() == []
    with pytest.raises(SafetyRefusal, match="was not rehearsed as it is now"):
        ground.apply()
    ground.write(**{"0001_a__expand": "SELECT no_such_function()"})
    with pytest.raises(Rejected, match="no_such_function"):
        ground.rehearse()
    assert (ground.left(), ground.record()) == ([], [])


def test_an_index_that_was_left_invalid_is_dropped_and_built_anew(ground):
    ground.write(**{"0001_i__expand": "CREATE INDEX CONCURRENTLY seats_id ON seats (id)"})
    ground.rehearse()
    indexes = "SELECT indisvalid FROM pg_index WHERE indrelid = 'seats'::regclass"
    with ground.cluster.client("west-pg1") as old, old.transaction():
        old.execute("UPDATE seats SET sold = true WHERE id = 1")
        with pytest.raises(NotYet, match=rf"held by pid {old.info.backend_pid}"):
            ground.apply(build_timeout="3s")  # enough to begin it on a slow machine
    assert ground.cluster.query("west-pg1", indexes) == [(False,)]
    assert ground.record() == [(1, "begun")]
    assert ground.apply()[2].holds
    assert ground.cluster.query("west-pg1", indexes) == [(True,)]
    assert ground.record() == [(1, "applied")]


def test_never_on_a_standby_and_never_on_another_database(ground):
    ground.write(**{"0001_a__expand": "ALTER TABLE seats ADD COLUMN at date"})
    limits = Limits(1, 5, 5)

    async def to(kept, node, identity):
        await kept.apply(Target(node, identity, "r1"), kept.files()[0], limits)

    identity = ground.cluster.query("west-pg1", "SELECT system_identifier::text FROM pg_control_system()")[0][0]
    with pytest.raises(SafetyRefusal, match="east-pg1 is a standby"):
        ground.do(lambda kept, _ctx: to(kept, "east-pg1", identity))
    with pytest.raises(SafetyRefusal, match="expected 1234: it is another database"):
        ground.do(lambda kept, _ctx: to(kept, "west-pg1", "1234"))
    assert ground.record() == []


def test_what_another_engine_did_meanwhile_is_not_done_again(ground):
    """Found by ``prove``: one that died while its server went on, or that stood still, was applied a second time."""
    ground.write(**{
        "0001_one__expand": "INSERT INTO orders SELECT count(*) + 1 FROM orders",
        "0001_one__expand__down": "INSERT INTO orders SELECT count(*) + 100 FROM orders",
        "0002_two__expand": "INSERT INTO orders SELECT count(*) + 10 FROM orders; SELECT pg_sleep(0.5)",
        "0003_seats__expand": "CREATE INDEX CONCURRENTLY seats_two ON seats (id)",
    })  # fmt: skip
    to = Target("west-pg1", ground.cluster.query("west-pg1", SYSTEM)[0][0], "r1")
    limits = Limits(30, 30, 30)

    async def work(kept, _ctx):
        one, two, three = kept.files()
        for file in (one, one, three, three):
            await kept.apply(to, file, limits)
        await asyncio.gather(kept.apply(to, two, limits), kept.apply(to, two, limits))
        with pytest.raises(Rejected, match="with another text meanwhile"):
            await kept.apply(to, replace(two, sha256="0"), limits)
        for _ in range(2):
            await kept.apply(to, one, limits, back=True)

    ground.do(work)
    assert ground.cluster.query("west-pg1", "SELECT id FROM orders ORDER BY id") == [(1,), (11,), (102,)]
    assert ground.record() == [(2, "applied"), (3, "applied")]


HOLD = """
import asyncio, sys
sys.path[:0] = [{tests!r}]
from tasks.database._session import Server
from tasks.migrations._copy import CopySettings, Original, copied
server = Server("west-pg1", "127.0.8.31:7431", "postgres", "relight", "file:{cluster}/relight", 30, 60)
async def main():
    original = Original(server, ("replicator", "file:{cluster}/replicator"), 150000, 0, "")
    async with copied(CopySettings(folder={copies!r}), original) as copy:
        print(copy.server.address, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("killed", ["engine", "guardian"])
def test_nothing_is_left_of_a_copy_when_its_engine_or_its_guardian_is_killed(ground, killed):
    ground.cluster.settings()  # writes the password's file
    text = HOLD.format(tests=str(Path(__file__).parent), cluster=ground.cluster.folder, copies=str(ground.copies))
    engine = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    try:
        assert engine.stdout.readline().startswith("127.0.0.1:")
        (folder,) = ground.left()
        server = int((folder / "data" / "postmaster.pid").read_text().split("\n")[0])
        port = (folder / "postgresql.conf").read_text().split("port = ")[1].split("\n")[0]
        with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry|password"):
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")
        guardian = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(engine.pid if killed == "engine" else guardian, signal.SIGKILL)
        until(lambda: not alive(server))
        if killed == "engine":
            until(lambda: ground.left() == [])
        else:
            assert ground.do(lambda kept, _ctx: told(kept)) == (str(folder),)
            ground.write(**{"0001_a__expand": "SELECT 1"})
            ground.rehearse()  # the next one clears up
            assert ground.left() == []
    finally:
        engine.kill()
        engine.wait()
        engine.stdout.close()


async def told(kept):
    return kept.left_behind()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
