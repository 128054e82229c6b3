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


def test_asked_to_stop_an_effect_under_way_ends_first(kit):
    world = kit.World()

    async def halt_at_3(runner):
        await asyncio.sleep(3)
        runner.halt()
        await asyncio.sleep(10)
        world.true.add("sure:b")

    played = kit.play(kit.plan(patient(kit)), world, after=halt_at_3)
    assert played.outcome("b") == "done"
