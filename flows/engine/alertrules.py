"""The conditions of a system file as the alerting rules of Prometheus, so that they come back through the receiver.

Format: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/. Each alert carries the labels
``system``, ``site`` (of its expression), ``severity``, ``component``, ``metric``, ``section`` and ``owner: relight``,
which a trigger rule can match. For each metric there is one more, ``metric-unknown``: what is not measured must not be
taken for fine.
"""

from __future__ import annotations

import json
import re
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

    @property
    def site_label(self) -> str: ...


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
    for of in conditions.watched(system):
        if of.name in have and source.selector(of.name):
            sites = _sites(system, source, of)
            alerts += [_silence(system, of, _at(source.selector(of.name), source.site_label, s), s) for s in sites]
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


_SELECTOR = re.compile(r"\w+(\{[^{}]*\})?", re.ASCII)


def _sites(system: System, source: Expressions, of: Metric) -> tuple[str, ...]:
    """Sites that must have it, each by itself; one empty name: it must be somewhere."""
    plain = _SELECTOR.fullmatch(source.selector(of.name)) is not None
    return tuple(system.sites) if plain and not of.somewhere else ("",)


def _at(selector: str, label: str, site: str) -> str:
    """``up{job="app"}`` at ``west`` -> ``up{job="app",site="west"}``; ``absent`` gives its labels to the alert."""
    if not site:
        return selector
    name, _, matchers = selector.removesuffix("}").partition("{")
    return f"{name}{{{','.join(m for m in (matchers, f'{label}={json.dumps(site)}') if m)}}}"


def _silence(system: System, of: Metric, selector: str, site: str) -> dict[str, Any]:
    where = f" at {site}" if site else " anywhere"
    return {
        "alert": "metric-unknown",
        "expr": f"absent({selector})",
        "for": "2m",
        "labels": {**_labels(system, of, "warning", "unknown"), **({"site": site} if site else {})},
        "annotations": {
            "summary": f"{of.name} is not measured{where}: no condition over it can fire",
            "condition": f"{of.name} has no data",
            "about": of.summary,
        },
    }


def listed(left_out: Mapping[str, str]) -> Iterable[str]:
    """One line for each rule that was left out."""
    return (f"left out {name}: {why}" for name, why in left_out.items())
