"""The database actions over an in-memory twin of the Protocol: what they refuse, choose, measure and leave out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo
from tasks.database._durability import ASYNC, parse
from tasks.database._loss import promise_of
from tasks.database._proof import followed, judge
from tasks.database.actions import (
    CatchUp,
    Fence,
    Follow,
    Pause,
    Promote,
    Protect,
    ReadyToSwitch,
    Rejoin,
    Resume,
    Verify,
)
from tasks.database.protocol import NodeView, RoundTrip, Standby, WriteProbe
from tasks.errors import (
    Contradiction,
    LeaseHeld,
    LossAboveBudget,
    NotFenced,
    NotYet,
    SafetyRefusal,
    UnhealthyTarget,
    Unreachable,
)

SITES = {"w1": "west", "w2": "west", "e1": "east", "e2": "east"}
NOW = datetime.now(UTC)
EAST, WEST = parse("FIRST 1 (e1)"), parse("FIRST 1 (w1)")


class Twin:
    """Four nodes in memory; w1 is the primary. ``up`` False refuses, ``hung`` is silent."""

    def __init__(self, declared=EAST) -> None:
        self.declared, self.live, self.note = declared, dict.fromkeys(SITES, declared), None
        self.cut = set()  # lives, but every way to it refuses
        self.up, self.hung, self.host = dict.fromkeys(SITES, True), set(), True
        self.replica = {n: n != "w1" for n in SITES}
        self.upstream = dict.fromkeys(SITES, "w1")
        self.lsn, self.timeline, self.read_only = dict.fromkeys(SITES, 100), dict.fromkeys(SITES, 1), set()
        self.diverged, self.calls = set(), []

    def nodes(self, site=None):
        return tuple(n for n, s in SITES.items() if site in (None, s))

    def site_of(self, node):
        return SITES[node]

    def vantages(self):
        return ("direct", "across")

    def durability(self):
        return self.declared

    def _streams(self, node):
        up = self.upstream[node]
        alive = self.up[up] and up not in self.hung and not self.replica[up]
        return alive and node not in self.diverged

    async def view(self, node, vantage=None):
        if node in self.cut:
            return NodeView(node, SITES[node], "refused", why="the link resets")
        if node in self.hung:
            return NodeView(node, SITES[node], "silent", why="no answer")
        if not self.up[node]:
            return NodeView(node, SITES[node], "refused", why="nothing listens")
        replica = self.replica[node]
        return NodeView(
            node,
            SITES[node],
            "answers",
            in_recovery=replica,
            read_only=None if replica else node in self.read_only,
            system_identifier="7",
            timeline=self.timeline[node],
            lsn=self.lsn[node],
            upstream=self.upstream[node] if replica else None,
            streaming=self._streams(node) if replica else None,
            heard_age_s=0.1 if replica else None,
            last_commit_at=NOW - timedelta(seconds=3) if replica else None,
        )

    async def live_durability(self, node):
        return self.live[node]

    async def try_write(self, node, vantage):
        seen = await self.view(node)
        outcome = {"refused": "gone", "silent": "silent"}.get("refused" if node in self.cut else seen.reach)
        if outcome is None:
            outcome = "refused" if seen.in_recovery or seen.read_only else "accepted"
        return WriteProbe(vantage, node, outcome, seen.why, f"{vantage}:{node}")

    async def ask_host(self, node):
        self.calls.append(("ask_host", node))
        said = "silent" if not self.host else "runs" if self.up[node] else "gone"
        return WriteProbe("host", node, said, "host", f"host {node}")

    async def quiesce(self, node):
        self.calls.append(("quiesce", node))
        self.read_only.add(node)
        return self.lsn[node]

    async def fence(self, node, *, orderly):
        self.calls.append(("fence", node, orderly))
        if not self.host and node in self.hung:
            raise Unreachable(f"no means fenced {node}.")
        self.hung.discard(node)
        self.up[node] = False
        return "host command"

    async def unfence(self, node):
        self.calls.append(("unfence", node))
        self.up[node] = True
        self.read_only.discard(node)

    async def promote(self, node):
        self.calls.append(("promote", node))
        self.replica[node], self.timeline[node] = False, self.timeline[node] + 1

    async def follow(self, node, upstream):
        self.calls.append(("follow", node))
        self.upstream[node] = upstream
        if node not in self.diverged:
            self.timeline[node] = self.timeline[upstream]

    async def rejoin(self, node, upstream):
        self.calls.append(("rejoin", node))
        self.up[node], self.replica[node] = True, True
        self.diverged.discard(node)
        await self.follow(node, upstream)
        return "rewind"

    async def standbys(self, node):
        names = [n for n in SITES if self.up[n] and self.replica[n] and self.upstream[n] == node and self._streams(n)]
        return tuple(Standby(n, "streaming", "sync", self.lsn[n]) for n in names)

    async def promised(self, node):
        return self.note

    async def set_durability(self, node, wanted):
        self.calls.append(("protect", node))
        self.live[node], self.note = wanted, (node, wanted)


class Pooler:
    def __init__(self, database) -> None:
        self.database, self.held, self.gone, self.lost = database, False, False, False

    def sites(self):
        return ("west", "east")

    async def paused(self, site):
        if self.gone:
            raise Unreachable(f"pooler of {site} is gone")
        return self.held

    async def pause(self, _site):
        self.held = True

    async def resume(self, _site):
        self.held = False

    async def target(self, _site):
        return "w1:5432"

    async def round_trip(self, _site, nonce):
        node = next(n for n in SITES if self.database.up[n] and not self.database.replica[n])
        back = None if self.lost else nonce
        return RoundTrip(nonce, back, in_recovery=False, system_identifier="7", timeline=self.database.timeline[node])


def step(
    action,
    twin,
    *,
    mode="forced",
    waivers=None,
    earlier=(),
    intended=(),
    rpo_s=0.0,
    guard=lambda: None,
    pooler=None,
    left_s=2,
):
    """What the runner does with an action: (facts, the confirming observation)."""

    async def main():
        clock = LoopClock()
        run = RunInfo("r1", "t", "failover", mode, 1, NOW.isoformat(), waivers or {})
        roles = {"west": "west", "east": "east", "failed": "west", "target": "east", "active": "west"}
        parts = {"database": twin, "pooler": pooler or Pooler(twin)}
        budget = {} if rpo_s is None else {"database": rpo_s}
        deadline = clock.monotonic() + left_s
        ctx = Context(
            run, clock, roles, parts.__getitem__, deadline, budget, tuple(earlier), tuple(intended), guard=guard
        )
        seen = await action.observe(ctx)
        if seen.holds:
            return seen.facts, seen
        facts = await action.apply(ctx, seen) or {}
        after = await action.confirm(ctx)
        return {**seen.facts, **facts, **after.facts}, after

    return asyncio.run(main())


def did(twin, verb):
    return [c[1] for c in twin.calls if c[0] == verb]


# ---- proof ----------------------------------------


def probe(vantage, outcome, address=None):
    return WriteProbe(vantage, "w1", outcome, "", address or vantage)


@pytest.mark.parametrize(
    ("probes", "fenced"),
    [
        ([probe("direct", "gone"), probe("across", "gone")], True),
        ([probe("direct", "refused"), probe("across", "gone")], True),
        ([probe("direct", "gone"), probe("across", "silent")], False),
        ([probe("direct", "silent"), probe("across", "silent")], False),
        ([probe("direct", "gone"), probe("across", "accepted")], False),
        ([probe("direct", "silent"), probe("host", "gone")], True),
        ([probe("direct", "accepted"), probe("host", "gone")], False),
        ([probe("direct", "silent"), probe("host", "silent")], False),
        ([probe("direct", "gone"), probe("across", "gone"), probe("host", "runs")], False),
        ([probe("direct", "gone"), probe("across", "gone"), probe("host", "silent")], True),
        ([probe("direct", "refused"), probe("across", "refused"), probe("host", "runs")], True),
        ([probe("direct", "gone")], True),
        ([], False),
    ],
)
def test_what_proves_a_fence(probes, fenced):
    assert judge(probes)[0] is fenced


def test_the_primary_is_told_by_its_replicas():
    twin = Twin()
    twin.up["w1"] = False
    views = {n: asyncio.run(twin.view(n)) for n in SITES}
    assert followed(views) == "w1"
    views["e1"] = replace(views["e1"], timeline=2, upstream="e2")
    views["e2"] = NodeView("e2", "east", "silent")
    assert followed(views) == "e2"  # the newest timeline counts, not the most votes


# ---- fence ----------------------------------------


def test_forced_fence_kills_a_primary_even_when_it_is_healthy_and_leaves_replicas_alone():
    twin = Twin()
    facts, seen = step(Fence(site="failed"), twin)
    assert seen.holds
    assert [c for c in twin.calls if c[0] != "ask_host"] == [("fence", "w1", False)]
    assert facts["means"] == {"w1": "host command"}


def test_graceful_fence_notes_the_last_position_before_it_stops_the_node():
    twin = Twin()
    facts, _ = step(Fence(site="failed"), twin, mode="graceful")
    assert [c for c in twin.calls if c[0] != "ask_host"] == [("quiesce", "w1"), ("fence", "w1", True)]
    assert facts["final"] == {"w1": {"timeline": 1, "lsn": 100}}


def test_a_graceful_fence_that_died_half_way_is_finished():
    """Read only by SQL and still running: a client may lift that. And its last position is not noted yet."""
    twin = Twin()
    twin.read_only = {"w1"}
    facts, _ = step(Fence(site="failed"), twin, mode="graceful", intended=[{"primaries": ["w1"]}])
    assert did(twin, "fence") == ["w1"]
    assert facts["final"] == {"w1": {"timeline": 1, "lsn": 100}}
    twin = Twin()
    twin.read_only = {"w1"}
    step(Fence(site="failed"), twin, mode="graceful")  # not begun by this run: two vantage points say no
    assert did(twin, "fence") == []


def test_a_dead_primary_is_fenced_already_and_its_host_is_only_asked():
    twin = Twin()
    twin.up["w1"] = False
    _, seen = step(Fence(site="failed"), twin)
    assert seen.holds
    assert twin.calls == [("ask_host", "w1")]


def test_a_primary_that_lives_behind_a_cut_network_is_not_fenced_by_refused_connections():
    """Seen on the lab: the links between the sites reset and refuse, and the primary goes on for its own site."""
    twin = Twin()
    twin.cut = {"w1"}
    step(Fence(site="failed"), twin)
    assert did(twin, "fence") == ["w1"]
    twin = Twin()
    twin.cut = {"w1"}
    with pytest.raises(NotFenced, match="its host says that its process runs"):
        step(Promote(site="target"), twin)
    assert did(twin, "promote") == []


def test_promote_does_not_ask_a_host_again_that_told_the_fence():
    twin = dead()
    facts, _ = step(Fence(site="failed"), twin)
    twin.calls.clear()
    step(Promote(site="target"), twin, earlier=[Done("fence", "database.fence", "already", facts)])
    assert twin.calls == [("promote", "e1")]


def test_silence_is_no_fence_and_says_what_to_do():
    twin = Twin()
    twin.hung, twin.host = {"w1"}, False
    with pytest.raises(NotFenced, match=r"Power it off"):
        step(Fence(site="failed"), twin)


def test_a_waiver_stands_only_after_every_means_was_tried_and_never_against_a_write():
    twin = Twin()
    twin.hung, twin.host = {"w1"}, False
    _, seen = step(Fence(site="failed"), twin, waivers={"fence": "Ada: powered off"})
    assert seen.holds
    assert did(twin, "fence") == ["w1"]
    assert seen.facts["waived"] == "Ada: powered off"
    twin = Twin()
    twin.hung = {"w1"}
    step(Fence(site="failed"), twin, waivers={"fence": "Ada"})
    assert not twin.up["w1"]  # the host could, so it was killed
    alive = Twin()

    async def useless(node, *, orderly):
        return "nothing at all"

    alive.fence = useless
    with pytest.raises(NotFenced):
        step(Fence(site="failed"), alive, waivers={"fence": "Ada"})


def test_an_unproven_replica_that_hangs_is_killed_too_it_could_be_an_old_primary():
    twin = Twin()
    twin.up["w1"], twin.hung = False, {"w2"}
    step(Fence(site="failed"), twin)
    assert did(twin, "fence") == ["w2"]


def test_nothing_is_fenced_once_the_lease_is_lost():
    twin = Twin()

    def lost():
        raise LeaseHeld("another run")

    with pytest.raises(LeaseHeld):
        step(Fence(site="failed"), twin, guard=lost)
    assert did(twin, "fence") == []


# ---- promote ----------------------------------------


def dead():
    twin = Twin()
    twin.up["w1"] = False
    return twin


def test_promotes_the_most_advanced_replica_and_proves_that_nothing_is_lost():
    twin = dead()
    twin.lsn.update(e1=120, e2=90, w2=150)
    facts, seen = step(Promote(site="target"), twin)
    assert seen.holds
    assert did(twin, "promote") == ["e1"]
    rpo = facts["rpo"]
    assert (rpo["proven_zero"], rpo["lost_transactions"], rpo["met"], rpo["lag_bytes"]) == (True, 0, True, 30)


def test_no_promotion_while_another_node_may_write_whatever_steps_came_before():
    fenced = Done("fence", "database.fence", "done", {})
    hung = Twin()
    hung.hung, hung.host = {"w1"}, False
    for twin in (Twin(), hung):
        with pytest.raises(NotFenced):
            step(Promote(site="target"), twin, earlier=[fenced])
        assert did(twin, "promote") == []


def test_two_writers_are_a_contradiction_also_when_one_is_in_the_target():
    twin = Twin()
    twin.replica["e1"] = False
    with pytest.raises(Contradiction):
        step(Promote(site="target"), twin)


def test_a_promotion_that_took_place_is_found_and_not_repeated():
    twin = dead()
    twin.replica["e1"], twin.timeline["e1"] = False, 2
    _, seen = step(Promote(site="target"), twin)
    assert seen.holds
    assert did(twin, "promote") == []


def test_no_other_one_is_promoted_beside_one_that_was_told_and_went_silent():
    twin = dead()
    twin.hung = {"e1"}
    with pytest.raises(Unreachable, match="e1 may have been told to become the primary"):
        step(Promote(site="target"), twin, intended=[{"chosen": "e1"}])
    assert did(twin, "promote") == []
    twin.hung, twin.up["e1"] = set(), False  # killed: it is proven gone, and the next best is taken
    twin.declared = ASYNC
    step(Promote(site="target"), twin, intended=[{"chosen": "e1"}], waivers={"loss": "Ada"})
    assert did(twin, "promote") == ["e2"]


def test_the_old_primary_is_proven_fenced_also_when_it_is_in_the_target():
    twin = Twin()
    twin.replica.update(w1=True, e1=False)
    twin.upstream = dict.fromkeys(SITES, "e1")
    twin.hung, twin.host = {"e1"}, False
    with pytest.raises(NotFenced, match="e1"):
        step(Promote(site="target"), twin, waivers={"loss": "Ada"})
    assert did(twin, "promote") == []


def test_a_writer_of_the_target_that_somebody_was_promoted_after_is_a_contradiction():
    twin = dead()
    twin.replica["e1"], twin.timeline["w2"] = False, 2
    with pytest.raises(Contradiction, match="w2 is on a newer one"):
        step(Promote(site="target"), twin)


def test_only_the_node_that_was_journaled_is_promoted():
    twin = dead()
    look, looks = twin.view, []

    async def view(node, vantage=None):
        looks.append(node)
        if len(looks) == len(SITES) + 1:  # between the intent and the effect e2 turns out to be further
            twin.lsn["e2"] = 500
        return await look(node, vantage)

    twin.view = view
    with pytest.raises(NotYet, match="e2 now, no longer e1"):
        step(Promote(site="target"), twin)
    assert did(twin, "promote") == []


def test_loss_above_the_budget_stops_unless_it_is_waived_by_name():
    twin = dead()
    twin.declared = ASYNC
    with pytest.raises(LossAboveBudget, match="may be lost") as e:
        step(Promote(site="target"), twin)
    assert e.value.facts["rpo"]["bound_s"] >= 3  # from the last commit until now
    assert did(twin, "promote") == []
    facts, _ = step(Promote(site="target"), twin, waivers={"loss": "Ada, accepted"})
    assert (facts["rpo"]["met"], facts["rpo"]["waiver"]) == (False, "Ada, accepted")
    within = dead()
    within.declared = ASYNC
    facts, _ = step(Promote(site="target"), within, rpo_s=3600.0)
    assert facts["rpo"]["met"] is True


def test_after_an_orderly_stop_the_noted_position_proves_it_without_any_promise():
    twin = dead()
    twin.declared = ASYNC
    fenced = Done("fence", "database.fence", "done", {"final": {"w1": {"timeline": 1, "lsn": 100}}})
    facts, _ = step(Promote(site="target"), twin, earlier=[fenced], mode="graceful")
    assert facts["rpo"]["proven_zero"]
    twin = dead()
    twin.declared = ASYNC
    twin.lsn.update(e1=99, e2=98)
    with pytest.raises(LossAboveBudget):
        step(Promote(site="target"), twin, earlier=[fenced], mode="graceful")


def test_a_note_of_another_primary_proves_nothing():
    """By other hands w2 became primary, asynchronous, and died; the data still hold what w1 once promised."""
    twin = dead()
    twin.note = ("w1", EAST)
    twin.up["w2"] = False
    twin.upstream.update(e1="w2", e2="w2")
    with pytest.raises(LossAboveBudget, match="a note of w1, none of w2"):
        step(Promote(site="target"), twin)


def test_what_a_lost_primary_promised():
    assert promise_of("w1", EAST, None, EAST) == (EAST, "")
    assert promise_of("w1", EAST, ("w1", ASYNC), EAST) == (ASYNC, "")
    assert promise_of("e1", EAST, ("e1", WEST), ASYNC) == (WEST, "")
    for primary, note, live in (
        (None, None, EAST),
        ("e1", None, WEST),
        ("w1", None, ASYNC),
        ("w1", ("e1", WEST), WEST),
    ):
        promise, doubt = promise_of(primary, EAST, note, live)
        assert promise is None
        assert doubt


def test_without_a_replica_nothing_is_promoted():
    twin = dead()
    twin.up.update(e1=False, e2=False)
    with pytest.raises(UnhealthyTarget, match="e1: it does not answer"):
        step(Promote(site="target"), twin)


# ---- replicas ----------------------------------------


def promoted():
    twin = dead()
    asyncio.run(twin.promote("e1"))
    twin.calls.clear()
    return twin


def test_followers_are_pointed_at_the_new_primary_and_those_away_are_named():
    twin = promoted()
    facts, seen = step(Follow(), twin)
    assert seen.holds
    assert sorted(did(twin, "follow")) == ["e2", "w2"]
    assert facts["left_out"] == ["w1"]


def test_a_diverged_replica_elsewhere_is_left_out_but_not_one_beside_the_primary():
    twin = promoted()
    twin.diverged = {"w2"}
    facts, seen = step(Follow(patience=0.05), twin)
    assert seen.holds
    assert facts["left_out"] == ["w1", "w2"]
    twin = promoted()
    twin.diverged = {"e2"}
    with pytest.raises(NotYet, match="e2 follows e1, not streaming"):
        step(Follow(patience=0.05), twin, left_s=0.4)


def test_a_replica_that_streams_on_its_old_timeline_has_not_come_back():
    twin = promoted()
    twin.upstream["w2"] = "e1"  # streams, on timeline 1
    facts, seen = step(Rejoin(site="failed"), twin)
    assert seen.holds
    assert sorted(did(twin, "rejoin")) == ["w1", "w2"]
    assert facts["how"] == {"w1": "rewind", "w2": "rewind"}


def test_the_site_of_the_primary_is_never_rejoined():
    with pytest.raises(SafetyRefusal, match="w1 of west is the primary"):
        step(Rejoin(site="failed"), Twin())
    with pytest.raises(NotYet, match="no node takes writes"):
        step(Rejoin(site="failed"), dead())


def test_protect_names_the_sites_own_standbys():
    twin = promoted()
    step(Rejoin(site="failed"), twin)
    _, seen = step(Protect(site="failed"), twin)
    assert seen.holds
    assert twin.note == ("e1", WEST)
    before = len(twin.calls)
    step(Protect(site="failed"), twin)
    assert len(twin.calls) == before


# ---- a planned switch, the pooler ----------------------------------------


def test_ready_only_with_a_standby_that_streams_and_keeps_up():
    assert step(ReadyToSwitch(site="target"), Twin())[1].holds
    lagging = Twin()
    lagging.lsn["w1"] = 10**9
    with pytest.raises(SafetyRefusal, match="bytes behind"):
        step(ReadyToSwitch(site="target"), lagging, left_s=0.3)
    cut = Twin()
    cut.diverged = {"e1", "e2"}
    with pytest.raises(SafetyRefusal, match="not streaming"):
        step(ReadyToSwitch(site="target"), cut, left_s=0.3)


def test_catch_up_waits_for_the_noted_position():
    fenced = Done("fence", "database.fence", "done", {"final": {"w1": {"timeline": 1, "lsn": 150}}})
    twin = dead()
    with pytest.raises(NotYet, match="50 bytes behind"):
        step(CatchUp(site="target"), twin, earlier=[fenced], left_s=0.3)
    twin.lsn["e2"] = 150
    facts, seen = step(CatchUp(site="target"), twin, earlier=[fenced])
    assert seen.holds
    assert facts["chosen"] == "e2"


def test_pause_and_resume():
    twin = Twin()
    pooler = Pooler(twin)
    facts, held = step(Pause(site="failed"), twin, pooler=pooler)
    assert held.holds
    assert pooler.held
    paused = [Done("hold", "database.pause", "done", {**facts, "held_since": "2026-01-01T00:00:00+00:00"})]
    told, passes = step(Resume(site="failed"), twin, pooler=pooler, earlier=paused)
    assert passes.holds
    assert told["said"].startswith("writes were held for")
    assert not pooler.held
    step(Pause(site="failed"), twin, pooler=pooler)
    paused[0].facts["held_at"] = "east"
    assert "held_s" not in step(Resume(site="failed"), twin, pooler=pooler, earlier=paused)[0], "of another pooler"
    pooler.gone = True
    assert step(Resume(site="failed", may_be_gone=True), twin, pooler=pooler)[1].holds
    with pytest.raises(Unreachable):
        step(Resume(site="failed"), twin, pooler=pooler)


def test_verify_needs_the_row_back_from_the_current_primary():
    twin = Twin()
    assert step(Verify(site="target"), twin)[1].holds
    pooler = Pooler(twin)
    pooler.lost = True
    with pytest.raises(NotYet, match="read back as None"):
        step(Verify(site="target"), twin, pooler=pooler, left_s=0.3)
