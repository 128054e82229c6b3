"""A failback: two runs in order, there and nowhere else, and only as long as all is well."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from flows.engine import failback
from flows.engine.failback import Failback
from flows.engine.roles import Roles
from tasks.errors import SafetyRefusal

ASKED = Failback("lab", key="flow-run-1")


class World:
    """Where the system is, and what was run."""

    def __init__(self, active: str, codes: dict[str, int] | None = None) -> None:
        self.active, self.codes, self.done = active, codes or {}, []

    def direction(self, _asked: Failback, to: str = "") -> Roles:
        return Roles({"active": self.active, "target": to or ("east" if self.active == "west" else "west")})

    def run(self, request):
        self.done.append((request.runbook, request.mode, request.wish.leave, request.wish.to, request.automatic))
        code = self.codes.get(request.runbook, 0)
        if request.runbook == "failover" and not code:
            self.active = request.wish.to
        return SimpleNamespace(exit_code=code, cause=request.cause)


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))

    def make(*args):
        made = World(*args)
        monkeypatch.setattr(failback, "direction", made.direction)
        return made

    return make


def test_the_other_site_is_made_a_standby_and_then_the_system_moves_there(world):
    w = world("east")
    done = failback.failback(ASKED, w.run)
    assert w.done == [("rejoin", "forced", None, None, False), ("failover", "graceful", "east", "west", False)]
    assert w.active == "west"
    assert dict(done[0].cause) == {"failback": "flow-run-1", "to": "west"}


def test_it_stops_after_a_rejoin_that_did_not_succeed(world):
    w = world("east", {"rejoin": 1})
    assert len(failback.failback(ASKED, w.run)) == 1
    assert w.active == "east"


def test_tried_again_after_it_had_moved_it_does_not_move_forth(world, tmp_path):
    w = world("west")
    head = {"type": "run_started", "cause": {"failback": "flow-run-1", "to": "west"}}
    folder = tmp_path / "runs" / "20261126T000000Z-rejoin-lab-0000"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text(json.dumps(head) + "\n")
    failback.failback(ASKED, w.run)
    assert [book for book, *_ in w.done] == ["rejoin"]
    assert w.active == "west"
    # another failback than that one goes the other way
    failback.failback(Failback("lab", key="flow-run-2"), w.run)
    assert w.active == "east"


def test_a_system_that_moved_meanwhile_is_left_alone(world):
    w = world("east")

    def run(request):
        w.active = "west"
        return w.run(request)

    with pytest.raises(SafetyRefusal, match="moved to west"):
        failback.failback(ASKED, run)
    assert [book for book, *_ in w.done] == ["rejoin"]
