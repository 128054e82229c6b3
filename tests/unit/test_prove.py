"""``relight prove`` finds known bugs, and nothing in what is shipped. Every mutant here is a plausible mistake."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
from stories import broken_by, case

from flows.engine import lease, simulate, state
from flows.engine.attempt import Attempt
from flows.engine.journal import FileJournal
from flows.engine.lease import FileLease
from flows.engine.prove import Question, Tally, case_of, chosen_singles, draw, prove, spread
from flows.engine.runner import Runner
from flows.engine.scenario import SCENARIOS, Scenario
from flows.engine.schedule import Deviation, parse, show
from flows.engine.simulate import play
from flows.engine.stepping import StepRun
from tasks.contract import Observation
from tasks.database import _loss, _proof
from tasks.errors import BadInput
from tasks.simulation import CRASHES, Event
from tasks.world import World

# ---- what is shipped ----


@pytest.mark.parametrize(
    ("scenario", "mode", "book"),
    [
        ("kill-primary", "forced", "failover"),
        ("hang-primary", "forced", "failover"),
        ("site-gone", "forced", "failover"),
        ("healthy", "graceful", "failover"),
        ("failed-over", "forced", "rejoin"),
        ("healthy", "graceful", "scaling"),
    ],
)
def test_the_shipped_runbooks_survive_a_crash_at_every_record(scenario, mode, book):
    what = case(scenario, mode, book)
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    for event in calm.trace:
        if event.kind == "record":
            story = play(what, (Deviation(event.at, "kill-torn"),), calm.end)
            assert (story.verdict, story.violations) == ("succeeded", []), event
            assert story.verdicts == ["killed", "succeeded"]


@pytest.mark.parametrize("system", ["event-venue", "event-venue-aurora"])
def test_in_the_cloud_a_dead_primary_that_comes_back_is_fenced_and_a_planned_move_goes_on(system):
    forced, planned = case("kill-primary", system=system), case("healthy", "graceful", system=system)
    calm = play(forced, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    back = next(e.at for e in calm.trace if e.what.startswith("dns.swap"))
    assert play(forced, (Deviation(back, "return"),), calm.end).violations == []
    calm = play(planned, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    fence = next(e.at for e in calm.trace if e.what == "database.fence west")
    story = play(planned, (Deviation(fence, "kill"),), calm.end)
    assert (story.verdicts, story.violations) == (["killed", "succeeded"], [])


@pytest.mark.parametrize("system", ["event-venue", "event-venue-aurora"])
def test_a_region_that_is_gone_needs_a_waiver_and_what_that_accepts_is_told_apart(system):
    asked = Question(system, "failover", ("forced",))
    assert play(case_of(asked, "forced", "site-gone"), (), None).verdict == "refused"
    what = case_of(replace(asked, waivers=(("fence", "J. Doe: it is dark"),)), "forced", "site-gone")
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations, calm.accepted) == ("succeeded", [], [])
    promoted = next(e.at for e in calm.trace if e.what.startswith("dns.swap"))
    story = play(what, (Deviation(promoted, "return"),), calm.end)
    assert story.violations == []
    assert story.accepted[0] == "west and east take writes after the dead site came back"


@pytest.mark.parametrize("scenario", ["healthy", "kill-primary"])
def test_a_restore_that_is_done_is_known_whenever_the_engine_died(scenario):
    what = case_of(Question("event-venue-supabase", "restore", waivers=(("fence", "J. Doe"),)), "forced", scenario)
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    for event in calm.trace:
        story = play(what, (Deviation(event.at, "kill"),), calm.end)
        assert (story.verdict, story.violations) == ("succeeded", []), event


def test_a_canary_in_the_cloud_that_is_no_worse_is_over_whenever_the_engine_died():
    shorter = {"watch": "20s", "glance": "5s", "patience": "60s"}
    what = case("healthy", "graceful", "canary", system="event-venue", given=shorter)
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    changed = [e.what for e in calm.trace if "set_weights" in e.what]
    assert len(changed) >= 2, "the share, and back"
    every = [(Deviation(e.at, "kill-torn"),) for e in calm.trace if e.kind == "record"]
    for schedule in spread(every, 3):
        story = play(what, schedule, calm.end)
        assert (story.verdict, story.violations) == ("succeeded", []), schedule


def test_a_bound_spreads_evenly():
    many = [(Deviation(n, "kill"),) for n in range(1, 101)]
    assert [s[0].at for s in spread(many, 4)] == [1, 26, 51, 76]
    assert spread(many, 0) == spread(many, 100) == many


def test_the_same_schedule_and_seed_give_the_same_story():
    what = case("kill-primary")
    calm = play(what, (), None)
    schedule = parse("lost@60,kill-mid@120")
    one, two = play(what, schedule, calm.end), play(what, schedule, calm.end)
    assert one.happened
    assert one.trace == two.trace
    assert (one.end, one.verdicts) == (two.end, two.verdicts)


def test_a_runbook_that_has_nothing_to_do_proves_nothing():
    with pytest.raises(BadInput, match=r"succeeds in no scenario.*nothing to fail over"):
        prove(Question("lab", "failover", ("forced",), ("healthy",)), 1)


def test_a_small_proof_counts_what_it_did():
    found = prove(Question("lab", "rejoin", ("forced",), every=60, depth=3), 1)
    assert found.holds
    assert list(found.cases) == ["forced healthy", "forced failed-over"]
    assert found.tally.explored > found.tally.crashes > 60
    assert set(found.passed_over) == {f"forced {n}" for n in SCENARIOS if n not in ("healthy", "failed-over")}


def test_crashes_are_never_left_out():
    trace = [Event(1, "read", "a"), Event(2, "change", "b"), Event(3, "record", "c")]
    crashes = {k for kinds in CRASHES.values() for k in kinds}
    found = chosen_singles(trace, 1000)
    assert sum(s[0].kind in crashes for s in found) == 1 + 3 + 3
    assert len(found) >= 7 + 1  # the kinds that begin at the first event


@pytest.mark.parametrize("text", ["kill", "kill@0", "kill@x", "melt@3", "kill@3,lost@3"])
def test_what_is_no_schedule(text):
    with pytest.raises(BadInput):
        parse(text)


def test_a_schedule_reads_as_it_was_shown():
    assert parse(show(parse("stale@41, kill@37"))) == (Deviation(37, "kill"), Deviation(41, "stale"))


# ---- mutants: each must be found ----


def test_found_nothing_is_fenced(monkeypatch):
    """Silence is taken for a fence, by the fence and by the promotion."""
    monkeypatch.setattr(_proof, "judge", lambda _probes: (True, "mutant"))
    assert "one writer" in broken_by(case("hang-primary"))


def test_not_needed_the_promotion_trusts_no_fence(monkeypatch):
    """A fence that does nothing is caught by the promotion itself: refused, and nothing is broken."""
    from tasks.database.actions import Fence  # noqa: PLC0415

    async def nothing(_self, _ctx):
        return Observation(holds=True, summary="mutant")

    monkeypatch.setattr(Fence, "observe", nothing)
    story = play(case("hang-primary"), (), None)
    assert story.verdict == "refused"
    assert "one writer" not in {v.partition(":")[0] for v in story.violations}


async def _late(self):
    action, ctx = self.step.action, self.context
    seen = await action.observe(ctx)
    if not seen.holds:
        self.stage = "apply"
        await action.apply(ctx, seen)
        if not action.read_only:
            self.intend(seen)
    self.stage = "confirm"
    return "done", await action.confirm(ctx)


def test_found_the_intent_is_journaled_after_the_effect(monkeypatch):
    monkeypatch.setattr(Attempt, "_run", _late)
    assert "intent before effect" in broken_by(case("kill-primary"))


def test_found_a_lagging_replica_is_promoted(monkeypatch):
    real_judge = _loss.judge

    def worst(candidates, system_identifier=None):
        fit = [v for v in candidates if v.reach == "answers" and v.in_recovery]
        return _loss.Choice(min(fit, key=lambda v: v.lsn)) if fit else _loss.Choice(None)

    monkeypatch.setattr(_loss, "choose", worst)
    assert play(case("kill-primary"), (), None).verdict == "refused"  # the measured loss stops it
    monkeypatch.setattr(_loss, "judge", lambda loss, _rpo_s: replace(real_judge(loss, None), met=True))
    assert "loss budget" in broken_by(case("kill-primary"))


def test_found_no_epoch_is_checked(monkeypatch):
    """An engine that stood still past its lease goes on where it was, beside the one that took over."""

    def at_an_effect(event: Event, kind: str) -> bool:
        return kind == "pause" and event.kind == "change" and "traffic.set_admin" in event.what

    assert broken_by(case("kill-primary"), at_an_effect) == set()
    monkeypatch.setattr(FileLease, "check", lambda _self: None)
    assert broken_by(case("kill-primary"), at_an_effect) == set()  # the journal is the second guard
    monkeypatch.setattr(FileJournal, "_untouched", lambda _self: True)
    assert "one run per system" in broken_by(case("kill-primary"), at_an_effect)


def test_found_the_lease_refuses_nobody(monkeypatch):
    monkeypatch.setattr(lease, "_locked", lambda folder: os.open(folder / "lease.lock", os.O_RDWR | os.O_CREAT))
    assert broken_by(case("kill-primary"), lambda _event, kind: kind == "second")


def _lags(world: World) -> None:
    """The standby to switch to never catches up, and that shows only after the old primary was stopped."""
    world.nodes["east-pg1"].behind = 1
    world.declared = replace(world.declared, method="async", needed=0, standbys=())
    for node in world.nodes.values():
        node.live, node.note = world.declared, None
    world.nodes["east-pg2"].behind = 1


LAGS = Scenario("lags", "the standby lags for ever", _lags, lambda _world: None)


def test_found_undo_stops_at_its_first_failure(monkeypatch):
    what = case(LAGS, "graceful")
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations) == ("undone", [])

    real = state.undoable

    def impatient(plan, now):
        failed = any(now.of(s.id).outcome == "undo_failed" for s in plan.steps)
        return ((), ()) if failed else real(plan, now)

    async def one_by_one(self, decision):
        if not self.state.undoing:
            self.record("undo_started", steps=[s.id for s in decision.undo])
        await StepRun(self, decision.undo[0]).undo()

    def at_undo(event: Event, kind: str) -> bool:
        return event.kind == "change" and "unfence" in event.what and kind == "error"

    assert broken_by(what, at_undo) == set()
    monkeypatch.setattr(state, "undoable", impatient)
    monkeypatch.setattr(Runner, "_back", one_by_one)
    monkeypatch.setattr(simulate, "PEOPLE", 0)
    assert "undo goes on after a failure" in broken_by(what, at_undo)


def _never_ready(world: World) -> None:
    SCENARIOS["site-gone"].breaks(world)
    world.ready_since["east"] = math.inf


NEVER_READY = Scenario("never-ready", "the target's servers never get ready", _never_ready, lambda _world: None)


def test_found_failures_are_logged_and_the_run_continues(monkeypatch):
    assert play(case(NEVER_READY), (), None).verdict == "failed"

    async def shrug(self, error):
        self._end("done", Observation(holds=True, summary=f"ignored: {error}"))

    monkeypatch.setattr(StepRun, "settle", shrug)
    assert "postconditions" in broken_by(case(NEVER_READY))


def test_hypothesis_finds_and_shortens(monkeypatch):
    """Drawn schedules of several deviations come down to the least that is drawn."""
    monkeypatch.setattr(Attempt, "_run", _late)
    what = case("kill-primary")
    calm = play(what, (), None)
    tally = Tally()
    draw(what, calm.trace, calm.end, 5, tally)
    assert min(v.schedule.count("@") for v in tally.violations.values()) == 2
