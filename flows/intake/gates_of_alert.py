"""Gates 1 to 8: may it start at all, and is what the alert says true?"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

from flows.engine import killswitch
from flows.engine.plan import Plan
from flows.intake.decision import Said
from flows.intake.facts import Asked, Evidence
from tasks.contract import Phase
from tasks.errors import SafetyRefusal
from tasks.quantities import show_duration

FRESH_S = 30.0
"""A look that is older says nothing about now."""
AGAIN_S = 0.05
"""How soon evidence that is being gathered is looked at again."""


def enabled(asked: Asked) -> Said:
    """1: automatic runs are opt-in, by rule, and can be switched off by system."""
    rule, stage, most = asked.rule, asked.stage, asked.loaded.triggers.stage
    if stage == "off":
        whose = f"system {asked.loaded.system}" if most == "off" else f"rule {rule.id}"
        return Said("enabled", "refuse", f"{whose} is off{', which is the default' if most != 'off' else ''}")
    capped = "" if stage == rule.stage else f"; its own stage is {rule.stage}, and its system allows no more"
    return Said("enabled", "pass", f"rule {rule.id} is at stage {stage}{capped}")


def kill_switch(asked: Asked) -> Said:
    """2: of everything, and of this system. Checked again before every change of the run."""
    try:
        killswitch.check(asked.facts.plan.system if asked.facts.plan else asked.loaded.system)
    except SafetyRefusal as e:
        return Said("kill-switch", "refuse", e.message)
    held = asked.facts.held
    if held is not None and held.paused:
        return Said("kill-switch", "refuse", killswitch.refusal(asked.loaded.system, held.paused).message)
    return Said("kill-switch", "pass", "neither relight nor this system is paused")


def fitness(asked: Asked) -> Said:
    """3: fresh, verified, firing, and whole."""
    event = asked.event
    reasons = [
        (event.kind != "firing", f"it is {event.kind}, not firing"),
        (event.is_test, f"it is a test: {event.test_why}"),
        (not event.auth.verified, "its sender was not recognised"),
        (not event.may_trigger, "its format lacks what a trigger needs"),
        (bool(event.suppressed_by), f"its sender's actions are suppressed by {event.suppressed_by}"),
        (event.truncated, "the delivery left alerts out"),
        (not event.time_trusted, f"its clock is {show_duration(event.clock_skew_s)} ahead"),
        (
            event.age_s > asked.facts.max_age_s,
            f"it is {show_duration(event.age_s)} old, older than {show_duration(asked.facts.max_age_s)}",
        ),
        (not asked.facts.firing, "it has ended meanwhile"),
    ]
    against = [why for true, why in reasons if true]
    if against:
        stale = event.kind == "firing" and event.age_s > asked.facts.max_age_s
        return Said("fitness", "refuse", "; ".join(against), page=stale)
    return Said("fitness", "pass", f"it fires, from a known sender, {show_duration(event.age_s)} old")


def window(asked: Asked) -> Said:
    """4: planned work blocks what is automatic; a person may say yes all the same."""
    for one in asked.loaded.triggers.windows:
        if one.start <= asked.facts.now < one.end:
            return Said("window", "needs-approval", f"planned work until {one.end.isoformat()}: {one.why}")
    if asked.facts.maintenance:
        return Said("window", "needs-approval", f"relight itself works on this system: {asked.facts.maintenance}")
    return Said("window", "pass", "no planned work now")


def quorum(asked: Asked) -> Said:
    """5: evidence of kinds that fail independently; what disagrees is for people."""
    facts = asked.facts
    if facts.plan is None:
        return Said("quorum", "refuse", f"the run cannot be planned: {facts.broken}")
    bare = unguarded(facts.plan)
    if bare:
        return Said("quorum", "needs-approval", f"an alert is all there is: no entry check comes before {bare}")
    if not asked.gates.looks:
        return Said("quorum", "pass", "an alert is enough, as configured; the run's own entry check looks first")
    if facts.evidence is None:
        return _not_yet(asked, "the system itself is being looked at", AGAIN_S)
    return _counted(asked, facts.evidence)


def _counted(asked: Asked, evidence: Evidence) -> Said:
    last = evidence.last
    old_s = (asked.facts.now - last.at).total_seconds()
    if old_s > FRESH_S:
        return _not_yet(asked, f"the system itself was looked at {show_duration(old_s)} ago, and not since")
    kinds = {"alert", *last.kinds}
    why = f"{len(kinds)} of 3 kinds of evidence ({', '.join(sorted(kinds))}), {asked.gates.quorum} are asked for"
    if last.against:
        return _not_yet(asked, f"signals disagree: the alert fires, and {'; '.join(last.against)}")
    if len(kinds) >= asked.gates.quorum and last.failing:
        return Said("quorum", "pass", f"{why}: {last.summary}")
    return _not_yet(asked, f"{why}: {last.summary}")


def _not_yet(asked: Asked, why: str, again_s: float | None = None) -> Said:
    """Wait for evidence while there is patience; then it is for a person, now."""
    if asked.patient:
        return Said("quorum", "hold", why, asked.gates.confirm.every if again_s is None else again_s)
    return Said("quorum", "needs-approval", why, page=True)


def unguarded(plan: Plan) -> str:
    """What no entry check comes before: irreversible steps, or the first one where there is no check at all."""
    checks = {s.id for s in plan.steps if s.phase is Phase.DETECT and s.action.read_only}
    bare = [s.id for s in plan.steps if s.irreversible and not checks & set(plan.ancestors(s.id))]
    return ", ".join(bare) or ("" if checks else "its first step")


def confirm(asked: Asked) -> Said:
    """6: it must have been firing for a while, and our own looks must have failed, one after the other."""
    wanted, facts = asked.gates.confirm, asked.facts
    since_s = max(0.0, (facts.now - asked.event.started_at).total_seconds())
    times = facts.evidence.failing if facts.evidence else 0
    said = (
        f"firing for {show_duration(since_s)} of {show_duration(wanted.span)}, and {times} of {wanted.probes} looks in"
        " a row failed"
    )
    if since_s < wanted.span:
        return Said("confirm", "hold", said, wanted.span - since_s)
    if times >= wanted.probes:
        return Said("confirm", "pass", f"{said}; the run's own entry check asks again before anything is changed")
    late = asked.event.received_at + timedelta(seconds=wanted.patience + wanted.span + wanted.probes * wanted.every)
    if facts.plan is not None and not unguarded(facts.plan) and facts.now < late:
        return Said("confirm", "hold", said, wanted.every if facts.evidence else AGAIN_S)
    return Said("confirm", "needs-approval", said)


def isolation(asked: Asked) -> Said:
    """7: is it us who are cut off?"""
    found = asked.facts.references
    if not found:
        return Said(
            "isolation", "needs-approval", "no reference targets are configured, so it may be us who are cut off"
        )
    good = sum(found.values())
    if good * 3 < len(found) * 2:
        away = ", ".join(n for n, answers in found.items() if not answers)
        return Said("isolation", "hold", f"only {good} of {len(found)} reference targets answer (not {away})", 10.0)
    return Said("isolation", "pass", f"{good} of {len(found)} reference targets answer")


def flap(asked: Asked) -> Said:
    """8: it comes and goes; once it does, it must have been quiet for as long before it counts again."""
    limit = asked.gates.flap
    quiet = timedelta(seconds=limit.within)
    since = flapping_since(asked.facts.begun, limit.episodes, quiet)
    recently = sum(at >= asked.facts.now - quiet for at in asked.facts.begun)
    said = f"it began {recently} times within {show_duration(limit.within)}"
    if since is not None and asked.facts.now - asked.facts.begun[-1] < quiet:
        return Said("flap", "needs-approval", f"{said}, and flaps since {since:%H:%M:%S} UTC, never quiet for so long")
    return Said("flap", "pass", said)


def flapping_since(begun: tuple[datetime, ...], most: int, quiet: timedelta) -> datetime | None:
    """When the spell of flapping began that the last of ``begun`` (oldest first) belongs to; None if to none.

    A spell begins with more than ``most`` episodes within ``quiet``, and ends only when none began for ``quiet``.
    """
    since: datetime | None = None
    near: deque[datetime] = deque()
    for at in begun:
        if near and at - near[-1] >= quiet:
            since = None
        near.append(at)
        while near[0] <= at - quiet:
            near.popleft()
        if since is None and len(near) > most:
            since = at
    return since
