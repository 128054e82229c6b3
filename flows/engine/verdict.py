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
    if left.start or left.undo or left.settle:
        return "interrupted"
    if state.going_back and not outcomes & {"undo_failed", None}:
        return "undone"
    failed = [s for s in steps if s.outcome in ("failed", "undo_failed")]
    if failed:
        # what the run went on without did not refuse the run
        gone_on = {s.id for s in plan.steps if s.on_failure == "continue"}
        refusing = [
            s for s in plan.steps if s.id not in gone_on and state.of(s.id).outcome in ("failed", "undo_failed")
        ]
        said = [state.of(s.id) for s in refusing]
        errors = [(s.undo_error if s.outcome == "undo_failed" else s.error) or {} for s in said]
        return "refused" if any(e.get("safety_refusal") for e in errors) else "failed"
    if outcomes - GOOD:
        return "interrupted"
    return "succeeded" if objectives_met else "objective_missed"


def reason(run: Run, state: RunState, verdict: Verdict) -> str:
    """Why, in a sentence: the first step's error, or how to go on. Empty for a run that succeeded."""
    if verdict in ("succeeded", "objective_missed"):
        return ""
    if verdict == "interrupted":
        run_id = run.info.run_id
        back = "" if state.going_back else f", or go back: relight abort {run_id}"
        return f"stopped between two effects; go on: relight resume {run_id}{back}"
    if state.aborted:
        errors = {s.id: state.of(s.id).undo_error for s in run.plan.steps}
        stuck = [f"{name} could not be put back: {e['message']}" for name, e in errors.items() if e]
        return "; ".join((f"aborted {state.aborted}", *stuck))
    for step in run.plan.steps:
        error = state.of(step.id).error
        if error:
            return f"{step.id}: {error['message']}"
    return ""
