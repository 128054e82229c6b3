"""Choosing and measuring: the quorum proof is checked against a model of synchronous replication."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.database._durability import ASYNC, parse, show
from tasks.database._loss import Known, Loss, choose, estimate, facts, judge, position
from tasks.database.protocol import Durability, NodeView

INCIDENT = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = INCIDENT + timedelta(seconds=30)
NAMES = ("a", "b", "c", "d", "e")


def replica(node, lsn=100, *, timeline=1, ago_s=5.0, identity="7", **more):
    last = INCIDENT - timedelta(seconds=ago_s)
    start = {"system_identifier": identity, "timeline": timeline, "lsn": lsn, "last_commit_at": last}
    return NodeView(node, "east", "answers", in_recovery=True, **{**start, **more})


def known(promise=ASYNC, *, final=None, doubt=""):
    return Known("p", promise, doubt, final, NOW)


views = st.lists(
    st.builds(
        lambda node, reach, recovery, timeline, lsn, identity: NodeView(
            node, "east", reach, in_recovery=recovery, timeline=timeline, lsn=lsn, system_identifier=identity
        ),
        st.sampled_from(NAMES),
        st.sampled_from(["answers", "answers", "refused", "silent"]),
        st.sampled_from([True, True, False, None]),
        st.sampled_from([1, 2, None]),
        st.one_of(st.none(), st.integers(0, 5)),
        st.sampled_from(["7", "7", "8", None]),
    ),
    max_size=6,
    unique_by=lambda v: v.node,
)


@given(views)
def test_the_chosen_is_the_most_advanced_eligible_and_everyone_else_has_a_reason(candidates):
    choice = choose(candidates, "7")
    eligible = [
        v for v in candidates if v.reach == "answers" and v.in_recovery and position(v) and v.system_identifier == "7"
    ]
    assert (choice.chosen is None) == (not eligible)
    if choice.chosen:
        assert position(choice.chosen) == max(position(v) for v in eligible)
        assert choice.chosen == next(v for v in eligible if position(v) == position(choice.chosen))
    assert set(choice.passed_over) == {v.node for v in candidates if v != choice.chosen}
    assert all(choice.passed_over.values())


def test_newer_timeline_wins_over_a_higher_lsn():
    choice = choose([replica("a", 500), replica("b", 200, timeline=2)])
    assert choice.chosen is not None
    assert choice.chosen.node == "b"
    assert "timeline 1" in choice.passed_over["a"]


@st.composite
def clusters(draw):
    """A primary that acknowledged only what the promise allows, died, and left some of its standbys reachable."""
    listed = NAMES[: draw(st.integers(1, 4))]
    method = draw(st.sampled_from(["first", "any"]))
    needed = draw(st.integers(1, len(listed)))
    lsns = {n: draw(st.integers(0, 6)) for n in NAMES}
    acknowledged = sorted((lsns[n] for n in listed), reverse=True)[needed - 1]  # on at least `needed` of the listed
    reachable = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    everyone = [replica(n, lsns[n]) if n in reachable else NodeView(n, "east", "silent") for n in NAMES]
    target = draw(st.sampled_from(sorted(reachable)))
    return Durability(method, needed, listed), acknowledged, everyone, next(v for v in everyone if v.node == target)


@given(clusters())
def test_what_is_proven_zero_never_lacks_an_acknowledged_commit(cluster):
    promise, acknowledged, everyone, chosen = cluster
    found = estimate(chosen, everyone, known(promise))
    if found.proven_zero:
        assert chosen.lsn >= acknowledged
        assert judge(found, 0).state == "allowed"
    else:
        assert judge(found, 0).state != "allowed"
    assert found.lag_bytes >= 0


@given(clusters())
def test_the_proof_is_found_whenever_the_quorum_gives_it(cluster):
    promise, _, everyone, chosen = cluster
    seen = [v.lsn for v in everyone if v.node in promise.standbys and v.reach == "answers"]
    enough = len(seen) >= len(promise.standbys) - promise.needed + 1
    assert estimate(chosen, everyone, known(promise)).proven_zero == (enough and chosen.lsn >= max(seen))


def test_a_witness_of_another_database_or_one_that_writes_proves_nothing():
    promise = Durability("first", 1, ("b",))
    chosen = replica("a")
    for stranger in (replica("b", identity="8"), replace(replica("b"), in_recovery=False)):
        assert not estimate(chosen, [chosen, stranger], known(promise)).proven_zero
    assert estimate(chosen, [chosen, replica("b")], known(promise)).proven_zero


def test_any_standby_proves_nothing_and_neither_does_doubt():
    chosen = replica("a")
    assert not estimate(chosen, [chosen], known(Durability("first", 1, ("*",)))).proven_zero
    found = estimate(chosen, [chosen], known(None, doubt="the candidate is set up asynchronous"))
    assert not found.proven_zero
    assert "set up asynchronous" in found.basis


def test_the_end_of_a_fenced_primary_proves_zero_and_measures_the_lag():
    chosen = replica("a", 100)
    assert estimate(chosen, [chosen], known(final=(1, 100))).proven_zero
    behind = estimate(chosen, [chosen], known(final=(1, 130)))
    assert (behind.proven_zero, behind.lag_bytes) == (False, 30)
    # on a newer timeline than the chosen one bytes do not compare
    assert estimate(chosen, [chosen], known(final=(2, 100))).lag_bytes is None


def test_lag_counts_to_what_another_replica_heard_of():
    chosen = replica("a", 100)
    assert estimate(chosen, [chosen, replica("b", 90, upstream_lsn=160)], known()).lag_bytes == 60


def test_bound_runs_from_the_last_commit_until_now_whenever_the_incident_began():
    """The incident may have been that this replica was cut off, with a primary that went on for its own site."""
    chosen = replica("a", ago_s=5)
    assert estimate(chosen, [chosen], known()).bound_s == 35
    late = replica("a", ago_s=-10)
    assert estimate(late, [late], known()).bound_s == 20
    assert estimate(replace(chosen, last_commit_at=None), [chosen], known()).bound_s is None


@pytest.mark.parametrize(
    ("bound_s", "rpo_s", "state", "met"),
    [
        (5.0, 60, "allowed", True),
        (5.0, 5, "allowed", True),
        (5.1, 5, "above_budget", False),
        (0.0, 0, "above_budget", False),
        (None, 60, "unknown", False),
        (None, None, "allowed", None),
    ],
)
def test_verdict(bound_s, rpo_s, state, met):
    verdict = judge(Loss(0, bound_s, proven_zero=False, basis="because"), rpo_s)
    assert (verdict.state, verdict.met) == (state, met)
    assert verdict.reasons


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_verdict_allows_exactly_the_bounds_within_a_budget_above_zero(bound_s, rpo_s):
    verdict = judge(Loss(None, bound_s, proven_zero=False, basis=""), rpo_s)
    assert (verdict.state == "allowed") == (rpo_s > 0 and bound_s <= rpo_s)


def test_facts_for_the_report():
    proven = Loss(12, 0.0, proven_zero=True, basis="x")
    found = facts(proven, judge(proven, 0))
    assert (found["lag_bytes"], found["lost_transactions"], found["bound_s"]) == (12, 0, 0.0)
    assert (found["proven_zero"], found["met"]) == (True, True)


@pytest.mark.parametrize(
    ("text", "durability"),
    [
        ("", ASYNC),
        ("FIRST 1 (east-pg1)", Durability("first", 1, ("east-pg1",))),
        ('2 ("east-pg1", b)', Durability("first", 2, ("east-pg1", "b"))),
        ("any 1(a,b , c)", Durability("any", 1, ("a", "b", "c"))),
        ("a, b", Durability("first", 1, ("a", "b"))),
        ("*", Durability("first", 1, ("*",))),
        ('ANY 2 ("q""uote", x, y)', Durability("any", 2, ('q"uote', "x", "y"))),
    ],
)
def test_synchronous_standby_names(text, durability):
    assert parse(text) == durability
    assert parse(show(durability)) == durability
    assert parse(text, "local") == ASYNC


@pytest.mark.parametrize("text", ["FIRST 1 ()", "FIRST 3 (a, b)", "ANY 0 (a)", "a b", "a,", '"open'])
def test_what_is_no_synchronous_standby_names(text):
    with pytest.raises(ValueError):
        parse(text)
