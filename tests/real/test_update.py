"""Rolling updates of the lab's servers under load: nothing is lost, and a bad release goes back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
from conftest import RELIGHT

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.deploy.locust import Locust, LocustSettings
from tasks.deploy.protocol import Load

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
SITES = ("west", "east")
NET = {"west": "127.0.1", "east": "127.0.2", "staging": "127.0.4"}
BAD = {"never": "unready", "leaks": "slow", "two-percent": "flaky", "slower": "sluggish", "late": "late"}
CANARY = """\
runbook: canary
steps:
  - id: canary
    action: deploy.canary
    with: {site: active, version: "${version}", minimum: 300, most: 90s}
    timeout: 180s
    on_failure: undo
vars: {version: none}
"""
RELIEF = """\
runbook: relief
steps:
  - id: relief
    action: capacity.relieve
    with: {site: active, above: {concurrent_users: 1}, adjustment: +1}
    timeout: 60s
    attempts: 5
    on_failure: undo
  - id: never
    action: metrics.within
    with: {metric: concurrent_users, below: 0, site: active, for: 1s}
    timeout: 3s
    on_failure: undo
"""
ACTIVE = """\
runbook: active
vars: {version: none}
steps:
  - id: active
    action: deploy.rolling
    with: {site: active, version: "${version}"}
    timeout: 120s
    on_failure: undo
  - id: active-latency
    action: metrics.within
    with: {metric: request_latency, below: 1s, site: active, for: 8s, over: 8s}
    timeout: 30s
    on_failure: undo
"""
LOAD = """\
runbook: load
steps:
  - id: load
    action: deploy.load_test
    with: {site: active, users: 1, for: 1s, errors: 1%, p95: 1s}
    timeout: 30s
"""


@pytest.fixture(scope="module")
def old(lab):
    """The release that runs before every test: each test ends with its site on one release."""
    for version in ("2", "3"):
        lab.do("release", version)
    for version, how in BAD.items():
        lab.do("release", version, "--broken", how)
    return lab


def versions(lab):
    """Server -> version, of every one of the ten of each site, and of staging, that answers; and that it is ready."""
    found = {}
    for site, net in NET.items():
        for n in range(1, 11):
            try:
                said = httpx.get(f"http://{net}.{20 + n}:3000/readyz", timeout=30)
            except httpx.ConnectError:
                continue
            assert said.status_code == 200, said.text
            found[f"{site}-app{n}"] = said.json()["version"]
    return found


def drained(lab):
    """Servers that the balancer of their own site, or of staging, does not send to."""
    found = {}
    for site, net in NET.items():
        rows = [r.split(",") for r in httpx.get(f"http://{net}.10:8404/;csv;norefresh", timeout=30).text.splitlines()]
        found |= {r[1]: r[17] for r in rows if r[0] == "app" and r[1].startswith(f"{site}-app")}
    return {name: state for name, state in found.items() if state.startswith(("DRAIN", "MAINT"))}


def all_on(version):
    return {"staging-app1": version, **{f"{site}-app{n}": version for site in SITES for n in (1, 2)}}


def drains(lab):
    """What the balancers of both sites logged of servers that were drained, so far."""
    logs = [(lab.home() / "logs" / f"{site}-haproxy.log").read_text() for site in SITES]
    return [line for log in logs for line in log.splitlines() if "enters drain state" in line]


def visitors(lab):
    """Rows of load tests in the database of production."""
    password = (lab.home() / "secrets" / "app").read_text().strip()
    with psycopg.connect(host="127.0.1.31", dbname="venue", user="app", password=password) as primary:
        return primary.execute("SELECT count(*) FROM events WHERE client LIKE 'locust-%'").fetchone()


def update(lab, version):
    return lab.run("update", "--mode", "graceful", "--var", f"version={version}")


def nothing_lost(counted):
    return {k: counted[k] for k in ("refused", "unknown", "lost", "duplicated")} == dict.fromkeys(
        ("refused", "unknown", "lost", "duplicated"), 0
    )


def test_an_update_under_load_loses_no_request(old):
    before = visitors(old)
    with old.load() as load:
        done = update(old, "2")
        load.more(50)
    assert (done.code, done.json["verdict"]) == (0, "succeeded"), done.err
    assert versions(old) == all_on("2")
    assert drained(old) == {}
    counted = load.counted()
    assert counted["acknowledged"] > 500
    assert nothing_lost(counted), counted
    steps = {s["id"]: s for s in done.json["steps"]}
    assert steps["active"]["evidence"]["replaced"] == ["west-app3", "west-app1", "west-app2"]
    assert steps["staging"]["evidence"]["replaced"] == ["staging-app2", "staging-app1"]
    assert list(steps)[:4] == ["staging", "staging-serves", "staging-load", "standby"]
    written = steps["staging-serves"]["evidence"]["confirmed"]
    assert (written["site"], written["node"]) == ("staging", "staging-pg1")
    assert steps["staging-load"]["evidence"]["requests"] >= 100
    assert visitors(old) == before  # of staging they were
    assert any("west-app1" in line for line in drains(old))  # so that the next test would see one
    compared = steps["canary"]["evidence"]
    assert (compared["server"], compared["worse"], compared["share"]) == ("west-app3", [], 0.2)
    assert compared["canary"]["requests"] >= 300
    assert compared["baseline"]["requests"] > compared["canary"]["requests"]
    assert "p of errors" in steps["canary"]["summary"]
    assert steps["scale"]["outcome"] == "already"


def weights(lab):
    rows = [r.split(",") for r in httpx.get("http://127.0.1.10:8404/;csv;norefresh", timeout=30).text.splitlines()]
    return {r[1]: r[18] for r in rows if r[0] == "app" and r[1].startswith("west-app")}


@pytest.fixture
def book(old, tmp_path):
    """Runs a runbook of a test's own."""

    def run(text, *words):
        path = tmp_path / "book.yaml"
        path.write_text(text)
        return old.run(str(path), "--mode", "graceful", *words)

    return run


@pytest.mark.parametrize(
    ("version", "worse", "figure"), [("slower", "latency", "p_latency"), ("two-percent", "errors", "p_errors")]
)
def test_a_bad_canary_is_found_and_gone_before_any_other_server_changes(old, book, version, worse, figure):
    before, heavy = versions(old), weights(old)
    with old.load() as load:
        done = book(CANARY, "--var", f"version={version}")
        load.more(50)
    assert (done.code, done.json["verdict"]) == (1, "undone"), done.err
    assert f"canary west-app3 on release {version} is worse in {worse}" in done.json["reason"]
    facts = done.json["steps"][0]["error"]["facts"]
    assert (facts["worse"], facts["canary"]["requests"] >= 30) == ([worse], True)
    assert facts[figure] < facts["level"]
    assert facts["put_back_after_s"] > 0
    assert done.json["put_back_after_s"] > 0
    assert versions(old) == before
    assert (drained(old), weights(old)) == ({}, heavy)
    counted = load.counted()
    assert {k: counted[k] for k in ("unknown", "lost", "duplicated")} == {"unknown": 0, "lost": 0, "duplicated": 0}


def test_a_canary_without_requests_is_not_passed(old, book):
    before = versions(old)
    done = book(CANARY.replace("most: 90s", "most: 3s, for: 1s"), "--var", "version=3")
    assert (done.code, done.json["verdict"]) == (1, "undone"), done.err
    assert "not enough data" in done.json["reason"]
    assert versions(old) == before


def test_capacity_is_added_only_where_a_threshold_is_crossed_and_taken_back(old, book):
    with old.load():
        done = book(RELIEF)
    assert done.json["reason"].startswith("never"), done.json["reason"]
    records = [json.loads(line) for line in Path(done.json["journal"]["path"]).read_text().splitlines()]
    relief = next(r for r in records if r["type"] == "outcome" and r.get("step") == "relief")
    assert (relief["outcome"], relief["facts"]["running"], relief["facts"]["wanted"]) == ("done", 2, 3)
    assert "concurrent_users too high" in relief["summary"]
    assert len([s for s in versions(old) if s.startswith("west")]) == 2


def test_a_load_test_of_the_active_site_is_refused(book):
    done = book(LOAD)
    assert (done.code, done.json["verdict"]) == (3, "refused")
    assert "is the active site" in done.json["reason"]


@pytest.mark.parametrize(("version", "fails_at"), [("never", "staging"), ("leaks", "staging-load")])
def test_a_bad_release_goes_back_before_a_server_of_production_meets_it(old, version, fails_at):
    before, out = versions(old), drains(old)
    with old.load() as load:
        done = update(old, version)
        load.more(50)
    assert (done.code, done.json["verdict"]) == (1, "undone"), done.err
    assert done.json["reason"].startswith(fails_at)
    assert versions(old) == before
    assert drained(old) == {}
    assert nothing_lost(load.counted())
    assert drains(old) == out  # no server of either site
    steps = {s["id"]: s for s in done.json["steps"]}
    assert {s["outcome"] for i, s in steps.items() if not i.startswith("staging")} <= {"skipped", None}
    put_back = steps["staging"]
    assert put_back["outcome"] == "undone"
    assert 0 < put_back["duration_s"] <= done.json["put_back_after_s"]  # the time to restore


def test_a_release_that_gets_slow_when_all_are_on_it_goes_back_everywhere(old, book, until):
    """Neither a load test nor a canary can know; only how long the clients wait afterwards."""
    before, slow = versions(old), old.home() / "releases" / "late" / "SLOW"
    with old.load() as load, ThreadPoolExecutor(1) as aside:
        going = aside.submit(book, ACTIVE, "--var", "version=late")
        until(lambda: going.done() or rolled(old), 200)
        slow.touch()
        done = going.result()
        load.more(50)
    slow.unlink()
    assert (done.code, done.json["verdict"]) == (1, "undone"), done.err
    assert done.json["reason"].startswith("active-latency"), done.json["reason"]
    assert versions(old) == before
    assert {s["id"]: s["outcome"] for s in done.json["steps"]}["active"] == "undone"
    assert nothing_lost(load.counted())


def rolled(lab):
    """The run has every server of the active site on the release."""
    journals = Path(lab.env["RELIGHT_STATE"]).glob("runs/*/journal.jsonl")
    lines = [line for journal in journals for line in journal.read_text().splitlines()]
    return any(all(s in line for s in ('"step":"active"', '"outcome":"done"', '"late"')) for line in lines)


def test_a_load_test_that_is_given_up_leaves_no_load_behind(old):
    async def go():
        around = Surroundings("lab", "load", ("east",), LoopClock(), lambda name: name)
        file = str(old.home() / "locustfile.py")
        settings = LocustSettings(file=file, sites={"east": "http://127.0.2.10:8080"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Locust(settings, around).run("http://127.0.2.10:8080", Load(1, 60)), 3)
        return file

    file = asyncio.run(go()).encode()
    commands = [_command(p) for p in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [c for c in commands if b"locust" in c and file in c]


def _command(path):
    try:
        return path.read_bytes()
    except OSError:  # it ended
        return b""


def test_an_update_whose_engine_is_killed_is_resumed(old, tmp_path, until):
    """In the middle of the active site: one server is drained or starting, and one more runs than before."""
    # what stood still a moment is given time to be fast again
    (tmp_path / "book.yaml").write_text(ACTIVE.replace("timeout: 30s", "timeout: 200s"))
    words = [RELIGHT, "run", str(tmp_path / "book.yaml"), "-s", "lab", "--offline", "--json", "--mode", "graceful"]
    with old.load() as load:
        engine = subprocess.Popen(
            [*words, "--var", "version=3"],
            env={**os.environ, **old.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: "west-app3" in answering() and {"west-app1", "west-app2"} & set(drained(old)), 90)
        finally:
            os.kill(engine.pid, signal.SIGKILL)
            engine.wait()
        done = old.relight("resume", "last", "--offline", "--json")
        load.more(50)
    assert done.code == 0, done.err
    assert {s: v for s, v in versions(old).items() if s.startswith("west")} == {"west-app1": "3", "west-app2": "3"}
    assert drained(old) == {}
    counted = load.counted()
    assert nothing_lost(counted), json.dumps(counted)


def answering():
    try:
        return httpx.get("http://127.0.1.23:3000/healthz", timeout=1).json()["app"]
    except httpx.HTTPError:
        return ""


def test_a_release_that_is_not_there_is_refused_before_anything_changes(old):
    before = versions(old)
    done = update(old, "unknown")
    assert done.code != 0
    assert "no release 'unknown'" in done.out + done.err
    assert versions(old) == before
