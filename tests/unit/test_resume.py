"""Killed after any record and started again, a run reaches the same end, with no effect doubled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.engine.state import GOOD, advance, decide, fold, reopened


def straight(kit):
    steps = (
        kit.step("a"),
        kit.step("b", kit.Once),
        kit.step("c", kit.Check),
        kit.step("d", kit.Promote),
        kit.step("e"),
    )
    return kit.chain(*steps), kit.World(true={"c"})


def diamond(kit):
    steps = (
        kit.step("a"),
        kit.step("b", needs=("a",)),
        kit.step("c", kit.Once, needs=("a",)),
        kit.step("d", kit.Once, needs=("b", "c")),
        kit.step("e", needs=("a",)),
    )
    return kit.plan(*steps), kit.World(script={"apply b": ["slow:3"], "apply c": ["slow:1"], "confirm e": ["slow:2"]})


def rough(kit):
    """Replies are lost, calls refused, looks fail: attempts are used up."""
    script = {"apply a": ["lost"], "apply b": ["refuse", "lost"], "observe c": ["refuse"], "apply c": ["vanish"]}
    steps = [kit.step(k, kit.Once, attempts=6) for k in "abc"]
    return kit.chain(*steps), kit.World(script=script)


def going_back(kit):
    steps = (kit.step("a"), kit.step("b"), kit.step("c", attempts=2, on_failure="undo"), kit.step("d"))
    return kit.chain(*steps), kit.World(script={"apply c": ["refuse!"]})


def going_back_to_the_point(kit):
    steps = (kit.step("f", kit.Fence), kit.step("p", kit.Promote), kit.step("c"), kit.step("d", on_failure="undo"))
    return kit.chain(*steps), kit.World(script={"apply d": ["refuse!"]})


def going_on(kit):
    steps = (kit.step("a", on_failure="continue"), kit.step("b", needs=("a",)), kit.step("c"), kit.step("d"))
    return kit.plan(*steps), kit.World(script={"apply a": ["refuse!"]})


PLANS = [straight, diamond, rough, going_back, going_back_to_the_point, going_on]


@pytest.mark.parametrize("make", PLANS)
def test_killed_after_every_record_it_reaches_the_same_end(kit, make):
    plan, world = make(kit)
    whole = kit.play(plan, world)
    expected = {s.id: whole.outcome(s.id) for s in plan.steps}
    for dead_after in range(1, len(whole.records)):
        plan, world = make(kit)
        first = kit.play(plan, world, kit.Journal(kill_after=dead_after))
        assert len(first.records) == dead_after
        again = kit.play(plan, world, kit.Journal(first.records))
        assert again.verdict == whole.verdict, dead_after
        assert world.true == whole.world.true, dead_after
        ends = {s.id: again.outcome(s.id) for s in plan.steps}
        assert ends == expected, dead_after
        assert {k: n for k, n in world.effects.items() if k.startswith("apply")} == {
            k: n for k, n in whole.world.effects.items() if k.startswith("apply")
        }, f"an effect happened twice, or never, when killed after record {dead_after}"


@pytest.mark.parametrize("make", PLANS)
def test_killed_twice(kit, make):
    plan, world = make(kit)
    whole = kit.play(plan, world)
    for dead_after in range(1, len(whole.records)):
        for again_after in range(1, 6):
            plan, world = make(kit)
            first = kit.play(plan, world, kit.Journal(kill_after=dead_after))
            second = kit.play(plan, world, kit.Journal(first.records, kill_after=dead_after + 1 + again_after))
            if second.state.ended is None:
                kit.play(plan, world, kit.Journal(second.records))
            assert world.true == whole.world.true, (dead_after, again_after)


@pytest.mark.parametrize("make", [straight, diamond, rough])
def test_a_journal_cut_anywhere_over_the_finished_world_changes_nothing_more(kit, make):
    """The record of an effect was lost, the effect was not: what holds is passed, not made again."""
    plan, world = make(kit)
    whole = kit.play(plan, world)
    before = dict(world.effects)
    for end in range(1, len(whole.records)):
        again = kit.play(plan, world, kit.Journal(whole.records[:end]))
        assert again.verdict == "succeeded"
        assert world.effects == before, f"cut after record {end}"


@pytest.mark.parametrize("make", [straight, diamond, rough])
def test_decide_on_every_prefix_yields_the_rest(kit, make):
    """Pure: fold a prefix, then play the decisions out; every step comes once, after all it needs."""
    plan, world = make(kit)
    whole = kit.play(plan, world)
    for end in range(1, len(whole.records) + 1):
        state = fold(whole.records[:end])
        there = {s.id for s in plan.steps if state.of(s.id).outcome}
        came = []
        while (decision := decide(plan, state)).start:
            for step in decision.start:
                assert all(state.of(n).outcome in GOOD for n in step.needs)
                came.append(step.id)
                record = {"step": step.id, "action": "toy", "attempt": 1, "outcome": "done", "facts": {}, "summary": ""}
                advance(state, {"type": "outcome", "at": "", "duration_s": 0, **record})
        assert not decision.skip
        assert not decision.undo
        assert sorted(came) == sorted({s.id for s in plan.steps} - there), f"after record {end}"


def test_evidence_from_before_the_crash_is_kept(kit):
    """Killed between the effect and its outcome: the outcome still carries what was measured before the effect."""
    plan = kit.plan(kit.step("a"))
    world = kit.World()
    first = kit.play(plan, world, kit.Journal(fail_at=3))
    assert world.effects == {"apply a": 1}
    records = list(first.records)
    records[1] = {**records[1], "before": {"was": False, "rpo": {"lag_bytes": 0, "met": True}}}
    again = kit.play(plan, world, kit.Journal(tuple(records)))
    assert again.outcome("a") == "done"
    assert again.state.of("a").facts["rpo"] == {"lag_bytes": 0, "met": True}
    assert world.effects == {"apply a": 1}


def test_in_flight_and_cannot_look_is_unknown_after_resume(kit):
    """The process died in the middle of an effect, and now nothing answers: not failed, not done."""
    plan = kit.plan(kit.step("a"))
    world = kit.World()
    first = kit.play(plan, world, kit.Journal(fail_at=3))
    world.script["observe a"] = ["refuse!"]
    again = kit.play(plan, world, kit.Journal(first.records))
    assert (again.outcome("a"), again.verdict) == ("unknown", "unknown")


def test_what_failed_gets_another_chance_and_what_is_done_stays(kit):
    plan = kit.chain(kit.step("a"), kit.step("b"), kit.step("c"))
    world = kit.World(script={"apply b": ["refuse"]})
    first = kit.play(plan, world)
    assert first.verdict == "failed"
    again = kit.play(plan, world, first.journal)
    assert (again.verdict, again.state.of("b").attempts) == ("succeeded", 2)
    assert world.effects == {"apply a": 1, "apply b": 1, "apply c": 1}


# ---- checks are asked again ----


def guarded(kit):
    return kit.chain(kit.step("c", kit.Check), kit.step("f", kit.Fence), kit.step("p", kit.Promote), kit.step("e"))


@pytest.mark.parametrize(
    ("cut", "again"),
    [
        (1, []),  # nothing was asked yet
        (2, ["c"]),  # stopped before the fence: the primary may have come back
        (3, ["c"]),  # in the middle of it
        (4, []),  # the primary is down because of the fence
        (5, []),
        (6, []),
    ],
)
def test_a_check_before_the_point_of_no_return_is_asked_again(kit, cut, again):
    plan = guarded(kit)
    whole = kit.play(plan, kit.World(true={"c"}))
    assert reopened(plan, fold(whole.records[:cut])) == again


def test_a_planned_move_in_the_middle_of_its_fence_asks_nothing_again(kit):
    """The primary is read only because of it: it is not ready for a switch any more, and must be made to be."""
    plan = guarded(kit)
    whole = kit.play(plan, kit.World(true={"c"}))
    planned = replace(plan, mode="graceful")
    assert [reopened(planned, fold(whole.records[:cut])) for cut in (2, 3, 4)] == [["c"], [], []]


def test_a_check_that_no_longer_holds_stops_the_run_before_its_effect(kit):
    """Killed before the fence, resumed an hour later: the primary is healthy by then, and stays as it is."""
    plan, world = guarded(kit), kit.World(true={"c"})
    first = kit.play(plan, world, kit.Journal(kill_after=2))
    world.true.discard("c")
    state = fold(first.records)
    resumed = {"type": "run_resumed", "epoch": 2, "reopened": reopened(plan, state)}
    advance(state, resumed)
    assert [s.id for s in decide(plan, state).start] == ["c"]
    advance(state, {"type": "run_resumed", "epoch": 3})
    assert state.of("c").outcome is None


def test_a_check_behind_a_check_is_asked_again_too(kit):
    """Before the fence people said yes, and before them the failure was confirmed: both may be long ago."""
    fence, promote = kit.step("f", kit.Fence), kit.step("p", kit.Promote)
    plan = kit.chain(kit.step("c", kit.Check), kit.step("ok", kit.Check), fence, promote)
    first = kit.play(plan, kit.World(true={"c", "ok"}), kit.Journal(kill_after=3))
    assert reopened(plan, fold(first.records)) == ["c", "ok"]


def test_nothing_is_asked_again_on_the_way_back(kit):
    plan = kit.chain(kit.step("c", kit.Check), kit.step("f", kit.Fence, on_failure="undo"), kit.step("p", kit.Promote))
    played = kit.play(plan, kit.World(true={"c"}, script={"apply f": ["refuse!"]}))
    assert reopened(plan, played.state) == []


# ---- any plan, any weather, killed anywhere ----

KEYS = "abcdef"
BEHAVIOURS = ["ok", "refuse", "lost", "vanish", "bug", "bug-after", "slow:3", "slow:99", "unsafe", "hang"]


@st.composite
def weather(draw):
    verbs = st.sampled_from(["observe", "apply", "confirm", "undo"])
    return {
        f"{draw(verbs)} {draw(st.sampled_from(KEYS))}": draw(st.lists(st.sampled_from(BEHAVIOURS), max_size=3))
        for _ in range(draw(st.integers(0, 6)))
    }


@st.composite
def shapes(draw):
    found = []
    for i, key in enumerate(KEYS):
        needs = tuple(n for n in KEYS[:i] if draw(st.integers(0, 2)) == 0)
        kind = draw(st.sampled_from(["Make", "Once", "Promote", "Check"]))
        on_failure = draw(st.sampled_from(["stop", "continue", "undo"]))
        found.append((key, kind, needs, on_failure, draw(st.integers(1, 3))))
    return found


@settings(max_examples=150, deadline=None)
@given(shape=shapes(), script=weather(), kill=st.integers(1, 40), halt_at=st.one_of(st.none(), st.integers(0, 20)))
def test_what_always_holds(kit, shape, script, kill, halt_at):
    steps = [
        kit.step(k, getattr(kit, kind), needs=n, on_failure="stop" if kind == "Promote" else f, attempts=a)
        for k, kind, n, f, a in shape
    ]
    plan = kit.plan(*steps)
    world = kit.World(true={k for k, kind, *_ in shape if kind == "Check"}, script=script)
    if halt_at is not None:
        world.script.setdefault(f"observe {KEYS[halt_at % 6]}", []).append("halt")
    played = kit.play(plan, world, kit.Journal(kill_after=kill))
    rounds = 0
    while played.verdict is None or played.verdict == "interrupted":
        rounds += 1
        assert rounds < 10
        played = kit.play(plan, world, kit.Journal(played.records))
    _check_journal(plan, played)
    _check_world(plan, played, world)


def _check_journal(plan, played):
    """Intent before effect, needs before step, one outcome a step and taking-up, a verdict that fits."""
    good: set[str] = set()
    intended: set[str] = set()
    back = False
    for record in played.records:
        step = record.get("step")
        if record["type"] == "undo_started":
            back = True
        elif record["type"] == "intent":
            assert not back, "an effect was begun while going back"
            assert set(plan.by_id[step].needs) <= good
            intended.add(step)
        elif record["type"] == "outcome" and record["outcome"] in ("done", "already"):
            assert step not in good, "a step ended twice"
            good.add(step)
        elif record["type"] == "outcome" and record["outcome"] == "undone":
            assert step in intended
    outcomes = {s.id: played.outcome(s.id) for s in plan.steps}
    if played.verdict != "unknown":  # which is said first, also of a run that was asked to stop
        assert None not in outcomes.values(), outcomes
    if played.verdict == "succeeded":
        assert set(outcomes.values()) <= {"done", "already"}
    if "unknown" in outcomes.values():
        assert played.verdict == "unknown"


def _check_world(plan, played, world):
    for step in plan.steps:
        outcome = played.outcome(step.id)
        if outcome in ("done", "already"):
            assert step.id in world.true
        if outcome == "undone":
            assert step.id not in world.true
        # an effect is repeated only after something said that it was not there; here nothing ever takes it away
        assert world.effects[f"apply {step.id}"] <= 1, step.id
    undone = [r["step"] for r in played.records if r["type"] == "undo_intent"]
    order = [r["step"] for r in played.records if r["type"] == "outcome" and r["outcome"] in ("done", "already")]
    for point in (s.id for s in plan.steps if s.irreversible and played.outcome(s.id) in ("done", "already")):
        for step_id in undone:
            if step_id in order:
                assert order.index(step_id) > order.index(point), "undone past the point of no return"
