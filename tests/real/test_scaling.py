"""Sizes of the plan on the real lab: drift is shown, applied, read back; a lock, a replica and a limit in the way."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

from flows.engine import places, system
from flows.engine.providers import Components
from tasks.capacity.actions import Keep
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.database.actions import Autovacuum, Limit, Replicas
from tasks.errors import BadInput, NotYet, Rejected

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def home(lab, monkeypatch):
    monkeypatch.setenv("RELIGHT_LAB", lab.env["RELIGHT_LAB"])


def admin(lab, host="127.0.1.31", port=5432, user="postgres", database="venue"):
    password = (lab.home() / "secrets" / user).read_text().strip()
    return psycopg.connect(
        host=host, port=port, user=user, dbname=database, password=password, autocommit=True, prepare_threshold=None
    )


def pool(lab):
    with admin(lab, "127.0.1.15", 6432, "relight", "pgbouncer") as console:
        cursor = psycopg.ClientCursor(console)
        cursor.execute("SHOW DATABASES")
        names = [c.name for c in cursor.description]
        row = next(r for r in (dict(zip(names, r, strict=True)) for r in cursor.fetchall()) if r["name"] == "venue")
    return int(row["min_pool_size"]), int(row["pool_size"]), int(row["max_connections"])


def say(lab, command):
    with admin(lab, "127.0.1.15", 6432, "relight", "pgbouncer") as console:
        psycopg.ClientCursor(console).execute(command)


def act(action, deadline_s=90.0):
    """Observe, apply and confirm, as a step does; the three of them."""

    async def main():
        clock = LoopClock()
        components = Components(system.load(places.system_file("lab")), clock)
        run = RunInfo("r", "lab", "scaling", "graceful", 1, clock.utc().isoformat())
        roles = {"active": "west", "target": "east", "west": "west", "east": "east"}
        ctx = Context(run, clock, roles, components, clock.monotonic() + deadline_s)
        try:
            before = await action.observe(ctx)
            done = None if before.holds else await action.apply(ctx, before)
            return before, done, await action.confirm(ctx)
        finally:
            await components.aclose()

    return asyncio.run(main())


def steps(lab):
    planned = lab.relight("plan", "scaling", "--system", "lab", "--json")
    assert planned.code == 0, planned.err
    return {s["id"]: s for s in planned.json["steps"]}


def measured(lab):
    """(metric, site) -> ok, warning, critical, unknown."""
    told = lab.relight("metrics", "--system", "lab", "--json").json["metrics"]
    return {(m["metric"], m["site"]): m["outcome"] for m in told}


def test_a_fresh_lab_is_as_the_plan_says(lab):
    found = steps(lab)
    sized = [s for n, s in found.items() if n != "connections"]
    assert [s["id"] for s in sized if not s["holds"]] == []


def test_drift_is_shown_then_applied_by_one_command_and_lasts(lab, until):
    with admin(lab) as db:
        db.execute("ALTER TABLE events SET (autovacuum_vacuum_threshold = 5000, autovacuum_enabled = off)")
    say(lab, "SET default_pool_size = 30")
    say(lab, "SET max_db_connections = 300")
    lab.fault("kill-app")
    found = steps(lab)
    assert found["autovacuum"]["changes"] == ["public.events: threshold 5000 → 50, autovacuum on"]
    assert found["pool"]["changes"] == [
        "the pooler of west keeps 20 to 300 server connections, 30 a user → 20 to 100, 100 a user"
    ]
    assert found["instances"]["changes"] == ["start 1 at west"]
    assert found["standby-pool"]["holds"]
    until(lambda: measured(lab)["connection_count", "west"] == "ok", 60)

    done = lab.run("scaling")
    assert done.code == 0, done.err
    outcomes = {s["id"]: s["outcome"] for s in done.json["steps"]}
    assert {n: outcomes[n] for n in ("autovacuum", "pool", "instances", "standby-pool")} == {
        "autovacuum": "done",
        "pool": "done",
        "instances": "done",
        "standby-pool": "already",
    }
    with admin(lab) as db:
        (options,) = db.execute("SELECT reloptions FROM pg_class WHERE oid = 'events'::regclass").fetchone()
    assert set(options) == {"autovacuum_vacuum_threshold=50", "autovacuum_enabled=true"}
    assert pool(lab) == (20, 100, 100)
    say(lab, "RELOAD")
    assert pool(lab) == (20, 100, 100), "it is in the file, and not only set"
    assert all(s["holds"] for n, s in steps(lab).items() if n != "connections")


def test_limits_of_a_pool_are_written_to_its_file_and_nothing_else_of_it_changes(lab):
    file = lab.home() / "west" / "pgbouncer" / "pgbouncer.ini"
    text, mode, owner = file.read_text(), file.stat().st_mode, file.stat().st_uid
    act(Limit(site="active", minimum=5, maximum=40))
    assert pool(lab) == (5, 40, 40)
    assert (file.stat().st_mode, file.stat().st_uid) == (mode, owner)
    act(Limit(site="active", minimum=20, maximum=100))
    assert file.read_text() == text


def test_a_locked_table_is_not_waited_for_and_nobody_queues_behind(lab):
    with admin(lab) as db:
        db.execute("ALTER TABLE events SET (autovacuum_vacuum_threshold = 5000)")
    wanted = Autovacuum(threshold=50, lock_timeout="300ms")
    with admin(lab) as holder, holder.transaction():
        holder.execute("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE")  # as a VACUUM does
        with pytest.raises(NotYet, match=r"public\.events is locked"):
            act(wanted)
        with admin(lab) as writer:
            writer.execute("SET statement_timeout = '20s'")
            writer.execute("INSERT INTO events (n, client, payload) VALUES (1, 'beside', 'null')")
    before, done, after = act(wanted)
    assert not before.holds
    assert done == {"set": ["public.events"]}
    assert after.holds


def test_a_table_that_is_not_there_and_a_replica_are_refused(lab):
    with pytest.raises(BadInput, match=r"no table public\.nothing"):
        act(Autovacuum(threshold=50, tables=("public.nothing",)))

    async def on_a_replica():
        components = Components(system.load(places.system_file("lab")), LoopClock())
        await components("database").set_autovacuum(
            "east-pg1", "public.events", enabled=True, threshold=1, lock_timeout_s=0.5
        )

    with pytest.raises(Rejected, match="east-pg1 is a replica"):
        asyncio.run(on_a_replica())


def test_missing_replicas_are_brought_back_and_too_many_are_only_told(lab):
    lab.fault("stop-standby", "--node", "west-pg2")
    before, done, after = act(Replicas(minimum=3, maximum=3), 150.0)
    assert "west-pg2" in before.facts["away"]  # one of the other site may be between two connections
    assert "west-pg2" in done["brought_back"]
    assert after.holds
    assert sorted(after.facts["streaming"]) == ["east-pg1", "east-pg2", "west-pg2"]
    many, nothing, _ = act(Replicas(minimum=0, maximum=1))
    assert (many.holds, nothing, many.facts["above"]) == (True, None, 2)
    assert "2 too many" in many.summary
    with pytest.raises(NotYet, match="no node is left"):
        act(Replicas(minimum=4, maximum=4))


def test_limits_of_instances_that_the_file_contradicts_are_told_and_not_forced(lab):
    with pytest.raises(BadInput, match="limits 2 to 10 in the system file, and 3 to 10 are wanted"):
        act(Keep(site="active", minimum=3, maximum=10))
    running = json.loads(lab.relight("plan", "scaling", "--system", "lab", "--json").out)["steps"][0]["facts"][
        "running"
    ]
    assert running == 2
