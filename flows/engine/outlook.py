"""Where a run stands and what can still be done about it: computed from its journal and its own plan. Reads only."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows.engine import alive, launch
from flows.engine.journal import Record, of_type, read
from flows.engine.objectives import recovery_times
from flows.engine.plan import Plan
from flows.engine.state import FINISHED, GOOD, RunState, fold, point_passed, undoable
from tasks.errors import BadInput, RelightError, SafetyRefusal


class Remaining(BaseModel):
    """A step that has not ended well yet. ``worst_case_s``: all its attempts at their time-outs."""

    model_config = ConfigDict(frozen=True)

    id: str
    action: str
    in_flight: bool
    worst_case_s: float


class Outlook(BaseModel):
    """What ``relight status`` says beside the report.

    Attributes:
        would_undo: steps that an abort would put back, in that order; empty past the point of no return, where it is
            refused.
        would_stay: changed steps that going back leaves as they are.
        point_of_no_return: the step; ``passed``: it took effect, or may have.
        remains: in the order of the plan.
        predicted_s: component -> seconds from the start of the incident until it is restored, if everything that
            remains takes its worst case; those restored already have their actual time.
        unknown: why the above cannot be told (the files changed); then the lists are empty.
    """

    model_config = ConfigDict(frozen=True)

    ended: bool
    would_undo: tuple[str, ...] = ()
    would_stay: tuple[str, ...] = ()
    point_of_no_return: str | None = None
    passed: bool = False
    remains: tuple[Remaining, ...] = ()
    predicted_s: dict[str, float] = {}
    unknown: str = ""


def of(records: tuple[Record, ...], now: datetime) -> Outlook:
    """The outlook of the run with this journal at ``now`` (aware). A journal without a beginning has none."""
    head = next(of_type(records, "run_started"), None)
    state = fold(records)
    if head is None:
        return Outlook(ended=False, unknown="the run never began")
    try:
        plan = _plan(head)
    except RelightError as e:
        return Outlook(ended=state.ended is not None, unknown=str(e))
    undo, stay = undoable(plan, state)
    passed = point_passed(plan, state)
    if passed:
        undo, stay = (), (*undo, *stay)
    return Outlook(
        ended=state.ended is not None,
        would_undo=tuple(s.id for s in undo),
        would_stay=tuple(s.id for s in stay),
        point_of_no_return=passed or plan.point_of_no_return,
        passed=passed is not None,
        remains=tuple(
            Remaining(
                id=s.id, action=s.action.name, in_flight=state.of(s.id).in_flight, worst_case_s=round(s.worst_case_s, 3)
            )
            for s in plan.steps
            if state.of(s.id).outcome not in GOOD
        ),
        predicted_s=_predicted(plan, state, records, head, now),
    )


def _plan(head: dict[str, Any]) -> Plan:
    """The plan that the run has. Raises RelightError where its files are gone or say something else by now."""
    files = head["files"]
    plan = launch.prepare(files["system"], files["runbook"], head["mode"], head.get("vars", {})).plan
    if plan.digest != head["plan"]["digest"]:
        raise RelightError("the files of this run changed since it began, so its remaining steps cannot be told")
    return plan


def _predicted(
    plan: Plan, state: RunState, records: tuple[Record, ...], head: Record, now: datetime
) -> dict[str, float]:
    elapsed_s = (now - datetime.fromisoformat(head["incident_started_at"])).total_seconds()
    found = dict(recovery_times(records))
    ends: dict[str, float] = {}
    for step in plan.steps:
        left_s = 0.0 if state.of(step.id).outcome in GOOD else step.worst_case_s
        ends[step.id] = max((ends[n] for n in step.needs), default=0.0) + left_s
        if step.restores and step.restores not in found:
            found[step.restores] = elapsed_s + ends[step.id]
    return {component: round(seconds, 3) for component, seconds in found.items()}


def going_back(folder: Path) -> Outlook:
    """What an abort of the run in ``folder`` would do now.

    Raises BadInput where there is nothing to abort, SafetyRefusal behind the point of no return.
    """
    records = read(folder / "journal.jsonl").records
    ahead, ended = of(records, datetime.now(UTC)), fold(records).ended
    if ended in FINISHED:
        raise BadInput(f"run {folder.name} has ended ({ended}); there is nothing to put back")
    if ahead.unknown and not alive.alive(folder):
        raise BadInput(f"run {folder.name} cannot go back: {ahead.unknown}")
    if ahead.passed:
        raise behind(folder.name, str(ahead.point_of_no_return))
    return ahead


def behind(run_id: str, point: str) -> SafetyRefusal:
    """Why an abort is refused behind the point of no return."""
    return SafetyRefusal(
        f"run {run_id} passed its point of no return, or may have ({point}): putting back what came before or after it"
        f" would leave the system with two writers or with none. The way out is on: relight resume {run_id}. To stop it"
        " where it is: SIGTERM to its process, or relight pause."
    )
