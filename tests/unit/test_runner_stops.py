"""How a run goes back, asks, halts and is refused. Virtual time: the numbers of seconds are exact."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tasks.errors import LeaseHeld, SafetyRefusal

# ---- undo ----


def test_undo_goes_back_newest_first_each_in_its_own_guard(kit):
    world = kit.World(script={"apply d": ["refuse"], "undo b": ["bug"]})
    steps = [kit.step(k) for k in "abc"]
    played = kit.play(kit.chain(*steps, kit.step("d", on_failure="undo"), kit.step("e")), world)
    assert world.told("undo") == ["d", "c", "b", "a"]
    assert [played.outcome(s) for s in "abcde"] == ["undone", "undo_failed", "undone", "undone", "skipped"]
    assert world.true == {"b"}
    assert played.verdict == "failed"
    assert played.records[-1]["reason"].startswith("d: apply d")  # the first error, not the undo's
    assert "KeyError" in played.state.of("b").undo_error["message"]


def test_undone_run_says_so_with_steps_that_never_ran(kit):
    world = kit.World(script={"apply b": ["refuse"]})
    played = kit.play(kit.chain(kit.step("a"), kit.step("b", on_failure="undo"), kit.step("c")), world)
    assert played.verdict == "undone"
    assert played.outcome("c") == "skipped"
    assert played.records[-1]["reason"] == "b: apply b: refuse"


def test_undo_touches_nothing_that_was_already_so(kit):
    world = kit.World(true={"a"}, script={"apply b": ["refuse"]})
    kit.play(kit.chain(kit.step("a"), kit.step("b", on_failure="undo")), world)
    assert world.true == {"a"}
    assert world.told("undo") == ["b"]


@pytest.mark.parametrize("promoted_before", [False, True])
def test_undo_never_goes_past_the_point_of_no_return(kit, promoted_before):
    """Also when an earlier run promoted and this one found it already so: unfencing would make a second writer."""
    world = kit.World(true={"p"} if promoted_before else set(), script={"apply z": ["refuse"]})
    steps = (kit.step("fence", kit.Fence), kit.step("p", kit.Promote), kit.step("after"))
    played = kit.play(kit.chain(*steps, kit.step("z", on_failure="undo")), world)
    assert world.told("undo") == ["z", "after"]
    assert world.true == {"fence", "p"}
    assert played.outcome("fence") == "done"


def test_undo_waits_for_the_other_branch(kit):
    world = kit.World(script={"apply a": ["refuse"], "apply b": ["slow:5"]})
    played = kit.play(kit.plan(kit.step("a", on_failure="undo"), kit.step("b")), world)
    assert [played.outcome(s) for s in "ab"] == ["undone", "undone"]
    assert world.true == set()


def test_a_step_that_is_unknown_is_not_hidden_by_an_undo(kit):
    world = kit.World(script={"apply a": ["lost"], "observe a": ["ok", "refuse"], "apply b": ["refuse"]})
    played = kit.play(kit.plan(kit.step("a", kit.Once), kit.step("b", on_failure="undo")), world)
    assert played.outcome("a") == "unknown"
    assert played.verdict == "unknown"


# ---- ask ----


@pytest.mark.parametrize("again", [True, False])
def test_ask_tries_again_only_when_told_to(kit, again):
    asked = []

    def ask(step, error):
        asked.append((step.id, str(error)))
        return again

    world = kit.World(script={"apply a": ["refuse"]})
    played = kit.play(kit.plan(kit.step("a", on_failure="ask")), world, ask=ask)
    assert asked == [("a", "apply a: refuse")]
    assert played.outcome("a") == ("done" if again else "failed")


def test_nobody_to_ask_stops(kit):
    world = kit.World(script={"apply a": ["refuse"]})
    played = kit.play(kit.chain(kit.step("a", on_failure="ask"), kit.step("b")), world)
    assert (played.outcome("a"), played.outcome("b")) == ("failed", "skipped")


def test_the_other_branch_goes_on_while_a_person_thinks(kit):
    """The answer comes only when b is done: an engine that waits for the person would never end."""
    b_done = threading.Event()

    def listen(record):
        if record["type"] == "outcome" and record["step"] == "b":
            b_done.set()

    world = kit.World(script={"apply a": ["refuse"], "apply b": ["slow:0"]})
    steps = (kit.step("a", on_failure="ask"), kit.step("b"), kit.step("c", needs=("b",)))
    played = kit.play(kit.plan(*steps), world, listen=listen, ask=lambda _step, _error: b_done.wait(20))
    assert [played.outcome(s) for s in "abc"] == ["done"] * 3


# ---- halt, lease, kill switch ----


def test_halt_lets_the_effect_end_and_resume_goes_on(kit):
    plan = kit.chain(*(kit.step(k) for k in "abc"))
    world = kit.World(script={"apply b": ["slow:5"]})

    async def halt_at_3(runner):
        await asyncio.sleep(3)
        runner.halt()

    first = kit.play(plan, world, after=halt_at_3)
    assert first.verdict == "interrupted"
    assert [first.outcome(s) for s in "abc"] == ["done", "done", None]
    assert "relight resume run-1" in first.records[-1]["reason"]
    second = kit.play(plan, world, first.journal)
    assert second.verdict == "succeeded"
    assert world.effects == {"apply a": 1, "apply b": 1, "apply c": 1}


@pytest.mark.parametrize("verb", ["observe", "confirm"])
def test_halt_drops_a_look_at_once_and_starts_no_effect(kit, verb):
    """Asked to stop in the very moment before the effect, the step begins none."""
    plan = kit.chain(kit.step("a"), kit.step("b"))
    world = kit.World(script={f"{verb} a": ["halt"]})
    played = kit.play(plan, world)
    assert played.verdict == "interrupted"
    assert world.effects == ({} if verb == "observe" else {"apply a": 1})
    assert played.types("a") == ([] if verb == "observe" else ["intent", "outcome"])
    assert kit.play(plan, world, played.journal).verdict == "succeeded"


def test_halt_while_waiting_for_the_next_attempt(kit):
    world = kit.World(script={"apply a": ["refuse"]})

    async def halt_at_1(runner):
        await asyncio.sleep(1)
        runner.halt()

    played = kit.play(kit.plan(kit.step("a", attempts=2, backoff_s=20)), world, after=halt_at_1)
    assert (played.verdict, played.outcome("a")) == ("interrupted", None)
    assert played.took_s == pytest.approx(1)


def test_halt_in_the_middle_of_an_undo_is_no_end(kit):
    """What is not put back yet is put back by resume, newest first."""
    plan = kit.chain(kit.step("a"), kit.step("b"), kit.step("c", on_failure="undo"))
    world = kit.World(script={"apply c": ["refuse"], "undo b": ["halt"]})
    first = kit.play(plan, world)
    assert world.true == {"a"}
    assert first.verdict == "interrupted"
    second = kit.play(plan, world, first.journal)
    assert (second.verdict, world.true) == ("undone", set())
    assert world.told("undo") == ["c", "b", "a"]


def test_resume_tries_failed_undos_again_newest_first(kit):
    plan = kit.chain(kit.step("a"), kit.step("b"), kit.step("c", on_failure="undo"))
    world = kit.World(script={"apply c": ["refuse"], "undo a": ["refuse"], "undo b": ["refuse"]})
    first = kit.play(plan, world)
    assert (first.verdict, world.true) == ("failed", {"a", "b"})
    second = kit.play(plan, world, first.journal)
    assert (second.verdict, world.true) == ("undone", set())
    assert world.told("undo") == ["c", "b", "a", "b", "a"]


@pytest.mark.parametrize("error", [LeaseHeld, SafetyRefusal])
def test_lost_lease_and_kill_switch_refuse_before_the_effect(kit, error):
    world = kit.World()

    def check():
        if "a" in world.true:
            raise error("no more")

    played = kit.play(kit.chain(kit.step("a"), kit.step("b")), world, check=check)
    assert played.verdict == "refused"
    assert world.effects == {"apply a": 1}
    assert "intent" not in played.types("b")


def test_lease_lost_between_intent_and_effect(kit):
    world = kit.World()
    calls = []

    def check():
        calls.append(1)
        if len(calls) > 1:
            raise LeaseHeld("a newer run")

    played = kit.play(kit.plan(kit.step("a")), world, check=check)
    assert played.types("a")[0] == "intent"
    assert world.effects == {}
    assert played.outcome("a") == "failed"


def test_an_undo_is_refused_without_the_lease(kit):
    world = kit.World(script={"apply b": ["refuse"]})

    def check():
        if world.told("apply") == ["a", "b"]:
            raise LeaseHeld("a newer run")

    played = kit.play(kit.chain(kit.step("a"), kit.step("b", on_failure="undo")), world, check=check)
    assert played.outcome("a") == "undo_failed"
    assert world.true == {"a"}


# ---- a point of no return that was not passed ----


def point(kit, script):
    steps = (kit.step("f", kit.Fence), kit.step("p", kit.Promote, attempts=2, on_failure="undo"))
    return kit.play(kit.chain(*steps), kit.World(script=script))


@pytest.mark.parametrize("how", [["unsafe"], ["refuse", "refuse"], ["refuse", "unsafe"]])
def test_what_certainly_did_not_happen_is_no_point_of_no_return(kit, how):
    """Seen on the lab: a planned switchover refused at the promotion left the writes held."""
    played = point(kit, {"apply p": how})
    assert (played.verdict, played.outcome("f")) == ("undone", "undone")
    assert played.world.true == set()


@pytest.mark.parametrize("how", [["vanish", "refuse"], ["vanish", "unsafe"], ["refuse", "vanish"], ["bug", "refuse"]])
def test_what_may_have_happened_is_one(kit, how):
    """No reply once, and a clear refusal later: the effect may still be on its way."""
    played = point(kit, {"apply p": how})
    assert played.outcome("f") == "done"
    assert played.world.true == {"f"}


def test_what_a_dead_engine_began_may_have_happened(kit):
    steps = (kit.step("f", kit.Fence), kit.step("p", kit.Promote, on_failure="undo"))
    plan, world = kit.chain(*steps), kit.World(script={"apply p": ["vanish"]})
    first = kit.play(plan, world, kit.Journal(kill_after=4))
    assert first.records[-1]["type"] == "intent"
    world.script["apply p"] = ["unsafe"]
    again = kit.play(plan, world, kit.Journal(first.records))
    assert again.outcome("p") == "failed"
    assert again.outcome("f") == "done"
