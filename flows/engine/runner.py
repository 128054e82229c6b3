"""Runs a plan. Decisions come from the journal alone (``state.decide``); an effect is journaled before it happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from flows.engine.journal import Journal, JournalUnwritable, Record
from flows.engine.objectives import Watch, all_met
from flows.engine.run import Run
from flows.engine.state import Decision, RunState, Verdict, advance, decide, fold, goes_back, point_passed
from flows.engine.stepping import Ask, StepRun
from flows.engine.verdict import concluded, reason
from tasks.errors import EffectUnknown, LeaseHeld

HOLD_S = 1.0
"""How often a run that only waits looks whether the system is still its own."""


@dataclass
class Runner:
    """One execution, in one event loop.

    Attributes:
        listen: called with every journal record, after it is durable.
        began: called with (step id, attempt) when an attempt begins; not journaled.
        report: called with (step id, line) for what people may want to watch; not journaled.
        ask: what to do after a failed step with ``on_failure: ask``; True tries the step again.
    """

    run: Run
    journal: Journal
    listen: Callable[[Record], None] = lambda _record: None
    began: Callable[[str, int], None] = lambda _step, _attempt: None
    report: Callable[[str, str], None] = lambda _step, _line: None
    ask: Ask | None = None
    dice: random.Random = field(default_factory=random.Random)
    state: RunState = field(init=False)
    _halt: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _abort: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _deaf: bool = field(init=False, default=False)
    """A wish to go back was refused."""
    _broken: JournalUnwritable | LeaseHeld | None = field(init=False, default=None)
    _live: dict[str, tuple[StepRun | None, asyncio.Task[None]]] = field(init=False, default_factory=dict)
    """What is under way; an undo has no StepRun of its own and is never interrupted."""

    def __post_init__(self) -> None:
        self.state = fold(self.journal.records)

    def halt(self) -> None:
        """Start nothing more; an effect under way ends first. For a signal handler of the loop."""
        self._halt.set()

    @property
    def stopping(self) -> bool:
        """No new effect of a step may begin: the run was asked to stop, or goes back."""
        return self._halt.is_set() or goes_back(self.run.plan, self.state)

    def check(self) -> None:
        """Raises when nothing may be changed any more: the journal broke, the lease is lost, the kill switch is on."""
        if self._broken is not None:
            raise self._broken
        self.run.check()

    def record(self, kind: str, **body: object) -> Record:
        """Append to the journal, advance the state, tell the listener. Raises JournalUnwritable, LeaseHeld."""
        if self._broken is not None:
            raise self._broken
        try:
            self.run.holds()
            record = self.journal.append(self.run.clock.utc(), kind, **body)
        except (JournalUnwritable, LeaseHeld) as e:
            self._broken = e
            raise
        advance(self.state, record)
        self.listen(record)
        return record

    async def go(self) -> Verdict:
        """Run until nothing is left to do; journal the verdict. Raises JournalUnwritable."""
        watch = Watch(self.run.rto_s, self.run.incident_started_at, self.run.plan, self.journal.records)
        watching = asyncio.create_task(watch.go(self.run.clock, self.state, self.record))
        holding = asyncio.create_task(self._hold())
        try:
            await self._steps()
        finally:
            watching.cancel()
            holding.cancel()
            await asyncio.gather(watching, holding, return_exceptions=True)
        met = all_met(self.journal.records, self.run.rto_s, self.run.rpo_s)
        verdict = concluded(self.run.plan, self.state, objectives_met=met)
        self.record("run_ended", verdict=verdict, reason=reason(self.run, self.state, verdict))
        return verdict

    async def _hold(self) -> None:
        """Stop when the lease is lost, also while a step only waits."""
        while self._broken is None:
            await self.run.clock.sleep(HOLD_S)
            try:
                self.run.holds()
            except LeaseHeld as e:
                self._broken = e
                self.halt()
                return
            with contextlib.suppress(JournalUnwritable, LeaseHeld):  # noted by record: nothing more begins
                self._heed()

    def _heed(self) -> None:
        """Go back where a person asked for it; what is under way ends first. Never behind the point of no return."""
        wish = None if self.state.going_back or self._halt.is_set() or self._deaf else self.run.abort()
        if wish is None:
            return
        point = point_passed(self.run.plan, self.state)
        if point is not None:
            self._deaf = True
            self.record("abort_refused", point=point, **wish)
        else:
            self.record("abort_requested", **wish)
            self._abort.set()

    async def _steps(self) -> None:
        told: set[asyncio.Future[Any]] = {asyncio.ensure_future(event.wait()) for event in (self._halt, self._abort)}
        try:
            while self._advance():
                waiting: set[asyncio.Future[Any]] = {task for _, task in self._live.values()}
                await asyncio.wait(waiting | {t for t in told if not t.done()}, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
        finally:
            for task in told:
                task.cancel()
            for _, task in self._live.values():
                task.cancel()
            await asyncio.gather(*(task for _, task in self._live.values()), return_exceptions=True)
        if self._broken is not None:
            raise self._broken

    def _advance(self) -> bool:
        """Start or skip what the journal says comes next; False when nothing is under way any more."""
        self._heed()
        decision = decide(self.run.plan, self.state, self._live)
        if (decision.undo or decision.settle) and not self._halt.is_set():
            self._start("undo", self._back(decision), None)
            return True
        for step_id, why in decision.skip.items():
            StepRun(self, self.run.plan.by_id[step_id]).skip(why)
        if decision.skip:
            return self._advance()
        if not self._halt.is_set() and self._broken is None:
            for step in decision.start:
                stepping = StepRun(self, step)
                self._start(step.id, stepping.go(), stepping)
        return bool(self._live)

    def _start(self, name: str, work: Coroutine[object, object, None], stepping: StepRun | None) -> None:
        self._live[name] = (stepping, asyncio.create_task(work, name=name))

    def _reap(self) -> None:
        """Take what has ended off the list; where nothing more may begin, drop what changes nothing right now."""
        for name, (stepping, task) in list(self._live.items()):
            if task.done():
                del self._live[name]
                if not task.cancelled():
                    task.result()
            elif self.stopping and stepping is not None and stepping.interruptible:
                task.cancel()

    async def _back(self, decision: Decision) -> None:
        """Undo each step in its own guard: a failed undo neither hides the first error nor skips the rest.

        What cannot be undone, and was in flight when an engine died, is looked at first.
        """
        for step in decision.settle:
            await StepRun(self, step).settle(EffectUnknown("an engine died before it was told what came of it"))
        if decision.undo and not self.state.undoing:
            self.record("undo_started", steps=[s.id for s in decision.undo])
        for step in decision.undo:
            if not self._halt.is_set():
                await StepRun(self, step).undo()
