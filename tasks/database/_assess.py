"""Is the primary down? Decided from all vantage points and from its replicas together, never from one probe.

The idea is orchestrator's "holistic" failure detection: replicas hold a connection to the primary all the time, so
what they say weighs as much as our own probes. Pure: views in, a verdict and its reasons out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tasks.contract import Facts
from tasks.database.protocol import NodeView

State = Literal["healthy", "dead", "hung", "partitioned", "contradictory"]


@dataclass(frozen=True)
class Assessment:
    """What the evidence amounts to.

    ``dead``: something answered for the host that nothing listens, nobody sees it alive. ``hung``: silence only, for
    everyone (stopped, overloaded, powered off or cut off from all). ``partitioned``: it depends on where one looks
    from. ``contradictory``: the witnesses exclude each other, or it lives in a state that is neither up nor down.
    """

    state: State
    reasons: tuple[str, ...]
    evidence: Facts = field(default_factory=dict)


def assess_primary(primary: str, views: Mapping[str, NodeView], replicas: Sequence[NodeView]) -> Assessment:
    """Assess node ``primary`` from ``views`` (vantage -> the node as seen from there) and the other nodes' own views.

    Args:
        primary: the node that is or was the primary.
        views: one view of ``primary`` a vantage point; a view whose ``reach`` is not ``answers`` is a failed probe.
        replicas: every other node as it sees itself; those that do not answer are no witnesses.
    """
    evidence: Facts = {
        "vantages": {name: v.reach for name, v in views.items()},
        "replicas": {v.node: _witness(v, primary) for v in replicas},
    }

    def verdict(state: State, *reasons: str) -> Assessment:
        return Assessment(state, reasons, evidence)

    others = [v.node for v in replicas if v.node != primary and _writes(v)]
    alive = {name: v for name, v in views.items() if v.reach == "answers"}
    failed = {name: v for name, v in views.items() if v.reach != "answers"}
    if others:
        seen = "answers too" if alive else f"is the one to be assessed ({_list(failed)})"
        return verdict("contradictory", f"{', '.join(others)} is a primary that takes writes, and {primary} {seen}")
    if alive:
        return _when_it_answers(primary, alive, failed, verdict)
    fresh = [v for v in replicas if evidence["replicas"][v.node] == "streams"]
    lost = [v for v in replicas if evidence["replicas"][v.node] == "lost"]
    if fresh:
        return verdict(
            "contradictory",
            f"no vantage point reaches {primary} ({_list(failed)})",
            *(f"replica {v.node} streams from it, last heard {_age(v)} ago" for v in fresh),
        )
    if not views:
        return verdict("contradictory", f"no vantage point looked at {primary}")
    if replicas and not lost:
        return verdict(
            "partitioned",
            f"no vantage point reaches {primary} ({_list(failed)})",
            "and no replica that follows it answers to bear witness: it may be this side that is cut off",
        )
    state: State = "dead" if any(v.reach == "refused" for v in views.values()) else "hung"
    return verdict(
        state,
        f"no vantage point reaches it ({_list(failed)})",
        *(f"replica {v.node} lost it, last heard {_age(v)} ago" for v in lost),
    )


def _when_it_answers(
    primary: str, alive: Mapping[str, NodeView], failed: Mapping[str, NodeView], verdict: Callable[..., Assessment]
) -> Assessment:
    replica = [name for name, v in alive.items() if v.in_recovery]
    unclear = [name for name, v in alive.items() if v.in_recovery is None]
    fenced = [name for name, v in alive.items() if v.in_recovery is False and v.read_only]
    if replica:
        return verdict("contradictory", f"{primary} answers as a replica from {', '.join(replica)}")
    if len(unclear) == len(alive):
        said = next(iter(alive.values())).why or "it does not say why"
        return verdict("contradictory", f"{primary} is there but takes no queries: {said}")
    if fenced:
        return verdict(
            "contradictory",
            f"{primary} answers but is read only: fenced by an earlier run; resume that run, or unfence it",
        )
    if failed:
        return verdict(
            "partitioned",
            f"{primary} answers as primary from {', '.join(alive)}",
            f"but not from others ({_list(failed)})",
        )
    return verdict("healthy", f"{primary} answers as primary from {', '.join(alive)}")


def _writes(view: NodeView) -> bool:
    return view.reach == "answers" and view.in_recovery is False and not view.read_only


def _witness(view: NodeView, primary: str) -> str:
    """``streams`` or ``lost`` where it bears witness on ``primary``; otherwise why it does not."""
    if view.reach != "answers":
        return view.reach
    if not view.in_recovery:
        return "no replica"
    if view.upstream not in (primary, None):
        return f"follows {view.upstream}"
    if view.streaming is None:
        return "cannot tell"
    return "streams" if view.streaming else "lost"


def _age(view: NodeView) -> str:
    return "an unknown time" if view.heard_age_s is None else f"{view.heard_age_s:.1f} s"


def _list(views: Mapping[str, NodeView]) -> str:
    return ", ".join(f"{v.reach} from {name}" for name, v in views.items())
