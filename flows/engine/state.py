"""Where a run stands, computed from its journal alone, and what to do next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flows.engine.journal import Record
from flows.engine.plan import Plan, PlannedStep
from tasks.contract import Done, Facts

Outcome = Literal["done", "already", "skipped", "failed", "unknown", "undone", "undo_failed"]
Verdict = Literal["succeeded", "objective_missed", "failed", "unknown", "refused", "undone", "interrupted"]
FINISHED: frozenset[Verdict] = frozenset(("succeeded", "objective_missed", "undone"))
"""Nothing is left to resume."""
GOOD: frozenset[str] = frozenset(("done", "already"))


@dataclass
class StepState:
    """One step so far. ``before`` are the facts at the first intent: what undo has to put back."""

    outcome: Outcome | None = None
    attempts: int = 0
    intent: bool = False
    before: Facts | None = None
    facts: Facts = field(default_factory=dict)
    summary: str = ""
    error: Facts | None = None
    """Why it failed; an undo afterwards does not overwrite it."""
    undo_error: Facts | None = None
    uncertain: bool = False
    """An effect was begun and nothing since has told whether it happened."""
    doubted: bool = False
    """So it was of an earlier attempt: what a later one knows of its own effect settles nothing about that."""
    perhaps: bool = False
    """At some time it could not be told whether its effect happened: later failures do not take that back."""
    intents: tuple[Facts, ...] = ()
    """Facts of every intent of this run, oldest first."""
    undo_tried: bool = False
    """Undone, or its undo failed since the run was last taken up."""
    started_at: str | None = None
    ended_at: str | None = None
    duration_s: float = 0.0
    action: str = ""

    @property
    def in_flight(self) -> bool:
        """An effect was intended and nothing is known of what came of it."""
        return self.intent and self.outcome is None


@dataclass
class RunState:
    """A run so far."""

    steps: dict[str, StepState] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Steps in the order in which their outcomes were recorded."""
    undoing: bool = False
    aborted: str = ""
    """Who asked that the run goes back, and why."""
    ended: Verdict | None = None
    noted: set[tuple[object, ...]] = field(default_factory=set)
    """Answers of people and what was made of them: they are not noted twice."""

    @property
    def going_back(self) -> bool:
        return self.undoing or bool(self.aborted)

    def of(self, step_id: str) -> StepState:
        return self.steps.setdefault(step_id, StepState())

    def earlier(self) -> tuple[Done, ...]:
        """Ended steps, oldest first, as actions see them."""
        found = []
        for step_id in self.order:
            s = self.steps[step_id]
            if s.outcome is not None:
                found.append(Done(step_id, s.action, s.outcome, s.facts))
        return tuple(found)


def fold(records: Iterable[Record]) -> RunState:
    """Replay a journal."""
    state = RunState()
    for record in records:
        advance(state, record)
    return state


def advance(state: RunState, record: Record) -> None:
    """Apply one record. Types that say nothing about steps are passed over."""
    kind = record["type"]
    if kind == "run_resumed":
        _taken_up(state, record)
    elif kind == "run_ended":
        state.ended = record["verdict"]
    elif kind == "undo_started":
        state.undoing = True
    elif kind == "abort_requested":
        state.aborted = f"by {record['by']}: {record['why']}"
    elif kind in ("intent", "attempt_failed", "outcome"):
        _advance_step(state, state.of(record["step"]), record)
    elif kind == "approval":
        state.noted.add((record["step"], record["digest"], record["counted"], record["against"]))


def _taken_up(state: RunState, record: Record) -> None:
    """What failed, or never came to run because of it, gets another chance; what is true stays. A run that went back
    goes on going back: it is the undo that gets another chance.
    """
    state.ended = None
    for step in state.steps.values():
        step.perhaps = step.perhaps or (step.in_flight and step.uncertain)
        if step.outcome == "undo_failed":
            step.undo_tried = False
        elif step.outcome in ("failed", "skipped", "unknown") and not state.going_back:
            step.outcome = None
    for step_id in record.get("reopened", ()):
        state.of(step_id).outcome = None
    state.order = [i for i in state.order if state.steps[i].outcome is not None]


def _advance_step(state: RunState, step: StepState, record: Record) -> None:
    step.action = record["action"]
    step.attempts = max(step.attempts, record.get("attempt", 0))
    if record["type"] == "intent":
        step.doubted = step.doubted or step.uncertain
        step.intent = step.uncertain = True
        step.intents = (*step.intents, record["before"])
        if step.before is None:
            step.before = record["before"]
        step.started_at = step.started_at or record["started_at"]
    elif record["type"] == "attempt_failed":
        step.error = record["error"]
        known = record["stage"] == "observe" or (record["stage"] == "apply" and record["error"]["state_known"])
        step.perhaps = step.perhaps or (step.intent and not known)
        # Looking says nothing about earlier attempts, and a failure to read back nothing about the effect.
        if record["stage"] == "apply":
            step.uncertain = step.doubted or not record["error"]["state_known"]
    else:
        step.outcome = record["outcome"]
        step.uncertain = step.doubted = record["outcome"] == "unknown"
        step.perhaps = step.perhaps or step.uncertain
        step.facts = record["facts"]
        step.summary = record["summary"]
        if record["outcome"] in ("undone", "undo_failed"):
            step.undo_error = record.get("error")
            step.undo_tried = True
        else:
            step.error = record.get("error")
            step.started_at = step.started_at or record.get("started_at")
        step.ended_at = record["at"]
        step.duration_s = record["duration_s"]
        if record["outcome"] not in ("undone", "undo_failed") and record["step"] in state.order:
            state.order.remove(record["step"])
        if record["step"] not in state.order:
            state.order.append(record["step"])


@dataclass(frozen=True)
class Decision:
    """What to do now: steps to start, steps to record as skipped (id -> why), or what to undo in order.

    ``settle``: steps that stay and whose effect was in flight when an engine died: they are looked at, no more.
    """

    start: tuple[PlannedStep, ...] = ()
    skip: Mapping[str, str] = field(default_factory=dict)
    undo: tuple[PlannedStep, ...] = ()
    settle: tuple[PlannedStep, ...] = ()


def goes_back(plan: Plan, state: RunState) -> bool:
    """Nothing more is done but undone: a person asked for it, or a step failed whose failure asks for it."""
    return state.going_back or any(s.on_failure == "undo" and state.of(s.id).outcome == "failed" for s in plan.steps)


def stopped_at(plan: Plan, state: RunState) -> PlannedStep | None:
    """The step whose failure stopped the run: nothing more of it begins."""
    bad = (s for s in plan.steps if state.of(s.id).outcome in ("failed", "unknown"))
    return next((s for s in bad if s.on_failure in ("stop", "ask", "undo")), None)


def over(plan: Plan, state: RunState) -> bool:
    """It goes back, or a failure stopped it: no further step begins."""
    return goes_back(plan, state) or stopped_at(plan, state) is not None


def decide(plan: Plan, state: RunState, running: Iterable[str] = ()) -> Decision:
    """The next moves. Same journal, same plan: same answer; that is what makes resume safe."""
    busy = set(running)
    if goes_back(plan, state):
        if busy:  # nothing is undone while an effect is still under way
            return Decision()
        undo, stay = undoable(plan, state)
        settle = tuple(s for s in stay if state.of(s.id).in_flight)
        if settle:
            return Decision(settle=settle)
        never = [s.id for s in plan.steps if state.of(s.id).outcome is None]
        return Decision(undo=undo) if undo else Decision(skip=dict.fromkeys(never, "the run went back"))
    stop = stopped_at(plan, state)
    start: list[PlannedStep] = []
    skip: dict[str, str] = {}
    for step in plan.steps:
        if state.of(step.id).outcome is not None or step.id in busy:
            continue
        blocked = next(
            (n for n in step.needs if n in skip or state.of(n).outcome in ("failed", "unknown", "skipped")), ""
        )
        if blocked:
            skip[step.id] = f"needs {blocked}, which was {'skipped' if blocked in skip else state.of(blocked).outcome}"
        elif stop is not None:
            skip[step.id] = f"the run stopped at {stop.id}"
        elif all(state.of(n).outcome in GOOD for n in step.needs):
            start.append(step)
    # while something still runs nothing is written off: its end may change the picture
    return Decision(tuple(start), {} if busy or start else skip)


def reopened(plan: Plan, state: RunState) -> list[str]:
    """Checks to ask again when a run is taken up: what they said may be long ago.

    Those that are done, and that a changing step which has not ended well needs directly, or through other checks, on
    the way to a point of no return that was not begun: before a fence it is asked again whether the primary is down at
    all, and whether people still say yes. Behind the fence it is not: it is down because of it. Where a planned move
    began its fence, it is read only because of it, and not ready for a switch any more.
    """
    if state.going_back:
        return []
    ahead = [s.id for s in plan.steps if s.irreversible and not state.of(s.id).intent]
    leads = {i for point in ahead for i in (point, *plan.ancestors(point))}
    unfinished = [
        s for s in plan.steps if s.id in leads and not s.action.read_only and state.of(s.id).outcome not in GOOD
    ]
    asking = [s for s in unfinished if plan.mode == "forced" or not state.of(s.id).intent]
    needed: set[str] = set()
    todo = [n for s in asking for n in s.needs]
    while todo:
        one = plan.by_id[todo.pop()]
        if one.id not in needed and one.action.read_only:
            needed.add(one.id)
            todo.extend(one.needs)
    return [s.id for s in plan.steps if s.id in needed and state.of(s.id).outcome in GOOD]


def undoable(plan: Plan, state: RunState) -> tuple[tuple[PlannedStep, ...], tuple[PlannedStep, ...]]:
    """Steps to undo, newest first, and done steps that stay as they are because they cannot be undone.

    Undo goes back to the newest irreversible step that took (or may have taken) effect and no further: putting back
    what came before a promotion would make a second writer, also when an earlier run promoted. One that failed, and of
    which it was known at every moment that nothing happened, is no such point.
    """
    undo: list[PlannedStep] = []
    stay: list[PlannedStep] = []
    passed_point = False
    for step in reversed(_touched(plan, state)):
        if state.of(step.id).outcome == "skipped" or state.of(step.id).undo_tried or _spared(step, state):
            continue
        if step.irreversible:
            passed_point = True
        if passed_point or not step.reversible:
            if not step.action.read_only:
                stay.append(step)
        else:
            undo.append(step)
    return tuple(undo), tuple(stay)


def point_passed(plan: Plan, state: RunState) -> str | None:
    """The irreversible step that took, or may have taken, effect; None while everything can still be put back."""
    found = (s.id for s in _touched(plan, state) if s.irreversible and not _spared(s, state))
    return next((i for i in found if state.of(i).outcome != "skipped"), None)


def _touched(plan: Plan, state: RunState) -> list[PlannedStep]:
    """Steps that began an effect, or found an irreversible one done, oldest first."""
    ended = [plan.by_id[i] for i in state.order if i in plan.by_id]
    touched = [s for s in ended if state.of(s.id).intent or (s.irreversible and state.of(s.id).outcome in GOOD)]
    return touched + [s for s in plan.steps if state.of(s.id).in_flight and s not in touched]


def _spared(step: PlannedStep, state: RunState) -> bool:
    """An irreversible step of which it was known at every moment that nothing happened."""
    now = state.of(step.id)
    return step.irreversible and now.outcome in ("failed", None) and not now.perhaps and not now.uncertain
