"""Would the runbooks of a system work now? Every step of each observed against the live system; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flows.engine import places, preview
from flows.engine.findings import InvalidFiles
from flows.engine.launch import Request
from flows.engine.roles import Wish
from tasks.contract import Mode
from tasks.errors import RelightError
from tasks.secrets import redact

NO_RUNBOOKS = frozenset({"system", "triggers"})
"""Files of a system's folder that are none."""

Answer = Literal["true already", "would change", "cannot be told"]


@dataclass(frozen=True)
class Row:
    """What is so of one step now. ``step`` is empty where the runbook as a whole could not be looked at."""

    runbook: str
    step: str
    action: str
    now: Answer
    says: str


@dataclass(frozen=True)
class Readiness:
    """Of one system. ``reasons``: why it would not work, each with its runbook; none: it is ready."""

    system: str
    rows: tuple[Row, ...]
    reasons: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return not self.reasons


def runbooks_of(system: str) -> list[str]:
    """The runbooks in a system's folder, by name. Raises BadInput."""
    return sorted(p.stem for p in places.system_folder(system).glob("*.yaml") if p.stem not in NO_RUNBOOKS)


async def check(system: str, runbooks: Sequence[str] = (), mode: Mode = "graceful") -> Readiness:
    """Look, one runbook after the other; all of the system where none is named. Raises BadInput for no such system."""
    rows: list[Row] = []
    reasons: list[str] = []
    for name in runbooks or runbooks_of(system):
        try:
            _, _, previews = await preview.observe(Request(system, name, mode, Wish()))
        except (RelightError, InvalidFiles) as e:
            says = redact(str(e))
            rows.append(Row(name, "", "", "cannot be told", says))
            reasons.append(f"{name}: {says}")
            continue
        rows.extend(_row(name, p) for p in previews)
        reasons.extend(f"{name}: {redact(reason)}" for reason in preview.unready(previews))
    return Readiness(system, tuple(rows), tuple(reasons))


def _row(runbook: str, p: preview.Preview) -> Row:
    if p.seen is None:
        return Row(runbook, p.step.id, p.step.action.name, "cannot be told", redact(str(p.error)))
    now: Answer = "true already" if p.seen.holds else "would change"
    return Row(runbook, p.step.id, p.step.action.name, now, redact(p.seen.summary))
