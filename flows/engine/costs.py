"""What a system costs, a day and a component; what its standby buys for that; what must never be bought on spot."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from flows.engine.system import System
from tasks.cost._usage import HOURS
from tasks.cost.protocol import Advice, Anomaly, Cost, Spend
from tasks.quantities import show_duration

Severity = Literal["info", "warning", "critical", "unknown"]
STATEFUL = ("database", "storage", "dns", "lease")
"""Components that a reclaimed spot instance would take data or control with."""


@dataclass(frozen=True)
class CostFinding:
    """One line of the report: what, how bad, the figures behind it, and what to do."""

    severity: Severity
    title: str
    evidence: str
    fix: str = ""


@dataclass(frozen=True)
class Row:
    """A component at a site: its cost on the last billed day, and the mean of the days before."""

    site: str
    component: str
    usd: float
    mean_usd: float | None


@dataclass(frozen=True)
class CostReport:
    """``day``: the last billed day, None where there is no bill: then nothing is known."""

    system: str
    standby: str
    day: date | None
    estimated: bool
    rows: tuple[Row, ...]
    findings: tuple[CostFinding, ...]

    @property
    def usd(self) -> float | None:
        return None if self.day is None else sum(r.usd for r in self.rows)

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "system": self.system,
            "standby": self.standby,
            "day": self.day.isoformat() if self.day else None,
            "estimated": self.estimated,
            "usd": None if self.usd is None else round(self.usd, 4),
            "components": [vars(r) for r in self.rows],
            "findings": [vars(f) for f in self.findings],
        }


async def report(system: System, source: Cost, standby: str, days: int) -> CostReport:
    """Ask the source and judge. Raises Unreachable, NotYet, Rejected: half a bill is no report."""
    spent, anomalies, advice = await asyncio.gather(source.spend(days), source.anomalies(days), source.advice())
    return judge(system, standby, spent, anomalies, advice)


def judge(
    system: System, standby: str, spent: tuple[Spend, ...], anomalies: tuple[Anomaly, ...], advice: tuple[Advice, ...]
) -> CostReport:
    """Pure."""
    day = max((s.day for s in spent), default=None)
    today = [s for s in spent if s.day == day]
    if day is None:
        nothing = CostFinding("unknown", "no cost is known", "nothing is billed under this system's tags", _ACTIVATE)
        return CostReport(system.system, standby, None, estimated=False, rows=(), findings=(nothing,))
    rows = tuple(_rows(spent, day))
    findings = [
        *_untagged(today),
        *_anomalous(anomalies),
        *_standby(system, standby, rows),
        *_spot(system, standby, today),
        *_sizes(advice),
    ]
    return CostReport(system.system, standby, day, any(s.estimated for s in today), rows, tuple(findings))


_ACTIVATE = (
    "tag every resource (relight:system, relight:site, relight:component) and activate them as cost allocation tags"
)


def _rows(spent: tuple[Spend, ...], day: date) -> Iterable[Row]:
    by: dict[tuple[str, str], dict[date, float]] = defaultdict(lambda: defaultdict(float))
    for s in spent:
        by[s.site, s.component][s.day] += s.usd
    for (site, component), of in sorted(by.items(), key=lambda item: -item[1].get(day, 0.0)):
        before = [usd for at, usd in of.items() if at != day]
        mean = sum(before) / len(before) if before else None
        yield Row(site, component, round(of.get(day, 0.0), 4), None if mean is None else round(mean, 4))


def _untagged(today: list[Spend]) -> Iterable[CostFinding]:
    usd = sum(s.usd for s in today if not s.component)
    if usd > 0:
        yield CostFinding(
            "warning", f"{usd:.2f} USD a day belong to no component", "tag relight:component is not set", _ACTIVATE
        )


def _anomalous(anomalies: tuple[Anomaly, ...]) -> Iterable[CostFinding]:
    for a in sorted(anomalies, key=lambda a: -a.usd):
        expected = "" if a.expected_usd is None else f", {a.expected_usd:.2f} USD expected"
        when = f"since {a.started}" if a.ended is None else f"{a.started} to {a.ended}"
        yield CostFinding(
            "warning", f"anomaly of {a.usd:.2f} USD: {a.what}", f"{when}{expected}; AWS's id {a.id}", "find its cause"
        )


def _standby(system: System, standby: str, rows: tuple[Row, ...]) -> Iterable[CostFinding]:
    """Its cost for each minute of recovery time that it saves, against recovering with nothing ready."""
    usd = sum(r.usd for r in rows if r.site == standby)
    slowest = max((o.rto for o in system.objectives.values() if o.rto is not None), default=None)
    without = system.cost_monitoring.recovery_without_standby if system.cost_monitoring else None
    title = f"the standby {standby} costs {usd:.2f} USD a day"
    if slowest is None or without is None or without <= slowest:
        missing = "an rto" if slowest is None else "recovery_without_standby in cost_monitoring, above the longest rto"
        yield CostFinding("unknown", title, f"what it buys cannot be said without {missing}", f"add {missing}")
        return
    saved_min = (without - slowest) / 60
    text = (
        f"it brings recovery from {show_duration(without)} to {show_duration(slowest)}: {saved_min:.0f} minutes, "
        f"{usd / saved_min:.4f} USD a day for each, {30 * usd / saved_min:.2f} USD a month"
    )
    yield CostFinding("info", title, text)


def _spot(system: System, standby: str, today: list[Spend]) -> Iterable[CostFinding]:
    """The standby's minimum and what holds state must not be on spot: it is taken away when everybody needs it."""
    for s in today:
        if s.spot and s.component in STATEFUL:
            yield CostFinding(
                "critical",
                f"{s.component} at {s.site} runs on spot",
                f"{s.quantity:.1f} h of {s.usage} on {s.day}",
                "buy it on demand: a reclaimed instance takes data or control with it",
            )
    minimum = system.auto_scaling.min_instances if system.auto_scaling else None
    if minimum is None:
        yield CostFinding(
            "unknown", "nothing says how many instances must be there", "no auto_scaling section", "add it"
        )
        return
    for site in system.sites:
        here = [s for s in today if s.site == site and s.component not in STATEFUL and HOURS.search(s.usage)]
        if not here:
            continue
        demand = [s for s in here if not s.spot]
        firm = sum(s.quantity for s in demand) / 24
        evidence = f"{firm:.1f} on demand, {sum(s.quantity for s in here if s.spot) / 24:.1f} on spot, on average"
        if firm + 0.05 < minimum:
            severity: Severity = "critical" if site == standby else "warning"
            title = f"the minimum of {minimum} instances at {site} is not on demand"
            yield CostFinding(
                severity, title, evidence, f"an on-demand base of {minimum} in the group's instances policy"
            )
        elif firm > minimum and site != standby:
            usd = sum(s.usd for s in demand) * (firm - minimum) / firm
            title = f"{firm - minimum:.1f} instances at {site} above its minimum could be spot"
            yield CostFinding("info", title, f"{evidence}; they cost {usd:.2f} USD a day", "never the minimum itself")


def _sizes(advice: tuple[Advice, ...]) -> Iterable[CostFinding]:
    for a in sorted(advice, key=lambda a: -a.saves_usd_a_month):
        what = f"{a.resource} ({a.now}{f', {a.component}' if a.component else ''}{f' at {a.site}' if a.site else ''})"
        fix = f"change it to {a.to}" if a.to else "end it, if a failover does not need it"
        yield CostFinding(
            "info", f"{what} could save {a.saves_usd_a_month:.2f} USD a month", f"of {a.usd_a_month:.2f}; {a.why}", fix
        )
