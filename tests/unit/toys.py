"""A toy world in virtual time, and toy actions over it.

The actions are real Actions; only what they act on is a dictionary, and the loop's clock jumps to the next timer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from flows.engine.virtualtime import VirtualLoop
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam, Undoable
from tasks.errors import Breached, EffectUnknown, NotYet, RelightError, SafetyRefusal, Unreachable
from tasks.quantities import Duration
from tasks.waiting import unless_over, until

__all__ = ["VirtualLoop"]

# ---- the world ----


@dataclass
class World:
    """What is true, how often each effect happened, and what goes wrong: ``"verb key"`` -> behaviours, used up in turn.

    Behaviours: ok; refuse (nothing sent); unsafe (a safety rule); lost (effect, then no reply); vanish (no reply and no
    effect); bug (a KeyError before the effect), bug-after; timeout-error (the builtin, raised by the action);
    slow:N (seconds); hang (ignores cancellation until ``let_go``, then tries its effect); halt (asks the run to stop).
    One that ends with ``!`` is never used up.
    """

    true: set[str] = field(default_factory=set)
    effects: Counter[str] = field(default_factory=Counter)
    script: dict[str, list[str]] = field(default_factory=dict)
    events: list[tuple[float, str]] = field(default_factory=list)
    refused_late: list[str] = field(default_factory=list)
    let_go: asyncio.Event | None = None
    halt: Callable[[], None] = lambda: None

    def told(self, verb: str) -> list[str]:
        """Keys of the events of ``verb``, in order."""
        return [what.partition(" ")[2] for _, what in self.events if what.startswith(verb + " ")]

    async def act(self, ctx: Context, verb: str, key: str, effect: Callable[[], None] | None = None) -> None:
        self.events.append((ctx.clock.monotonic(), f"{verb} {key}"))
        behaviours = self.script.get(f"{verb} {key}", [])
        how = "ok"
        if behaviours:
            how = behaviours[0].rstrip("!") if behaviours[0].endswith("!") else behaviours.pop(0)
        if how.startswith("slow:"):
            await ctx.clock.sleep(float(how[5:]))
        elif how == "hang":
            await self._hang(ctx, key)
        elif how == "halt":
            self.halt()
        elif how in _BEFORE:
            raise _BEFORE[how](f"{verb} {key}: {how}")
        if effect is not None:
            ctx.guard()
            effect()
            self.effects[f"{verb} {key}"] += 1
        if how == "lost":
            raise EffectUnknown(f"{verb} {key}: no reply")
        if how == "bug-after":
            raise KeyError(key)
        self.events.append((ctx.clock.monotonic(), f"ended-{verb} {key}"))

    async def _hang(self, ctx: Context, key: str) -> None:
        assert self.let_go is not None
        for _ in range(20):  # not for ever: a broken engine must fail its test, not hang it
            try:
                await self.let_go.wait()
                break
            except asyncio.CancelledError:
                self.events.append((ctx.clock.monotonic(), f"swallowed {key}"))
        try:
            ctx.guard()
        except RelightError as e:
            self.refused_late.append(type(e).__name__)
            raise


_BEFORE: dict[str, type[Exception]] = {
    "refuse": Unreachable,
    "unsafe": SafetyRefusal,
    "breach": Breached,
    "vanish": EffectUnknown,
    "bug": KeyError,
    "timeout-error": TimeoutError,
}


class _Toy(Action):
    key: str = ""

    async def observe(self, ctx: Context) -> Observation:
        world = ctx.component("world", World)
        await world.act(ctx, "observe", self.key)
        return self._seen(world)

    async def confirm(self, ctx: Context) -> Observation:
        world = ctx.component("world", World)
        await world.act(ctx, "confirm", self.key)
        return self._seen(world)

    def _seen(self, world: World) -> Observation:
        holds = self.key in world.true
        said = f"{self.key} is {str(holds).lower()}"
        return Observation(
            holds=holds, summary=said, changes=() if holds else (f"make {self.key} true",), facts={"was": holds}
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        world = ctx.component("world", World)
        await world.act(ctx, "apply", self.key, lambda: world.true.add(self.key))
        return {"made": self.key, "from": observation.holds}


class Make(_Toy, Undoable):
    """Make ``key`` true; can be undone."""

    name: ClassVar[str] = "toy.make"
    bigger: int = 0

    def least_timeout_s(self) -> float:
        return float(self.bigger)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        world = ctx.component("world", World)
        assert evidence["was"] is False
        await world.act(ctx, "undo", self.key, lambda: world.true.discard(self.key))


class Once(_Toy):
    """Make ``key`` true; cannot be undone, but is no point of no return."""

    name: ClassVar[str] = "toy.once"


class Patient(Make):
    """Waits, once its effect is made, for ``sure:key``, which a run that stops can do without."""

    name: ClassVar[str] = "toy.patient"

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        made = await super().apply(ctx, observation)
        await unless_over(ctx, lambda: self._sure(ctx))
        return made

    async def observe(self, ctx: Context) -> Observation:
        seen = await super().observe(ctx)
        return seen.model_copy(update={"holds": f"sure:{self.key}" in ctx.component("world", World).true})

    async def _sure(self, ctx: Context) -> None:
        if f"sure:{self.key}" not in ctx.component("world", World).true:
            raise NotYet(f"{self.key} is not sure")


class Seldom(Patient):
    """The same, looked at every few minutes only."""

    name: ClassVar[str] = "toy.seldom"

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        made = await _Toy.apply(self, ctx, observation)
        await unless_over(ctx, lambda: self._sure(ctx), most_s=240)
        return made


class Needing(Patient):
    """The same for what must be waited for to the end."""

    name: ClassVar[str] = "toy.needing"

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        made = await _Toy.apply(self, ctx, observation)
        await until(ctx, lambda: self._sure(ctx))
        return made


class Promote(_Toy):
    """The point of no return."""

    name: ClassVar[str] = "toy.promote"
    irreversible: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("toy.fence",)


class Fence(_Toy, Undoable):
    """What must come before ``toy.promote``."""

    name: ClassVar[str] = "toy.fence"

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        world = ctx.component("world", World)
        assert evidence["was"] is False
        await world.act(ctx, "undo", self.key, lambda: world.true.discard(self.key))


class Check(_Toy):
    """A check: waits, changes nothing."""

    name: ClassVar[str] = "toy.check"
    read_only: ClassVar[bool] = True
    phase: ClassVar[Phase] = Phase.VERIFY

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        assert not observation.holds
        await ctx.component("world", World).act(ctx, "apply", self.key)
        return None


class Place(_Toy):
    """Every kind of parameter."""

    name: ClassVar[str] = "toy.place"
    site: Annotated[str | None, SiteParam()] = None
    pause: Duration = 0.0


class Bind(_Toy):
    """Refers to a component of the storage domain."""

    name: ClassVar[str] = "toy.bind"
    bucket: Annotated[str, ComponentParam("storage")] = "storage"


TOYS: dict[str, type[Action]] = {
    c.name: c for c in (Make, Once, Patient, Seldom, Needing, Promote, Fence, Check, Place, Bind)
}
