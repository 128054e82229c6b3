"""On the real lab: migrations under load, plans of the other site, and a minor update by a planned switchover."""

from __future__ import annotations

import psycopg
import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def admin(lab, host):
    password = (lab.home() / "secrets" / "postgres").read_text().strip()
    return psycopg.connect(host=host, port=5432, user="postgres", dbname="venue", password=password, autocommit=True)


def outcomes(done):
    return {s["id"]: s["outcome"] for s in done.json["steps"]}


def test_migrations_of_the_lab_under_load_lose_no_write_and_a_contract_waits_for_its_release(lab, until):
    with lab.load() as load:
        done = lab.run("migrate")
        load.more(20)
    assert (done.code, set(outcomes(done).values())) == (0, {"done"}), done.err
    counted = load.counted()
    assert (counted["lost"], counted["duplicated"], counted["refused"]) == (0, 0, 0), counted

    early = lab.run("migrate", "--var", "phase=contract", "--var", "release=2")
    assert early.code == 3
    assert "west-app1 runs 1" in early.json["steps"][1]["error"]["message"]
    assert lab.run("migrate", "--var", "phase=contract").code == 0

    def held():
        again = lab.relight("plan", "migrate", "--system", "lab", "--json")
        return [s["holds"] for s in again.json["steps"] if s["id"] != "verify"]

    until(lambda: held() == [True, True])


def test_a_standby_that_plans_worse_is_told_before_traffic_goes_there(lab, until):
    with admin(lab, "127.0.1.31") as db:
        db.execute("INSERT INTO events (n, client) SELECT n, 'c' || n % 500 FROM generate_series(1, 20000) n")
        db.execute("ANALYZE events")
        for n in range(20):
            db.execute("SELECT at FROM events WHERE client = %s AND n = %s", (f"c{n}", n))
    good = lab.run("rejoin")
    assert (good.code, outcomes(good)["plans"]) == (0, "done"), good.json["steps"][-1]
    settings = ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan")
    with admin(lab, "127.0.2.31") as standby:
        for name in settings:
            standby.execute(f"ALTER SYSTEM SET {name} = off")
        standby.execute("SELECT pg_reload_conf()")
        until(lambda: standby.execute("SHOW enable_bitmapscan").fetchone() == ("off",))
    bad = lab.run("rejoin")
    step = bad.json["steps"][-1]
    assert (step["id"], step["outcome"], bad.code) == ("plans", "failed", 1), bad.json["reason"]
    assert "east-pg1: events is read whole there and by an index here" in step["error"]["message"]
    assert "enable_indexscan is on here, off there" in step["error"]["message"]
    assert set(outcomes(bad).values()) - {"done", "already"} == {"failed"}, "nothing else is held up by it"
    with admin(lab, "127.0.2.31") as standby:
        for name in settings:
            standby.execute(f"ALTER SYSTEM RESET {name}")
        standby.execute("SELECT pg_reload_conf()")


def test_a_minor_update_restarts_every_server_by_a_planned_switchover_and_loses_nothing(lab):
    hosts = [f"127.0.{s}.3{n}" for s in (1, 2) for n in (1, 2)]

    def started():
        found = {}
        for host in hosts:
            with admin(lab, host) as db:
                found[host] = db.execute("SELECT pg_postmaster_start_time(), version()").fetchone()
        return found

    before = started()
    with lab.load() as load:
        done = lab.run("pg-minor", "--mode", "graceful", "--var", "restart=all")
        assert done.code == 0, done.err + str(done.json["reason"])
        load.more(20)
    after = started()
    # the new primary was restarted as a standby, before the switchover
    assert all(after[h][0] > before[h][0] for h in hosts)
    assert lab.primary() == "east-pg1"
    counted = load.counted()
    assert (counted["lost"], counted["duplicated"]) == (0, 0), counted
    versions = next(s for s in done.json["steps"] if s["id"] == "standbys")["evidence"]["versions"]
    assert all(v["running"] == v["installed"] for v in versions.values())
    # storage moved too, and the next rejoin is what makes the old side a copy
    assert outcomes(done)["storage"] == "done"
    back = lab.run("rejoin")
    assert outcomes(back)["storage"] == "done", back.json["reason"]
