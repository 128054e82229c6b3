"""The conditions of a system file as CloudWatch alarms, one for each site, created or updated where asked.

And one composite alarm a site, ``site-fails``: its critical conditions over errors AND (those over latency, OR no
data of latency). Where targets are tried and none answers there is no TargetResponseTime (ELB user guide,
*CloudWatch metrics for your Application Load Balancer*). A site that nobody asks has no errors, so a standby that is
idle does not fail.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from flows.engine import conditions
from flows.engine.conditions import Rule
from flows.engine.providers import Components
from flows.engine.system import System
from tasks.errors import BadInput
from tasks.metrics._alarms import OPERATORS, Alarm, Composite, any_of, every, fires, is_silent
from tasks.metrics.cloudwatch import CloudWatch


@dataclass(frozen=True)
class Result:
    """``document``: the requests, and what was done of each where that was asked; ``left_out``: rule -> why."""

    document: dict[str, Any]
    left_out: dict[str, str]

    @property
    def text(self) -> str:
        return json.dumps(self.document, indent=2, default=str) + "\n"


SITE_FAILS = "site-fails"
ERRORS, LATENCY = "error_rate", "request_latency"


@dataclass
class _Rendered:
    """Requests so far, and by site and metric the names of those that are critical."""

    alarms: list[dict[str, Any]] = field(default_factory=list)
    composites: list[dict[str, Any]] = field(default_factory=list)
    critical: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    done: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


async def export(system: System, components: Components, hold_s: float, *, apply: bool) -> Result:
    """Render every condition for every site; ``apply``: keep the alarms as rendered.

    Raises BadInput where no component is ``metrics.cloudwatch``, and what the calls raise.
    """
    found = components.of(CloudWatch)
    if not found:
        raise BadInput(
            f"system {system.system} has no metrics.cloudwatch component, so nothing says which metric is which"
        )
    provider: CloudWatch = found[0][1]
    made = _Rendered()
    await _metric_alarms(system, provider, made, hold_s, apply=apply)
    for site in system.sites:  # after those that they are made of
        composite = _site_fails(system, made, site)
        if composite is not None:
            made.composites.append(provider.composite(composite))
            if apply:
                made.done[composite.name] = await provider.put_composite(composite)
    applied = {"applied": made.done} if apply else {}
    return Result({"alarms": made.alarms, "composites": made.composites, **applied}, made.left_out)


async def _metric_alarms(system: System, provider: CloudWatch, made: _Rendered, hold_s: float, *, apply: bool) -> None:
    for rule in conditions.rules_of(system):
        if rule.value is None or rule.operator not in OPERATORS:
            made.left_out[rule.name] = rule.why or f"an alarm of CloudWatch cannot compare with {rule.operator}"
            continue
        for site in system.sites:
            alarm = _alarm(system, rule, rule.value, site, hold_s)
            request = provider.alarm(alarm)
            if request is None:
                made.left_out[f"{rule.name} at {site}"] = f"CloudWatch has no formula for {rule.metric.name} there"
                continue
            made.alarms.append(request)
            if rule.severity == "critical" and rule.operator.startswith(">"):
                made.critical[site, rule.metric.name].append(alarm.name)
            if apply:
                made.done[alarm.name] = await provider.put(alarm)


def _alarm(system: System, rule: Rule, value: float, site: str, hold_s: float) -> Alarm:
    return Alarm(
        name=f"relight-{system.system}-{rule.name}-{site}",
        metric=rule.metric.name,
        site=site,
        operator=rule.operator,
        threshold=value,
        description=f"{rule.text} at {site}: {rule.metric.summary} (system {system.system}, {rule.section})",
        hold_s=hold_s,
        tags=_tags(system, site, rule.severity, rule.metric.domain),
    )


def _site_fails(system: System, made: _Rendered, site: str) -> Composite | None:
    errors, latency = made.critical.get((site, ERRORS), []), made.critical.get((site, LATENCY), [])
    if not errors or not latency:
        if errors or latency:
            missing = LATENCY if errors else ERRORS
            made.left_out[f"{SITE_FAILS} at {site}"] = f"there is no critical condition over {missing} for it"
        return None
    if quoted := [n for n in (*errors, *latency) if '"' in n]:
        made.left_out[f"{SITE_FAILS} at {site}"] = f"the rule cannot name {quoted[0]}: it has quotes in its name"
        return None
    slow = any_of(*(fires(n) for n in latency), *(is_silent(n) for n in latency))
    return Composite(
        name=f"relight-{system.system}-{SITE_FAILS}-{site}",
        site=site,
        rule=every(any_of(*(fires(n) for n in errors)), slow),
        description=f"{site} fails: errors, and slow or no answers (system {system.system})",
        tags=_tags(system, site, "critical", "application"),
    )


def _tags(system: System, site: str, severity: str, component: str) -> dict[str, str]:
    return {
        "relight:system": system.system,
        "relight:site": site,
        "relight:severity": severity,
        "relight:component": component,
    }
