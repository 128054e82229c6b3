"""Confirming a failure: which node is meant, and what evidence of several rounds amounts to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from tasks.capacity.protocol import Instance, Limits
from tasks.catalog import actions
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.database.protocol import Durability, NodeView
from tasks.errors import BadInput, Contradiction, SafetyRefusal, Unreachable
from tasks.health._evidence import suspect
from tasks.health.actions import ConfirmFailure, Http, Tcp, Verify

WEST = ("west-pg1", "west-pg2")
SITES = {"west-pg1": "west", "west-pg2": "west", "east-pg1": "east"}


def answers(node: str, *, recovery: bool | None, **more) -> NodeView:
    lsn = {"lsn": 100, "system_identifier": "7", "timeline": 1}
    return NodeView(node, SITES[node], "answers", in_recovery=recovery, **lsn, **more)


def refused(node: str) -> NodeView:
    return NodeView(node, SITES[node], "refused", why="connection refused")


def silent(node: str) -> NodeView:
    return NodeView(node, SITES[node], "silent", why="no answer in 0.5 s")


def replica(node: str, *, streaming: bool, upstream: str | None = "west-pg1") -> NodeView:
    age_s = 0.1 if streaming else 30.0
    return answers(
        node,
        recovery=True,
        streaming=streaming,
        upstream=upstream,
        heard_age_s=age_s,
        upstream_lsn=100,
        replayed_lsn=100,
    )


class Recorded:
    """A Database that replays what was seen: one function of (node, vantage) a round."""

    def __init__(self, *rounds: Callable[[str, str | None], NodeView]) -> None:
        self.rounds, self.calls = rounds, 0

    def nodes(self, site=None):
        return tuple(n for n, s in SITES.items() if site in (None, s))

    def site_of(self, node):
        return SITES[node]

    def vantages(self):
        return ("west", "east")

    def durability(self):
        return Durability("async", 0, ())

    async def view(self, node, vantage=None):
        per_round = len(SITES) + 2 * len(WEST)
        index = min(self.calls // per_round, len(self.rounds) - 1)
        self.calls += 1
        return self.rounds[index](node, vantage)

    async def unused(self, *_):
        raise AssertionError("a check changes nothing")

    live_durability = try_write = fence = unfence = promote = follow = rejoin = unused


def dead(node, _vantage):
    return refused(node) if node == "west-pg1" else replica(node, streaming=False)


def hung(node, _vantage):
    return silent(node) if node == "west-pg1" else replica(node, streaming=False)


def healthy(node, _vantage):
    return answers(node, recovery=False) if node == "west-pg1" else replica(node, streaming=True)


def cut_from_west(node, vantage):
    if node == "west-pg1":
        return silent(node) if vantage == "west" else answers(node, recovery=False)
    return replica(node, streaming=True)


def context(database, **components) -> Context:
    clock = LoopClock()
    run = RunInfo("r1", "t", "failover", "forced", 1, "2026-01-01T00:00:00+00:00")
    parts = {"database": database, **components}
    return Context(run, clock, {"failed": "west", "west": "west"}, parts.__getitem__, clock.monotonic() + 10)


def check(database, *, components=None, **parameters):
    """What a step comes to: (facts, the confirming observation)."""

    async def main():
        ctx = context(database, **(components or {}))
        step = ConfirmFailure.model_validate({"every": "1ms", "patience": "50ms", **parameters})
        seen = await step.observe(ctx)
        if not seen.holds:
            facts = await step.apply(ctx, seen)
            after = await step.confirm(ctx)
            return facts, after
        return seen.facts, seen

    return asyncio.run(main())


def test_primary_is_the_node_that_says_so_or_that_replicas_follow():
    assert suspect("west", WEST, [answers("west-pg2", recovery=False), refused("west-pg1")]) == "west-pg2"
    views = [silent("west-pg1"), silent("west-pg2"), replica("east-pg1", streaming=False, upstream="west-pg2")]
    assert suspect("west", WEST, views) == "west-pg2"
    assert (
        suspect("west", WEST, [refused("west-pg1"), replica("west-pg2", streaming=False, upstream=None)]) == "west-pg1"
    )


def test_primary_that_cannot_be_told_is_a_contradiction():
    with pytest.raises(Contradiction, match="west-pg1 and west-pg2 of west both claim"):
        suspect("west", WEST, [answers(n, recovery=False) for n in WEST])
    with pytest.raises(Contradiction, match="no node of west is a primary: west-pg1, west-pg2 are replicas"):
        suspect("west", WEST, [replica(n, streaming=True, upstream="east-pg1") for n in WEST])
    with pytest.raises(Contradiction, match="nothing tells which of west-pg1, west-pg2"):
        suspect("west", WEST, [silent(n) for n in WEST])


@pytest.mark.parametrize(("scene", "state"), [(dead, "dead"), (hung, "hung")])
def test_dead_and_hung_hold_after_the_rounds_asked_for(scene, state):
    facts, seen = check(Recorded(scene), times=3)
    assert seen.holds
    assert (facts["primary"], facts["state"], len(facts["rounds"])) == ("west-pg1", state, 3)
    assert facts["detected_at"] == facts["rounds"][0]["at"]
    assert set(facts["rounds"][0]["vantages"]) == {"west", "east"}


def test_healthy_is_refused_with_the_way_out():
    with pytest.raises(SafetyRefusal, match=r"west-pg1 is healthy.*for a planned move use mode graceful") as e:
        check(Recorded(healthy))
    assert not isinstance(e.value, Contradiction)


def test_slow_primary_that_answers_once_is_never_dead():
    with pytest.raises(SafetyRefusal, match="west-pg1 is healthy"):
        check(Recorded(hung, healthy, hung, hung, hung), times=2)


def test_evidence_that_disagrees_is_shown_whole():
    with pytest.raises(
        Contradiction, match=r"from west: silent .*; from east: answers as primary; replica west-pg2"
    ) as e:
        check(Recorded(cut_from_west))
    assert e.value.facts["rounds"][-1]["vantages"]["west"]["reach"] == "silent"
    assert e.value.facts["detected_at"] is None


def test_evidence_that_agrees_a_moment_later_holds_and_is_dated_there():
    facts, seen = check(Recorded(cut_from_west, cut_from_west, dead), patience="2s")
    assert seen.holds
    verdicts = [r["verdict"] for r in facts["rounds"]]
    assert verdicts[-2:] == ["failed", "failed"]
    assert facts["detected_at"] == facts["rounds"][-2]["at"]


def test_quorum_above_the_vantage_points_is_an_input_error():
    with pytest.raises(BadInput, match="quorum 3 can never be met: there are 2"):
        check(Recorded(dead), quorum=3)
    assert check(Recorded(dead), quorum=2)[1].holds


class Agents:
    """What agents of two sites saw; ``None`` for one that does not answer."""

    def __init__(self, **seen):
        self.seen = seen

    def places(self):
        return tuple(self.seen)

    async def look(self, place):
        if self.seen[place] is None:
            raise Unreachable(f"agent of {place} is gone")
        return self.seen[place]


def test_agents_count_as_vantage_points_and_silent_ones_against_the_quorum():
    told = (NodeView("west-pg1", "", "refused"), NodeView("unknown", "", "answers"))
    seen = Agents(east=told, west=None)
    facts, _ = check(Recorded(dead), components={"agents": seen}, vantages="agents", quorum=3)
    assert set(facts["rounds"][0]["vantages"]) == {"west", "east", "agent:east"}
    assert facts["rounds"][0]["silent_agents"] == {"west": "agent of west is gone"}
    with pytest.raises(Contradiction, match=r"from 3 of 4 vantage points, 4 needed.*agent of west: silent"):
        check(Recorded(dead), components={"agents": seen}, vantages="agents", quorum=4)


class Fleet:
    def __init__(self, ready: int | None) -> None:
        self.ready = ready

    def limits(self, _site):
        return Limits(1, 2)

    async def instances(self, site):
        if self.ready is None:
            raise Unreachable("control is gone")
        return tuple(Instance(f"{site}-app{n}", site, "x:1", running=True, ready=n < self.ready) for n in range(2))

    async def scale(self, *_):
        raise AssertionError("a check changes nothing")


@pytest.mark.parametrize(
    ("require", "scene", "ready", "outcome"),
    [
        ("application", healthy, 0, "failed"),
        ("application", dead, 1, "healthy"),
        ("application", dead, None, "failed"),
        ("application", healthy, None, "unclear"),
        ("any", dead, 2, "failed"),
        ("any", healthy, 0, "failed"),
        ("any", healthy, 1, "healthy"),
        ("any", cut_from_west, 1, "unclear"),
    ],
)
def test_what_counts_as_the_failure(require, scene, ready, outcome):
    def run():
        return check(Recorded(scene), components={"capacity": Fleet(ready)}, require=require, capacity="capacity")

    if outcome == "failed":
        assert run()[1].holds
    else:
        with pytest.raises(SafetyRefusal) as e:
            run()
        assert isinstance(e.value, Contradiction) == (outcome == "unclear")


def test_parameters_are_checked_when_the_file_loads():
    assert {"health.confirm_failure", "health.http", "health.tcp", "health.verify"} <= set(actions())
    with pytest.raises(ValidationError, match="needs capacity"):
        ConfirmFailure(require="application")
    with pytest.raises(ValidationError, match="expected host:port"):
        Tcp(address="localhost")
    with pytest.raises(ValidationError, match="must not hold a user or password"):
        Http(url="http://user:pw@127.0.0.1/")
    with pytest.raises(ValidationError, match="exclude each other"):
        Verify.model_validate({"name": "a.", "address": "127.0.0.1", "zone": "dns", "site": "west"})
    with pytest.raises(ValidationError, match="zone needs site"):
        Verify.model_validate({"name": "a.", "zone": "dns"})
    assert Verify.name == "health.verify"
    assert Verify.model_validate({"name": "a."}).public_name == "a."
