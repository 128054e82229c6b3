"""An alert that ends while the run that it began is under way: stop the run where that is right, else let it go on."""

from __future__ import annotations

from datetime import datetime

from flows.engine import abort, alive, places
from flows.engine.journal import read
from flows.engine.state import FINISHED, RunState, fold, point_passed
from flows.intake.event import Event
from flows.intake.facts import Facts
from tasks.errors import RelightError

AGAIN_S = 2.0


def back(run_id: str, event: Event, facts: Facts, now: datetime) -> tuple[str, float]:
    """What is done about the run, and when to look again (seconds; 0: it is settled).

    Behind its point of no return a run is carried on to its end. Before it, it goes back only if the system itself
    was seen healthy after the alert ended: an alert also ends because its monitor was restarted.
    """
    try:
        folder = places.run_folder(run_id)
        state = fold(read(folder / "journal.jsonl").records)
    except RelightError as e:
        return f"it ended; run {run_id} cannot be read: {e.message}", 0.0
    over = _over(run_id, state, facts, lives=alive.alive(folder))
    if over:
        return over, 0.0
    seen = facts.evidence.last if facts.evidence else None
    if seen is None or seen.at < event.received_at:
        return f"it ended; the system is looked at before run {run_id} is stopped", 0.2
    if seen.healthy and not seen.failing:
        abort.ask(folder, "relight", f"the alert ended and the system is healthy: {seen.summary}", now)
        return f"it ended and the system is healthy, so run {run_id} goes back", 0.0
    return f"it ended, but the system is not seen healthy ({seen.summary}); run {run_id} goes on", AGAIN_S


def _over(run_id: str, state: RunState, facts: Facts, *, lives: bool) -> str:
    """Why nothing can be done about the run any more; empty while something can."""
    if state.ended in FINISHED or (state.ended is not None and not lives):
        return f"it ended; so had run {run_id} ({state.ended})"
    if state.aborted:
        return f"it ended; run {run_id} goes back ({state.aborted})"
    point = point_passed(facts.plan, state) if facts.plan is not None else None
    return f"it ended after {point}, the point of no return of run {run_id}, which carries on" if point else ""
