"""What status says of a run at any moment: what remains, what would be put back, when it is over at worst."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flows.engine import outlook
from tasks.errors import BadInput


@pytest.fixture
def plan(kit, monkeypatch):
    steps = (kit.step("f", kit.Fence), kit.step("p", kit.Promote), kit.step("e", restores="app"))
    found = kit.chain(*steps)
    monkeypatch.setattr(outlook, "_plan", lambda _head: found)
    return found


def at(kit, plan, after):
    played = kit.play(plan, kit.World(), kit.Journal(kill_after=after), rto_s={"app": 300.0})
    return outlook.of(played.records, kit.EPOCH + timedelta(seconds=20))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (1, (["f", "p", "e"], (), False)),
        (2, (["f", "p", "e"], ("f",), False)),  # begun, and perhaps done
        (3, (["p", "e"], ("f",), False)),
        (4, (["p", "e"], (), True)),  # the promotion was begun: nobody goes back behind it
        (5, (["e"], (), True)),
        (6, (["e"], (), True)),  # an abort is refused there
    ],
)
def test_at_every_record(kit, plan, after, expected):
    remains, undo, passed = expected
    found = at(kit, plan, after)
    assert [s.id for s in found.remains] == remains
    assert found.would_undo == undo
    assert (found.point_of_no_return, found.passed, found.ended) == ("p", passed, False)


def test_the_prediction_counts_what_is_left_from_now(kit, plan):
    one, two = at(kit, plan, 1), at(kit, plan, 5)
    assert one.predicted_s["app"] == pytest.approx(20 + plan.worst_end_s["e"])
    assert two.predicted_s["app"] == pytest.approx(20 + plan.by_id["e"].worst_case_s, abs=0.01)


def test_a_run_that_is_over(kit, plan):
    played = kit.play(plan, kit.World())
    found = outlook.of(played.records, kit.EPOCH)
    assert (found.ended, found.remains) == (True, ())
    assert found.predicted_s["app"] < 20


def test_files_that_changed_are_said_and_break_nothing(kit, plan, monkeypatch):
    def gone(_head):
        raise BadInput("no such file")

    monkeypatch.setattr(outlook, "_plan", gone)
    assert at(kit, plan, 3).unknown == "no such file"
