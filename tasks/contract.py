"""What an action is, and what it is given. The whole engine rests on this page.

An action makes a state true. It is a frozen pydantic model of its parameters with

    observe(ctx)             read-only: is the goal state already true? the facts that say so; what would change
    apply(ctx, observation)  make it true; safe to repeat
    confirm(ctx)             read it back by another path than the one that changed it
    undo(ctx, evidence)      optional; only where it truly reverses

Dry run, resume, readiness, drift, failback and evidence all follow from these four verbs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.clock import Clock
from tasks.errors import BadInput
from tasks.hearing import Hearing, Silence
from tasks.network import Network, Sockets

Facts = dict[str, Any]
"""JSON-able evidence: str, int, float, bool, None, list, dict. Never a secret."""

P = TypeVar("P")


class Phase(StrEnum):
    """Which part of the RTO split the time of an action counts in."""

    DETECT = "detect"
    APPROVE = "approve"
    EXECUTE = "execute"
    VERIFY = "verify"


class Observation(BaseModel):
    """What ``observe`` and ``confirm`` found.

    Attributes:
        holds: the goal state is true now.
        summary: one line for people: what is (``west-pg1 is fenced``).
        changes: what ``apply`` would do, one line an effect, in order; empty when ``holds``.
        facts: the evidence, JSON-able; goes to the journal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    holds: bool
    summary: str
    changes: tuple[str, ...] = ()
    facts: Facts = Field(default_factory=dict)


@dataclass(frozen=True)
class SiteParam:
    """Marks an action parameter that names a site, or a role of one: ``active``, ``failed``, ``target``."""


@dataclass(frozen=True)
class ComponentParam:
    """Marks an action parameter that names a component whose provider is of ``domain``."""

    domain: str


Mode = Literal["forced", "graceful"]


@dataclass(frozen=True)
class RunInfo:
    """What is the same for every step of a run."""

    run_id: str
    system: str
    runbook: str
    mode: Mode
    epoch: int
    incident_started_at: str
    """ISO 8601, aware UTC."""
    waivers: Mapping[str, str] = field(default_factory=dict)
    """waiver name (for example ``loss``) -> who gave it and why."""


@dataclass(frozen=True)
class Done:
    """An earlier step of this run, as the journal has it."""

    step: str
    action: str
    outcome: str
    facts: Facts


@dataclass(frozen=True)
class Context:
    """Everything an action may use. It never reads a clock, a file or the environment on its own."""

    run: RunInfo
    clock: Clock
    roles: Mapping[str, str]
    """role or site name -> site name; every site name maps to itself."""
    components: Callable[[str], Any]
    """component name -> its provider instance."""
    deadline: float
    """``clock.monotonic()`` value at which this attempt is cut off."""
    rpo_s: Mapping[str, float] = field(default_factory=dict)
    """component -> recovery point objective in seconds, where one is set."""
    earlier: tuple[Done, ...] = ()
    """Steps of this run that ended before, oldest first."""
    intended: tuple[Facts, ...] = ()
    """Facts that this step's own intents of this run were journaled with: effects that may have happened already."""
    network: Network = field(default_factory=Sockets)
    """What a client would reach: URLs, ports, names."""
    hearing: Hearing = field(default_factory=Silence)
    """What people said to this step, for an action that asks them."""
    patience_s: Callable[[], float] = lambda: math.inf
    """Seconds for which something that is not yet so may still be waited for; short once the run stops."""
    report: Callable[[str], None] = lambda _line: None
    """Tells people what is being waited for; goes to the live view, not to the journal."""
    guard: Callable[[], None] = lambda: None
    """Raises LeaseHeld when this run may no longer change anything. Call right before each mutating call."""

    def site(self, role: str) -> str:
        """The site that ``role`` (or a site's own name) stands for. Raises BadInput for an unknown one."""
        try:
            return self.roles[role]
        except KeyError:
            known = ", ".join(sorted(self.roles))
            raise BadInput(f"no site or role {role!r} in this run; known here: {known}") from None

    def component(self, name: str, protocol: type[P]) -> P:
        """The provider of component ``name``. Raises BadInput if it does not speak ``protocol``."""
        provider = self.components(name)
        if not isinstance(provider, protocol):
            raise BadInput(
                f"component {name!r} is provided by {type(provider).__name__}, which is no {protocol.__name__}"
            )
        return provider

    def left_s(self) -> float:
        """Seconds until this attempt is cut off; never negative."""
        return max(0.0, self.deadline - self.clock.monotonic())

    def facts_of(self, action: str) -> list[Facts]:
        """Facts of the earlier steps that used ``action`` and ended done or already, newest last."""
        return [d.facts for d in self.earlier if d.action == action and d.outcome in ("done", "already")]


class Action(BaseModel):
    """Base of every action. Parameters are fields; everything about the verb itself is a ClassVar.

    Subclasses with an ``undo`` method are reversible; see ``reversible``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""
    """``domain.verb``; set by ``tasks.catalog.action``."""
    phase: ClassVar[Phase] = Phase.EXECUTE
    read_only: ClassVar[bool] = False
    """A check: ``apply`` only waits, nothing is ever changed. Its outcome is ``done``, never ``already``."""
    irreversible: ClassVar[bool] = False
    """A runbook must say ``irreversible: true`` on a step that uses this."""
    after: ClassVar[tuple[str, ...]] = ()
    """Actions one of which must come before this one on every path of a runbook (fence before promote)."""

    def least_timeout_s(self) -> float:
        """The shortest timeout this action can honour with these parameters; a shorter one is a load error."""
        return 0.0

    def most_s(self) -> float | None:
        """The longest that one attempt can take with these parameters; None where only its time-out bounds it."""
        return None

    async def observe(self, ctx: Context) -> Observation:
        """Read-only. Raises a RelightError when it cannot tell; never guesses."""
        raise NotImplementedError

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        """Make the goal state true. Repeating it is safe. Checks identity and role of what it changes first.

        Returns facts that only the doing can tell (when, how); the runner merges them into the step's own. One of them,
        ``said``, is a line for people: it goes before what ``confirm`` found in the step's summary.
        """
        raise NotImplementedError

    async def confirm(self, ctx: Context) -> Observation:
        """Read back by another path. The default observes again; override it where another path exists."""
        return await self.observe(ctx)


class Undoable(Action):
    """An action that truly reverses."""

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        """Put back what ``evidence`` (the facts from before apply) says was there. Safe to repeat."""
        raise NotImplementedError


@dataclass(frozen=True)
class Surroundings:
    """What a provider is built with, besides its own settings."""

    system: str
    component: str
    sites: tuple[str, ...]
    clock: Clock
    components: Callable[[str], Any]
    """Other components of the system by name (a database uses ``hosts``); built on first use."""
    folder: Path | None = None
    """Where the system file is: what lies beside it (migrations) is found from there."""


async def in_thread(call: Callable[[], P]) -> P:
    """Run a blocking library call (boto3) off the event loop. The caller sets the library's own time-out."""
    return await asyncio.to_thread(call)
