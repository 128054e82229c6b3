"""What the metrics say of the conditions of a system file now: ok, warning, critical or unknown, with the evidence."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from flows.engine import conditions
from flows.engine.conditions import Rule
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem
from tasks.errors import Rejected
from tasks.metrics.actions import facts
from tasks.metrics.protocol import Metric, Metrics, Reading, unknown

Outcome = Literal["ok", "info", "warning", "critical", "unknown"]
ORDER: tuple[Outcome, ...] = ("ok", "info", "warning", "unknown", "critical")
"""From best to worst. Unknown is worse than a warning: it may be anything."""


@dataclass(frozen=True)
class Judged:
    """One metric of one site.

    Attributes:
        crossed: conditions that are true now; the worst of their severities is the outcome.
        rules: all conditions over this metric.
        source: the component that was asked; empty where none has it.
        why: why it is unknown.
    """

    metric: Metric
    reading: Reading
    outcome: Outcome
    crossed: tuple[Rule, ...]
    rules: tuple[Rule, ...]
    source: str
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "site": self.reading.site,
            "outcome": self.outcome,
            "value": self.reading.value,
            "why": self.why,
            "crossed": [r.name for r in self.crossed],
            "conditions": [
                {"name": r.name, "section": r.section, "condition": r.text, "severity": r.severity} for r in self.rules
            ],
            "source": self.source,
            "evidence": facts(self.reading),
        }


def judge(of: Metric, reading: Reading, rules: tuple[Rule, ...], source: str = "") -> Judged:
    """Pure. What is not known is never ok, and a condition without a threshold leaves what it is about unknown."""
    if not reading.known or reading.value is None:
        return Judged(of, reading, "unknown", (), rules, source, reading.why or reading.state)
    crossed = tuple(r for r in rules if r.fires(reading.value))
    nameless = [r for r in rules if r.value is None]
    outcomes: list[Outcome] = [r.severity for r in crossed]
    if nameless:
        outcomes.append("unknown")
    worst: Outcome = max(outcomes, key=ORDER.index) if outcomes else "ok"
    return Judged(of, reading, worst, crossed, rules, source, nameless[0].why if worst == "unknown" else "")


async def evaluate(loaded: LoadedSystem, components: Components) -> tuple[Judged, ...]:
    """Every metric that the file names, of every site. Asks at the same time; a source that is down is no error."""
    system = loaded.system
    rules = conditions.rules_of(system)
    sources = components.of(Metrics)
    every = conditions.watched(system)
    found = await asyncio.gather(*(_read(m, sources, tuple(system.sites)) for m in every))
    return tuple(
        judge(m, reading, tuple(r for r in rules if r.metric is m), source)
        for m, (source, readings) in zip(every, found, strict=True)
        for reading in _meant(m, readings)
    )


def _meant(of: Metric, readings: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """Without the sites that have nothing to measure, where one may have nothing and another one has."""
    if not of.somewhere or not any(r.known for r in readings):
        return readings
    return tuple(r for r in readings if r.state not in ("no-data", "not-a-number"))


async def _read(
    of: Metric, sources: list[tuple[str, Metrics]], sites: tuple[str, ...]
) -> tuple[str, tuple[Reading, ...]]:
    name, source = next(((n, s) for n, s in sources if of.name in s.metrics()), ("", None))
    if source is None:
        asked = ("",) if of.domain == "cost" else sites
        kind = "cost" if of.domain == "cost" else "metrics"
        why = f"no component measures it; add one of {kind} to the system file"
        return "", unknown(of.name, asked, "not-measured", why)
    try:
        return name, await source.now(of.name)
    except Rejected as e:
        return name, unknown(of.name, sites, "no-answer", e.message)


def worst(judged: tuple[Judged, ...]) -> Outcome:
    """The worst outcome of all."""
    found = [j.outcome for j in judged]
    return max(found, key=ORDER.index) if found else "ok"
