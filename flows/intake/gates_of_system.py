"""Gates 9 to 14: is this system, and all of them together, in a state in which a run may start by itself?"""

from __future__ import annotations

from datetime import datetime

from flows.engine.plan import Plan
from flows.intake.decision import Said
from flows.intake.facts import Asked
from tasks.leases.protocol import LastRun
from tasks.quantities import show_duration

BACK = ("failback", "rejoin", "switchback")
"""Runbooks whose names begin so go back: never by themselves."""


def cool_down(asked: Asked) -> Said:
    """9: the last run, in whatever direction, until a person has looked."""
    facts = asked.facts
    last: LastRun | None = facts.held.last if facts.held else None
    limit_s = max(facts.cool_down_s, asked.gates.cool_down)
    if last is None:
        return Said("cool-down", "pass", "no run changed anything yet")
    if last.acknowledged_by:
        return Said("cool-down", "pass", f"{last.run_id} was acknowledged by {last.acknowledged_by}")
    since_s = max(0.0, (facts.now - datetime.fromisoformat(last.ended_at)).total_seconds())
    said = f"{last.run_id} ended {show_duration(since_s)} ago, and the cool-down is {show_duration(limit_s)}"
    if since_s < limit_s:
        return Said("cool-down", "needs-approval", f"{said}; relight acknowledge {last.run_id} lifts it")
    return Said("cool-down", "pass", said)


def concurrency(asked: Asked) -> Said:
    """10: one run a system. The lease decides again when the run starts."""
    held = asked.facts.held
    if held is not None and not held.released and asked.facts.alive:
        return Said("concurrency", "refuse", f"{held.run_id} runs already ({held.holder}, since {held.since})")
    return Said("concurrency", "pass", "no run has the system")


def blast_radius(asked: Asked) -> Said:
    """11: when everything fails at once, it is the monitor."""
    limit, facts = asked.gates.fleet, asked.facts
    firing, fleet = len(facts.firing_systems), max(facts.fleet, 1)
    said = f"{firing} of {fleet} systems fire within {show_duration(limit.within)}"
    if firing > limit.systems or (firing >= 2 and firing / fleet > limit.share):
        names = ", ".join(sorted(facts.firing_systems)[:5])
        return Said("blast-radius", "needs-approval", f"{said} ({names}): suspect the monitor", page=True)
    cap = min(limit.runs, facts.automatic_cap)
    used = f"{facts.automatic} of {cap} automatic runs in the last hour"
    if facts.automatic >= cap:
        return Said("blast-radius", "needs-approval", f"{said}; {used}")
    return Said("blast-radius", "pass", f"{said}; {used}")


def target(asked: Asked) -> Said:
    """12: where it would go. The run checks replica, loss, timeline and identity again right before it acts."""
    facts = asked.facts
    if facts.plan is None:
        return Said("target", "refuse", f"the run cannot be planned: {facts.broken}")
    reasons = []
    if facts.evidence is not None:
        last = facts.evidence.last
        if not last.target_answers:
            reasons.append(f"no database node of {last.target} answers")
    within_s, found = asked.gates.ready_within, facts.readiness
    if within_s:
        ask = f"relight ready {asked.rule.run} --system {facts.plan.system} --mode {facts.plan.mode}"
        if found.at is None:
            reasons.append(f"{asked.rule.run} was never found ready; {ask}")
        elif (facts.now - found.at).total_seconds() > within_s:
            ago = show_duration((facts.now - found.at).total_seconds())
            reasons.append(f"readiness was looked at {ago} ago, {show_duration(within_s)} is the limit; {ask}")
        elif not found.ready:
            reasons.append(f"it was not ready at {found.at:%H:%M} UTC: {'; '.join(found.reasons[:3])}")
    if reasons:
        return Said("target", "needs-approval", "; ".join(reasons))
    where = facts.evidence.last.target if facts.evidence else "the target"
    return Said("target", "pass", f"{where or 'the target'} is fit, as far as is known")


def approval(asked: Asked) -> Said:
    """13: what a person must see, whatever the stage."""
    facts, gates = asked.facts, asked.gates
    reasons = [facts.blind] if facts.blind else []
    if facts.evidence is not None:
        last = facts.evidence.last
        if last.loss:
            reasons.append(last.loss)
        if last.against and not asked.patient:
            reasons.append("evidence conflicts")
        frm, to = facts.regions.get(last.failed), facts.regions.get(last.target)
        if gates.cross_region == "ask" and frm and to and frm != to:
            reasons.append(f"it goes from region {frm} to {to}")
    if facts.plan is not None:
        loose = unfenced(facts.plan)
        if loose:
            reasons.append(f"fencing is not proven: nothing fences the old primary before {loose}")
    within_s, drilled = gates.drill_within, facts.drilled_at
    if within_s and (drilled is None or (facts.now - drilled).total_seconds() > within_s):
        when = f"last on {drilled:%Y-%m-%d}" if drilled else "never"
        reasons.append(f"{asked.rule.run} was drilled {when}, and {show_duration(within_s)} is the limit")
    if reasons:
        return Said("approval", "needs-approval", "; ".join(reasons))
    return Said("approval", "pass", "nothing asks for a person")


def unfenced(plan: Plan) -> str:
    """The promotions that no fence comes before."""
    fences = {s.id for s in plan.steps if s.action.name.endswith(".fence")}
    promotions = [s for s in plan.steps if s.irreversible and s.action.name.startswith("database.")]
    return ", ".join(s.id for s in promotions if not fences & set(plan.ancestors(s.id)))


def rules_of_safety(asked: Asked) -> Said:
    """14: never automatic, whatever else holds."""
    facts, gates = asked.facts, asked.gates
    if asked.rule.run.startswith(BACK):
        return Said("safety", "refuse", "a failback is never automatic")
    if gates.switch and facts.switch != "on":
        return Said("safety", "refuse", f"the switch {gates.switch} is not on ({facts.switch or 'it is not there'})")
    failed = facts.evidence.last.failed if facts.evidence else ""
    on = [s for s in facts.regions if s != failed and s not in facts.sites_firing]
    if failed and len(on) < gates.least_on:
        left = ", ".join(on) or "no site"
        why = f"{left} would be on after the move, and {gates.least_on} must be: the others fire too"
        return Said("safety", "refuse", why, page=True)
    if facts.plan is not None and facts.plan.mode == "graceful":
        return Said("safety", "needs-approval", "a planned move is a person's decision")
    return Said("safety", "pass", f"a forced failover; at least {gates.least_on} site is on afterwards")
