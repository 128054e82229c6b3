"""Which replica to promote, what promoting it would lose, and whether that is allowed. Pure: views in, decision out.

The proof of "nothing is lost" is a quorum argument: with ``FIRST k`` or ``ANY k`` of n listed standbys, each
acknowledged commit was on at least k of the n. Any n-k+1 of them therefore hold one that has it, so when that many
are seen and the chosen replica is as far as the furthest of them, it has every acknowledged commit.
Without that proof there is only an upper bound in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tasks.contract import Facts
from tasks.database.protocol import Durability, NodeView
from tasks.quantities import show_duration

Position = tuple[int, int]
"""(timeline, LSN): what was written on a newer timeline comes after everything on an older one."""


@dataclass(frozen=True)
class Choice:
    """``chosen`` None: no candidate is eligible. ``passed_over``: node -> why it was not chosen."""

    chosen: NodeView | None
    passed_over: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What is known of the lost primary at the moment of decision.

    Attributes:
        primary: its node name; None where nothing tells it.
        promise: what an acknowledged commit was promised, None where it cannot be relied on (see ``doubt``).
        doubt: in words, why the declared promise is not relied on.
        final: position after which the fenced primary wrote nothing; None where it died unobserved.
        final_at: moment after which it wrote nothing, where nothing tells positions.
        now: moment of the decision; no write was taken later, since the primary is fenced by then.
    """

    primary: str | None
    promise: Durability | None
    doubt: str
    final: Position | None
    now: datetime
    final_at: datetime | None = None


@dataclass(frozen=True)
class Loss:
    """What promoting the chosen replica loses.

    ``lag_bytes`` counts to the furthest position that anyone is known to have reached, acknowledged or not, so it may
    be above zero although nothing acknowledged is lost; None: nothing to compare with. ``bound_s``: commits of at most
    this many seconds; an idle system is overestimated, since only a commit moves the clock of a replica.
    """

    lag_bytes: int | None
    bound_s: float | None
    proven_zero: bool
    basis: str


@dataclass(frozen=True)
class Verdict:
    """``unknown`` counts as above the budget."""

    state: Literal["allowed", "above_budget", "unknown"]
    reasons: tuple[str, ...]
    met: bool | None
    """The objective itself, waived or not; None where there is none."""


def position(view: NodeView) -> Position | None:
    """How far a node is. None where it cannot be told."""
    return None if view.lsn is None or view.timeline is None else (view.timeline, view.lsn)


def advance(view: NodeView) -> tuple[Position, float] | None:
    """Orders nodes by how far they are: by position, or, where a service tells none, by the last commit they have."""
    at = position(view)
    if at is not None:
        return at, 0.0
    return None if view.last_commit_at is None else ((-1, -1), view.last_commit_at.timestamp())


def choose(candidates: Sequence[NodeView], system_identifier: str | None = None) -> Choice:
    """The most advanced eligible replica; of equals the one that stands first.

    Args:
        candidates: nodes of the target site, in the order of the system file.
        system_identifier: of the database, where known; otherwise the one that most candidates have.
    """
    identities = Counter(v.system_identifier for v in candidates if v.in_recovery and v.system_identifier)
    expected = system_identifier or (identities.most_common(1)[0][0] if identities else None)
    passed_over: dict[str, str] = {}
    eligible: list[tuple[tuple[Position, float], int, NodeView]] = []
    for rank, view in enumerate(candidates):
        at = advance(view)
        why = _unfit(view, expected)
        if why or at is None:
            passed_over[view.node] = why or "how far it is cannot be told"
        else:
            eligible.append((at, -rank, view))
    if not eligible:
        return Choice(None, passed_over)
    best = max(eligible, key=lambda e: e[:2])
    passed_over |= {v.node: _behind(at, best[0]) for at, _, v in eligible if v.node != best[2].node}
    return Choice(best[2], passed_over)


def estimate(chosen: NodeView, everyone: Sequence[NodeView], known: Known) -> Loss:
    """What promoting ``chosen`` would lose, from the views of every node taken after the old primary was fenced."""
    mine = position(chosen)
    if mine is None:
        return _by_time(chosen, known)
    furthest = max([mine, *_reached(everyone, chosen), *([known.final] if known.final else [])])
    # A newer timeline elsewhere means that bytes cannot be compared at all.
    lag_bytes = furthest[1] - mine[1] if furthest[0] == mine[0] else None
    if known.final is not None and mine >= known.final:
        return Loss(lag_bytes, 0.0, proven_zero=True, basis=f"{chosen.node} has all that the fenced primary wrote")
    proof, why = _quorum(chosen, everyone, known)
    if proof:
        return Loss(lag_bytes, 0.0, proven_zero=True, basis=why)
    bound_s, window = _bound(chosen, known)
    return Loss(lag_bytes, bound_s, proven_zero=False, basis=f"{why}; {window}")


def _by_time(chosen: NodeView, known: Known) -> Loss:
    """Where a service tells no position, but up to when its replica is complete."""
    last = chosen.last_commit_at
    if last is None:
        return Loss(None, None, proven_zero=False, basis=f"how far {chosen.node} is cannot be told")
    if known.final_at is not None and last >= known.final_at:
        return Loss(None, 0.0, proven_zero=True, basis=f"{chosen.node} is complete until after the primary was fenced")
    bound_s = round(max(0.0, (known.now - last).total_seconds()), 3)
    return Loss(None, bound_s, proven_zero=False, basis="from the moment up to which its service says it is complete")


def judge(loss: Loss, rpo_s: float | None) -> Verdict:
    """Is ``loss`` within the recovery point objective? A waiver is for the caller to weigh."""
    if loss.proven_zero:
        return Verdict(
            "allowed", (f"no acknowledged commit is lost: {loss.basis}",), met=None if rpo_s is None else True
        )
    if rpo_s is None:
        return Verdict("allowed", ("no RPO is set for this component", loss.basis), met=None)
    allowed = f"the RPO allows {show_duration(rpo_s)}"
    if loss.bound_s is None:
        return Verdict("unknown", (f"how much would be lost is not known, {allowed}", loss.basis), met=False)
    at_most = f"commits of up to {show_duration(loss.bound_s)} may be lost, {allowed}"
    # Zero is proven or it is not: a bound that happens to be 0 proves nothing.
    if rpo_s > 0 and loss.bound_s <= rpo_s:
        return Verdict("allowed", (at_most, loss.basis), met=True)
    return Verdict("above_budget", (at_most, loss.basis), met=False)


def facts(loss: Loss, verdict: Verdict, waiver: str | None = None) -> Facts:
    """As the journal and the report have it, under the key ``rpo``."""
    return {
        "lag_bytes": loss.lag_bytes,
        "lost_transactions": 0 if loss.proven_zero else None,
        "bound_s": loss.bound_s,
        "proven_zero": loss.proven_zero,
        "met": verdict.met,
        "verdict": verdict.state,
        "reasons": list(verdict.reasons),
        "waiver": waiver,
    }


def promise_of(
    primary: str | None, declared: Durability, noted: tuple[str, Durability] | None, live: Durability
) -> tuple[Durability | None, str]:
    """(what the lost ``primary`` promised, or None and in words why nothing can be relied on).

    What it noted in the replicated data counts most, but only its own note: a promotion by other hands leaves that of
    an earlier primary behind. Without a note the system file counts, unless it cannot be meant for this primary, or
    the candidate's own setting contradicts it.
    """
    doubt = ""
    if primary is None:
        doubt = "nothing tells which node was the primary, so nothing tells what it promised"
    elif noted is not None:
        if noted[0] == primary:
            return noted[1], ""
        doubt = f"the data hold a note of {noted[0]}, none of {primary}: what that promised is not known"
    elif declared.method != "async" and primary in declared.standbys:
        doubt = f"the system file names {primary} as a standby, so it does not say what that promised as primary"
    elif declared.method != "async" and live.method == "async":
        doubt = "the system file declares a synchronous standby, the candidate is set up without one"
    return (None, doubt) if doubt else (declared, "")


def _unfit(view: NodeView, expected: str | None) -> str:
    if view.reach != "answers":
        return f"it does not answer ({view.reach}{': ' + view.why if view.why else ''})"
    if view.in_recovery is None:
        return f"its role cannot be told{': ' + view.why if view.why else ''}"
    if not view.in_recovery:
        return "it is no replica"
    if expected is not None and view.system_identifier != expected:
        return f"it is another database: system identifier {view.system_identifier}, expected {expected}"
    return ""


def _behind(mine: tuple[Position, float], furthest: tuple[Position, float]) -> str:
    at, best = mine[0], furthest[0]
    if mine[1] != furthest[1]:
        return f"it is {furthest[1] - mine[1]:.1f} s behind"
    if at[0] != best[0]:
        return f"it is on timeline {at[0]}, the chosen one on {best[0]}"
    return f"it is {best[1] - at[1]} bytes behind" if at != best else "as far as the chosen one, which stands first"


def _reached(everyone: Sequence[NodeView], chosen: NodeView) -> list[Position]:
    """Positions that any node, or what it heard of its primary, is known to have reached."""
    found: list[Position] = []
    for view in everyone:
        if view.timeline is None or view.system_identifier not in (None, chosen.system_identifier):
            continue
        found += [(view.timeline, lsn) for lsn in (view.lsn, view.upstream_lsn) if lsn is not None]
    return found


def _quorum(chosen: NodeView, everyone: Sequence[NodeView], known: Known) -> tuple[bool, str]:
    """(proven, why or why not)."""
    promise = known.promise
    if promise is None:
        return False, known.doubt
    if promise.method == "async":
        return False, "commits were acknowledged before any standby had them (asynchronous)"
    if "*" in promise.standbys:
        return False, "any standby at all could have confirmed a commit (*), also one that is not listed"
    listed, mine = set(promise.standbys), position(chosen)
    seen = [v for v in everyone if v.node in listed and _witness(v, chosen)]
    enough = len(listed) - promise.needed + 1
    said = f"{promise.method.upper()} {promise.needed} ({', '.join(promise.standbys)})"
    if len(seen) < enough:
        return False, f"{said}: {len(seen)} of its standbys answer, {enough} are needed for a proof"
    ahead = [v.node for v in seen if mine is None or (position(v) or mine) > mine]
    if ahead:
        return False, f"{said}: {', '.join(ahead)} is further than {chosen.node}, and may hold acknowledged commits"
    return True, f"{said}: {chosen.node} is as far as {len(seen)} of its standbys that answer, {enough} are enough"


def _witness(view: NodeView, chosen: NodeView) -> bool:
    same = view.system_identifier == chosen.system_identifier
    return view.reach == "answers" and view.in_recovery is True and position(view) is not None and same


def _bound(chosen: NodeView, known: Known) -> tuple[float | None, str]:
    last = chosen.last_commit_at
    if last is None:
        return None, f"{chosen.node} has replayed no commit since it started, so no time can be given"
    # Until now, not until the incident began: that it began then (a replica cut off, an alert) does not prove that the
    # primary took no writes afterwards. It certainly took none after it was fenced.
    gap_s = max(0.0, (known.now - last).total_seconds())
    return round(gap_s, 3), "from the last commit replayed until the promotion; idle and down time count as loss"
