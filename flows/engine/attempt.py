"""One attempt at one step: observe, intend, apply, confirm, never longer than its time-out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from flows.engine.plan import GRACE_S, PlannedStep
from tasks.contract import Context, Facts, Observation, Undoable
from tasks.errors import EffectUnknown, NotYet, RelightError

T = TypeVar("T")
Stage = Literal["observe", "apply", "confirm"]

_abandoned: set[asyncio.Task[Any]] = set()


class TimedOut(RelightError):
    """An attempt did not end within the step's time-out. While nothing had been applied, nothing changed."""

    retryable = True


class ActionBug(RelightError):
    """An action raised something that is no RelightError: a fault of the action, not of the world."""


class ActionBugInEffect(ActionBug):
    """The same in the middle of an effect, which may have happened."""

    state_known = False


class CutOff(Exception):
    """Work did not end in time. (No TimeoutError: work may raise one of its own.)"""


async def bounded(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of ``work``, or CutOff after ``seconds`` even if it ignores cancellation.

    What does not end within GRACE_S of being cancelled is abandoned: it may live on, but its context's guard is
    closed by then, so it can change nothing more.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=max(0.0, seconds))
        if not done:
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=GRACE_S)
    except asyncio.CancelledError:
        task.cancel()
        _abandon(task)
        raise
    if done and not task.cancelled():
        return task.result()
    if not done:
        _abandon(task)
    raise CutOff


def _abandon(task: asyncio.Task[Any]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not warn about it


@dataclass
class Attempt:
    """What is known while an attempt runs, and so what is known when it is cut off in the middle."""

    step: PlannedStep
    context: Context
    intend: Callable[[Observation], None]
    """Journals the intent; raises when it cannot be made durable."""
    before: Facts | None
    """Facts at the first intent, where an earlier attempt (or a process that died) already intended this effect."""
    stage: Stage = "observe"

    async def run(self) -> tuple[Literal["done", "already"], Observation]:
        """Make the step's state true. Raises RelightError; anything else comes out as ActionBug."""
        seconds = self.context.left_s()
        try:
            return await bounded(self._run(), seconds)
        except CutOff:
            message = f"step {self.step.id} did not end within {self.step.timeout_s:g} s (it was at: {self.stage})"
            if self.stage == "apply" and not self.step.action.read_only:
                raise EffectUnknown(message + "; whether its effect happened is not known") from None
            raise TimedOut(message) from None
        except RelightError:
            raise
        except Exception as e:  # the step runner's border: an action's bug must not take the run down
            kind = ActionBugInEffect if self.stage == "apply" and not self.step.action.read_only else ActionBug
            raise kind(f"{self.step.action.name} raised {type(e).__name__}: {e}") from e

    async def observed(self) -> Observation | RelightError:
        """What ``observe`` alone says, or the error it raised; for a plan, which changes nothing."""
        try:
            return await bounded(self.step.action.observe(self.context), self.context.left_s())
        except CutOff:
            return TimedOut(f"{self.step.action.name} did not answer in time")
        except RelightError as e:
            return e
        except Exception as e:  # noqa: BLE001 - the step runner's border
            return ActionBug(f"{self.step.action.name} raised {type(e).__name__}: {e}")

    async def look(self, seconds: float) -> Observation | None:
        """Observe (and confirm, if it holds) without changing anything; None when that cannot tell."""

        async def read() -> Observation:
            seen = await self.step.action.observe(self.context)
            return await self.step.action.confirm(self.context) if seen.holds else seen

        return await self._quietly(read(), seconds)

    async def undo(self, evidence: Facts) -> RelightError | None:
        """Put back what ``evidence`` says was there. The error, not raised: one failed undo must not stop the next."""
        action = self.step.action
        if not isinstance(action, Undoable):
            return ActionBug(f"{action.name} cannot be undone")
        try:
            self.context.guard()
            await bounded(action.undo(self.context, evidence), self.step.timeout_s)
        except CutOff:
            return EffectUnknown(f"undo of {self.step.id} did not end within {self.step.timeout_s:g} s")
        except RelightError as e:
            return e
        except Exception as e:  # noqa: BLE001 - the step runner's border
            return ActionBug(f"undo of {action.name} raised {type(e).__name__}: {e}")
        return None

    async def _quietly(self, work: Coroutine[Any, Any, T], seconds: float) -> T | None:
        try:
            return await bounded(work, seconds)
        except (CutOff, RelightError):
            return None
        except Exception:  # noqa: BLE001 - the step runner's border: "cannot tell" is the honest answer
            return None

    @property
    def interruptible(self) -> bool:
        """Nothing is being changed right now, so the attempt can be dropped without a trace."""
        return self.stage == "observe" or self.step.action.read_only

    async def _run(self) -> tuple[Literal["done", "already"], Observation]:
        action, ctx = self.step.action, self.context
        seen = await action.observe(ctx)
        if seen.holds and action.read_only:
            return "done", seen
        if seen.holds and self.before is None:
            return "already", seen
        if not seen.holds:
            if not action.read_only:
                self.intend(seen)
                ctx.guard()
            self.stage = "apply"
            measured = dict(await action.apply(ctx, seen) or {})
        else:
            measured = {}
        self.stage = "confirm"
        confirmed = await action.confirm(ctx)
        said = measured.pop("said", None)
        if said is not None:
            confirmed = confirmed.model_copy(update={"summary": f"{said}; {confirmed.summary}"})
        facts = {**(self.before or {}), **seen.facts, **measured, **confirmed.facts}
        if not confirmed.holds:
            raise NotYet(f"{action.name} was applied, and reading it back says: {confirmed.summary}", **facts)
        return "done", confirmed.model_copy(update={"facts": facts})
