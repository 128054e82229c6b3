"""What is kept of readiness, what its change is called, what a drill still proves, and the gate before a run."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from flows.engine import audit, eventloop, journal, launch, readiness, readyfile, readygate, readyhistory
from flows.engine.readyhistory import Drill, Looked
from flows.engine.roles import Roles, Wish
from flows.engine.safety import ReadyGate
from flows.engine.system import check as checked
from flows.engine.yamlfile import read as read_yaml
from tasks import reached
from tasks.aws import Call
from tasks.errors import SafetyRefusal
from tasks.readiness import Finding

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
GOOD = Looked(NOW.isoformat(), "toy", "graceful", ("failover",), ready=True, scores={"database": 100}, resources="a")
BAD = replace(GOOD, ready=False, scores={"database": 40}, reasons=("dns: app. has a TTL of 1h",))


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))


def test_records_are_kept_one_a_line_and_a_torn_one_hides_no_other():
    assert readyhistory.add(GOOD) is None
    assert readyhistory.add(BAD) == GOOD
    with readyhistory.file("toy").open("a") as file:
        file.write('{"at": "20')
    assert readyhistory.read("toy") == [GOOD, BAD]
    assert readyhistory.add(replace(GOOD, mode="forced")) is None, "another question has its own past"


def test_trend_and_news():
    assert readyhistory.trend(None, GOOD) == "first"
    assert readyhistory.trend(GOOD, BAD) == "worse"
    assert readyhistory.trend(BAD, GOOD) == "better"
    assert readyhistory.trend(GOOD, GOOD) == "same"
    assert readyhistory.trend(BAD, replace(BAD, reasons=("other",))) == "other"
    assert readiness._news(GOOD, BAD)
    assert readiness._news(BAD, GOOD)
    assert readiness._news(None, BAD)
    assert not readiness._news(None, GOOD)
    assert not readiness._news(BAD, replace(BAD, reasons=("dns: app. has a TTL of 2h",))), "the same in other figures"
    assert readiness._news(BAD, replace(BAD, reasons=("database: gone",)))


def test_a_run_that_begins_just_now_is_no_drill_yet(tmp_path):
    """Its folder is there before the first record; readiness ended with a StopIteration."""
    (tmp_path / "runs" / "20261126T120000Z-failover-toy-1").mkdir(parents=True)
    (tmp_path / "runs" / "20261126T120000Z-failover-toy-1" / "journal.jsonl").touch()
    assert readyhistory.last_drill("toy", "failover") is None


@pytest.fixture
def drilled(monkeypatch):
    def make(digest="d", relight=None, at=NOW):
        found = Drill("run-1", at.isoformat(), digest, "forced", {}, relight or readyhistory.version("relight"))
        monkeypatch.setattr(readyhistory, "last_drill", lambda *_: found)
        plan = SimpleNamespace(plan=SimpleNamespace(digest="d"))
        monkeypatch.setattr(readyhistory.launch, "prepare", lambda *_: plan)

    return make


def test_a_runbook_that_was_never_drilled_is_unproven():
    found = readyhistory.proven("toy", "failover", GOOD)
    assert (found.level, "never proven" in found.says) == ("warning", True)


def test_a_drill_counts_until_something_changes(drilled):
    later = replace(GOOD, at=(NOW + timedelta(hours=1)).isoformat())
    readyhistory.add(GOOD)
    drilled()
    assert readyhistory.proven("toy", "failover", later).level == "ok"
    drilled(digest="other")
    assert "its plan changed" in readyhistory.proven("toy", "failover", later).says
    drilled(relight="0.0.1")
    assert "relight (0.0.1 then)" in readyhistory.proven("toy", "failover", later).says


def test_the_moment_since_when_it_is_unproven_is_the_first_look_that_found_another(drilled):
    drilled()
    first = (NOW + timedelta(hours=1)).isoformat()
    readyhistory.add(GOOD)
    readyhistory.add(replace(GOOD, at=first, resources="b"))
    now = replace(GOOD, at=(NOW + timedelta(hours=2)).isoformat(), resources="b")
    found = readyhistory.proven("toy", "failover", now)
    assert f"unproven since {first}: what it acts on changed" in found.says
    newer = replace(GOOD, at=now.at, versions=("15.19",))
    readyhistory.file("toy").unlink()
    readyhistory.add(replace(GOOD, versions=("15.18",)))
    assert "versions changed" in readyhistory.proven("toy", "failover", newer).says


def test_the_gate_warns_by_default_and_refuses_only_where_the_system_asks_for_it():
    refuse = ReadyGate(unready="refuse")
    assert readygate.check(ReadyGate(), "toy", "failover", {}, NOW)["ready"] is False
    with pytest.raises(SafetyRefusal, match="nobody ever looked"):
        readygate.check(refuse, "toy", "failover", {}, NOW)
    readyfile.note("toy", "failover", "graceful", ["database: lag"], NOW)
    with pytest.raises(SafetyRefusal, match="database: lag"):
        readygate.check(refuse, "toy", "failover", {}, NOW)
    waived = readygate.check(refuse, "toy", "failover", {"readiness": "J. Doe, ticket 12"}, NOW)
    assert (waived["ready"], waived["waived"]) == (False, "J. Doe, ticket 12")
    readyfile.note("toy", "failover", "graceful", [], NOW)
    assert readygate.check(refuse, "toy", "failover", {}, NOW)["ready"] is True
    with pytest.raises(SafetyRefusal, match="is 3h old"):
        readygate.check(refuse, "toy", "failover", {}, NOW + timedelta(hours=3))


def test_a_refusal_comes_before_anything_and_a_waiver_is_in_the_journal(tmp_path):
    (tmp_path / "system.yaml").write_text(
        "system: toy\nsites: {west: {}, east: {}}\nsafety: {readiness: {unready: refuse}}\n"
    )
    step = "{id: look, action: health.tcp, with: {address: '127.0.0.1:1', times: 1}, timeout: 1s, on_failure: continue}"
    (tmp_path / "failover.yaml").write_text(f"runbook: failover\nsteps:\n  - {step}\n")
    asked = launch.Request(str(tmp_path), "failover", wish=Wish("west", "east"))
    with pytest.raises(SafetyRefusal, match="not found ready"):
        eventloop.run(launch.run(asked))
    assert not list(tmp_path.glob("runs/*"))
    eventloop.run(launch.run(replace(asked, waivers={"readiness": "J. Doe"})))
    (path,) = tmp_path.glob("runs/*/journal.jsonl")
    head = next(journal.of_type(journal.read(path).records, "run_started"))
    assert (head["readiness"]["ready"], head["readiness"]["waived"]) == (False, "J. Doe")


def test_a_score_is_never_rounded_up_to_well():
    loaded = SimpleNamespace(system=SimpleNamespace(objectives={"database": None, "storage": None}))
    book = readiness._Book("failover", restores={"database": {"database"}, "storage": {"storage"}})
    fine = [Finding("x", "ok", "", component="database") for _ in range(99)]
    bad = Finding("ttl", "failing", "", component="database")
    scores = readiness._scores(loaded, [book], [], [*fine, bad])
    assert [(s.objective, s.points) for s in scores] == [("database", 49)]
    assert scores[0].against == (bad,)
    unknown = Finding("backups", "unknown", "", component="database")
    assert readiness._scores(loaded, [book], [], [*fine, unknown])[0].points < 100


SYSTEM = """
system: toy
sites: {west: {region: us-east-1}, east: {region: eu-west-1}}
components:
  database:
    provider: database.postgresql
    database: venue
    user: relight
    nodes:
      west-pg1: {site: west, address: "192.0.2.1:5432", from: {east: "192.0.2.9:5432"}}
      east-pg1: {site: east, address: "192.0.2.2:5432"}
"""


def test_an_endpoint_is_where_the_settings_have_it(tmp_path):
    file = tmp_path / "system.yaml"
    file.write_text(SYSTEM)
    places = audit.Places(checked(read_yaml(file)))
    assert places.sites_of("192.0.2.1:5432") == {"west"}
    assert places.sites_of("192.0.2.9:5432") == {"east"}, "the way through east"
    assert places.sites_of("192.0.2.2:22") == {"east"}, "by its host"
    assert places.sites_of("/bin/host status west-pg1") == {"west"}
    assert places.sites_of("198.51.100.1:1") == set()
    assert places.site_of_region("eu-west-1") == "east"


def test_ears_hear_a_socket_and_can_cut_it_off(tmp_path):
    file = tmp_path / "system.yaml"
    file.write_text(SYSTEM.replace("192.0.2.1:5432", "127.0.0.1:9"))
    places = audit.Places(checked(read_yaml(file)))
    step = SimpleNamespace(id="look")
    ears = audit.Ears(places, cut="west")
    with ears.around(step, Roles({"failed": "west"})):
        with socket.socket() as one, pytest.raises(TimeoutError, match="cut off"):
            one.connect(("127.0.0.1", 9))
        with pytest.raises(TimeoutError):
            reached.reaching("127.0.0.1:9")
        reached.reaching("192.0.2.2:5432")
    assert ears.calls["look"] == {"127.0.0.1:9", "192.0.2.2:5432"}
    reached.reaching("127.0.0.1:9")  # nobody listens any more


def test_a_control_plane_of_one_region_warns_and_fails_where_that_region_is_left(tmp_path):
    file = tmp_path / "system.yaml"
    file.write_text(SYSTEM)
    ears = audit.Ears(audit.Places(checked(read_yaml(file))))
    ears.aws["dns"].add(Call("route53", "ChangeResourceRecordSets", "us-east-1", "route53.amazonaws.com"))
    assert [f.level for f in audit._control_planes(ears, "east")] == ["warning"]
    (found,) = audit._control_planes(ears, "west")
    assert (found.level, "zones.flip" in found.fix) == ("failing", True)


def test_records_are_json(tmp_path):
    readyhistory.add(BAD)
    (line,) = readyhistory.file("toy").read_text().splitlines()
    assert json.loads(line)["reasons"] == list(BAD.reasons)
