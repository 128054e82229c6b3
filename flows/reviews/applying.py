"""Does the safe fixes of a review: in a window, with the system's triggers held, each journaled before it begins.

Stops at the first sign of trouble: the window closes, a run begins, relight is paused, a metric becomes critical.
"""

from __future__ import annotations

import getpass
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from flows.engine import evaluation, maintenance
from flows.engine.evaluation import Judged
from flows.engine.journal import FileJournal
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem
from flows.reviews.finding import Finding, Review
from tasks.clock import Clock
from tasks.database._workload import Reviewed
from tasks.errors import EffectUnknown, NotYet, Rejected, RelightError, SafetyRefusal, Unreachable
from tasks.secrets import redact


class AlarmFired(SafetyRefusal):
    """Something is critical: this is no time for maintenance."""


def calm(judged: tuple[Judged, ...]) -> None:
    """Raises AlarmFired while a metric is critical. Unknown is no reason to stop vacuuming, but the report says it."""
    fired = [
        f"{j.metric.name} at {j.reading.site or 'all'} ({j.crossed[0].text})"
        for j in judged
        if j.crossed and j.outcome == "critical"
    ]
    if fired:
        raise AlarmFired(f"critical now: {', '.join(fired)}; nothing is changed while that is so")


async def apply(review: Review, loaded: LoadedSystem, components: Components, clock: Clock, folder: Path) -> Review:
    """The review with an outcome at each safe fix, and in ``applied`` why it was not done or where it stopped."""
    system, settings = loaded.system.system, loaded.system.maintenance
    fixes = [f for f in review.findings if f.safe]
    try:
        until = settings.must_be_open(system, clock.utc())
        with maintenance.hold(system, f"{review.kind} review applies {len(fixes)} safe fixes", _who(), until):
            journal = FileJournal(folder / "applied.jsonl")
            return await _each(review, fixes, loaded, components, _Doing(clock, until, journal))
    except SafetyRefusal as e:
        return replace(review, applied=f"nothing was applied: {e.message}")


class _Doing:
    """What every fix needs."""

    def __init__(self, clock: Clock, until: datetime, journal: FileJournal) -> None:
        self.clock, self.until, self.journal = clock, until, journal

    def note(self, kind: str, finding: Finding, **body: str) -> None:
        self.journal.append(self.clock.utc(), kind, key=finding.key, fix=finding.fix, **body)


async def _each(
    review: Review, fixes: list[Finding], loaded: LoadedSystem, components: Components, doing: _Doing
) -> Review:
    done: dict[str, str] = {}
    stopped = ""
    for finding in fixes:
        try:
            calm(await evaluation.evaluate(loaded, components))
            maintenance.guard(loaded.system.system, doing.clock.utc(), doing.until)
        except SafetyRefusal as e:
            stopped = e.message
            break
        done[finding.key] = await _one(finding, loaded, components, doing)
    findings = tuple(replace(f, outcome=done.get(f.key, f"left: {stopped}")) if f.safe else f for f in review.findings)
    good = sum(o == "done" for o in done.values())
    said = f"{good} of {len(fixes)} safe fixes were applied" + (f"; stopped: {stopped}" if stopped else "")
    return replace(review, findings=findings, applied=said)


async def _one(finding: Finding, loaded: LoadedSystem, components: Components, doing: _Doing) -> str:
    """What became of it: ``done``, ``skipped: …``, ``unknown: …``."""
    component, node, table = finding.target
    database: Reviewed = components(component)
    left_s = (doing.until - doing.clock.utc()).total_seconds()
    limits = loaded.system.maintenance
    doing.note("intent", finding)
    try:
        await database.vacuum(
            node, table, lock_timeout_s=limits.lock_timeout, timeout_s=max(1.0, min(limits.table_timeout, left_s))
        )
        outcome = "done"
    except (NotYet, Rejected, Unreachable) as e:
        outcome = f"skipped: {redact(e.message)}"
    except EffectUnknown as e:
        outcome = f"unknown: {redact(e.message)}"
    except RelightError as e:
        outcome = f"failed: {redact(e.message)}"
    doing.note("outcome", finding, outcome=outcome)
    return outcome


def _who() -> str:
    return getpass.getuser()
