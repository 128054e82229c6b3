"""One review from beginning to end, as the command line and the flow do it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flows.engine import places, readiness, system
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem
from flows.reviews import annual, applying, charts, keeping, monthly, quarterly, weekly
from flows.reviews.finding import Finding, Kind, Review
from tasks.clock import Clock, LoopClock
from tasks.errors import BadInput

DAY_S = 86_400.0
WINDOWS_S: Mapping[Kind, float] = {
    "weekly": 7 * DAY_S,
    "monthly": 90 * DAY_S,
    "quarterly": 92 * DAY_S,
    "annual": 366 * DAY_S,
}
_RUNS = re.compile(r"relight (?:run|plan) (\S+) --system")
Reviewing = Callable[[LoadedSystem, Components, Clock, float], Awaitable[Review]]
REVIEWS: dict[Kind, Reviewing] = {
    "weekly": weekly.review,
    "monthly": monthly.review,
    "quarterly": quarterly.review,
    "annual": annual.review,
}


@dataclass(frozen=True)
class Asked:
    """What somebody wants.

    Attributes:
        apply: do the safe fixes, within a maintenance window.
        out: a folder that gets a copy of the report.
        window_s: how far to look back; default by the kind.
    """

    kind: Kind
    system: str
    apply: bool = False
    out: Path | None = None
    window_s: float | None = None


@dataclass(frozen=True)
class Made:
    """The review, and the folder that keeps it."""

    review: Review
    folder: Path


async def make(asked: Asked) -> Made:
    """Gather, judge, apply where asked, compare with the last one, keep. Raises InvalidFiles, BadInput.

    A part of the system that is down is a finding (unknown), not an error.
    """
    charts.require()
    places.set_defaults()
    loaded = system.load(places.system_file(asked.system))
    clock = LoopClock()
    components = Components(loaded, clock)
    try:
        return await _made(asked, loaded, components, clock)
    finally:
        await asyncio.shield(components.aclose())


async def _made(asked: Asked, loaded: LoadedSystem, components: Components, clock: Clock) -> Made:
    name, kind = loaded.system.system, asked.kind
    if asked.window_s is not None and asked.window_s <= 0:
        raise BadInput(f"a window of {asked.window_s:g} s: expected more than nothing")
    review = await REVIEWS[kind](loaded, components, clock, asked.window_s or WINDOWS_S[kind])
    books = readiness.runbooks_of(asked.system)
    review = replace(review, findings=tuple(_named(f, asked.system, books) for f in review.findings))
    folder = keeping.new_folder(name, kind, review.at)
    if asked.out is not None:
        keeping.new_folder(name, kind, review.at, asked.out)
    if asked.apply:
        review = await applying.apply(review, loaded, components, clock, folder)
    review = keeping.compared(review, keeping.last(name, kind))
    await asyncio.to_thread(keeping.save, review, folder, also=asked.out)
    return Made(review, folder)


def _named(finding: Finding, name: str, runbooks: Collection[str]) -> Finding:
    """Commands with the name of the system in them, ready to be pasted; said where the runbook is not there yet."""
    fix = finding.fix.replace("--system SYSTEM", f"--system {name}")
    asked = _RUNS.search(fix)
    if asked and asked[1] not in runbooks:
        fix += f"    # there is no runbook {asked[1]} yet: docs/metrics.md, Sizes, has the actions for one"
    return replace(finding, fix=fix)
