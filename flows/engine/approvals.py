"""What people hand in to a run: files in its folder, which its engine looks for while a step asks.

A file reaches an engine that lives and one that is resumed later alike, and needs no server. One file for each answer,
whole and durable before ``hand_in`` returns. The engine alone judges; what it made of each is in the journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from flows.engine import turns
from flows.engine.journal import Record
from flows.engine.plan import PlannedStep
from flows.engine.run import Run
from flows.engine.state import GOOD, RunState, point_passed, undoable
from tasks import tokens
from tasks.clock import Clock
from tasks.errors import BadInput, RelightError
from tasks.hearing import Noted, Said, Standing

FOLDER = "approvals"
MOST_FILES = 500
MOST_BYTES = 16384


def hand_in(folder: Path, step: str, answer: Mapping[str, Any], via: str) -> str:
    """Keep an answer to ``step`` of the run in ``folder``; its digest. Durable before it returns. Raises RelightError.

    ``answer``: ``token``, or the ``words`` of one that nobody signed. The same answer again is the same file.
    """
    found = {"via": via, **answer}
    name = tokens.digest(str(answer.get("token") or json.dumps(found, sort_keys=True)))
    home = folder / FOLDER
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if len(list(home.glob("*.json"))) >= MOST_FILES:
            raise BadInput(f"{home} has {MOST_FILES} answers already; no more are read")
    except OSError as e:
        raise RelightError(f"cannot write {home}: {e.strerror}; the answer was not kept") from e
    turns.write(home / f"{step}.{name}.json", json.dumps(found) + "\n")
    return name


@dataclass
class Answers:
    """The answers in a run's folder, as one engine hears them."""

    folder: Path
    clock: Clock
    _heard: dict[str, Said] = field(default_factory=dict)

    def __call__(self, step: str) -> tuple[Said, ...]:
        """Everything for ``step``, in the order in which it was heard. Never raises: what cannot be read says so."""
        files = sorted((self.folder / FOLDER).glob(f"{step}.*.json"))
        for file in files[:MOST_FILES]:
            if file.name not in self._heard:
                self._heard[file.name] = self._read(file)
        return tuple(said for name, said in self._heard.items() if name.startswith(f"{step}."))

    def _read(self, file: Path) -> Said:
        name = file.name.split(".")[1]
        try:
            with file.open("rb") as f:
                found = json.loads(f.read(MOST_BYTES))
            words = found.get("words") or {}
            token = str(found.get("token") or "")
            return Said(name, token, {str(k): v for k, v in words.items()}, str(found["via"]), self.clock.utc())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Said(name, "", {}, "unknown", self.clock.utc())


class Engine(Protocol):
    """What a hearing needs of the runner."""

    @property
    def run(self) -> Run: ...
    @property
    def state(self) -> RunState: ...

    def record(self, kind: str, **body: object) -> Record: ...


@dataclass(frozen=True)
class StepHearing:
    """Fulfils ``tasks.hearing.Hearing`` for one attempt of a step. ``still``: raises once the attempt is over."""

    engine: Engine
    planned: PlannedStep
    attempt: int
    still: Callable[[], None]

    @property
    def step(self) -> str:
        return self.planned.id

    def said(self) -> tuple[Said, ...]:
        return self.engine.run.answers(self.planned.id)

    def standing(self) -> Standing:
        return standing(self.engine.run, self.engine.state, self.engine.run.clock.utc())

    def note(self, kind: Noted, **body: Any) -> None:
        known = (self.step, body.get("digest"), body.get("counted"), body.get("against"))
        if kind == "approval" and known in self.engine.state.noted:
            return
        self.still()
        self.engine.record(kind, step=self.step, action=self.planned.action.name, attempt=self.attempt, **body)


def standing(run: Run, state: RunState, now: datetime) -> Standing:
    """How ``run`` stands at ``now``."""
    undo, stay = undoable(run.plan, state)
    passed = point_passed(run.plan, state)
    if passed:
        undo, stay = (), (*undo, *stay)
    elapsed_s = (now - run.incident_started_at).total_seconds()
    waiting = {s.restores for s in run.plan.steps if s.restores and state.of(s.id).outcome not in GOOD}
    return Standing(
        left_s={c: rto_s - elapsed_s for c, rto_s in run.rto_s.items() if c in waiting},
        would_undo=tuple(s.id for s in undo),
        would_stay=tuple(s.id for s in stay),
        point_of_no_return=None if passed else run.plan.point_of_no_return,
    )
