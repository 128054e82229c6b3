"""One step from its first attempt to its one outcome."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from flows.engine.approvals import StepHearing
from flows.engine.attempt import Attempt
from flows.engine.ending import Ending, dispensable
from flows.engine.journal import JournalUnwritable, Record
from flows.engine.plan import PlannedStep, pause_s
from flows.engine.run import Run
from flows.engine.state import Outcome, RunState
from tasks.contract import Context, Facts, Observation, in_thread
from tasks.errors import LeaseHeld, NotWaitedFor, RelightError, SafetyRefusal

Ask = Callable[[PlannedStep, RelightError], bool]


class AttemptOver(LeaseHeld):
    """A call of an attempt that was cut off tried to change something afterwards."""


class Halted(RelightError):
    """The run was asked to stop before this step's effect began; the step is dropped without a trace."""


class Engine(Protocol):
    """What a step needs of the runner."""

    @property
    def run(self) -> Run: ...
    @property
    def state(self) -> RunState: ...
    @property
    def began(self) -> Callable[[str, int], None]: ...
    @property
    def report(self) -> Callable[[str, str], None]: ...
    @property
    def ask(self) -> Ask | None: ...
    @property
    def dice(self) -> random.Random: ...
    @property
    def stopping(self) -> bool: ...

    def check(self) -> None: ...

    def record(self, kind: str, **body: object) -> Record: ...


class StepRun:
    """Runs, skips or undoes one step, and records what came of it."""

    def __init__(self, engine: Engine, step: PlannedStep) -> None:
        self.engine, self.step = engine, step
        self.started_at: datetime = engine.run.clock.utc()
        self.started = engine.run.clock.monotonic()
        self.number = engine.state.of(step.id).attempts
        self._attempt: Attempt | None = None

    @property
    def interruptible(self) -> bool:
        """Nothing is being changed right now, so the step can be dropped without a trace."""
        return self._attempt is None or self._attempt.interruptible

    async def go(self) -> None:
        """All attempts, ending in exactly one outcome (or none, when halted in between). Raises JournalUnwritable."""
        before = self.number
        while True:
            self.number += 1
            self.engine.began(self.step.id, self.number)
            error = await self._once()
            if error is None or isinstance(error, Halted):
                return
            failures = self.number - before
            last = failures >= self.step.attempts or not error.retryable
            wait_s = None if last else pause_s(self.step.backoff_s, failures, self.engine.dice.random())
            stage = self._attempt.stage if self._attempt else "observe"
            self._record("attempt_failed", stage=stage, error=self.described(error), retry_in_s=wait_s)
            if wait_s is None and await self._ask_again(error):
                before, wait_s = self.number, 0.0
            if wait_s is None:
                await self.settle(error)
                return
            self._attempt = None
            if self.engine.stopping:
                return
            await self.engine.run.clock.sleep(wait_s)

    async def _once(self) -> RelightError | None:
        over = False

        def guard() -> None:
            if over:
                raise AttemptOver(f"attempt {self.number} of step {self.step.id} was cut off; it changes nothing more")
            self.engine.check()

        def intend(seen: Observation) -> None:
            if self.engine.stopping:
                raise Halted("the run was asked to stop, or to go back")
            guard()
            started_at = self.started_at.isoformat(timespec="microseconds")
            changes = list(seen.changes)
            self._record(
                "intent",
                before=seen.facts,
                changes=changes,
                irreversible=self.step.irreversible,
                started_at=started_at,
            )

        known = self.engine.state.of(self.step.id)
        ending = Ending(self.engine.run.clock, lambda: dispensable(self.step, self.engine.run.plan, self.engine.state))
        context = replace(self._context(guard), patience_s=ending.left_s)
        self._attempt = Attempt(self.step, context, intend, known.before)
        try:
            outcome, seen = await self._attempt.run()
        except JournalUnwritable:
            raise
        except RelightError as e:
            return e
        finally:
            over = True
        self._end(outcome, seen)
        return None

    def _context(self, guard: Callable[[], None]) -> Context:
        run, step = self.engine.run, self.step
        return Context(
            run=run.info,
            clock=run.clock,
            roles=run.roles,
            components=run.components,
            deadline=run.clock.monotonic() + step.timeout_s,
            rpo_s=run.rpo_s,
            network=run.network,
            earlier=self.engine.state.earlier(),
            intended=self.engine.state.of(step.id).intents,
            hearing=StepHearing(self.engine, step, self.number, guard),
            report=lambda line: self.engine.report(step.id, line),
            guard=guard,
        )

    async def _ask_again(self, error: RelightError) -> bool:
        """Ask a person, in a thread: the other branches, their time-outs and a halt go on meanwhile."""
        ask = self.engine.ask
        if self.step.on_failure != "ask" or ask is None or isinstance(error, NotWaitedFor):
            return False
        self._attempt = None
        return await in_thread(lambda: ask(self.step, error))

    async def settle(self, error: RelightError) -> None:
        """End the step without trying again. Where its effect is unknown, look; only what cannot be told is unknown."""
        known = self.engine.state.of(self.step.id)
        if not known.uncertain or self.step.action.read_only:
            self._end("failed", error=error)
            return
        look = Attempt(self.step, self._context(self._no_change), lambda _seen: None, known.before)
        seen = await look.look(self.step.look_s)
        if seen is not None and seen.holds:
            self._end("done", seen.model_copy(update={"facts": {**(known.before or {}), **seen.facts}}))
        else:
            self._end("unknown" if seen is None else "failed", error=error)

    @staticmethod
    def _no_change() -> None:
        raise AttemptOver("this is a look, not an attempt; it changes nothing")

    def skip(self, why: str) -> None:
        """Record that the step is not run, and why."""
        self._end("skipped", Observation(holds=False, summary=why))

    async def undo(self) -> None:
        """Put back what the journal says was there before."""
        known = self.engine.state.of(self.step.id)
        self._record("undo_intent")
        over = False

        def guard() -> None:
            if over:
                raise AttemptOver(f"the undo of step {self.step.id} was cut off; it changes nothing more")
            self.engine.check()

        attempt = Attempt(self.step, self._context(guard), lambda _seen: None, known.before)
        try:
            error = await attempt.undo(known.before or {})
        finally:
            over = True
        if error is None:
            self._end("undone", Observation(holds=False, summary="put back"))
        else:
            self._end("undo_failed", error=error)

    def _end(self, outcome: Outcome, seen: Observation | None = None, *, error: RelightError | None = None) -> None:
        facts: Facts = seen.facts if seen else error.facts if error else {}
        self._record(
            "outcome",
            outcome=outcome,
            started_at=self.started_at.isoformat(timespec="microseconds"),
            duration_s=round(self.engine.run.clock.monotonic() - self.started, 6),
            facts=facts,
            summary=seen.summary if seen else str(error or ""),
            error=self.described(error) if error else None,
            restores=self.step.restores,
        )

    def _record(self, kind: str, **body: object) -> None:
        self.engine.record(kind, step=self.step.id, action=self.step.action.name, attempt=self.number, **body)

    @staticmethod
    def described(error: RelightError) -> Facts:
        """An error as the journal holds it."""
        return {
            "type": type(error).__name__,
            "message": str(error),
            "retryable": error.retryable,
            "state_known": error.state_known,
            "safety_refusal": isinstance(error, SafetyRefusal),
            "facts": error.facts,
        }
