"""A world in which anything can be made to fail, for ``relight prove``: who calls, what goes wrong, who dies.

The twins (``tasks/DOMAIN/twin.py``) send every call through ``Simulation.read`` or ``.change``. Each of these, and
each journal record, is one *event* with a number; a schedule names the events at which something happens. All of
it runs in one event loop under virtual time, so the same schedule and seed give the same run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from tasks.clock import LoopClock
from tasks.errors import EffectUnknown, RelightError, Unreachable

T = TypeVar("T")
EventKind = Literal["read", "change", "record"]

LATENCY_S = 0.002
TIMEOUT_S = 2.0
"""What a provider's own time-out costs its caller."""
SLOW_S = 6.0
MID_S = 0.05
"""How long after its caller's death an effect that was on its way still lands."""

READ_FAULTS = ("error", "timeout", "slow", "stale")
CHANGE_FAULTS = ("error", "timeout", "lost", "slow")
CRASHES: Mapping[EventKind, tuple[str, ...]] = {
    "read": ("kill",),
    "change": ("kill", "kill-mid", "kill-after"),
    "record": ("kill", "kill-torn", "kill-after"),
}
"""``kill``: before it; ``kill-mid``: while the effect is on its way; ``kill-after``: it happened, nobody heard."""


class Killed(BaseException):
    """The calling process is dead. No ``except Exception`` may catch this: nothing runs in a dead process."""


@dataclass(eq=False)
class Process:
    """One engine: what it does dies, or stands still, with it."""

    name: str
    alive: bool = True
    epoch: int = 0
    run_id: str = ""
    going: asyncio.Event = field(default_factory=asyncio.Event)
    on_death: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.going.set()

    def must_live(self) -> None:
        """Raises Killed in a dead process."""
        if not self.alive:
            raise Killed(self.name)

    async def must_go(self) -> None:
        """Waits while the process is stopped (SIGSTOP). Raises Killed."""
        self.must_live()
        if not self.going.is_set():
            await self.going.wait()
            self.must_live()

    def die(self) -> None:
        """As SIGKILL: from now on nothing of it has an effect."""
        self.alive = False
        self.going.set()
        for act in self.on_death:
            act()


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def enter(process: Process) -> None:
    """The current task, and every one that it starts, belongs to ``process``."""
    _process.set(process)


def current() -> Process:
    """The process that runs now. Raises LookupError outside of any."""
    found = _process.get()
    if found is None:
        raise LookupError("no simulated process runs here")
    return found


class ProcessClock(LoopClock):
    """The virtual clock as a process sees it: a stopped one wakes up late, a dead one never."""

    async def sleep(self, seconds: float) -> None:
        process = current()
        await super().sleep(seconds)
        await process.must_go()


@dataclass(frozen=True)
class Event:
    """``at``: its number, from 1. ``what``: for people and for grouping (``database.view west-pg1``)."""

    at: int
    kind: EventKind
    what: str


@dataclass
class Simulation:
    """Where every call goes through.

    Attributes:
        deviations: event number -> what happens there.
        happenings: deviations that are no fault of the call itself (``return``, ``second``, ``pause``) -> what to do.
        guarded: called with (process, component, what) right before an effect is sent: the rules of who may.
        settled: called with ``what`` after each effect: the invariants of the world.
        calm: faults are over; only for what follows the schedule.
    """

    deviations: Mapping[int, str] = field(default_factory=dict)
    happenings: dict[str, Callable[[], None]] = field(default_factory=dict)
    guarded: Callable[[Process, str, str], None] = lambda _process, _component, _what: None
    settled: Callable[[str], None] = lambda _what: None
    trace: list[Event] = field(default_factory=list)
    happened: list[tuple[str, Event]] = field(default_factory=list)
    _before: dict[str, object] = field(default_factory=dict)

    def turn(self, kind: EventKind, what: str) -> str | None:
        """Counts an event; the deviation that is due at it, after what it makes happen has happened."""
        event = Event(len(self.trace) + 1, kind, what)
        self.trace.append(event)
        due = self.deviations.get(event.at)
        if due is None:
            return None
        self.happened.append((due, event))
        if due in self.happenings:
            self.happenings[due]()
            return None
        return due

    async def read(
        self, component: str, what: str, look: Callable[[], T], failed: Callable[[str], T] | None = None
    ) -> T:
        """One look at the world. ``failed``: what a call that never raises returns instead, given why."""
        process = current()
        await process.must_go()
        name = f"{component}.{what}"
        due = self.turn("read", name)
        if due == "kill":
            process.die()
        await process.must_go()
        if due in ("error", "timeout"):
            await asyncio.sleep(TIMEOUT_S if due == "timeout" else LATENCY_S)
            why = f"{name}: no answer" if due == "timeout" else f"{name}: no connection"
            if failed is not None:
                return failed(why)
            raise Unreachable(why)
        await asyncio.sleep(SLOW_S if due == "slow" else LATENCY_S)
        await process.must_go()
        value = look()
        old = self._before.get(name, value)
        self._before[name] = value
        return old if due == "stale" else value  # type: ignore[return-value]

    async def change(self, component: str, what: str, effect: Callable[[], T], takes_s: float = 0.0) -> T:
        """One effect on the world. Raises Unreachable (nothing was sent), EffectUnknown, and what ``effect`` raises."""
        process = current()
        await process.must_go()
        name = f"{component}.{what}"
        self.guarded(process, component, name)
        due = self.turn("change", name)
        if due == "kill":
            process.die()
        await process.must_go()
        if due == "error":
            raise Unreachable(f"{name}: no connection")
        if due == "timeout":
            await asyncio.sleep(TIMEOUT_S)
            raise EffectUnknown(f"{name}: no answer")
        if due in ("kill-mid", "slow"):
            # On its way: it lands whatever becomes of the caller.
            landed: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            delay_s = (MID_S if due == "kill-mid" else SLOW_S) + takes_s
            asyncio.get_running_loop().call_later(delay_s, self._land, name, effect, landed)
            if due == "kill-mid":
                process.die()
                process.must_live()
            return await asyncio.shield(landed)
        await asyncio.sleep(LATENCY_S + takes_s)
        process.must_live()
        result = effect()
        self.settled(name)
        if due == "kill-after":
            process.die()
        await process.must_go()
        if due == "lost":
            await asyncio.sleep(TIMEOUT_S)
            raise EffectUnknown(f"{name}: no answer")
        return result

    def _land(self, name: str, effect: Callable[[], T], landed: asyncio.Future[T]) -> None:
        try:
            result = effect()
        except RelightError as e:  # for the caller, if there still is one
            if not landed.done():
                landed.set_exception(e)
                landed.exception()  # retrieved: a caller that is gone must not make asyncio complain
            return
        self.settled(name)
        if not landed.done():
            landed.set_result(result)
