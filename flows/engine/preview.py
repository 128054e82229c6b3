"""What a run would do now: every step observed against the live system, nothing changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from flows.engine.attempt import Attempt
from flows.engine.launch import Ground, Ready, Request, prepare, run_info
from flows.engine.plan import PlannedStep
from flows.engine.roles import Roles, resolve
from tasks.contract import Context, Observation, Phase
from tasks.errors import RelightError, SafetyRefusal


@dataclass(frozen=True)
class Preview:
    """What ``plan`` found for one step. ``error`` is set where observing raised."""

    step: PlannedStep
    seen: Observation | None
    error: RelightError | None


async def observe(request: Request) -> tuple[Ready, Roles, list[Preview]]:
    """Observe every step against the live system and change nothing: no lease, no journal, no file."""
    ready = prepare(request.system, request.runbook, request.mode)
    ground = Ground()
    clock = ground.clock()
    async with ground.providers(ready, clock) as components:
        roles = await resolve(ready.loaded.system, components, request.wish)
        now = clock.utc()
        # few at a time: eighteen steps at once would starve each other's probes, and live nodes look silent
        turn = asyncio.Semaphore(3)
        info = run_info(ready.plan, request, "plan", 0, request.incident_started_at or now)

        async def look(step: PlannedStep) -> Preview:
            async with turn:
                return await observed(step)

        async def observed(step: PlannedStep) -> Preview:
            seconds = min(step.timeout_s, 10.0)
            context = Context(
                run=info,
                clock=clock,
                roles=roles.by_name,
                components=components,
                deadline=clock.monotonic() + seconds,
                rpo_s=ready.rpo_s,
                guard=_read_only,
            )
            found = await Attempt(step, context, lambda _seen: None, None).observed()
            return Preview(step, None, found) if isinstance(found, RelightError) else Preview(step, found, None)

        return ready, roles, list(await asyncio.gather(*(look(s) for s in ready.plan.steps)))


def _read_only() -> None:
    raise SafetyRefusal("this is a plan: nothing may be changed")


def unready(previews: list[Preview]) -> list[str]:
    """Why the runbook would not work now: steps that cannot be observed, entry checks that do not hold, a loss above
    the objective.
    """
    reasons = []
    for p in previews:
        if p.seen is None:
            reasons.append(f"{p.step.id}: {p.error}")
        elif p.step.phase is Phase.DETECT and not p.seen.holds:
            reasons.append(f"{p.step.id}: {p.seen.summary}")
        elif (p.seen.facts.get("rpo") or {}).get("met") is False:
            reasons.append(f"{p.step.id}: {'; '.join(p.seen.facts['rpo'].get('reasons', ['the RPO would be missed']))}")
    return reasons
