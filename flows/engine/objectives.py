"""Recovery objectives: the RTO clock of each component, split by phase, and the RPO as measured at promotion.

The clock starts when the incident started, not when the run did. A component's clock stops at the outcome of the
step that ``restores`` it. Everything here is computed from journal records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.engine.journal import Record, of_type
from flows.engine.plan import Plan
from flows.engine.state import GOOD, RunState
from tasks.clock import Clock

FRACTIONS = (0.5, 0.8, 1.0)


def at(record: Record, key: str = "at") -> datetime:
    """A time of a record."""
    return datetime.fromisoformat(record[key])


def recovery_times(records: tuple[Record, ...]) -> dict[str, float]:
    """Component -> seconds from the start of the incident to the confirmation of the step that restored it."""
    started = next(of_type(records, "run_started"), None)
    if started is None:
        return {}
    incident = at(started, "incident_started_at")
    times: dict[str, float] = {}
    for record in of_type(records, "outcome"):
        component = record.get("restores")
        if component and record["outcome"] in GOOD:
            times[component] = (at(record) - incident).total_seconds()
        elif component and record["outcome"] == "undone":
            times.pop(component, None)
    return times


def losses(records: tuple[Record, ...]) -> dict[str, dict[str, Any]]:
    """Component -> {lost_transactions, lag_bytes, bound_s, proven_zero, met, …} as the steps' ``rpo`` facts say.

    A ``measured`` record (counted afterwards by a client that kept its acknowledgements) overrides an estimate.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        facts = record.get("facts") or {}
        if record["type"] == "outcome" and isinstance(facts.get("rpo"), Mapping):
            found[str(facts.get("component") or record["action"].partition(".")[0])] = dict(facts["rpo"])
        elif record["type"] == "measured":
            for component, values in (record.get("rpo") or {}).items():
                found[component] = {**found.get(component, {}), **values}
    return found


def all_met(records: tuple[Record, ...], rto_s: Mapping[str, float], rpo_s: Mapping[str, float]) -> bool:
    """Did every component that this run restored meet its objectives? A loss that is not known is not met."""
    times = recovery_times(records)
    if any(t > rto_s[c] for c, t in times.items() if c in rto_s):
        return False
    known = losses(records)
    if not _measured_elsewhere(records).intersection(rpo_s) <= known.keys():
        return False
    return all(loss.get("met") is True for c, loss in known.items() if c in rpo_s)


def _measured_elsewhere(records: tuple[Record, ...]) -> set[str]:
    """Components whose loss a run that was taken over from a lost machine had to measure: what it did is not here."""
    head = next(of_type(records, "run_started"), {})
    if not head.get("cause", {}).get("takes_over"):
        return set()
    steps = [s for s in head["plan"]["steps"] if s["irreversible"]]
    return {str(s["with"].get("component") or s["action"].partition(".")[0]) for s in steps}


@dataclass
class Watch:
    """Raises an event when 50, 80 and 100 % of a component's objective have gone by and it is not restored."""

    rto_s: Mapping[str, float]
    incident_started_at: datetime
    plan: Plan
    before: tuple[Record, ...]

    async def go(self, clock: Clock, state: RunState, record: Callable[..., Record]) -> None:
        """Until every event was raised or its component restored. ``state`` is the runner's own, alive."""
        waits = [self._one(clock, state, record, component, fraction) for component, fraction in self._due()]
        await asyncio.gather(*waits)

    def _due(self) -> Iterable[tuple[str, float]]:
        said = {(r["component"], r["fraction"]) for r in of_type(self.before, "objective")}
        restored_here = {s.restores for s in self.plan.steps}
        return [
            (component, fraction)
            for component in self.rto_s
            for fraction in FRACTIONS
            if component in restored_here and (component, fraction) not in said
        ]

    async def _one(
        self, clock: Clock, state: RunState, record: Callable[..., Record], component: str, fraction: float
    ) -> None:
        rto_s = self.rto_s[component]
        elapsed_s = (clock.utc() - self.incident_started_at).total_seconds()
        await clock.sleep(fraction * rto_s - elapsed_s)
        step = next(s for s in self.plan.steps if s.restores == component)
        if state.of(step.id).outcome not in GOOD:
            elapsed_s = (clock.utc() - self.incident_started_at).total_seconds()
            record("objective", component=component, fraction=fraction, elapsed_s=round(elapsed_s, 3), rto_s=rto_s)


def phases(records: tuple[Record, ...]) -> dict[str, float | None]:
    """The split of the time, in seconds, None where a run has no such part.

    detect: incident to the first sign of it (alert, failed probe, or the start of the run). declare: first sign to the
    confirmed decision that it is a failure. approve: waiting for people. execute: from there to the last changing
    step. verify: from there to the end of the last check. client_visible: incident to a client's first success.
    """
    started = next(of_type(records, "run_started"), None)
    if started is None:
        return dict.fromkeys(("detect_s", "declare_s", "approve_s", "execute_s", "verify_s", "client_visible_s"), None)
    incident, detected = at(started, "incident_started_at"), at(started, "detected_at")
    begun = at(started)
    kinds = {s["id"]: (s["phase"], s["read_only"]) for s in started["plan"]["steps"]}
    ends: dict[str, datetime] = {}
    for record in of_type(records, "outcome"):
        if record["outcome"] not in GOOD or record["step"] not in kinds:
            continue
        ends[kinds[record["step"]][0]] = at(record)
    approve_s = _approve_s(records, {step for step, (phase, _) in kinds.items() if phase == "approve"})
    declared = ends.get("detect", begun)
    executed = ends.get("execute")
    verified = ends.get("verify")

    def between(start: datetime | None, end: datetime | None) -> float | None:
        return None if start is None or end is None else round(max(0.0, (end - start).total_seconds()), 6)

    execute_s = between(declared, executed)
    return {
        "detect_s": between(incident, detected),
        "declare_s": between(detected, declared),
        "approve_s": approve_s,
        "execute_s": None if execute_s is None else round(max(0.0, execute_s - (approve_s or 0.0)), 6),
        "verify_s": between(executed, verified)
        if executed and verified and verified > executed
        else (0.0 if verified else None),
        "client_visible_s": _client_visible(records, incident),
    }


def _approve_s(records: tuple[Record, ...], asking: set[str]) -> float | None:
    """Seconds that the run waited for people, whatever they said; None where nobody was asked.

    From when a step first asked, also where its engine died meanwhile and another one went on.
    """
    asked: dict[str, datetime] = {}
    waits: list[float] = []
    for record in records:
        if record["type"] == "approval_wanted":
            asked.setdefault(record["step"], at(record))
        elif record["type"] == "outcome" and record["step"] in asking:
            begun = asked.pop(record["step"], None)
            if begun is not None:
                waits.append((at(record) - begun).total_seconds())
            elif record["outcome"] in GOOD and record["facts"].get("asked") != 0:
                waits.append(record["duration_s"])
        elif record["type"] == "run_ended":  # stopped, or told to go back, while it asked
            waits += [(at(record) - begun).total_seconds() for begun in asked.values()]
            asked.clear()
    return round(sum(waits), 6) if waits else None


def _client_visible(records: tuple[Record, ...], incident: datetime) -> float | None:
    """The counted outage where a client measured it, else the first success that a verifying step saw."""
    counted = [r["client_visible_s"] for r in of_type(records, "measured") if r.get("client_visible_s") is not None]
    if counted:
        return float(counted[-1])
    seen = [
        (datetime.fromisoformat(r["facts"]["first_success_at"]) - incident).total_seconds()
        for r in of_type(records, "outcome")
        if r["outcome"] in GOOD and r["facts"].get("first_success_at") and r["facts"].get("through_name")
    ]
    return round(max(0.0, min(seen)), 6) if seen else None
