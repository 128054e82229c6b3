"""What the runner does with each way a step can go. Virtual time: the numbers of seconds are exact."""

from __future__ import annotations

import pytest

from flows.engine.attempt import GRACE_S
from flows.engine.journal import JournalUnwritable
from flows.engine.plan import pause_s


def test_done_already_and_check(kit):
    world = kit.World(true={"b", "c"})
    played = kit.play(kit.chain(kit.step("a"), kit.step("b"), kit.step("c", kit.Check)), world)
    assert played.verdict == "succeeded"
    assert [played.outcome(s) for s in "abc"] == ["done", "already", "done"]
    assert world.effects == {"apply a": 1}
    assert played.types("a") == ["intent", "outcome"]
    assert played.types("b") == ["outcome"]
    assert played.state.of("a").facts == {"was": True, "made": "a", "from": False}
    assert played.records[-1]["type"] == "run_ended"


def test_intent_is_journaled_before_the_effect_begins(kit):
    world = kit.World()
    seen = []

    def listen(record):
        if record["type"] in ("intent", "outcome"):
            seen.append((record["type"], world.told("apply")))

    kit.play(kit.plan(kit.step("a")), world, listen=listen)
    assert seen == [("intent", []), ("outcome", ["a"])]


@pytest.mark.parametrize("nth", [2, 3])
def test_nothing_is_changed_once_the_journal_cannot_be_written(kit, nth):
    """The second record would be the first intent, the third the outcome of a; b must never begin."""
    world = kit.World()
    played = kit.play(kit.chain(kit.step("a"), kit.step("b")), world, kit.Journal(fail_at=nth))
    assert isinstance(played.error, JournalUnwritable)
    assert world.effects == ({} if nth == 2 else {"apply a": 1})
    assert len(played.records) == nth - 1


def test_a_broken_journal_stops_the_other_branch_before_its_effect(kit):
    """b is between observe and its effect when a's outcome cannot be written."""
    world = kit.World(script={"observe b": ["slow:5"], "apply a": ["slow:1"]})
    played = kit.play(kit.plan(kit.step("a"), kit.step("b")), world, kit.Journal(fail_at=3))
    assert isinstance(played.error, JournalUnwritable)
    assert world.effects == {"apply a": 1}


def test_nothing_is_written_after_a_gap(kit):
    """The disk hiccups once, for b's intent; a's outcome, a moment later, would fit again, and must not follow."""

    class Hiccup(kit.Journal):
        def append(self, at, kind, **body):
            if body.get("step") == "b" and kind == "intent":
                raise JournalUnwritable("a hiccup")
            return super().append(at, kind, **body)

    world = kit.World(script={"apply a": ["slow:1"], "observe b": ["slow:1"]})
    played = kit.play(kit.plan(kit.step("a"), kit.step("b")), world, Hiccup())
    assert isinstance(played.error, JournalUnwritable)
    assert [r["type"] for r in played.records] == ["run_started", "intent"]


def test_attempts_and_backoff(kit):
    world = kit.World(script={"apply a": ["refuse"] * 2})
    played = kit.play(kit.plan(kit.step("a", attempts=3, backoff_s=4.0)), world)
    assert played.outcome("a") == "done"
    assert played.state.of("a").attempts == 3
    waits = [r["retry_in_s"] for r in played.records if r["type"] == "attempt_failed"]
    assert 2.0 <= waits[0] <= 4.0
    assert 4.0 <= waits[1] <= 8.0
    assert played.took_s == pytest.approx(sum(waits))


def test_backoff_doubles_up_to_its_limit_and_jitter_takes_at_most_half():
    assert [pause_s(1.0, n, 1.0) for n in (1, 2, 3, 9)] == [1.0, 2.0, 4.0, 30.0]
    assert pause_s(1.0, 1, 0.0) == 0.5


def test_a_failed_step_stops_what_is_left(kit):
    world = kit.World(script={"apply a": ["refuse"] * 2})
    played = kit.play(kit.chain(kit.step("a", attempts=2), kit.step("b"), kit.step("c")), world)
    assert played.verdict == "failed"
    assert [played.outcome(s) for s in "abc"] == ["failed", "skipped", "skipped"]
    assert played.records[-1]["reason"] == "a: apply a: refuse"
    assert played.state.of("c").summary == "needs b, which was skipped"


def test_not_retryable_is_not_retried_and_a_refusal_is_a_verdict(kit):
    world = kit.World(script={"apply a": ["unsafe"]})
    played = kit.play(kit.plan(kit.step("a", attempts=5)), world)
    assert (played.verdict, played.state.of("a").attempts) == ("refused", 1)


def test_what_the_run_went_on_without_does_not_refuse_it(kit):
    world = kit.World(script={"apply a": ["unsafe"]})
    played = kit.play(kit.plan(kit.step("a", on_failure="continue"), kit.step("b", needs=())), world)
    assert (played.verdict, played.outcome("b")) == ("failed", "done")


def test_continue_goes_on_with_what_does_not_need_it(kit):
    world = kit.World(script={"apply a": ["refuse"]})
    steps = (kit.step("a", on_failure="continue"), kit.step("b", needs=("a",)), kit.step("c"))
    played = kit.play(kit.plan(*steps), world)
    assert [played.outcome(s) for s in "abc"] == ["failed", "skipped", "done"]


def test_stop_lets_the_other_branch_end_its_effect(kit):
    world = kit.World(script={"apply a": ["refuse"], "apply b": ["slow:3"]})
    steps = (kit.step("a"), kit.step("b"), kit.step("c", needs=("b",)))
    played = kit.play(kit.plan(*steps), world)
    assert [played.outcome(s) for s in "abc"] == ["failed", "done", "skipped"]
    assert played.state.of("c").summary == "the run stopped at a"


def test_parallel_branches_overlap(kit):
    world = kit.World(script={f"apply {k}": ["slow:5"] for k in "abc"})
    played = kit.play(kit.plan(*(kit.step(k) for k in "abc")), world)
    assert played.took_s == pytest.approx(5)
    applies = [at for at, what in world.events if what.startswith("apply")]
    assert len(set(applies)) == 1


# ---- time-outs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["observe", "apply", "confirm"])
def test_a_hung_call_that_ignores_cancellation_is_bounded_and_changes_nothing_later(kit, verb):
    """When it comes back long after, its guard is closed: no effect, no record."""
    world = kit.World(script={f"{verb} a": ["hang"]})
    played = kit.play(kit.plan(kit.step("a", timeout_s=7.0)), world)
    assert played.took_s == pytest.approx(7.0 + GRACE_S)
    assert world.told("swallowed")
    assert world.refused_late == ["AttemptOver"]
    assert world.effects == ({"apply a": 1} if verb == "confirm" else {})
    assert played.records[-1]["type"] == "run_ended"


def test_a_call_that_hangs_while_it_changes_is_unknown_until_looked_at(kit):
    world = kit.World(script={"apply a": ["hang"]})
    played = kit.play(kit.plan(kit.step("a", timeout_s=7.0)), world)
    error = next(r for r in played.records if r["type"] == "attempt_failed")["error"]
    assert (error["type"], error["state_known"]) == ("EffectUnknown", False)
    assert played.outcome("a") == "failed"  # the look afterwards says that it does not hold


def test_an_undo_that_hangs_is_bounded_and_changes_nothing_later(kit):
    world = kit.World(script={"undo a": ["hang"], "apply b": ["unsafe"]})
    played = kit.play(kit.chain(kit.step("a"), kit.step("b", on_failure="undo")), world)
    assert played.outcome("a") == "undo_failed"
    assert world.refused_late == ["AttemptOver"]
    assert world.true == {"a"}
    assert played.verdict == "failed"


def test_slow_within_the_timeout_is_done(kit):
    world = kit.World(script={"observe a": ["slow:3"], "apply a": ["slow:3"], "confirm a": ["slow:3"]})
    assert kit.play(kit.plan(kit.step("a", timeout_s=10.0)), world).outcome("a") == "done"


def test_timeout_covers_observe_apply_and_confirm_together(kit):
    world = kit.World(script={"observe a": ["slow:4"], "apply a": ["slow:4"], "confirm a": ["slow:4"]})
    played = kit.play(kit.plan(kit.step("a", timeout_s=10.0)), world)
    assert [r["stage"] for r in played.records if r["type"] == "attempt_failed"] == ["confirm"]
    assert played.outcome("a") == "done"  # it was looked at once more: the effect had happened


def test_an_actions_own_timeout_error_is_not_called_the_steps_timeout(kit):
    world = kit.World(script={"observe a": ["timeout-error"]})
    played = kit.play(kit.plan(kit.step("a")), world)
    assert played.state.of("a").error["type"] == "ActionBug"


# ---- unknown ----


def test_lost_reply_is_looked_at_again_and_is_done(kit):
    world = kit.World(script={"apply a": ["lost"]})
    played = kit.play(kit.plan(kit.step("a")), world)
    assert (played.outcome("a"), played.verdict) == ("done", "succeeded")
    assert world.effects == {"apply a": 1}
    assert played.state.of("a").facts["was"] is True


def test_lost_reply_is_retried_without_doubling_the_effect(kit):
    world = kit.World(script={"apply a": ["lost"]})
    played = kit.play(kit.plan(kit.step("a", attempts=3)), world)
    assert played.outcome("a") == "done"
    assert world.effects == {"apply a": 1}


def test_no_reply_and_no_effect_is_failed(kit):
    world = kit.World(script={"apply a": ["vanish"]})
    assert kit.play(kit.plan(kit.step("a")), world).outcome("a") == "failed"


def test_what_cannot_be_told_is_unknown_and_stops(kit):
    world = kit.World(script={"apply a": ["lost"], "observe a": ["ok", "refuse"]})
    played = kit.play(kit.chain(kit.step("a"), kit.step("b")), world)
    assert (played.outcome("a"), played.outcome("b"), played.verdict) == ("unknown", "skipped", "unknown")
    assert "b" not in world.true


def test_unknown_stays_unknown_when_the_next_attempt_cannot_even_look(kit):
    """The second attempt fails with an error that says nothing was sent: said of its look, not of the effect."""
    world = kit.World(script={"apply a": ["lost"], "observe a": ["ok", "refuse", "refuse"]})
    played = kit.play(kit.plan(kit.step("a", attempts=2)), world)
    assert played.outcome("a") == "unknown"


def test_unknown_is_not_undone(kit):
    world = kit.World(script={"apply b": ["lost"], "observe b": ["ok", "refuse"]})
    played = kit.play(kit.chain(kit.step("a"), kit.step("b", on_failure="undo")), world)
    assert (played.outcome("a"), played.outcome("b"), played.verdict) == ("done", "unknown", "unknown")


def test_a_bug_in_the_middle_of_an_effect_leaves_it_unknown(kit):
    world = kit.World(script={"apply a": ["bug-after"], "observe a": ["ok", "refuse"]})
    played = kit.play(kit.plan(kit.step("a")), world)
    assert played.outcome("a") == "unknown"


def test_what_cannot_be_read_back_is_unknown_not_failed(kit):
    world = kit.World(script={"confirm a": ["refuse!"]})
    played = kit.play(kit.plan(kit.step("a", attempts=2)), world)
    assert (played.outcome("a"), played.verdict) == ("unknown", "unknown")
    assert world.effects == {"apply a": 1}


def test_unknown_stays_unknown_when_a_later_attempt_is_refused(kit):
    """What the second attempt knows of its own effect settles nothing about that of the first."""
    world = kit.World(script={"apply a": ["vanish", "unsafe"], "observe a": ["ok", "ok", "refuse"]})
    played = kit.play(kit.plan(kit.step("a", attempts=2)), world)
    assert (played.outcome("a"), played.verdict) == ("unknown", "unknown")


@pytest.mark.parametrize(("verb", "outcome"), [("observe", "failed"), ("apply", "failed"), ("confirm", "unknown")])
def test_a_bug_of_an_action_is_an_error_of_its_step(kit, verb, outcome):
    world = kit.World(script={f"{verb} a": ["bug!"]})
    played = kit.play(kit.plan(kit.step("a"), kit.step("b", on_failure="stop")), world)
    assert played.outcome("a") == outcome
    assert "KeyError" in played.state.of("a").error["message"]
    assert played.outcome("b") == "done"
