"""Reviews of the real lab: what they find, what they fix, and what they leave alone in bad weather."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from datetime import UTC, datetime

import psycopg
import pytest

from flows.engine import maintenance, places, system
from flows.engine.providers import Components
from flows.reviews import run
from flows.reviews.run import Asked
from tasks.clock import LoopClock
from tasks.errors import EffectUnknown, NotYet, Rejected

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SEED = """
CREATE TABLE bookings (id bigserial PRIMARY KEY, venue_id int, customer text, at timestamptz DEFAULT now())
  WITH (autovacuum_enabled = false);
ALTER TABLE bookings OWNER TO app;
INSERT INTO bookings (venue_id, customer) SELECT i % 5000, md5(i::text) FROM generate_series(1, 40000) i;
CREATE INDEX bookings_at ON bookings (at);
CREATE INDEX bookings_at_again ON bookings (at);
DELETE FROM bookings WHERE id % 2 = 0;
ANALYZE bookings;
"""


def admin(lab, host="127.0.1.31"):
    password = (lab.home() / "secrets" / "postgres").read_text().strip()
    return psycopg.connect(
        host=host, port=5432, user="postgres", dbname="venue", password=password, autocommit=True, connect_timeout=30
    )


@pytest.fixture(scope="module")
def seeded(lab):
    with admin(lab) as connection:
        connection.execute(SEED)
        for i in range(40):
            connection.execute("SELECT customer FROM bookings WHERE venue_id = %s", (i,)).fetchall()
    return lab


@pytest.fixture(autouse=True)
def home(lab, monkeypatch):
    monkeypatch.setenv("RELIGHT_LAB", lab.env["RELIGHT_LAB"])
    monkeypatch.setenv("RELIGHT_STATE", lab.env["RELIGHT_STATE"])


def reviewed(kind="weekly", **more):
    return asyncio.run(run.make(Asked(kind, **{"system": "lab", "window_s": 600.0, **more}))).review


def by_key(review):
    return {f.key: f for f in review.findings}


def dead(lab):
    with admin(lab) as connection:
        row = connection.execute("SELECT n_dead_tup, last_vacuum FROM pg_stat_user_tables WHERE relname = 'bookings'")
        return row.fetchone()


def copy(tmp_path, change):
    """The lab's system file, changed, in a folder of its own."""
    folder = tmp_path / "lab"
    shutil.copytree(places.data("runbooks") / "lab", folder)
    file = folder / "system.yaml"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    return str(folder)


def test_a_lock_that_is_held_is_not_waited_for_and_the_fix_is_skipped_with_its_reason(seeded):
    with admin(seeded) as other, other.transaction():
        other.execute("LOCK TABLE bookings IN SHARE UPDATE EXCLUSIVE MODE")
        found = by_key(reviewed(apply=True))["vacuum-due public.bookings"]
    assert found.outcome.startswith("skipped: west-pg1: public.bookings is locked, so nothing was done")
    assert dead(seeded)[1] is None


def test_the_weekly_review_finds_what_was_put_there_and_changes_nothing_unasked(seeded, tmp_path, until):
    def drawn():
        review = reviewed(out=tmp_path / "out")
        return review if (tmp_path / "out" / "review.html").read_text().count("<svg") >= 4 else None

    found = by_key(until(drawn, 120))  # a lab that was just started has no series to draw yet
    index = found["missing-index public.bookings venue_id"]
    assert index.fix.startswith("CREATE INDEX CONCURRENTLY ON public.bookings (venue_id);")
    assert {"duplicate-index public.bookings_at", "duplicate-index public.bookings_at_again"} & set(found)
    assert found["unused-indexes unproven"].severity == "unknown"
    due = found["vacuum-due public.bookings"]
    assert (due.safe, due.outcome) == (True, "")
    assert dead(seeded)[1] is None
    assert "unmeasured daily_cost, instance_cost, storage_cost, bandwidth_cost" in found or any(
        "daily_cost" in key for key in found
    )
    assert json.loads((tmp_path / "out" / "review.json").read_text())["kind"] == "weekly"


def test_outside_of_its_window_nothing_is_applied(seeded, tmp_path):
    name = copy(
        tmp_path, lambda text: text.replace('cron: "0 * * * *", duration: 1h', 'cron: "0 0 29 2 *", duration: 1m')
    )
    found = reviewed(apply=True, system=name)
    assert found.applied.startswith("nothing was applied: no maintenance window of system lab is open")
    assert dead(seeded)[1] is None


def test_something_critical_stops_it_and_the_hold_is_lifted(seeded, tmp_path):
    name = copy(tmp_path, lambda text: text.replace("connection_count > 90%", "connection_count > 0.01%"))
    found = reviewed(apply=True, system=name)
    assert "critical now: connection_count" in found.applied
    assert dead(seeded)[1] is None
    assert maintenance.held("lab", datetime.now(UTC)) is None


def test_a_metric_source_that_is_down_is_unknown_and_the_database_is_reviewed_all_the_same(seeded, tmp_path):
    name = copy(tmp_path, lambda text: text.replace("http://127.0.3.90:9090", "http://127.0.3.90:9099"))
    found = reviewed(system=name)
    lost = [f for f in found.findings if f.severity == "unknown" and "request_latency" in f.title]
    assert lost
    assert "9099" in lost[0].evidence
    assert "missing-index public.bookings venue_id" in by_key(found)
    assert found.charts == ()


def test_a_database_that_is_down_is_unknown_and_the_rest_is_reviewed(seeded, tmp_path):
    name = copy(tmp_path, lambda text: text.replace(":5432", ":5439"))
    found = reviewed(system=name, apply=True)
    assert by_key(found)["unread database"].severity == "unknown"
    assert found.charts


def test_what_is_due_is_vacuumed_when_asked_read_back_and_journaled(seeded):
    found = reviewed(apply=True)
    assert by_key(found)["vacuum-due public.bookings"].outcome == "done"
    assert found.applied.startswith("1 of 1 safe fixes")
    assert dead(seeded)[0] < 100
    folder = max((places.state_home() / "reviews" / "lab" / "weekly").iterdir())
    kinds = [json.loads(line)["type"] for line in (folder / "applied.jsonl").read_text().splitlines()]
    assert kinds == ["intent", "outcome"]
    again = reviewed()
    assert "vacuum-due public.bookings" not in by_key(again)
    assert any("public.bookings is due" in gone for gone in again.gone)


def call(work):
    async def main():
        components = Components(system.load(places.system_file("lab")), LoopClock())
        try:
            return await work(components("database"))
        finally:
            await components.aclose()

    return asyncio.run(main())


def test_a_replica_is_not_vacuumed_and_a_table_that_is_gone_is_told(seeded):
    limits = {"lock_timeout_s": 5.0, "timeout_s": 30.0}
    with pytest.raises(Rejected, match="is a replica"):
        call(lambda d: d.vacuum("east-pg1", "public.bookings", **limits))
    with pytest.raises(Rejected, match="dropped or renamed"):
        call(lambda d: d.vacuum("west-pg1", "public.nothing", **limits))


def test_no_reader_or_writer_waits_for_the_vacuum_that_waits_for_a_lock(seeded):
    with admin(seeded) as other, other.transaction(), contextlib.ExitStack():
        other.execute("LOCK TABLE bookings IN SHARE UPDATE EXCLUSIVE MODE")

        async def both(database):
            waiting = asyncio.ensure_future(
                database.vacuum("west-pg1", "public.bookings", lock_timeout_s=6.0, timeout_s=40.0)
            )
            with admin(seeded) as writer:
                writer.execute("SET statement_timeout = '5s'")
                await asyncio.to_thread(writer.execute, "UPDATE bookings SET customer = 'x' WHERE id = 1")
            with pytest.raises(NotYet):
                await waiting

        call(both)


@pytest.mark.parametrize(
    "text", ["SELECT 1; DROP TABLE bookings", "DELETE FROM bookings; DELETE FROM bookings", "no SQL at all"]
)
def test_a_plan_executes_nothing(seeded, text):
    with admin(seeded) as connection:
        count = "SELECT count(*) FROM bookings"
        before = connection.execute(count).fetchone()
        with pytest.raises(Rejected, match="gives no plan"):
            call(lambda d: d.plan("west-pg1", text))
        assert call(lambda d: d.plan("west-pg1", "DELETE FROM bookings WHERE id = $1"))["Node Type"] == "ModifyTable"
        assert connection.execute(count).fetchone() == before


def test_a_vacuum_that_is_cut_off_is_unknown(seeded):
    with pytest.raises((EffectUnknown, NotYet)):
        call(lambda d: d.vacuum("west-pg1", "public.bookings", lock_timeout_s=1.0, timeout_s=0.001))


@pytest.mark.parametrize("kind", ["monthly", "quarterly", "annual"])
def test_the_other_reviews_say_something_of_the_lab(seeded, kind):
    found = reviewed(kind)
    assert found.findings
    assert all(f.title and (f.evidence or f.fix) for f in found.findings)
    assert found.tables
    if kind == "annual":
        assert "database.postgresql" in str(found.tables[0].rows)
        assert "no-drill" in by_key(found)


def test_no_data_at_all_is_unknown_in_a_capacity_plan(seeded, tmp_path):
    name = copy(
        tmp_path,
        lambda text: text.replace(
            "    window: 30s\n",
            "    window: 30s\n    queries:\n"
            + "".join(
                f"      {m}: {{expr: nobody_exports_this}}\n"
                for m in ("cpu_usage", "memory_usage", "disk_usage", "connection_count")
            ),
        ),
    )
    found = reviewed("monthly", system=name)
    assert any(f.severity == "unknown" and "cpu_usage" in f.title for f in found.findings)
    assert not any("can carry" in f.title for f in found.findings)


ROLES = """
CREATE ROLE boss LOGIN SUPERUSER;
CREATE ROLE writer LOGIN; GRANT pg_write_server_files TO writer;
CREATE ROLE "left over" LOGIN VALID UNTIL '2026-01-01';
CREATE ROLE clerk LOGIN; GRANT SELECT ON bookings TO clerk;
CREATE ROLE reader LOGIN; GRANT SELECT ON bookings TO reader;
SET ROLE reader; SELECT count(*) FROM bookings; RESET ROLE;
ALTER ROLE relight VALID UNTIL 'tomorrow';
"""
GONE = """
ALTER ROLE relight VALID UNTIL 'infinity';
DROP OWNED BY clerk, reader; DROP ROLE boss, writer, "left over", clerk, reader;
"""


def test_the_annual_audit_finds_permissions_that_nobody_uses_and_says_what_cannot_be_told(seeded):
    with admin(seeded) as connection:
        for statement in ROLES.strip().splitlines():
            connection.execute(statement)
        try:
            review = reviewed("annual")
        finally:
            connection.execute(GONE)
    found = by_key(review)
    assert found["role-power database boss"].severity == "warning"
    assert "REVOKE pg_write_server_files FROM writer;" in found["role-power database writer"].fix
    assert found["role-empty database left over"].fix.startswith('ALTER ROLE "left over" NOLOGIN;')
    assert found["role-ends database left over"].severity == "info"
    assert found["role-ends database relight"].severity == "critical"
    unseen = found["roles-unseen database"]
    assert unseen.severity == "unknown", "the lab counts since it was started only"
    assert "clerk" in unseen.title
    assert "reader" not in unseen.title, "its statement was counted"
    assert "log_connections" in found["roles-unknowable database"].evidence
    assert not [
        k for k in found if k.startswith(("role-power", "role-empty")) and k.endswith((" relight", " replicator"))
    ]
    roles = {row[0]: row for row in next(t for t in review.tables if t.title == "Roles of the databases").rows}
    assert roles["replicator"][7].startswith("now at 1 of 4"), "the replicas stream from the primary"


def test_roles_of_a_database_that_is_down_are_unknown_in_the_audit(seeded, tmp_path):
    found = by_key(reviewed("annual", system=copy(tmp_path, lambda text: text.replace(":5432", ":5439"))))
    assert found["roles database"].severity == "unknown"
    assert "west-pg1" in found["roles database"].evidence
    assert "roles-unknowable database" not in found
