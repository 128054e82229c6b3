"""The conditions of a system file over the metrics of the catalogue, as one flat list, and their faults.

``scaling`` gives two for each metric (``cpu_usage > 70%`` warning, ``> 85%`` critical); ``monitoring``,
``database_monitoring`` and ``cost_monitoring`` give one for each alert.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.engine.findings import Finding, nearest
from flows.engine.thresholds import Monitoring, Severity
from tasks.metrics.protocol import SECTIONS, Metric, known_names, metric
from tasks.quantities import Threshold, show_duration

if TYPE_CHECKING:
    from flows.engine.system import System
    from flows.engine.yamlfile import Document, Where

MONITORING = ("monitoring", "database_monitoring", "cost_monitoring")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Rule:
    """One condition.

    Attributes:
        name: of the alert; ``scaling-cpu-warning`` for one of the scaling section.
        value: of the threshold in the metric's unit; None where it is a name that nothing gives a value: ``why``.
        text: as it would be written in an alert.
    """

    section: str
    name: str
    metric: Metric
    operator: str
    value: float | None
    severity: Severity
    text: str
    why: str = ""

    def fires(self, value: float) -> bool:
        """Is the condition true of ``value``? A rule without a threshold never fires; nor is it fine."""
        return self.value is not None and OPERATORS[self.operator](value, self.value)


def rules_of(system: System) -> tuple[Rule, ...]:
    """Every condition of the file, in its order. The file was checked by ``faults``."""
    return (*_scaling(system), *(r for section in MONITORING for r in _alerts(system, section)))


def watched(system: System) -> tuple[Metric, ...]:
    """Every metric that a section lists or has a condition over."""
    listed = [metric(n) for section in MONITORING for n in _section(system, section).metrics]
    every = [*(r.metric for r in rules_of(system)), *(m for m in listed if m)]
    return tuple(dict.fromkeys(every))


def _section(system: System, name: str) -> Monitoring:
    found: Monitoring | None = getattr(system, name)
    return found or Monitoring()


def _scaling(system: System) -> Iterator[Rule]:
    for section, of in SECTIONS.items():
        levels = getattr(system.scaling, section, None)
        if levels is None:
            continue
        severities: tuple[Severity, ...] = ("warning", "critical")
        for severity in severities:
            threshold: Threshold = getattr(levels, severity)
            text = f"{of.name} > {show(threshold)}"
            yield Rule("scaling", f"scaling-{section}-{severity}", of, ">", _number(threshold), severity, text)


def _alerts(system: System, section: str) -> Iterator[Rule]:
    here = _section(system, section)
    for alert in here.alerts:
        found = metric(alert.condition.metric)
        if found is None:
            continue
        threshold, why = alert.condition.threshold, ""
        if threshold.unit == "name":
            name = str(threshold.value)
            why = f"nothing says what {name!r} is; add `thresholds: {{{name}: …}}` to {section}"
            threshold = here.thresholds.get(name, threshold)
        value = _number(threshold)
        yield Rule(
            section,
            alert.name,
            found,
            alert.condition.operator,
            value,
            alert.severity,
            alert.condition.text,
            "" if value is not None else why,
        )


def _number(threshold: Threshold) -> float | None:
    return threshold.value if isinstance(threshold.value, float) else None


def show(threshold: Threshold) -> str:
    """A threshold as people write it: ``85%``, ``500ms``, ``12``."""
    if not isinstance(threshold.value, float):
        return threshold.value
    return show_duration(threshold.value) if threshold.unit == "s" else f"{threshold.value:g}{threshold.unit}"


def faults(document: Document, system: System) -> list[Finding]:
    """Conditions over metrics that nobody knows, and thresholds in a unit that the metric is not measured in."""
    found: list[Finding] = []
    for section, of in SECTIONS.items():
        levels = getattr(system.scaling, section, None)
        for severity in ("warning", "critical") if levels else ():
            found += _unit(document, of, getattr(levels, severity), ("scaling", section, severity))
    for name in MONITORING:
        here = _section(system, name)
        for i, listed in enumerate(here.metrics):
            if metric(listed) is None:
                found.append(_no_metric(document, listed, (name, "metrics", i)))
        for i, alert in enumerate(here.alerts):
            of_alert, where = metric(alert.condition.metric), (name, "alerts", i, "condition")
            if of_alert is None:
                found.append(_no_metric(document, alert.condition.metric, where))
            else:
                threshold = alert.condition.threshold
                found += _unit(document, of_alert, here.thresholds.get(str(threshold.value), threshold), where)
    return found


def _no_metric(document: Document, name: str, where: Where) -> Finding:
    known = known_names()
    return document.finding(
        "unknown-metric",
        f"unknown metric {name!r}",
        where,
        expected="one of " + ", ".join(known),
        nearest=nearest(name, known),
    )


def _unit(document: Document, of: Metric, threshold: Threshold, where: Where) -> list[Finding]:
    wanted = of.unit if of.unit in ("%", "s") else ""
    if threshold.unit in (wanted, "name"):
        return []
    examples = {"%": "a percentage such as 85%", "s": "a duration such as 500ms", "": "a bare number"}
    message = f"{of.name} is compared with {show(threshold)}"
    return [document.finding("wrong-unit", message, where, expected=examples[wanted])]
