"""Could the target carry all that the active site carries now?"""

from __future__ import annotations

import asyncio

from tasks.capacity.protocol import Capacity, Elastic, Refreshing
from tasks.quotas import Quoted
from tasks.readiness import Asked, Check, Finding, Level, Part


async def load(asked: Asked, part: Part) -> list[Finding]:
    """Instances for 100 % of the active site's load: may there be so many, are there so many, are they ready?"""
    if not isinstance(part.provider, Capacity):
        return []
    target = asked.target
    here, there = await asyncio.gather(part.provider.instances(asked.active), part.provider.instances(target))
    limits = part.provider.limits(target)
    need = max(sum(i.ready for i in here), limits.minimum)
    able, ready = limits.maximum, sum(i.ready for i in there)
    sick = [i.name for i in there if i.running and not i.ready]
    found = []
    if able < need:
        says = f"{asked.active} serves with {need} instances, {target} may have {able}"
        found.append(part.found("capacity", "failing", says, f"raise maximum to {need} or more", target))
    elif ready < need:
        says = f"{ready} instances of {target} are ready, all of the load needs {need}: {need - ready} must start first"
        fix = "keep as many running (minimum), or let the runbook start them (capacity.ensure)"
        found.append(part.found("capacity", "warning", says, fix, target))
    else:
        says = f"{ready} instances of {target} are ready, all of the load needs {need}"
        found.append(part.found("capacity", "ok", says, site=target))
    if sick:
        fix = "look at their logs; the balancer sends nobody there"
        found.append(part.found("target-health", "failing", f"running, not ready: {', '.join(sick)}", fix, target))
    return found


async def quota(asked: Asked, part: Part) -> list[Finding]:
    """The account's limits let the group grow to its maximum."""
    if not isinstance(part.provider, Elastic):
        return []
    may, needs = await part.provider.quota(asked.target)
    says = f"the account may run {may:g} vCPUs in {asked.target}, the group needs {needs:g} at its maximum"
    if may < needs:
        return [part.found("quota", "failing", says, "ask AWS for a higher quota now: it takes days", asked.target)]
    return [part.found("quota", "ok", says, site=asked.target)]


async def room(asked: Asked, part: Part) -> list[Finding]:
    """Beside all that the account has already, there is room for what a move takes at all of the active site's load."""
    if not isinstance(part.provider, Quoted):
        return []
    found = []
    for a in await part.provider.allowances(asked.active, asked.target):
        used = "what is used is not told" if a.used is None else f"{a.used:g} used"
        move, site = ("the way back", a.way_back) if a.way_back else ("a move", asked.target)
        says = f"{a.name}: {used}, {a.limit:g} allowed, {move} needs {a.needs:g} more"
        if a.needs and (a.used or 0.0) + a.needs > a.limit:
            fix = f"ask AWS for a higher quota now ({a.code}): it takes days; or give up what is not needed there"
            level: Level = "warning" if a.way_back else "failing"
            found.append(part.found("quota", level, says, fix, site))
        elif a.needs and a.used is None:
            found.append(part.found("quota", "unknown", says, f"look at {a.code}", site))
        else:
            found.append(part.found("quota", "ok", says, site=site))
    return found


async def drift(asked: Asked, part: Part) -> list[Finding]:
    """Both sites run the same version, with the same rules."""
    found = []
    if isinstance(part.provider, Refreshing):
        here, there = await asyncio.gather(*(part.provider.versions(s) for s in (asked.active, asked.target)))
        ours, theirs = sorted(set(here.values())), sorted(set(there.values()))
        if theirs and ours != theirs:
            says = f"{asked.active} runs {', '.join(ours)}, {asked.target} {', '.join(theirs)}"
            found.append(part.found("drift", "warning", says, "bring both to one version", asked.target))
    if isinstance(part.provider, Elastic):
        (here_by, _), (there_by, _) = await asyncio.gather(
            *(part.provider.scaling(s) for s in (asked.active, asked.target))
        )
        if (here_by.maximum, here_by.target_cpu) != (there_by.maximum, there_by.target_cpu):
            says = f"the groups scale by other rules: {asked.active} {here_by}, {asked.target} {there_by}"
            found.append(part.found("drift", "warning", says, "capacity.policy makes them alike", asked.target))
    return found


CHECKS: tuple[Check, ...] = (load, quota, room, drift)
