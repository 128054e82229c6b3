"""Holistic detection: every combination of what the vantage points and the replicas say."""

from __future__ import annotations

import itertools

import pytest

from tasks.database._assess import assess_primary
from tasks.database.protocol import NodeView


def seen(reach="answers", *, recovery=False, **more):
    return NodeView("a", "west", reach, in_recovery=recovery if reach == "answers" else None, **more)


def replica(node="b", *, streaming=None, upstream="a", reach="answers"):
    return NodeView(node, "east", reach, in_recovery=True, streaming=streaming, upstream=upstream, heard_age_s=0.2)


OTHER_PRIMARY = NodeView("c", "east", "answers", in_recovery=False, read_only=False)
FENCED_OTHER = NodeView("c", "east", "answers", in_recovery=False, read_only=True)


@pytest.mark.parametrize(
    ("views", "replicas", "state"),
    [
        (("answers", "answers"), [replica(streaming=True)], "healthy"),
        (("answers", "answers"), [replica(streaming=False)], "healthy"),
        (("answers", "silent"), [replica(streaming=False)], "partitioned"),
        (("answers", "refused"), [replica(streaming=False)], "partitioned"),
        (("refused", "refused"), [replica(streaming=False)], "dead"),
        (("refused", "silent"), [replica(streaming=False)], "dead"),
        (("silent", "silent"), [replica(streaming=False)], "hung"),
        (("silent", "silent"), [replica(streaming=True), replica("c", streaming=False)], "contradictory"),
        (("refused", "refused"), [replica(streaming=True)], "contradictory"),
        (("refused", "refused"), [replica(streaming=True, upstream="b2")], "partitioned"),
        (("silent", "silent"), [replica(reach="silent")], "partitioned"),
        (("refused", "refused"), [replica(streaming=None)], "partitioned"),
        (("refused", "refused"), [], "dead"),
        ((), [replica(streaming=False)], "contradictory"),
        (("answers", "answers"), [OTHER_PRIMARY], "contradictory"),
        (("refused", "refused"), [OTHER_PRIMARY, replica(streaming=False)], "contradictory"),
        (("refused", "refused"), [FENCED_OTHER, replica(streaming=False)], "dead"),
    ],
)
def test_verdict(views, replicas, state):
    found = assess_primary("a", {f"v{i}": seen(r) for i, r in enumerate(views)}, replicas)
    assert found.state == state, found.reasons
    assert found.reasons
    assert set(found.evidence["vantages"]) == {f"v{i}" for i in range(len(views))}


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (seen(recovery=True), "answers as a replica"),
        (seen(recovery=None, why="the database system is starting up"), "starting up"),
        (seen(read_only=True), "read only"),
    ],
)
def test_answer_that_is_neither_up_nor_down_is_contradictory(view, reason):
    found = assess_primary("a", {"v": view}, [replica(streaming=True)])
    assert found.state == "contradictory"
    assert reason in found.reasons[0]


def test_never_dead_while_one_witness_sees_it_alive():
    reaches = ("answers", "refused", "silent")
    for first, second, streaming in itertools.product(reaches, reaches, (True, False, None)):
        found = assess_primary("a", {"x": seen(first), "y": seen(second)}, [replica(streaming=streaming)])
        alive = "answers" in (first, second) or streaming
        assert (found.state in ("dead", "hung")) == (not alive and streaming is False), (first, second, streaming)
