"""An alert that ends while its run is under way: before the point of no return the run goes back where all is well."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flows.engine import abort, alive, launch, places
from flows.engine.journal import FileJournal
from flows.intake import turning
from flows.intake.event import Alert, Auth, Delivery, normalise
from flows.intake.facts import Evidence, Facts, Sample

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
PLAN = launch.prepare("lab", "failover", "forced").plan
ENDED = normalise(
    Alert(kind="resolved", fingerprint="f", started_at=NOW - timedelta(minutes=1)),
    Delivery("am", b"{}", NOW),
    Auth(method="token", verified=True),
    "alertmanager",
)
WELL = Sample(NOW + timedelta(seconds=1), healthy=True, summary="west-pg1 is healthy")
DEAD = Sample(NOW + timedelta(seconds=1), failing=True, summary="west-pg1 is dead")


@pytest.fixture
def run():
    """The folder of a run that began, and what more is recorded of it."""
    folder = places.state_home() / "runs" / "run-1"
    folder.mkdir(parents=True)
    journal = FileJournal(folder / "journal.jsonl")
    journal.append(NOW, "run_started", run_id="run-1")

    def record(kind, **more):
        journal.append(NOW, kind, **more)

    record.folder = folder
    yield record
    journal.close()


def back(sample, plan=PLAN):
    seen = Evidence(sample, int(sample.failing)) if sample else None
    return turning.back("run-1", ENDED, Facts(NOW, plan=plan, evidence=seen), NOW)


def step(record, name, outcome=None):
    action = PLAN.by_id[name].action.name
    record("intent", step=name, action=action, attempt=1, before={}, started_at=NOW.isoformat())
    if outcome:
        record(
            "outcome", step=name, action=action, attempt=1, outcome=outcome, facts={}, summary="", duration_s=0.1,
            started_at=NOW.isoformat(), error=None, restores=None,
        )  # fmt: skip


def test_a_run_goes_back_where_the_system_is_seen_healthy(run):
    why, again_s = back(WELL)
    assert (again_s, "goes back" in why) == (0, True)
    assert abort.asked(run.folder)["by"] == "relight"
    assert "healthy" in abort.asked(run.folder)["why"]


@pytest.mark.parametrize(
    "sample", [DEAD, None, replace(WELL, at=NOW - timedelta(seconds=1)), replace(WELL, healthy=False)]
)
def test_it_goes_on_where_it_is_not_and_is_looked_at_again(run, sample):
    why, again_s = back(sample)
    assert again_s > 0, why
    assert abort.asked(run.folder) is None


def test_behind_the_point_of_no_return_it_carries_on(run):
    step(run, "fence", "done")
    assert back(DEAD)[1] > 0
    step(run, "promote")
    why, again_s = back(WELL)
    assert (again_s, "carries on" in why) == (0, True)
    assert abort.asked(run.folder) is None


def test_one_that_is_over_is_left_alone(run):
    run("run_ended", verdict="succeeded", reason="")
    assert "so had run run-1" in back(WELL)[0]
    assert abort.asked(run.folder) is None


def test_one_that_failed_and_that_nobody_goes_on_with_is_left_alone(run):
    run("run_ended", verdict="failed", reason="")
    assert back(WELL)[1] == 0
    with alive.hold(run.folder):
        assert abort.asked(run.folder) is None


def test_one_that_goes_back_already_is_asked_nothing_more(run):
    run("abort_requested", by="J. Doe", why="x", asked_at="")
    assert "goes back" in back(WELL)[0]
    assert abort.asked(run.folder) is None
