"""The gate chain between an alert and a run. Every gate answers, with a reason; nobody stops at the first.

The order and the defaults are those of mature systems (orchestrator's recovery filters, block periods and downtime; ARC
Region switch's minimum delay; Nagios' flap detection). Detection is not recovery: what an alert proposes, the run's own
entry check still has to confirm on the system itself, before it touches anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from flows.engine import killswitch
from flows.engine.plan import Plan
from flows.intake.event import Event
from flows.intake.rules import Gates, Loaded, Rule
from tasks.contract import Phase
from tasks.errors import SafetyRefusal
from tasks.leases.protocol import Held, LastRun
from tasks.quantities import show_duration

Answer = Literal["pass", "hold", "needs-approval", "refuse"]
ORDER: tuple[Answer, ...] = ("refuse", "hold", "needs-approval", "pass")
"""What weighs more comes first."""


@dataclass(frozen=True)
class Said:
    """One gate's answer. ``again_s``: when it may be asked again, where it holds."""

    gate: str
    answer: Answer
    why: str
    again_s: float = 0.0


@dataclass(frozen=True)
class Facts:
    """What the gates look at; gathered before they are asked.

    Attributes:
        plan: of the run that is proposed; None where its files are invalid (``broken`` says how).
        held: the system's lease record, None where there never was one; alive: its holder may live.
        recent: events that began an episode of this rule's alerts lately; others: systems with one that fires.
        automatic: runs that were started by themselves in the last hour, and how many may be.
        references: of the rule's reference targets, which answered.
        blind: why the monitoring cannot be trusted to speak up; empty while it can.
        drilled_at: when a drill of the runbook succeeded last.
        firing: the episode still fires.
    """

    now: datetime
    plan: Plan | None = None
    broken: str = ""
    held: Held | None = None
    alive: bool = False
    cool_down_s: float = 1800.0
    recent: tuple[Event, ...] = ()
    others: frozenset[str] = frozenset()
    automatic: tuple[int, int] = (0, 3)
    references: dict[str, bool] = field(default_factory=dict)
    blind: str = ""
    drilled_at: datetime | None = None
    firing: bool = True
    max_age_s: float = 900.0


@dataclass(frozen=True)
class Decision:
    """All that the gates said, and what it comes to. ``proposes``: an automatic run may start now."""

    rule: str
    stage: str
    said: tuple[Said, ...]
    at: datetime

    @property
    def answer(self) -> Answer:
        return min((s.answer for s in self.said), key=ORDER.index, default="pass")

    @property
    def again_s(self) -> float:
        return max((s.again_s for s in self.said if s.answer == "hold"), default=0.0)

    @property
    def outcome(self) -> str:
        """``start``, ``hold``, ``ask`` (a person is asked), ``refused``, or ``shadow`` (noted, nothing more)."""
        if self.stage in ("off", "observe"):
            return "shadow"
        if self.answer == "pass":
            return "start" if self.stage == "auto" else "ask"
        return {"refuse": "refused", "hold": "hold", "needs-approval": "ask"}[self.answer]

    def document(self) -> dict[str, object]:
        """As it is kept and printed."""
        return {
            "rule": self.rule,
            "stage": self.stage,
            "at": self.at.isoformat(timespec="milliseconds"),
            "answer": self.answer,
            "outcome": self.outcome,
            "would": {"pass": "start", "needs-approval": "ask", "hold": "hold", "refuse": "refuse"}[self.answer],
            "gates": [{"gate": s.gate, "answer": s.answer, "why": s.why} for s in self.said],
        }


def judge(event: Event, rule: Rule, loaded: Loaded, facts: Facts) -> Decision:
    """Ask every gate."""
    asked = Asked(event, rule, loaded, facts)
    return Decision(rule.id, rule.stage, tuple(gate(asked) for gate in CHAIN), facts.now)


@dataclass(frozen=True)
class Asked:
    """What each gate is given."""

    event: Event
    rule: Rule
    loaded: Loaded
    facts: Facts

    @property
    def gates(self) -> Gates:
        return self.loaded.triggers.gates


def enabled(asked: Asked) -> Said:
    """1: automatic runs are opt-in."""
    stage = asked.rule.stage
    if stage == "off":
        return Said("enabled", "refuse", f"rule {asked.rule.id} is off, which is the default")
    return Said("enabled", "pass", f"rule {asked.rule.id} is at stage {stage}")


def kill_switch(_asked: Asked) -> Said:
    """2: checked again before every change of the run."""
    try:
        killswitch.check()
    except SafetyRefusal as e:
        return Said("kill-switch", "refuse", e.message)
    return Said("kill-switch", "pass", "relight is not paused")


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
        return Said("fitness", "refuse", "; ".join(against))
    return Said("fitness", "pass", f"it fires, from a known sender, {show_duration(event.age_s)} old")


def window(asked: Asked) -> Said:
    """4: planned work."""
    for one in asked.loaded.triggers.windows:
        if one.start <= asked.facts.now < one.end:
            return Said("window", "refuse", f"planned work until {one.end.isoformat()}: {one.why}")
    return Said("window", "pass", "no planned work now")


def quorum(asked: Asked) -> Said:
    """5: evidence that does not come from one monitor. The run's own entry check is the other kind."""
    plan = asked.facts.plan
    if plan is None:
        return Said("quorum", "refuse", f"the run cannot be planned: {asked.facts.broken}")
    checks = [s for s in plan.steps if s.phase is Phase.DETECT and s.action.read_only]
    unguarded = [s.id for s in plan.steps if s.irreversible and not {c.id for c in checks} & set(plan.ancestors(s.id))]
    if unguarded or not checks:
        what = ", ".join(unguarded) or "its first step"
        return Said("quorum", "needs-approval", f"an alert is all there is: no entry check comes before {what}")
    names = ", ".join(c.id for c in checks)
    return Said("quorum", "pass", f"besides the alert, {names} asks the system itself before anything is touched")


def confirm(asked: Asked) -> Said:
    """6: it must have been firing for a while."""
    span_s = asked.gates.confirm.span
    since_s = (asked.facts.now - asked.event.started_at).total_seconds()
    if since_s < span_s:
        left = span_s - since_s
        return Said(
            "confirm", "hold", f"firing for {show_duration(max(0.0, since_s))} of {show_duration(span_s)}", left
        )
    return Said("confirm", "pass", f"firing for {show_duration(since_s)}; {show_duration(span_s)} are asked for")


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
    """8: it comes and goes."""
    limit = asked.gates.flap
    since = asked.facts.now - timedelta(seconds=limit.within)
    count = sum(e.received_at >= since for e in asked.facts.recent)
    if count > limit.episodes:
        return Said("flap", "needs-approval", f"it began {count} times within {show_duration(limit.within)}")
    return Said("flap", "pass", f"it began {count} times within {show_duration(limit.within)}")


def cool_down(asked: Asked) -> Said:
    """9: the last run, in whatever direction."""
    last: LastRun | None = asked.facts.held.last if asked.facts.held else None
    if last is None:
        return Said("cool-down", "pass", "no run changed anything yet")
    if last.acknowledged_by:
        return Said("cool-down", "pass", f"{last.run_id} was acknowledged by {last.acknowledged_by}")
    since_s = (asked.facts.now - datetime.fromisoformat(last.ended_at)).total_seconds()
    if since_s < asked.facts.cool_down_s:
        return Said(
            "cool-down",
            "needs-approval",
            f"{last.run_id} ended {show_duration(max(0.0, since_s))} ago; relight acknowledge {last.run_id} lifts it",
        )
    return Said("cool-down", "pass", f"{last.run_id} ended {show_duration(since_s)} ago")


def concurrency(asked: Asked) -> Said:
    """10: one run a system. The lease decides again when the run starts."""
    held = asked.facts.held
    if held is not None and not held.released and asked.facts.alive:
        return Said("concurrency", "refuse", f"{held.run_id} runs already ({held.holder}, since {held.since})")
    return Said("concurrency", "pass", "no run has the system")


def blast_radius(asked: Asked) -> Said:
    """11: when everything fails at once, it is the monitor."""
    limit, others = asked.gates.fleet, asked.facts.others
    if len(others) > limit.systems:
        names = ", ".join(sorted(others)[:5])
        return Said("blast-radius", "needs-approval", f"{len(others)} systems fire at once ({names})")
    started, most = asked.facts.automatic
    if started >= most:
        return Said("blast-radius", "needs-approval", f"{started} automatic runs already, the cap is {most}")
    return Said("blast-radius", "pass", f"{len(others)} systems fire; {started} of {most} automatic runs used")


def target(asked: Asked) -> Said:
    """12: the run's own loss budget and checks decide; here, that there are any."""
    plan = asked.facts.plan
    if plan is None:
        return Said("target", "refuse", f"the run cannot be planned: {asked.facts.broken}")
    point = plan.point_of_no_return
    return Said("target", "pass", f"{point or 'no step'} checks replica, loss and identity right before it acts")


def approval(asked: Asked) -> Said:
    """13: what a person must see, whatever the stage."""
    reasons = [asked.facts.blind] if asked.facts.blind else []
    within_s = asked.gates.drill_within
    drilled = asked.facts.drilled_at
    if within_s and (drilled is None or (asked.facts.now - drilled).total_seconds() > within_s):
        when = f"last on {drilled:%Y-%m-%d}" if drilled else "never"
        reasons.append(f"{asked.rule.run} was drilled {when}, and {show_duration(within_s)} is the limit")
    if reasons:
        return Said("approval", "needs-approval", "; ".join(reasons))
    return Said("approval", "pass", "nothing asks for a person")


def rules_of_safety(asked: Asked) -> Said:
    """14: never automatic, whatever else holds."""
    plan = asked.facts.plan
    if plan is not None and plan.mode == "graceful":
        return Said("safety", "needs-approval", "a planned move is a person's decision")
    if asked.rule.run.startswith(("failback", "rejoin")):
        return Said("safety", "refuse", "a failback is never automatic")
    return Said("safety", "pass", "a forced failover; never a failback")


CHAIN: tuple[Callable[[Asked], Said], ...] = (
    enabled, kill_switch, fitness, window, quorum, confirm, isolation, flap, cool_down, concurrency, blast_radius,
    target, approval, rules_of_safety,
)  # fmt: skip


async def reached(references: tuple[str, ...], seconds: float = 1.0) -> dict[str, bool]:
    """Which of the reference targets take a connection, all asked at once."""

    async def one(address: str) -> bool:
        host, _, port = address.rpartition(":")
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            return True
        return False

    return dict(zip(references, await asyncio.gather(*(one(a) for a in references)), strict=True))
