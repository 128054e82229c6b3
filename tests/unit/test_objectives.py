"""The RTO clock and its split, the loss, and the events, from journal records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows.engine import objectives

T0 = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def at(seconds):
    return (T0 + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


def started(*steps, begun=2.0, detected=1.0):
    planned = [{"id": i, "phase": p, "read_only": p in ("detect", "verify"), "restores": r} for i, p, r in steps]
    return {
        "type": "run_started",
        "at": at(begun),
        "incident_started_at": at(0),
        "detected_at": at(detected),
        "plan": {"steps": planned},
    }


def outcome(step, seconds, what="done", restores=None, **more):
    return {
        "type": "outcome",
        "at": at(seconds),
        "step": step,
        "action": more.pop("action", "toy.make"),
        "outcome": what,
        "restores": restores,
        "facts": {},
        "duration_s": 1.0,
        **more,
    }


HEAD = started(("find", "detect", None), ("fix", "execute", None), ("ok", "approve", None), ("see", "verify", "app"))


def test_the_clock_starts_with_the_incident_and_stops_at_the_restoring_step():
    records = (HEAD, outcome("fix", 5), outcome("see", 9.5, restores="app"))
    assert objectives.recovery_times(records) == {"app": 9.5}


@pytest.mark.parametrize("what", ["failed", "unknown", "skipped"])
def test_only_a_good_end_stops_the_clock(what):
    assert objectives.recovery_times((HEAD, outcome("see", 9, what, restores="app"))) == {}


def test_already_stops_it_too_and_undone_starts_it_again():
    good = outcome("see", 9, "already", restores="app")
    assert objectives.recovery_times((HEAD, good)) == {"app": 9.0}
    assert objectives.recovery_times((HEAD, good, outcome("see", 12, "undone", restores="app"))) == {}


def test_phases_split_the_time():
    records = (HEAD, outcome("find", 3), outcome("ok", 6, duration_s=2.0), outcome("fix", 10), outcome("see", 14))
    assert objectives.phases(records) == {
        "detect_s": 1.0,
        "declare_s": 2.0,
        "approve_s": 2.0,
        "execute_s": 5.0,
        "verify_s": 4.0,
        "client_visible_s": None,
    }


def test_phases_of_a_run_without_such_steps_are_none():
    found = objectives.phases((started(("a", "execute", None)),))
    assert (found["approve_s"], found["execute_s"], found["verify_s"]) == (None, None, None)
    assert (found["detect_s"], found["declare_s"]) == (1.0, 1.0)
    assert set(objectives.phases(()).values()) == {None}


def test_client_visible_is_counted_or_else_seen_through_the_name():
    seen = {"first_success_at": at(7), "through_name": True}
    not_by_name = {"first_success_at": at(3), "through_name": False}
    records = (HEAD, outcome("fix", 5, facts=not_by_name), outcome("see", 9, facts=seen))
    assert objectives.phases(records)["client_visible_s"] == 7.0
    measured = {"type": "measured", "at": at(30), "client_visible_s": 6.25}
    assert objectives.phases((*records, measured))["client_visible_s"] == 6.25


def test_losses_are_taken_from_the_step_and_overridden_by_what_was_counted():
    loss = {"component": "data", "rpo": {"lag_bytes": 10, "bound_s": 0.5, "met": True}}
    records = (HEAD, outcome("fix", 5, facts=loss))
    assert objectives.losses(records) == {"data": {"lag_bytes": 10, "bound_s": 0.5, "met": True}}
    counted = {"type": "measured", "at": at(30), "rpo": {"data": {"lost_transactions": 3, "met": False}}}
    after = objectives.losses((*records, counted))
    assert after["data"] == {"lag_bytes": 10, "bound_s": 0.5, "met": False, "lost_transactions": 3}
    by_domain = outcome("fix", 5, action="database.promote", facts={"rpo": {"met": None}})
    assert objectives.losses((HEAD, by_domain)) == {"database": {"met": None}}


@pytest.mark.parametrize(
    ("seconds", "met", "rto", "rpo", "expected"),
    [
        (9.0, True, {"app": 10.0}, {"data": 0.0}, True),
        (10.0, True, {"app": 10.0}, {"data": 0.0}, True),
        (10.1, True, {"app": 10.0}, {"data": 0.0}, False),
        (9.0, False, {"app": 10.0}, {"data": 0.0}, False),
        (9.0, None, {"app": 10.0}, {"data": 0.0}, False),  # a loss that is not known is not met
        (9.0, False, {"app": 10.0}, {}, True),
        (9.0, True, {"other": 1.0}, {}, True),
    ],
)
def test_all_met(seconds, met, rto, rpo, expected):
    facts = {"component": "data", "rpo": {"met": met}}
    records = (HEAD, outcome("fix", 5, facts=facts), outcome("see", seconds, restores="app"))
    assert objectives.all_met(records, rto, rpo) is expected


def events(played):
    return [(r["component"], r["fraction"], r["elapsed_s"]) for r in played.records if r["type"] == "objective"]


def test_events_at_50_80_and_100_percent(kit):
    world = kit.World(script={"apply a": ["slow:200"]})
    plan = kit.plan(kit.step("a", timeout_s=300.0, restores="app"))
    played = kit.play(plan, world, rto_s={"app": 100.0})
    assert events(played) == [("app", 0.5, 50.0), ("app", 0.8, 80.0), ("app", 1.0, 100.0)]
    assert played.verdict == "objective_missed"


def test_no_event_once_it_is_restored(kit):
    world = kit.World(script={"apply a": ["slow:60"], "apply b": ["slow:100"]})
    plan = kit.plan(kit.step("a", timeout_s=300.0, restores="app"), kit.step("b", timeout_s=300.0))
    played = kit.play(plan, world, rto_s={"app": 100.0, "else": 1.0})
    assert events(played) == [("app", 0.5, 50.0)]
    assert played.verdict == "succeeded"


def test_the_time_before_the_run_counts_and_resume_says_nothing_twice(kit):
    plan = kit.plan(kit.step("a", timeout_s=300.0, restores="app"))
    world = kit.World(script={"apply a": ["slow:200"]})
    late = {"rto_s": {"app": 100.0}, "anchor": kit.EPOCH + timedelta(seconds=70)}
    first = kit.play(plan, world, kit.Journal(kill_after=4), **late)
    assert events(first) == [("app", 0.5, 70.0), ("app", 0.8, 80.0)][: len(events(first))]
    world.script["observe a"] = ["slow:100"]
    again = kit.play(plan, world, kit.Journal(first.records), **late)
    assert [f for _, f, _ in events(again)] == [0.5, 0.8, 1.0]
