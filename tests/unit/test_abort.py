"""A run that is told to go back does exactly what status said, whenever it is told, dead or alive."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest

from flows.engine import abort, outlook
from flows.engine.state import fold, point_passed, undoable
from tasks.errors import BadInput

WISH = {"by": "J. Doe", "why": "false alarm", "asked_at": "2026-01-01T12:00:00+00:00"}


def wish():
    return WISH


def straight(kit):
    return kit.chain(kit.step("a"), kit.step("f", kit.Fence), kit.step("p", kit.Promote), kit.step("e")), kit.World()


def diamond(kit):
    steps = (
        kit.step("a"),
        kit.step("b", needs=("a",)),
        kit.step("c", kit.Once, needs=("a",)),
        kit.step("d", needs=("b", "c")),
    )
    return kit.plan(*steps), kit.World(script={"apply b": ["slow:3"], "apply c": ["slow:1"]})


def failing(kit):
    steps = (kit.step("a"), kit.step("b", attempts=2), kit.step("p", kit.Promote, attempts=3), kit.step("e"))
    return kit.chain(*steps), kit.World(script={"apply b": ["lost"], "apply p": ["refuse!"]})


def already_true(kit):
    return kit.chain(kit.step("a"), kit.step("b"), kit.step("c")), kit.World(true={"a"})


@pytest.mark.parametrize("make", [straight, diamond, failing, already_true])
def test_told_after_any_death_it_does_what_was_said(kit, make):
    plan, world = make(kit)
    length = len(kit.play(plan, world).records)
    for dead_after in range(1, length + 1):
        plan, world = make(kit)
        first = kit.play(plan, world, kit.Journal(kill_after=dead_after))
        if first.verdict == "succeeded" or point_passed(plan, fold(first.records)):
            break
        undo, stay = undoable(plan, fold(first.records))
        done = world.effects.copy()
        again = kit.play(plan, world, kit.Journal(first.records), abort=wish)
        assert world.told("undo") == [s.id for s in undo], dead_after
        assert {k: n for k, n in world.effects.items() if k.startswith("apply")} == done, dead_after
        assert {s.id for s in undo} & world.true == set(), dead_after
        kept = {s.id for s in stay} & set(world.true)
        assert world.true == kept | ({"a"} if make is already_true else set()), dead_after
        assert again.verdict == "undone", dead_after
        assert again.records[-1]["reason"] == "aborted by J. Doe: false alarm", dead_after
        assert [r["type"] for r in again.records].count("abort_requested") == 1


def test_told_while_it_lives_it_ends_the_effect_first_and_within_a_second_begins_the_undo(kit):
    plan = kit.chain(*(kit.step(k) for k in "abc"))
    world = kit.World(script={"apply b": ["slow:5"]})
    asked = []

    async def later(_runner):
        await asyncio.sleep(2)
        asked.append(WISH)

    played = kit.play(plan, world, after=later, abort=lambda: asked[0] if asked else None)
    assert (played.verdict, world.true) == ("undone", set())
    assert world.told("undo") == ["b", "a"]
    assert world.effects["apply c"] == 0
    assert played.outcome("c") == "skipped"
    assert played.took_s < 6.5


def test_a_step_that_only_waits_is_dropped_at_once(kit):
    plan = kit.chain(kit.step("a"), kit.step("w", kit.Check, timeout_s=100), kit.step("b"))
    world = kit.World(script={"apply w": ["slow:90"]})
    asked = []

    async def later(_runner):
        await asyncio.sleep(2)
        asked.append(WISH)

    played = kit.play(plan, world, after=later, abort=lambda: asked[0] if asked else None)
    assert (played.verdict, world.true) == ("undone", set())
    assert played.took_s < 4


def test_a_check_that_fails_is_not_kept_waiting_by_the_one_beside_it(kit):
    """What is not good goes back at once: clients wait for that, and a check that still looks changes nothing."""
    plan = kit.plan(
        kit.step("a"),
        kit.step("errors", kit.Check, needs=("a",), on_failure="undo"),
        kit.step("latency", kit.Check, needs=("a",), on_failure="undo", timeout_s=100),
    )
    world = kit.World(script={"apply errors": ["unsafe"], "apply latency": ["slow:90"]})
    played = kit.play(plan, world)
    assert (played.verdict, world.true) == ("undone", set())
    assert played.outcome("latency") == "skipped"
    assert played.took_s < 4


def test_what_is_being_changed_beside_a_failed_check_ends_first(kit):
    plan = kit.plan(
        kit.step("a"),
        kit.step("errors", kit.Check, needs=("a",), on_failure="undo"),
        kit.step("b", needs=("a",), timeout_s=100),
    )
    world = kit.World(script={"observe errors": ["slow:1"], "apply errors": ["unsafe"], "apply b": ["slow:20"]})
    played = kit.play(plan, world)
    assert (played.outcome("errors"), world.effects["apply b"]) == ("failed", 1)
    assert (played.verdict, world.true) == ("undone", set())
    assert world.told("undo") == ["b", "a"]
    assert played.took_s >= 20


def test_killed_anywhere_while_it_goes_back_it_goes_on_going_back(kit):
    plan, world = straight(kit)
    first = kit.play(plan, world, kit.Journal(kill_after=5))  # fence done, nothing after
    whole = kit.play(plan, world, kit.Journal(first.records), abort=wish)
    assert whole.verdict == "undone"
    for dead_after in range(len(first.records) + 2, len(whole.records)):
        plan, world = straight(kit)
        begun = kit.play(plan, world, kit.Journal(kill_after=5))
        second = kit.play(plan, world, kit.Journal(begun.records, kill_after=dead_after), abort=wish)
        # the wish is in the journal by now: the file may be gone
        third = kit.play(plan, world, kit.Journal(second.records))
        assert (third.verdict, world.true) == ("undone", set()), dead_after


@pytest.mark.parametrize("dead_after", [6, 7, 8])
def test_behind_the_point_of_no_return_it_is_refused_and_the_run_goes_on(kit, dead_after):
    """Also where the promotion was only intended: it may have happened."""
    plan, world = straight(kit)
    first = kit.play(plan, world, kit.Journal(kill_after=dead_after))
    assert fold(first.records).of("p").intent
    played = kit.play(plan, world, kit.Journal(first.records), abort=wish)
    assert played.verdict == "succeeded"
    refused = [r for r in played.records if r["type"] == "abort_refused"]
    assert [(r["point"], r["by"]) for r in refused] == [("p", "J. Doe")]
    assert world.told("undo") == []


def test_a_promotion_in_flight_is_looked_at_when_a_run_goes_back(kit):
    """It went back for another reason (``on_failure: undo``) and died: what was in flight is found out, and stays."""
    steps = (kit.step("p", kit.Promote), kit.step("b", on_failure="undo", needs=()))
    plan, world = kit.plan(*steps), kit.World(script={"apply b": ["refuse!"], "apply p": ["slow:5"]})
    first = kit.play(plan, world, kit.Journal(kill_after=5))
    died = fold(first.records)
    assert (died.of("p").in_flight, died.of("b").outcome) == (True, "failed")
    journal = kit.Journal(first.records)
    journal.append(kit.EPOCH, "undo_started", steps=[])
    world.true.add("p")  # the effect arrived
    played = kit.play(plan, world, journal)
    assert (played.outcome("p"), played.verdict) == ("done", "undone")
    assert world.effects["apply p"] <= 1


def test_what_cannot_be_put_back_is_named_and_the_rest_is(kit):
    plan, world = straight(kit)
    first = kit.play(plan, world, kit.Journal(kill_after=5))
    world.script["undo f"] = ["refuse"]
    played = kit.play(plan, world, kit.Journal(first.records), abort=wish)
    assert (played.outcome("f"), played.outcome("a")) == ("undo_failed", "undone")
    assert played.verdict == "failed"
    assert "aborted by J. Doe: false alarm; f could not be put back: undo f: refuse" in played.records[-1]["reason"]
    again = kit.play(plan, world, kit.Journal(played.records))
    assert (again.verdict, world.true) == ("undone", set())


# ---- the wish ----


def test_a_wish_is_found_and_withdrawn(tmp_path):
    assert abort.asked(tmp_path) is None
    abort.ask(tmp_path, "J. Doe", "false alarm", datetime(2026, 1, 1, 12, tzinfo=UTC))
    assert abort.asked(tmp_path) == WISH
    abort.withdraw(tmp_path)
    abort.withdraw(tmp_path)
    assert abort.asked(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"by": 1}', "\xff"])
def test_a_wish_that_cannot_be_read_counts(tmp_path, text):
    (tmp_path / abort.FILE).write_bytes(text.encode("latin-1"))
    assert "cannot be read" in abort.asked(tmp_path)["why"]


def test_a_run_that_is_over_has_nothing_to_put_back(kit, tmp_path, monkeypatch):
    plan, world = straight(kit)
    monkeypatch.setattr(outlook, "_plan", lambda _head: plan)
    lines = [json.dumps(r, separators=(",", ":")) for r in kit.play(plan, world).records]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match="has ended"):
        outlook.going_back(tmp_path)
