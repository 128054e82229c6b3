"""How a run ended, in one word and one sentence. Pure."""

from __future__ import annotations

from flows.engine.plan import Plan
from flows.engine.run import Run
from flows.engine.state import GOOD, RunState, Verdict, decide


def concluded(plan: Plan, state: RunState, *, objectives_met: bool) -> Verdict:
    """The verdict once nothing is under way any more.

    What is unknown is said first, since someone has to look; then whether anything is left to do (the run was asked to
    stop), and only then what failed.
    """
    steps = [state.of(s.id) for s in plan.steps]
    outcomes = {s.outcome for s in steps}
    if "unknown" in outcomes:
        return "unknown"
    left = decide(plan, state)
    if left.start or left.undo:
        return "interrupted"
    if state.undoing and not outcomes & {"undo_failed", None}:
        return "undone"
    failed = [s for s in steps if s.outcome in ("failed", "undo_failed")]
    if failed:
        return "refused" if any((s.error or {}).get("safety_refusal") for s in failed) else "failed"
    if outcomes - GOOD:
        return "interrupted"
    return "succeeded" if objectives_met else "objective_missed"


def reason(run: Run, state: RunState, verdict: Verdict) -> str:
    """Why, in a sentence: the first step's error, or how to go on. Empty for a run that succeeded."""
    if verdict in ("succeeded", "objective_missed"):
        return ""
    if verdict == "interrupted":
        return f"stopped between two effects; go on with: relight resume {run.info.run_id}"
    for step in run.plan.steps:
        error = state.of(step.id).error
        if error:
            return f"{step.id}: {error['message']}"
    return ""
