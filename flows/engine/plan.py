"""From a runbook, a system and a mode to ordered steps. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flows.engine.runbook import OnFailure
from tasks.contract import Action, Mode, Phase, Undoable

MOST_BACKOFF_S = 30.0
MOST_LOOK_S = 3.0
GRACE_S = 0.25
"""What a cancelled call gets to clean up before it is abandoned."""


@dataclass(frozen=True)
class PlannedStep:
    """One step, ready to run. Times in seconds; ``needs`` names steps of the same plan."""

    id: str
    action: Action
    summary: str
    with_: Mapping[str, Any]
    needs: tuple[str, ...]
    timeout_s: float
    attempts: int
    backoff_s: float
    on_failure: OnFailure
    irreversible: bool
    restores: str | None

    @property
    def phase(self) -> Phase:
        return self.action.phase

    @property
    def reversible(self) -> bool:
        return isinstance(self.action, Undoable)

    @property
    def worst_case_s(self) -> float:
        """All attempts cut off at their timeout, the longest pauses between them, and a last look at the state."""
        pauses = sum(pause_s(self.backoff_s, n, 1.0) for n in range(1, self.attempts))
        look_s = 0.0 if self.action.read_only else self.look_s + GRACE_S
        most_s = self.action.most_s()
        if most_s is not None and most_s < self.timeout_s:
            return self.attempts * most_s + pauses + look_s
        return self.attempts * (self.timeout_s + GRACE_S) + pauses + look_s

    @property
    def look_s(self) -> float:
        """What the last look may take, after every attempt ended without telling whether there was an effect."""
        return min(self.timeout_s, MOST_LOOK_S)

    def describe(self) -> dict[str, Any]:
        """JSON-able; this is what the journal and ``relight plan --json`` show."""
        return {
            "id": self.id,
            "action": self.action.name,
            "summary": self.summary,
            "with": dict(self.with_),
            "needs": list(self.needs),
            "timeout_s": self.timeout_s,
            "attempts": self.attempts,
            "backoff_s": self.backoff_s,
            "on_failure": self.on_failure,
            "irreversible": self.irreversible,
            "reversible": self.reversible,
            "read_only": self.action.read_only,
            "restores": self.restores,
            "phase": self.phase.value,
            "worst_case_s": round(self.worst_case_s, 3),
        }


def pause_s(backoff_s: float, failed_attempts: int, jitter: float) -> float:
    """Seconds to wait after ``failed_attempts`` failures; ``jitter`` in 0..1 takes up to half of it away."""
    full = min(backoff_s * 2.0 ** (failed_attempts - 1), MOST_BACKOFF_S)
    return full * (0.5 + 0.5 * jitter)


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which each comes after what it needs (the file's own order where that is free)."""

    runbook: str
    system: str
    mode: Mode
    steps: tuple[PlannedStep, ...]

    @cached_property
    def by_id(self) -> dict[str, PlannedStep]:
        return {s.id: s for s in self.steps}

    @cached_property
    def worst_end_s(self) -> dict[str, float]:
        """Latest second after the start at which each step can end, if everything before it takes its worst case."""
        ends: dict[str, float] = {}
        for step in self.steps:
            ends[step.id] = max((ends[n] for n in step.needs), default=0.0) + step.worst_case_s
        return ends

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what will run: a resumed run refuses a plan that changed under it."""
        text = json.dumps([s.describe() for s in self.steps], sort_keys=True, default=str)
        return hashlib.sha256(f"{self.runbook}\n{self.system}\n{self.mode}\n{text}".encode()).hexdigest()

    def ancestors(self, step_id: str) -> set[str]:
        """Every step that ``step_id`` needs, directly or not."""
        found: set[str] = set()
        todo = list(self.by_id[step_id].needs)
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo.extend(self.by_id[one].needs)
        return found

    def critical_path(self, step_id: str) -> tuple[str, ...]:
        """The chain of steps that makes ``step_id``'s worst case what it is, first step first."""
        chain = [step_id]
        while self.by_id[chain[-1]].needs:
            chain.append(max(self.by_id[chain[-1]].needs, key=lambda n: self.worst_end_s[n]))
        return tuple(reversed(chain))

    @property
    def point_of_no_return(self) -> str | None:
        """The first irreversible step."""
        return next((s.id for s in self.steps if s.irreversible), None)
