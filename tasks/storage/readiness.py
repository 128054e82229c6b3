"""Would the target's bucket have what the active one has, and may it be changed?"""

from __future__ import annotations

from tasks.quantities import show_duration
from tasks.readiness import Asked, Check, Finding, Part
from tasks.storage._copies import wrong
from tasks.storage.protocol import Replicated, Routed, Storage

SAMPLE = 20
CHECK = "replication"


async def replication(asked: Asked, part: Part) -> list[Finding]:
    """The store's own replication: versions at both ends, a rule, nothing that failed. A copier's bucket has none."""
    store = part.provider
    if not isinstance(store, Replicated) or not isinstance(store, Storage):
        return []
    site, source = asked.target, asked.active
    state = await store.replicating(site, source, SAMPLE)
    if not state.rules and await store.source(site) == source:
        return []
    found = [
        part.found(CHECK, "failing", says, "see S3 Replication of both buckets; docs/aws.md", site)
        for says in wrong(state)
    ]
    late = state.statuses.get("PENDING", 0)
    if not found:
        delay = "no metric of its delay" if state.latency_s is None else f"{state.latency_s:g} s behind"
        control = "" if state.time_control_s is None else f", time control {show_duration(state.time_control_s)}"
        says = f"{source} is replicated to {site}: {late} of the newest {SAMPLE} pending, {delay}{control}"
        found.append(part.found(CHECK, "ok", says, site=site))
    rpo_s = asked.rpo_s.get(part.name)
    if state.latency_s is not None and rpo_s is not None and state.latency_s > rpo_s:
        says = f"replication is {state.latency_s:g} s behind, the objective is {show_duration(rpo_s)}"
        found.append(part.found(CHECK, "failing", says, "wait, or look for what holds it up", site))
    return found


async def routes(asked: Asked, part: Part) -> list[Finding]:
    """The access point answers, has the buckets of the system file, and leads to the active site."""
    if not isinstance(part.provider, Routed):
        return []
    on = [s for s, active in (await part.provider.active()).items() if active]
    says = f"requests are led to {', '.join(on)}"
    if on != [asked.active]:
        return [part.found("routes", "warning", says, f"storage.route leads them to {asked.active}", asked.active)]
    return [part.found("routes", "ok", says, site=asked.active)]


CHECKS: tuple[Check, ...] = (replication, routes)
