"""Would the name move, and soon enough? TTL against the RTO, credentials, agreement of the servers, control plane."""

from __future__ import annotations

import asyncio

from tasks.quantities import show_duration
from tasks.readiness import Asked, Check, Finding, Level, Part
from tasks.zones.actions import FUDGE_S
from tasks.zones.protocol import Paced, Switchboard, Zone

SHARE = 0.5
"""A TTL above this part of the RTO leaves too little for everything else."""


async def ttl(asked: Asked, part: Part) -> list[Finding]:
    """Clients keep the old answer for the TTL of the record, whatever else was fast."""
    if not isinstance(part.provider, Zone):
        return []
    rto_s = asked.rto_s.get("application", min(asked.rto_s.values(), default=0.0))
    found = []
    for name, rdtype in part.provider.names():
        rrset = (await part.provider.read(name, rdtype)).rrset
        fix = f"set ttl of {name} below {show_duration(rto_s * SHARE)} in the system file and in the zone"
        if rrset is None:
            found.append(part.found("ttl", "failing", f"{name} {rdtype} does not exist", "create it"))
            continue
        said = f"{name} {rdtype} has a TTL of {show_duration(rrset.ttl)}"
        if not rto_s:
            found.append(part.found("ttl", "unknown", f"{said}; there is no RTO to hold it against", "give an rto"))
        elif rrset.ttl >= rto_s:
            found.append(part.found("ttl", "failing", f"{said}, the RTO is {show_duration(rto_s)}", fix))
        elif rrset.ttl > rto_s * SHARE:
            found.append(part.found("ttl", "warning", f"{said}, much of the RTO ({show_duration(rto_s)})", fix))
        else:
            found.append(part.found("ttl", "ok", said))
    return found


async def pace(asked: Asked, part: Part) -> list[Finding]:
    """Every name moved within the RTO, at the pace that the keeper of the zone takes requests."""
    if not isinstance(part.provider, Paced):
        return []
    it, rto_s = part.provider.pace(), asked.rto_s.get("application", min(asked.rto_s.values(), default=0.0))
    takes_s = it.requests / it.per_s
    says = f"moving every name takes {it.requests} requests, {show_duration(takes_s)} at {it.per_s:g} a second"
    if not rto_s:
        return [part.found("quota", "unknown", f"{says}; there is no RTO to hold it against", "give an rto")]
    level: Level = "failing" if takes_s >= rto_s else "warning" if takes_s > rto_s * SHARE else "ok"
    if level == "ok":
        return [part.found("quota", "ok", says)]
    fix = "lead many names to few by CNAME or alias, or use zones.flip: the limit is of the account and is not raised"
    return [part.found("quota", level, f"{says}; the RTO is {show_duration(rto_s)}", fix)]


async def access(_asked: Asked, part: Part) -> list[Finding]:
    """The primary would take a change from us now; clocks; every server and resolver answers, and they agree."""
    if not isinstance(part.provider, Zone):
        return []
    zone, found = part.provider, list[Finding]()
    for name, rdtype in zone.names():
        allowed = await zone.check_access(name, rdtype)
        found += [part.found("permissions", "ok", f"{allowed.primary} would take a change of {name} {rdtype}")]
        found += [part.found("permissions", "warning", w, "see docs/design.md, zones") for w in allowed.warnings]
        late = abs(allowed.skew_s) > FUDGE_S / 2
        said = f"the clock of {allowed.primary} differs from ours by {allowed.skew_s:.0f} s (TSIG takes {FUDGE_S:g})"
        found.append(part.found("clock", "failing" if late else "ok", said, "run NTP on both" if late else ""))
        servers = await asyncio.gather(*(zone.ask(s, name, rdtype) for s in zone.servers()))
        for answer in servers:
            behind = allowed.serial is not None and answer.serial not in (None, allowed.serial)
            if answer.error or behind:
                why = answer.error or f"has serial {answer.serial}, the primary {allowed.serial}"
                found.append(part.found("servers", "failing", f"{answer.server}: {why}", "look at its transfers"))
        for answer in await asyncio.gather(*(zone.ask(s, name, rdtype) for s in zone.resolvers())):
            if answer.error:
                said = f"resolver {answer.server}: {answer.error}"
                found.append(part.found("servers", "warning", said, "the change cannot be verified through it"))
    return found


async def control_plane(_asked: Asked, part: Part) -> list[Finding]:
    """What a change goes through; one that is in a single region may be down exactly then."""
    if isinstance(part.provider, Switchboard):
        return [part.found("control-plane", "ok", f"a flip goes through {', '.join(part.provider.needs())}")]
    if not isinstance(part.provider, Zone) or not part.provider.control_plane():
        return []
    fix = "prepare zones.flip (a health-check flip or ARC routing controls), which needs the data plane only"
    return [part.found("control-plane", "warning", part.provider.control_plane(), fix)]


CHECKS: tuple[Check, ...] = (ttl, pace, access, control_plane)
