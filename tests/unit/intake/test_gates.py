"""Every gate by itself: what it lets pass, and what it does not; and the chain says everything, not the first only."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.engine import killswitch, launch
from flows.intake import gates
from flows.intake.event import Alert, Auth, Delivery, normalise
from flows.intake.gates import Facts, judge
from flows.intake.rules import Loaded, Rule, Triggers
from tasks.leases.protocol import Engine, Held, LastRun

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
PLAN = launch.prepare("lab", "failover", "forced").plan
RULE = Rule.model_validate({"id": "down", "from": ["am"], "match": {"alertname": "Down"}, "stage": "auto"})
LOADED = Loaded("lab", Path("lab"), Triggers.model_validate({"gates": {"confirm": {"for": "10s"}}}), {})
GOOD = Facts(
    now=NOW,
    plan=PLAN,
    references={"a": True, "b": True, "c": False},
    drilled_at=NOW - timedelta(days=3),
    cool_down_s=1800,
)


def event(**more):
    alert = {"kind": "firing", "fingerprint": "f", "started_at": NOW - timedelta(seconds=20), "observed_at": NOW}
    auth = more.pop("auth", Auth(method="token", verified=True))
    return normalise(Alert(**{**alert, **more}), Delivery("am", b"{}", NOW), auth, "alertmanager")


def answers(one=None, rule=RULE, loaded=LOADED, **facts):
    decision = judge(one or event(), rule, loaded, replace(GOOD, **facts))
    assert len(decision.said) == 14
    return decision, {s.gate: s for s in decision.said}


def loaded(**triggers):
    return replace(LOADED, triggers=Triggers.model_validate({"gates": {"confirm": {"for": "0s"}}, **triggers}))


def last(verdict="succeeded", ago_s=60.0, **more):
    ended = (NOW - timedelta(seconds=ago_s)).isoformat()
    return Held(3, "run-1", last=LastRun("run-1", verdict, ended, **more))


def test_when_all_is_well_it_starts():
    decision, found = answers()
    assert (decision.answer, decision.outcome) == ("pass", "start"), found


@pytest.mark.parametrize(
    ("stage", "outcome"), [("off", "shadow"), ("observe", "shadow"), ("approve", "ask"), ("auto", "start")]
)
def test_stages(stage, outcome):
    assert answers(rule=RULE.model_copy(update={"stage": stage}))[0].outcome == outcome


def test_off_is_the_default():
    assert Rule.model_validate({"id": "a", "from": ["am"], "match": {"a": "b"}}).stage == "off"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"kind": "resolved"}, "it is resolved"),
        ({"kind": "unknown"}, "it is unknown"),
        ({"kind": "no_data"}, "it is no_data"),
        ({"test": "the Test button"}, "it is a test"),
        ({"auth": Auth(method="none")}, "not recognised"),
        ({"trigger": False}, "lacks what a trigger needs"),
        ({"suppressed_by": "planned"}, "suppressed by planned"),
        ({"truncated": True}, "left alerts out"),
        ({"observed_at": NOW + timedelta(minutes=9)}, "clock is 9m ahead"),
        ({"observed_at": NOW - timedelta(minutes=16)}, "16m old"),
        ({"started_at": None}, "lacks what a trigger needs"),
    ],
)
def test_only_what_is_fit_may_propose(more, why):
    decision, found = answers(event(**more))
    assert found["fitness"].answer == "refuse"
    assert why in found["fitness"].why
    assert decision.outcome == "refused"


def test_one_that_ended_meanwhile_starts_nothing():
    assert answers(firing=False)[1]["fitness"].answer == "refuse"


def test_the_kill_switch(tmp_path):
    killswitch.pause_file().parent.mkdir(parents=True, exist_ok=True)
    killswitch.pause_file().write_text("network work, J. Doe")
    decision, found = answers()
    assert (found["kill-switch"].answer, decision.outcome) == ("refuse", "refused")
    assert "network work, J. Doe" in found["kill-switch"].why


def test_planned_work_blocks_until_its_end():
    window = {"from": "2026-11-24T11:00:00Z", "to": "2026-11-24T12:00:01Z", "why": "disks"}
    assert answers(loaded=loaded(windows=[window]))[1]["window"].answer == "refuse"
    over = {**window, "to": "2026-11-24T12:00:00Z"}
    assert answers(loaded=loaded(windows=[over]))[1]["window"].answer == "pass"


@pytest.mark.parametrize("window", [{"from": "2026-11-24T11:00:00Z", "to": "2026-11-24T10:00:00Z", "why": "x"}])
def test_a_window_has_an_end(window):
    with pytest.raises(ValueError, match="ends after it begins"):
        Triggers.model_validate({"windows": [window]})


def test_a_runbook_without_an_entry_check_needs_a_person():
    steps = tuple(s for s in PLAN.steps if s.id != "detect")
    bare = replace(PLAN, steps=tuple(replace(s, needs=tuple(n for n in s.needs if n != "detect")) for s in steps))
    assert answers(plan=bare)[1]["quorum"].answer == "needs-approval"
    assert answers(plan=None, broken="no such file")[1]["quorum"].answer == "refuse"


def test_it_holds_until_it_was_firing_for_long_enough():
    decision, found = answers(event(started_at=NOW - timedelta(seconds=4)))
    assert (found["confirm"].answer, decision.outcome) == ("hold", "hold")
    assert decision.again_s == pytest.approx(6)


@pytest.mark.parametrize(
    ("references", "answer"),
    [
        ({}, "needs-approval"),
        ({"a": True, "b": False, "c": False}, "hold"),
        ({"a": True, "b": True, "c": False}, "pass"),
    ],
)
def test_an_engine_that_may_be_cut_off_itself_starts_nothing(references, answer):
    assert answers(references=references)[1]["isolation"].answer == answer


def test_what_comes_and_goes_needs_a_person():
    assert answers(recent=(event(),) * 3)[1]["flap"].answer == "needs-approval"
    assert answers(recent=(event(),) * 2)[1]["flap"].answer == "pass"


def test_the_cool_down_and_its_acknowledgement():
    assert answers(held=last())[1]["cool-down"].answer == "needs-approval"
    assert answers(held=last(verdict="failed", ago_s=1799))[1]["cool-down"].answer == "needs-approval"
    assert answers(held=last(ago_s=1801))[1]["cool-down"].answer == "pass"
    assert answers(held=last(acknowledged_by="J. Doe"))[1]["cool-down"].answer == "pass"


def test_one_run_a_system():
    held = Held(3, "run-2", holder=Engine("host", 7), since="x", released=False)
    assert answers(held=held, alive=True)[1]["concurrency"].answer == "refuse"
    assert answers(held=held, alive=False)[1]["concurrency"].answer == "pass"


def test_when_everything_fires_it_is_the_monitor():
    assert answers(others=frozenset("abcd"))[1]["blast-radius"].answer == "needs-approval"
    assert answers(others=frozenset("abc"))[1]["blast-radius"].answer == "pass"
    assert answers(automatic=(3, 3))[1]["blast-radius"].answer == "needs-approval"


def test_blind_monitoring_and_an_old_drill_need_a_person():
    assert answers(blind="the watchdog is gone")[1]["approval"].answer == "needs-approval"
    assert answers(drilled_at=None)[1]["approval"].answer == "needs-approval"
    assert answers(drilled_at=NOW - timedelta(days=91))[1]["approval"].answer == "needs-approval"


def test_a_failback_and_a_planned_move_are_never_automatic():
    assert answers(rule=RULE.model_copy(update={"run": "rejoin"}))[1]["safety"].answer == "refuse"
    assert answers(plan=replace(PLAN, mode="graceful"))[1]["safety"].answer == "needs-approval"


def test_everything_is_said_and_the_heaviest_counts():
    decision, found = answers(event(truncated=True), references={}, held=last(), blind="blind")
    assert {g for g, s in found.items() if s.answer != "pass"} == {"fitness", "isolation", "cool-down", "approval"}
    assert decision.answer == "refuse"
    document = decision.document()
    assert [g["gate"] for g in document["gates"]] == [
        g.__name__.replace("_", "-").replace("rules-of-", "") for g in gates.CHAIN
    ]
    assert all(g["why"] for g in document["gates"])
