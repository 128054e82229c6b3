"""Cases of ``relight prove`` for the tests of it."""

from __future__ import annotations

from collections.abc import Callable

from flows.engine import launch
from flows.engine.scenario import SCENARIOS, Scenario
from flows.engine.schedule import Deviation, deviations
from flows.engine.simulate import Case, play
from tasks.simulation import Event


def case(
    scenario: str | Scenario,
    mode: str = "forced",
    book: str = "failover",
    system: str = "lab",
    given: dict[str, str] | None = None,
) -> Case:
    """``given``: variables of the runbook."""
    request = launch.Request(system, book, mode, vars=given or {})
    found = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    return Case(launch.prepare(system, book, mode, given or {}), mode, found, request)


def broken_by(what: Case, wanted: Callable[[Event, str], bool] = lambda _event, _kind: True) -> set[str]:
    """Invariants that the first schedule to break any breaks; the calm run first, then single deviations."""
    calm = play(what, (), None)
    if calm.violations:
        return {v.partition(":")[0] for v in calm.violations}
    for event in calm.trace:
        for kind in deviations(event):
            if wanted(event, kind):
                story = play(what, (Deviation(event.at, kind),), calm.end)
                if story.violations:
                    return {v.partition(":")[0] for v in story.violations}
    return set()
