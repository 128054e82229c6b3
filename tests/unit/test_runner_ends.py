"""A run that stops waits for nothing that it can do without: people want its verdict, and the next run its lease."""

from __future__ import annotations

import asyncio

import pytest

from flows.engine.ending import ENDING_S

LONG_S = 40.0


def patient(kit, kind="Patient"):
    """A step that waits up to 40 s, once applied, for what nobody brings about."""
    return kit.step("b", getattr(kit, kind), timeout_s=LONG_S)


def test_a_failure_ends_the_others_waiting(kit):
    """``promote`` was refused after half a second, and the run told so 40 s later: servers waited for a primary."""
    world = kit.World(script={"observe a": ["refuse"]})
    played = kit.play(kit.plan(kit.step("a"), patient(kit)), world)
    assert played.took_s <= 4
    assert [played.outcome(s) for s in "ab"] == ["failed", "failed"]
    assert "as the run stops" in played.state.of("b").summary
    assert world.effects == {"apply b": 1}
    world.true.add("sure:b")
    again = kit.play(kit.plan(kit.step("a"), patient(kit)), world, played.journal)
    assert [again.outcome(s) for s in "ab"] == ["done", "done"]
    assert world.effects["apply b"] == 1


def test_what_is_so_a_moment_later_is_done(kit):
    world = kit.World(script={"observe a": ["refuse"]})

    async def sure_after_1(_runner):
        await asyncio.sleep(ENDING_S / 2)
        world.true.add("sure:b")

    played = kit.play(kit.plan(kit.step("a"), patient(kit)), world, after=sure_after_1)
    assert [played.outcome(s) for s in "ab"] == ["failed", "done"]


def test_what_is_needed_is_waited_for_to_the_end(kit):
    """As clients that are held: whatever became of the rest."""
    world = kit.World(script={"observe a": ["refuse"]})
    played = kit.play(kit.plan(kit.step("a"), patient(kit, "Needing")), world)
    assert played.took_s == pytest.approx(LONG_S, abs=2)


@pytest.mark.parametrize("on_failure", ["continue", "undo"])
def test_only_a_failure_that_stops_the_run_counts(kit, on_failure):
    world = kit.World(script={"observe a": ["refuse"]})
    played = kit.play(kit.plan(kit.step("a", on_failure=on_failure), patient(kit)), world)
    if on_failure == "continue":
        assert played.took_s == pytest.approx(LONG_S, abs=2)
    else:
        assert played.took_s <= 4
        assert world.true == set()  # and what it had applied is put back, without those 40 s


def test_a_step_whose_own_failure_makes_the_run_go_back_is_waited_for(kit):
    """To leave it would put back what was to stay."""
    world = kit.World(script={"observe a": ["refuse"]})

    async def sure_after_10(_runner):
        await asyncio.sleep(10)
        world.true.add("sure:b")

    step = kit.step("b", kit.Patient, timeout_s=LONG_S, on_failure="undo")
    played = kit.play(kit.plan(kit.step("a"), step), world, after=sure_after_10)
    assert (played.verdict, played.outcome("b"), world.told("undo")) == ("failed", "done", [])


@pytest.mark.parametrize("on_failure", ["stop", "ask"])
def test_what_was_left_is_not_tried_again_and_nobody_is_asked(kit, on_failure):
    asked = []
    world = kit.World(script={"observe a": ["refuse"]})
    step = kit.step("b", kit.Patient, timeout_s=LONG_S, attempts=5, backoff_s=20, on_failure=on_failure)
    played = kit.play(kit.plan(kit.step("a"), step), world, ask=lambda *said: asked.append(said) or True)
    assert (played.outcome("b"), world.effects, asked) == ("failed", {"apply b": 1}, [])
    assert played.took_s <= 4


def test_each_attempt_has_its_own_two_seconds(kit):
    """The effect of c takes longer than another one's wait; it is so a moment later."""
    world = kit.World(script={"observe a": ["refuse"], "apply c": ["slow:3"]})

    async def sure_after_4(_runner):
        await asyncio.sleep(4)
        world.true.add("sure:c")

    late = kit.step("c", kit.Patient, timeout_s=LONG_S)
    played = kit.play(kit.plan(kit.step("a"), patient(kit), late), world, after=sure_after_4)
    assert [played.outcome(s) for s in "abc"] == ["failed", "failed", "done"]


def test_a_long_pause_ends_where_the_run_stops(kit):
    """As of a check that waits out a long TTL and looks every four minutes."""
    world = kit.World(script={"observe a": ["slow:400"], "apply a": ["refuse"]})
    seldom = kit.step("b", kit.Seldom, timeout_s=3600)
    played = kit.play(kit.plan(kit.step("a", timeout_s=401), seldom), world)
    assert played.outcome("b") == "failed"
    assert played.took_s <= 405


def test_asked_to_stop_an_effect_under_way_ends_first(kit):
    world = kit.World()

    async def halt_at_3(runner):
        await asyncio.sleep(3)
        runner.halt()
        await asyncio.sleep(10)
        world.true.add("sure:b")

    played = kit.play(kit.plan(patient(kit)), world, after=halt_at_3)
    assert played.outcome("b") == "done"
