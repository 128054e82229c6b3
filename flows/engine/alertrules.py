"""The conditions of a system file as the alerting rules of Prometheus, so that they come back through the receiver.

Format: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/. Each alert carries the labels
``system``, ``site`` (of its expression), ``severity``, ``component``, ``metric``, ``section`` and ``owner: relight``,
which a trigger rule can match. For each metric there is one more, ``metric-unknown``: what is not measured must not be
taken for fine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flows.engine import conditions
from flows.engine.conditions import Rule
from flows.engine.system import System
from tasks.metrics._promql import span
from tasks.metrics.protocol import Metric

OWNER = "relight"


class Expressions(Protocol):
    """What has PromQL for a metric."""

    def metrics(self) -> tuple[str, ...]: ...

    def expression(self, name: str) -> str: ...

    def selector(self, name: str) -> str: ...


@dataclass(frozen=True)
class Exported:
    """``document``: the rules file; ``left_out``: rule -> why it is not in it."""

    document: dict[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """JSON is YAML (YAML 1.2, 1.1), and needs no quoting rules of our own."""
        return json.dumps(self.document, indent=2, ensure_ascii=False) + "\n"


def prometheus(system: System, source: Expressions, hold_s: float, every_s: float) -> Exported:
    """The rules file. ``hold_s``: how long a condition must be true; ``every_s``: how often it is looked at."""
    have, left_out, alerts = source.metrics(), {}, []
    for rule in conditions.rules_of(system):
        if rule.value is None:
            left_out[rule.name] = rule.why
        elif rule.metric.name not in have:
            left_out[rule.name] = f"Prometheus does not measure {rule.metric.name}"
        else:
            alerts.append(_alert(system, rule, source.expression(rule.metric.name), hold_s))
    measured = [m for m in conditions.watched(system) if m.name in have]
    alerts += [_silence(system, m, source.selector(m.name)) for m in measured if source.selector(m.name)]
    groups = [{"name": f"{OWNER}-{system.system}", "interval": span(every_s), "rules": alerts}]
    return Exported({"groups": groups}, left_out)


def _labels(system: System, of: Metric, severity: str, section: str) -> dict[str, str]:
    return {
        "system": system.system,
        "severity": severity,
        "component": of.domain,
        "metric": of.name,
        "section": section,
        "owner": OWNER,
    }


def _alert(system: System, rule: Rule, expression: str, hold_s: float) -> dict[str, Any]:
    shown = f'{{{{ $value | printf "%.4g" }}}} {rule.metric.unit}'.strip()
    return {
        "alert": rule.name,
        "expr": f"({expression}) {rule.operator} {rule.value:g}",
        "for": span(hold_s),
        "labels": _labels(system, rule.metric, rule.severity, rule.section),
        "annotations": {
            "summary": f"{rule.metric.name} of {{{{ $labels.site }}}} is {shown} ({rule.text})",
            "condition": rule.text,
            "about": rule.metric.summary,
        },
    }


def _silence(system: System, of: Metric, selector: str) -> dict[str, Any]:
    return {
        "alert": "metric-unknown",
        "expr": f"absent({selector})",
        "for": "2m",
        "labels": _labels(system, of, "warning", "unknown"),
        "annotations": {
            "summary": f"{of.name} is not measured anywhere: its conditions cannot fire",
            "condition": f"{of.name} has no data",
            "about": of.summary,
        },
    }


def listed(left_out: Mapping[str, str]) -> Iterable[str]:
    """One line for each rule that was left out."""
    return (f"left out {name}: {why}" for name, why in left_out.items())
