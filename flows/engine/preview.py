"""What a run would do now: every step observed against the live system, nothing changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from flows.engine.attempt import Attempt
from flows.engine.journal import Record
from flows.engine.launch import Ground, Ready, Request, prepare, run_info
from flows.engine.plan import PlannedStep
from flows.engine.providers import Components
from flows.engine.roles import Roles, resolve
from flows.engine.state import RunState
from tasks.clock import Clock
from tasks.contract import Context, Observation, Phase, RunInfo
from tasks.database.protocol import Database
from tasks.errors import RelightError, SafetyRefusal
from tasks.health.actions import ConfirmFailure


@dataclass(frozen=True)
class Preview:
    """What ``plan`` found for one step. ``error`` is set where observing raised."""

    step: PlannedStep
    seen: Observation | None
    error: RelightError | None


Around = Callable[[PlannedStep, Roles], contextlib.AbstractContextManager[object]]
"""What stands around the look at one step: a listener."""


async def observe(request: Request, around: Around | None = None) -> tuple[Ready, Roles, list[Preview]]:
    """Observe every step against the live system and change nothing: no lease, no journal, no file."""
    ready = prepare(request.system, request.runbook, request.mode, request.vars)
    ground = Ground()
    clock = ground.clock()
    async with ground.providers(ready, clock) as components:
        roles = await resolve(ready.loaded.system, components, request.wish)
        info = run_info(ready.plan, request, "plan", 0, request.incident_started_at or clock.utc())
        eyes = _Eyes(ready, clock, components, info, roles.by_name, RunState())
        found = await _looked(ready.plan.steps, eyes, lambda step: around(step, roles) if around else _NOTHING)
        return ready, roles, found


class Glance:
    """Looks at chosen steps, again and again, with providers that are kept in between. Changes nothing."""

    def __init__(self, request: Request, ready: Ready) -> None:
        self._request, self._ready = request, ready
        self._clock = Ground().clock()
        self._components = Ground().components(ready.loaded, self._clock)
        self._components.build()

    async def at(self, steps: tuple[PlannedStep, ...]) -> tuple[Roles, list[Preview]]:
        """The roles as they are now, and each of ``steps``. Raises Contradiction, BadInput where roles are unclear."""
        roles = await resolve(self._ready.loaded.system, self._components, self._request.wish)
        info = run_info(self._ready.plan, self._request, "plan", 0, self._clock.utc())
        eyes = _Eyes(self._ready, self._clock, self._components, info, roles.by_name, RunState())
        return roles, await _looked(steps, eyes)

    def sites(self) -> dict[str, str]:
        """Database node -> its site, of every database."""
        found: list[tuple[str, Database]] = self._components.of(Database)
        return {node: database.site_of(node) for _, database in found for node in database.nodes()}

    async def aclose(self) -> None:
        """Close the providers."""
        await self._components.aclose()


async def observe_run(head: Record, state: RunState) -> list[Preview]:
    """What is true now of each step of a run, given its first record. Changes nothing. Raises BadInput."""
    ready = prepare(head["files"]["system"], head["files"]["runbook"], head["mode"], head.get("vars", {}))
    request = Request(head["system"], head["runbook"], head["mode"], waivers=head["waivers"])
    ground = Ground()
    clock = ground.clock()
    async with ground.providers(ready, clock) as components:
        incident = datetime.fromisoformat(head["incident_started_at"])
        info = run_info(ready.plan, request, head["run_id"], 0, incident)
        return await _looked(ready.plan.steps, _Eyes(ready, clock, components, info, head["roles"], state))


@dataclass(frozen=True)
class _Eyes:
    """What a look needs."""

    ready: Ready
    clock: Clock
    components: Components
    info: RunInfo
    roles: Mapping[str, str]
    state: RunState

    def context(self, step: PlannedStep) -> Context:
        return Context(
            run=self.info,
            clock=self.clock,
            roles=self.roles,
            components=self.components,
            deadline=self.clock.monotonic() + min(step.timeout_s, 10.0),
            rpo_s=self.ready.rpo_s,
            earlier=self.state.earlier(),
            intended=self.state.of(step.id).intents,
            guard=read_only,
        )


_NOTHING = contextlib.nullcontext()


async def _looked(
    steps: tuple[PlannedStep, ...],
    eyes: _Eyes,
    around: Callable[[PlannedStep], contextlib.AbstractContextManager[object]] = lambda _step: _NOTHING,
) -> list[Preview]:
    # few at a time: eighteen steps at once would starve each other's probes, and live nodes look silent
    turn = asyncio.Semaphore(3)

    async def look(step: PlannedStep) -> Preview:
        async with turn:
            with around(step):  # a context variable of this task alone
                found = await Attempt(step, eyes.context(step), lambda _seen: None, None).observed()
            return Preview(step, None, found) if isinstance(found, RelightError) else Preview(step, found, None)

    return list(await asyncio.gather(*(look(s) for s in steps)))


def markdown(previews: list[Preview]) -> str:
    """A table: of each step what would be done, or why that cannot be told."""
    rows = ["| step | action | now | would do |", "|---|---|---|---|"]
    for p in previews:
        seen = p.seen.summary if p.seen else f"**cannot be observed:** {p.error}"
        does = "nothing" if p.seen and p.seen.holds else "; ".join(p.seen.changes if p.seen else ())
        cells = (p.step.id, p.step.action.name, seen, does or "-")
        rows.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return "\n".join(rows)


def read_only() -> None:
    """The guard of whoever only looks. Raises SafetyRefusal."""
    raise SafetyRefusal("this is a look: nothing may be changed")


def too_early(p: Preview, previews: list[Preview]) -> str:
    """The step that ``p`` is looked at before, where that is why it refuses: a database that has yet to be promoted is
    no primary to re-join. Empty for none.
    """
    if type(p.error) is not SafetyRefusal:
        return ""
    by_id = {one.step.id: one for one in previews}
    before, todo = set[str](), list(p.step.needs)
    while todo:
        if (name := todo.pop()) not in before and name in by_id:
            before.add(name)
            todo += by_id[name].step.needs
    yet_to_come = (one for one in previews if one.step.id in before and one.step.irreversible)
    return next((one.step.id for one in yet_to_come if one.seen is not None and not one.seen.holds), "")


def unready(previews: list[Preview]) -> list[str]:
    """Why the runbook would not work now: steps that cannot be observed, entry checks that do not hold, a loss above
    the objective. That a failure is not confirmed while all is well is none, nor is what it is too early to look at.
    """
    reasons = []
    for p in previews:
        if too_early(p, previews):
            continue
        if p.seen is None:
            reasons.append(f"{p.step.id}: {p.error}")
        elif p.step.phase is Phase.DETECT and not p.seen.holds and not isinstance(p.step.action, ConfirmFailure):
            reasons.append(f"{p.step.id}: {p.seen.summary}")
        elif (p.seen.facts.get("rpo") or {}).get("met") is False:
            reasons.append(f"{p.step.id}: {'; '.join(p.seen.facts['rpo'].get('reasons', ['the RPO would be missed']))}")
    return reasons
