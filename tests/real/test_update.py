"""Rolling updates of the lab's servers under load: nothing is lost, and a bad release goes back by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import httpx
import pytest
from conftest import RELIGHT

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
NET = {"west": "127.0.1", "east": "127.0.2"}


@pytest.fixture(scope="module")
def old(lab):
    """The release that runs before every test: each test ends with its site on one release."""
    for version, broken in (("2", ()), ("3", ()), ("never", ("unready",)), ("fails", ("errors",)), ("slow", ("slow",))):
        lab.do("release", version, *(("--broken", *broken) if broken else ()))
    return lab


def versions(lab):
    """Server -> version, of every one of the ten of each site that answers; and that it is ready."""
    found = {}
    for site, net in NET.items():
        for n in range(1, 11):
            try:
                said = httpx.get(f"http://{net}.{20 + n}:3000/readyz", timeout=5)
            except httpx.ConnectError:
                continue
            assert said.status_code == 200, said.text
            found[f"{site}-app{n}"] = said.json()["version"]
    return found


def drained(lab):
    """Servers that a balancer of their own site does not send to."""
    found = {}
    for site, net in NET.items():
        rows = [r.split(",") for r in httpx.get(f"http://{net}.10:8404/;csv;norefresh").text.splitlines()]
        found |= {r[1]: r[17] for r in rows if r[0] == "app" and r[1].startswith(f"{site}-app")}
    return {name: state for name, state in found.items() if state.startswith(("DRAIN", "MAINT"))}


def all_on(version):
    return {f"{site}-app{n}": version for site in NET for n in (1, 2)}


def update(lab, version):
    return lab.run("update", "--mode", "graceful", "--var", f"version={version}")


def nothing_lost(counted):
    return {k: counted[k] for k in ("refused", "unknown", "lost", "duplicated")} == dict.fromkeys(
        ("refused", "unknown", "lost", "duplicated"), 0
    )


def test_an_update_under_load_loses_no_request(old):
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
    again = update(old, "2")
    assert again.code == 0
    assert {s["id"]: s["outcome"] for s in again.json["steps"]}["active"] == "already"


@pytest.mark.parametrize(("version", "fails_at"), [("never", "standby"), ("fails", "standby-serves")])
def test_a_bad_release_goes_back_before_a_client_meets_it(old, version, fails_at):
    before = versions(old)
    with old.load() as load:
        done = update(old, version)
        load.more(50)
    assert (done.code, done.json["verdict"]) == (1, "undone"), done.err
    assert done.json["reason"].startswith(fails_at)
    assert versions(old) == before
    assert drained(old) == {}
    assert nothing_lost(load.counted())
    put_back = {s["id"]: s for s in done.json["steps"]}["standby"]
    assert put_back["outcome"] == "undone"
    assert 0 < put_back["duration_s"] < 30  # the time to restore


def test_a_release_that_only_real_load_shows_to_be_slow_goes_back_everywhere(old):
    before = versions(old)
    with old.load() as load:
        done = update(old, "slow")
        load.more(50)
    assert (done.code, done.json["verdict"]) == (1, "undone"), done.err
    assert done.json["reason"].startswith("active-"), done.json["reason"]  # nothing before the clients' load shows it
    assert versions(old) == before
    steps = {s["id"]: s["outcome"] for s in done.json["steps"]}
    assert (steps["standby"], steps["active"]) == ("undone", "undone")
    assert nothing_lost(load.counted())


def test_an_update_whose_engine_is_killed_is_resumed(old, until):
    """In the middle of the active site: one server is drained or starting, and one more runs than before."""
    words = [RELIGHT, "run", "update", "-s", "lab", "--offline", "--json", "--mode", "graceful", "--var", "version=3"]
    with old.load() as load:
        engine = subprocess.Popen(
            words, env={**os.environ, **old.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: "west-app3" in answering() and "west-app1" in drained(old), 90)
        finally:
            os.kill(engine.pid, signal.SIGKILL)
            engine.wait()
        done = old.relight("resume", "last", "--offline", "--json")
        load.more(50)
    assert done.code == 0, done.err
    assert versions(old) == all_on("3")
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
