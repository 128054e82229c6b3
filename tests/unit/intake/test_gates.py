"""Every gate by itself: what it lets pass, and what it does not; and the chain says everything, not the first only."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.engine import killswitch, launch
from flows.intake import gates
from flows.intake.event import Alert, Auth, Delivery, normalise
from flows.intake.facts import Evidence, Facts, Readiness, Sample
from flows.intake.gates import judge
from flows.intake.rules import Loaded, Rule, Triggers
from tasks.leases.protocol import Engine, Held, LastRun

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
PLAN = launch.prepare("lab", "failover", "forced").plan
RULE = Rule.model_validate({"id": "down", "from": ["am"], "match": {"alertname": "Down"}, "stage": "auto"})
LOADED = Loaded("lab", Path("lab"), Triggers.model_validate({"gates": {"confirm": {"for": "10s"}}}), {})
SEEN = Sample(
    NOW, failing=True, kinds=frozenset({"probe", "replicas"}), summary="west-pg1 is dead", failed="west", target="east"
)
GOOD = Facts(
    now=NOW,
    plan=PLAN,
    evidence=Evidence(SEEN, failing=3, looks=3),
    readiness=Readiness(NOW - timedelta(hours=1), ready=True),
    regions={"west": "", "east": ""},
    fleet=10,
    references={"a": True, "b": True, "c": False},
    drilled_at=NOW - timedelta(days=3),
)


def event(**more):
    alert = {"kind": "firing", "fingerprint": "f", "started_at": NOW - timedelta(seconds=20), "observed_at": NOW}
    auth = more.pop("auth", Auth(method="token", verified=True))
    return normalise(Alert(**{**alert, **more}), Delivery("am", b"{}", NOW), auth, "alertmanager")


def seen(failing=3, **more):
    return Evidence(replace(SEEN, **more), failing=failing, looks=9)


def later(seconds, **more):
    """Facts of a moment after patience has run out, say."""
    return {"now": NOW + timedelta(seconds=seconds), **more}


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


@pytest.mark.parametrize(("most", "outcome"), [("off", "shadow"), ("observe", "shadow"), ("approve", "ask")])
def test_a_system_allows_no_rule_to_go_further(most, outcome):
    decision, found = answers(loaded=loaded(stage=most))
    assert (decision.stage, decision.outcome) == (most, outcome)
    assert (found["enabled"].answer == "refuse") == (most == "off")


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


def test_the_kill_switch_of_one_system():
    file = killswitch.pause_file("lab")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("disks, J. Doe")
    assert answers()[1]["kill-switch"].answer == "refuse"
    assert "relight unpause --system lab" in answers()[1]["kill-switch"].why
    file.rename(file.with_name("not-paused"))
    assert answers()[1]["kill-switch"].answer == "pass"


def test_the_kill_switch_in_the_leases_record():
    found = answers(held=Held(3, "run-1", paused="network work, A. Roe"))[1]["kill-switch"]
    assert (found.answer, "A. Roe" in found.why) == ("refuse", True)


def test_what_is_stale_pages_a_person():
    decision, _ = answers(event(observed_at=NOW - timedelta(minutes=16)))
    assert decision.pages
    assert "16m old" in decision.pages[0]


def test_planned_work_blocks_until_its_end():
    window = {"from": "2026-11-24T11:00:00Z", "to": "2026-11-24T12:00:01Z", "why": "disks"}
    decision, found = answers(loaded=loaded(windows=[window]))
    assert found["window"].answer == "needs-approval", "never what a person asks for"
    assert decision.outcome == "ask"
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


@pytest.mark.parametrize(
    ("kinds", "quorum", "answer"),
    [
        ((), 2, "needs-approval"),
        (("probe",), 2, "pass"),
        (("replicas",), 2, "pass"),
        (("probe",), 3, "needs-approval"),
        (("probe", "replicas"), 3, "pass"),
    ],
)
def test_kinds_of_evidence_are_counted(kinds, quorum, answer):
    numbers = loaded(gates={"quorum": quorum, "confirm": {"for": "0s"}})
    decision, found = answers(loaded=numbers, **later(11, evidence=seen(kinds=frozenset(kinds))))
    assert found["quorum"].answer == answer
    assert bool(decision.pages) == (answer != "pass")
    assert f"{len(kinds) + 1} of 3 kinds" in found["quorum"].why
    assert answers(loaded=numbers, evidence=seen(kinds=frozenset(kinds)))[1]["quorum"].answer == (
        "pass" if answer == "pass" else "hold"
    ), "replicas need a moment to notice"


def test_kinds_count_only_where_the_check_itself_says_that_it_failed():
    assert answers(**later(11, evidence=seen(failing=0, kinds=SEEN.kinds)))[1]["quorum"].answer == "pass"
    still = Evidence(replace(SEEN, failing=False), failing=0)
    assert answers(**later(11, evidence=still))[1]["quorum"].answer == "needs-approval"


def test_signals_that_disagree_are_for_people_and_page_one():
    disagree = seen(against=("east-pg1 still streams from it",))
    decision, found = answers(loaded=loaded(), **later(11, evidence=disagree))
    assert (found["quorum"].answer, found["approval"].answer) == ("needs-approval", "needs-approval")
    assert decision.outcome == "ask"
    assert "signals disagree: the alert fires, and east-pg1 still streams from it" in decision.pages


def test_a_look_that_does_not_end_is_waited_for_and_then_left_to_people():
    assert answers(evidence=None)[1]["quorum"].answer == "hold"
    decision, found = answers(**later(11, evidence=None))
    assert found["quorum"].answer == "needs-approval"
    assert decision.pages


def test_a_look_of_long_ago_is_none():
    old = seen(at=NOW - timedelta(seconds=31))
    assert answers(evidence=old)[1]["quorum"].answer == "hold"
    assert answers(evidence=seen(at=NOW - timedelta(seconds=29)))[1]["quorum"].answer == "pass"


def test_an_alert_is_enough_only_where_somebody_said_so():
    enough = loaded(gates={"quorum": 1, "confirm": {"for": "0s", "probes": 0}})
    assert answers(loaded=enough, evidence=None)[0].outcome == "start"


def test_it_holds_until_it_was_firing_for_long_enough():
    decision, found = answers(event(started_at=NOW - timedelta(seconds=4)))
    assert (found["confirm"].answer, decision.outcome) == ("hold", "hold")
    assert decision.again_s == pytest.approx(6)


@pytest.mark.parametrize(("failing", "answer"), [(0, "hold"), (2, "hold"), (3, "pass")])
def test_it_holds_until_so_many_looks_in_a_row_failed(failing, answer):
    assert answers(evidence=seen(failing=failing))[1]["confirm"].answer == answer
    late = answers(**later(120, evidence=seen(failing=failing)))[1]["confirm"].answer
    assert late == ("pass" if failing == 3 else "needs-approval")


def test_the_defaults_are_those_of_the_page():
    gates_ = Triggers().gates
    assert (gates_.confirm.span, gates_.confirm.probes, gates_.quorum, gates_.cool_down) == (30, 3, 2, 3600)
    assert (gates_.flap.episodes, gates_.flap.within, gates_.drill_within) == (2, 1800, 90 * 86400)
    assert (gates_.fleet.systems, gates_.fleet.share, gates_.fleet.within, gates_.fleet.runs) == (3, 0.3, 300, 2)
    assert (gates_.ready_within, gates_.cross_region, gates_.least_on) == (86400, "ask", 1)


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
    assert answers(begun=begun(9, 5, 0))[1]["flap"].answer == "needs-approval"
    assert answers(begun=begun(5, 0))[1]["flap"].answer == "pass"


def test_what_flapped_must_be_quiet_for_as_long_before_it_counts_again():
    assert answers(begun=begun(62, 60, 58, 40, 0))[1]["flap"].answer == "pass", "forty minutes of quiet"
    found = answers(begun=begun(62, 60, 58, 29, 0))[1]["flap"]
    assert found.answer == "needs-approval", "two in the window only, but never quiet for 30 min since it flapped"
    assert "flaps since" in found.why


def begun(*minutes_ago):
    """Episodes, oldest first."""
    return tuple(NOW - timedelta(minutes=m) for m in minutes_ago)


def test_the_cool_down_and_its_acknowledgement():
    assert answers(held=last())[1]["cool-down"].answer == "needs-approval"
    assert answers(held=last(verdict="failed", ago_s=3599))[1]["cool-down"].answer == "needs-approval"
    assert answers(held=last(ago_s=3601))[1]["cool-down"].answer == "pass"
    assert answers(held=last(ago_s=3601), cool_down_s=7200)[1]["cool-down"].answer == "needs-approval"
    assert answers(held=last(acknowledged_by="J. Doe"))[1]["cool-down"].answer == "pass"


def test_one_run_a_system():
    held = Held(3, "run-2", holder=Engine("host", 7), since="x", released=False)
    assert answers(held=held, alive=True)[1]["concurrency"].answer == "refuse"
    assert answers(held=held, alive=False)[1]["concurrency"].answer == "pass"


@pytest.mark.parametrize(
    ("firing", "fleet", "answer"),
    [
        ("a", 1, "pass"),  # one system is no fleet
        ("ab", 10, "pass"),
        ("abc", 10, "pass"),
        ("abcd", 100, "needs-approval"),  # more than three
        ("ab", 6, "needs-approval"),  # more than 30 %
    ],
)
def test_when_everything_fires_it_is_the_monitor(firing, fleet, answer):
    assert answers(firing_systems=frozenset(firing), fleet=fleet)[1]["blast-radius"].answer == answer


@pytest.mark.parametrize(
    ("started", "cap", "answer"), [(1, 2, "pass"), (2, 2, "needs-approval"), (2, 9, "needs-approval")]
)
def test_automatic_runs_are_capped_over_the_fleet(started, cap, answer):
    assert answers(automatic=started, automatic_cap=cap)[1]["blast-radius"].answer == answer


@pytest.mark.parametrize(
    ("readiness", "within", "answer"),
    [
        (Readiness(), "24h", "needs-approval"),
        (Readiness(), "0s", "pass"),
        (Readiness(NOW - timedelta(hours=23), ready=True), "24h", "pass"),
        (Readiness(NOW - timedelta(hours=25), ready=True), "24h", "needs-approval"),
        (Readiness(NOW, ready=False, reasons=("lag",)), "24h", "needs-approval"),
    ],
)
def test_a_target_was_found_ready_lately(readiness, within, answer):
    numbers = loaded(gates={"confirm": {"for": "0s"}, "ready_within": within})
    assert answers(loaded=numbers, readiness=readiness)[1]["target"].answer == answer


def test_a_target_whose_databases_are_silent_needs_a_person():
    assert answers(evidence=seen(target_answers=False))[1]["target"].answer == "needs-approval"


def test_a_loss_above_the_objective_another_region_and_no_fence_need_a_person():
    assert "lose" in answers(evidence=seen(loss="promote would lose 3 transactions"))[1]["approval"].why
    far = {"west": "eu-west-1", "east": "us-east-1"}
    assert answers(regions=far)[1]["approval"].answer == "needs-approval"
    allowed = loaded(gates={"confirm": {"for": "0s"}, "cross_region": "allow"})
    assert answers(regions=far, loaded=allowed)[1]["approval"].answer == "pass"
    assert answers(regions={"west": "eu-west-1", "east": "eu-west-1"})[1]["approval"].answer == "pass"
    steps = tuple(s for s in PLAN.steps if s.id != "fence")
    bare = replace(PLAN, steps=tuple(replace(s, needs=tuple(n for n in s.needs if n != "fence")) for s in steps))
    assert "nothing fences" in answers(plan=bare)[1]["approval"].why


def test_at_least_one_site_is_on_afterwards():
    decision, found = answers(sites_firing=frozenset({"west", "east"}))
    assert (found["safety"].answer, decision.outcome) == ("refuse", "refused")
    assert decision.pages
    assert answers(sites_firing=frozenset({"west"}))[1]["safety"].answer == "pass"


@pytest.mark.parametrize(("said", "answer"), [("on", "pass"), ("off", "refuse"), ("", "refuse")])
def test_a_switch_must_be_on_where_there_is_one(said, answer):
    numbers = loaded(gates={"confirm": {"for": "0s"}, "switch": "/etc/switch"})
    assert answers(loaded=numbers, switch=said)[1]["safety"].answer == answer


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
