"""The monthly capacity planning: where each resource goes, when it reaches its limit, and whether one site can carry
the load of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from flows.engine import conditions, evaluation
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem, System
from flows.reviews import load
from flows.reviews.figures import measure, seconds
from flows.reviews.finding import Chart, Finding, Line, Review, Severity, Table, ordered
from flows.reviews.forecast import COVERS, Forecast, forecast
from flows.reviews.load import Recorded
from tasks.capacity.protocol import Capacity
from tasks.clock import Clock
from tasks.errors import RelightError
from tasks.metrics.protocol import CATALOGUE, Series
from tasks.secrets import redact

PLANNED = ("disk_usage", "connection_count", "memory_usage", "cpu_usage", "concurrent_users", "network_traffic")
FULL = 100.0
"""The limit of a percentage that no condition names."""
SOON_S, NEXT_S = 30 * 86_400.0, 90 * 86_400.0
PEAK = 0.95
"""The load that must be carried is this quantile of what was measured: not the mean, not one spike."""


@dataclass(frozen=True)
class Outlook:
    """One resource of one site: what is so now, and where it goes; ``future`` is a text where that cannot be told."""

    series: Series
    limit: float | None
    limit_name: str
    future: Forecast | str


async def review(loaded: LoadedSystem, components: Components, clock: Clock, window_s: float) -> Review:
    """Look at everything; changes nothing."""
    system, now = loaded.system, clock.utc()
    found = await load.recorded(components, window_s, PLANNED)
    judged = await evaluation.evaluate(loaded, components)
    outlooks = await asyncio.to_thread(lambda: list(outlook(found, system)))
    findings = [f for o in outlooks for f in judge(o, now)]
    room = list(headroom(found, system))
    findings += [f for f, _ in room if f]
    instances, instance_rows = await _instances(system, components)
    findings += instances
    findings += load.unmeasured(found, tuple(j for j in judged if j.metric.name in PLANNED))
    spans = [(o.series.samples[-1][0] - o.series.samples[0][0]).total_seconds() for o in outlooks]
    if 0 < max(spans, default=0.0) < min(window_s, SOON_S) / 2:
        findings.append(_short(max(spans), window_s))
    facts = {
        "Looked back": f"{seconds(window_s)} were asked for, {seconds(max(spans, default=0.0))} are recorded",
        "Forecast": f"as far ahead as the record reaches back; the interval holds {COVERS:.0%} of the futures",
    }
    columns = ("site", "carries at its 95th percentile", "with the other's load", "limit")
    tables = (
        Table("Growth", _COLUMNS, tuple(_row(o) for o in outlooks), (2, 3), "" if outlooks else "Nothing is recorded."),
        Table(
            "One site with the load of both",
            ("resource", *columns),
            tuple(row for _, row in room if row),
            (2, 3, 4),
            "Loads add up; whether the standby's machines are as large as the active site's is for the audit.",
        ),
        Table("Instances", ("site", "running", "minimum", "maximum"), tuple(instance_rows), (1, 2, 3)),
    )
    return Review("monthly", system.system, now, ordered(findings), facts, tables, tuple(charts(outlooks)))


def _short(recorded_s: float, window_s: float) -> Finding:
    return Finding(
        "record-too-short",
        "unknown",
        f"the metrics reach back only {seconds(recorded_s)}: this is no plan for a month",
        f"{seconds(window_s)} were asked for; a forecast goes no further ahead than its record goes back",
        _MORE,
    )


_COLUMNS = ("resource", "site", "now", "growth", "limit", "reached")


def outlook(found: Recorded, system: System) -> Iterator[Outlook]:
    """Each resource of each site, with the lowest limit over it."""
    for name, series in found.series.items():
        limit, limit_name = limit_of(system, name)
        for s in series:
            yield Outlook(s, limit, limit_name, forecast(s.samples, s.step_s, NEXT_S, limit))


def limit_of(system: System, name: str) -> tuple[float | None, str]:
    """The critical condition over a metric, else the warning, else what a percentage can be."""
    over = [r for r in conditions.rules_of(system) if r.metric.name == name and r.value is not None]
    for severity in ("critical", "warning"):
        found = [r for r in over if r.severity == severity and r.operator in (">", ">=")]
        if found:
            worst = min(found, key=lambda r: r.value or 0.0)
            return worst.value, worst.name
    return (FULL, "full") if CATALOGUE[name].unit == "%" else (None, "")


def judge(o: Outlook, now: datetime) -> Iterator[Finding]:
    """When is the limit reached? Not telling is a finding too."""
    name, site, unit = o.series.metric, o.series.site, CATALOGUE[o.series.metric].unit
    title, key = f"{name.replace('_', ' ')} at {site or 'the system'}", f"growth {name} {site}"
    if isinstance(o.future, str):
        yield Finding(key, "unknown", f"where {title} goes cannot be told", o.future, _MORE)
        return
    if o.limit is None or o.future.earliest is None:
        return
    soonest = (o.future.earliest - now).total_seconds()
    reached_s = None if o.future.reached is None else (o.future.reached - now).total_seconds()
    severity: Severity = "warning" if reached_s is not None else "info"
    if reached_s is not None and reached_s <= SOON_S:
        severity = "critical" if reached_s <= SOON_S / 4 else "warning"
    middle = f"about {_day(o.future.reached)}" if o.future.reached else "not within the forecast in the middle of it"
    latest = _day(o.future.latest) if o.future.latest else "not within the forecast"
    yield Finding(
        key,
        severity,
        f"{title} reaches {measure(o.limit, unit)} ({o.limit_name}) {middle}",
        f"now {measure(o.series.samples[-1][1], unit)}, {_growth(o)}; earliest"
        f" {_day(o.future.earliest)} (in {seconds(max(0.0, soonest))}), latest {latest}; {o.future.how}",
        _ADD.get(name, "raise the limit, or find what grows"),
    )


_MORE = (
    "let the source keep more (Prometheus: --storage.tsdb.retention.time; CloudWatch keeps hours for 15 months), or ask"
    " again when there is more"
)
_ADD = {
    "disk_usage": "grow the volume, or drop what is old; the weekly review names bloated tables and indexes",
    "connection_count": "raise max_connections (a restart) or lower the pools",
    "cpu_usage": "raise auto_scaling.max_instances, or larger instances",
    "memory_usage": "larger instances",
}


def headroom(found: Recorded, system: System) -> Iterator[tuple[Finding | None, tuple[str, ...]]]:
    """Could each site alone carry what all of them carry? Where it could not, a failover ends in an overload."""
    if len(system.sites) < 2:
        return
    for name in ("cpu_usage", "connection_count", "memory_usage"):
        limit, limit_name = limit_of(system, name)
        series = found.series.get(name, ())
        if limit is None or not series:
            continue
        peaks = {s.site: _quantile([v for _, v in s.samples]) for s in series}
        if missing := [site for site in system.sites if site not in peaks]:
            text = f"{name.replace('_', ' ')} of {', '.join(missing)} is not known"
            why = "a site that is not measured may be at its limit already"
            yield Finding(f"headroom {name}", "unknown", f"headroom cannot be told: {text}", why), ()
            continue
        both = sum(peaks.values())
        yield _carries(name, peaks, both, limit), ()
        for site, own in peaks.items():
            row = (name.replace("_", " "), site, f"{own:.1f}%", f"{both:.1f}%", f"{limit:g}% ({limit_name})")
            yield None, row


def _carries(name: str, peaks: dict[str, float], both: float, limit: float) -> Finding:
    what = name.replace("_", " ")
    each = " + ".join(f"{site} {own:.1f}%" for site, own in peaks.items())
    evidence = f"{each} = {both:.1f}% at their 95th percentiles; the limit is {limit:g}%"
    if both < limit:
        return Finding(f"headroom {name}", "info", f"Either site can carry the load of both: {what}", evidence)
    return Finding(
        f"headroom {name}",
        "critical",
        f"No site can carry the load of both: {what}",
        evidence,
        f"{_ADD.get(name, 'more of it')}; until then a failover ends in an overload",
    )


def _quantile(values: list[float]) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(PEAK * len(values)))]


async def _instances(system: System, components: Components) -> tuple[list[Finding], list[tuple[str, ...]]]:
    """Does every site run what the busiest one does, and may it grow as far?"""
    findings: list[Finding] = []
    rows: list[tuple[str, ...]] = []
    for name, capacity in components.of(Capacity):
        ready: dict[str, int] = {}
        for site in system.sites:
            try:
                limits, found = capacity.limits(site), await capacity.instances(site)
            except RelightError as e:
                key, why = f"instances {name} {site}", redact(e.message)
                findings.append(Finding(key, "unknown", f"{site}'s instances are not known", why))
                continue
            ready[site] = sum(i.ready for i in found)
            rows.append((site, str(ready[site]), str(limits.minimum), str(limits.maximum)))
            if ready[site] < limits.minimum:
                findings.append(_too_few(system, site, ready[site], limits.minimum))
        most = max(ready, key=lambda site: ready[site], default="")
        findings += [
            Finding(
                f"instances-behind {name} {site}",
                "info",
                f"{site} runs {count} instances, {most} {ready[most]}: a failover starts {ready[most] - count} first",
                "starting them is part of the recovery time; readiness measures it",
                f"relight plan failover --system {system.system}    # says how long each step may take",
                "shell",
            )
            for site, count in ready.items()
            if count < ready[most]
        ]
    return findings, rows


def _too_few(system: System, site: str, ready: int, minimum: int) -> Finding:
    return Finding(
        f"instances-below {site}",
        "critical",
        f"{site} runs {ready} ready instances, and {minimum} is its minimum",
        "counted just now, by their own readiness checks",
        f"relight run scaling --system {system.system}",
        "shell",
    )


def charts(outlooks: list[Outlook]) -> Iterator[Chart]:
    """One for each resource: what was, and the forecast with its interval."""
    for name in dict.fromkeys(o.series.metric for o in outlooks):
        mine = [o for o in outlooks if o.series.metric == name]
        of = CATALOGUE[name]
        scale, unit = load.scaled(of, tuple(o.series for o in mine))
        lines: list[Line] = []
        for o in mine:
            lines.append(Line(o.series.site or "all", tuple((at, v / scale) for at, v in o.series.samples)))
            if isinstance(o.future, Forecast):
                ahead = o.future.points
                low = tuple(max(0.0, p.low / scale) for p in ahead)
                high = tuple(max(0.0, p.high / scale) for p in ahead)
                middle = tuple((p.at, max(0.0, p.middle / scale)) for p in ahead)
                lines.append(Line(f"{o.series.site}, forecast", middle, low, high, forecast=True))
        limits = {f"{mine[0].limit_name}": mine[0].limit / scale} if mine[0].limit is not None else {}
        yield Chart(load.title_of(of), unit, tuple(lines), limits)


def _row(o: Outlook) -> tuple[str, ...]:
    unit = CATALOGUE[o.series.metric].unit
    limit = f"{measure(o.limit, unit)} ({o.limit_name})" if o.limit is not None else "none"
    head = (o.series.metric.replace("_", " "), o.series.site, measure(o.series.samples[-1][1], unit))
    if isinstance(o.future, str):
        return (*head, "?", limit, f"cannot be told: {o.future}")
    if o.future.earliest is None:
        far = seconds(_ahead_s(o.future, o.series))
        return (*head, _growth(o), limit, f"not in the next {far}" if o.limit is not None else "")
    late = _day(o.future.latest) if o.future.latest else "later"
    return (*head, _growth(o), limit, f"{_day(o.future.earliest)} to {late}")


def _growth(o: Outlook) -> str:
    """``+3.1% in 30d``: as far as the forecast goes, and not spread over a day that nobody saw."""
    if isinstance(o.future, str):
        return "?"
    unit, ahead_s = CATALOGUE[o.series.metric].unit, _ahead_s(o.future, o.series)
    return f"{'+' if o.future.change >= 0 else '-'}{measure(abs(o.future.change), unit)} in {seconds(ahead_s)}"


def _ahead_s(future: Forecast, series: Series) -> float:
    return (future.points[-1].at - series.samples[-1][0]).total_seconds()


def _day(at: datetime | None) -> str:
    return at.strftime("%-d %b %Y") if at else "never"
