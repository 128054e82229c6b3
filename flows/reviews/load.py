"""What the metrics say over a window, for reviews: series, conditions that were crossed, what nobody measures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from flows.engine import conditions
from flows.engine.conditions import Rule
from flows.engine.evaluation import Judged
from flows.engine.providers import Components
from flows.engine.system import System
from flows.reviews.figures import measure, seconds
from flows.reviews.finding import Chart, Finding, Line
from tasks.errors import BadInput, RelightError
from tasks.metrics.protocol import CATALOGUE, Metric, Metrics, Series
from tasks.secrets import redact

POINTS = 400
"""Of a series: enough for a chart and a forecast, and within what every source gives at once."""
STEPS_S = (5, 15, 60, 300, 900, 3600, 10_800, 21_600, 86_400)


@dataclass(frozen=True)
class Recorded:
    """``series``: metric -> one series a site, without those that have no sample. ``why``: metric -> why none came."""

    window_s: float
    series: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def step_s(window_s: float) -> float:
    """The finest step that gives at most ``POINTS`` points."""
    return float(next((s for s in STEPS_S if window_s / s <= POINTS), STEPS_S[-1]))


async def recorded(components: Components, window_s: float, names: tuple[str, ...] = ()) -> Recorded:
    """Every metric of the catalogue that has a source, or those named. A source that is down is a why, no error."""
    sources = components.of(Metrics)
    found = Recorded(window_s)
    wanted = names or tuple(m.name for m in CATALOGUE.values() if m.domain != "cost")

    async def one(name: str) -> None:
        source = next((s for _, s in sources if name in s.metrics()), None)
        if source is None:
            found.why[name] = "no component measures it"
            return
        try:
            series = await source.series(name, window_s, step_s(window_s))
        except BadInput as e:
            found.why[name] = e.message
            return
        except RelightError as e:
            found.why[name] = redact(e.message)
            return
        if any(s.samples for s in series):
            found.series[name] = tuple(s for s in series if s.samples)
        else:
            found.why[name] = f"the source has no sample within {seconds(window_s)}"

    await asyncio.gather(*(one(name) for name in wanted))
    return found


def charts(found: Recorded, system: System, names: tuple[str, ...]) -> Iterator[Chart]:
    """One for each metric that has samples, with the conditions over it as limits."""
    rules = conditions.rules_of(system)
    for name in names:
        if name in found.series:
            of = CATALOGUE[name]
            scale, unit = scaled(of, found.series[name])
            lines = tuple(
                Line(s.site or "all", tuple((at, v / scale) for at, v in s.samples)) for s in found.series[name]
            )
            limits = {f"{r.severity}": r.value / scale for r in rules if r.metric is of and r.value is not None}
            yield Chart(title_of(of), unit, lines, limits)


def title_of(of: Metric) -> str:
    """``Request latency: 95th percentile from request to answer``."""
    return f"{of.name.replace('_', ' ').capitalize()}: {of.summary}"


def scaled(of: Metric, series: tuple[Series, ...]) -> tuple[float, str]:
    """What the values are divided by for a chart, and the unit it is then in."""
    top = max((v for s in series for _, v in s.samples), default=0.0)
    if of.unit == "s" and top < 1:
        return 0.001, "ms"
    if of.unit == "B/s":
        return (1e6, "MB/s") if top >= 1e6 else (1e3, "kB/s")
    return 1.0, of.unit


def crossed(found: Recorded, system: System) -> Iterator[Finding]:
    """Conditions that were true within the window: for how long, how bad, when last."""
    for rule in conditions.rules_of(system):
        for s in found.series.get(rule.metric.name, ()):
            yield from _crossed(rule, s)


def _crossed(rule: Rule, s: Series) -> Iterator[Finding]:
    over = [(at, v) for at, v in s.samples if rule.fires(v)]
    if not over:
        return
    worst = max(v for _, v in over) if rule.operator.startswith(">") else min(v for _, v in over)
    share = 100 * len(over) / len(s.samples)
    unit = rule.metric.unit
    yield Finding(
        f"crossed {rule.name} {s.site}",
        rule.severity,
        f"{rule.text} at {s.site or 'the system'}: {share:.0f}% of the time, {measure(worst, unit)} at worst",
        f"about {seconds(max(s.step_s, len(over) * s.step_s))} in {len(over)} of {len(s.samples)} samples, the last"
        f" {over[-1][0].strftime('%d %b %H:%M')} UTC (condition {rule.name})",
        f"relight metrics --system SYSTEM    # now; {rule.name} is in the system file",
        "shell",
    )


def unmeasured(found: Recorded, judged: tuple[Judged, ...]) -> Iterator[Finding]:
    """What the system file wants watched and nobody can tell. One finding for each reason, not for each metric."""
    by_why: dict[str, list[str]] = {}
    for j in judged:
        if j.outcome == "unknown":
            by_why.setdefault(j.why, []).append(f"{j.metric.name}{f' at {j.reading.site}' if j.reading.site else ''}")
    known = {j.metric.name for j in judged if j.outcome != "unknown"}
    for name, why in found.why.items():
        if name in known:  # it can be told now, at one site at least, and its record was not read
            by_why.setdefault(why, []).append(f"{name} over the window")
    for why, names in by_why.items():
        listed = ", ".join(dict.fromkeys(names))
        yield Finding(
            f"unmeasured {listed}",
            "unknown",
            f"not known: {listed}",
            why or "no reason given",
            "a condition over what is not measured never fires: give it a source, or take it out of the system file",
        )


def trend(found: Recorded, name: str) -> Iterator[Finding]:
    """The second half of the window against the first: median, where both halves have samples enough."""
    of = CATALOGUE[name]
    for s in found.series.get(name, ()):
        half = len(s.samples) // 2
        if half < 10 or not _covers(s, found.window_s):
            continue
        before, after = _median([v for _, v in s.samples[:half]]), _median([v for _, v in s.samples[half:]])
        floor = {"s": 0.005, "%": 0.5}.get(of.unit, 0.0)
        if after > 1.5 * before and after - before > floor:
            yield Finding(
                f"trend {name} {s.site}",
                "warning",
                f"{name.replace('_', ' ')} at {s.site} went from {measure(before, of.unit)} to"
                f" {measure(after, of.unit)}",
                f"medians of the first and the second half of {seconds(found.window_s)}, {len(s.samples)} samples",
                "look for what was deployed or grew in between; slow statements are below",
            )


def _covers(s: Series, window_s: float) -> bool:
    """Samples over less than half of the window tell nothing about its trend."""
    return (s.samples[-1][0] - s.samples[0][0]).total_seconds() >= window_s / 2


def _median(values: list[float]) -> float:
    values = sorted(values)
    return values[len(values) // 2]
