"""The conditions of a system file as CloudWatch alarms, one for each site, created or updated where asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flows.engine import conditions
from flows.engine.providers import Components
from flows.engine.system import System
from tasks.errors import BadInput
from tasks.metrics._alarms import OPERATORS, Alarm
from tasks.metrics.cloudwatch import CloudWatch


@dataclass(frozen=True)
class Result:
    """``document``: the requests, and what was done of each where that was asked; ``left_out``: rule -> why."""

    document: dict[str, Any]
    left_out: dict[str, str]

    @property
    def text(self) -> str:
        return json.dumps(self.document, indent=2, default=str) + "\n"


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
    requests, done, left_out = [], {}, {}
    for rule in conditions.rules_of(system):
        if rule.value is None or rule.operator not in OPERATORS:
            left_out[rule.name] = rule.why or f"an alarm of CloudWatch cannot compare with {rule.operator}"
            continue
        for site in system.sites:
            alarm = Alarm(
                name=f"relight-{system.system}-{rule.name}-{site}",
                metric=rule.metric.name,
                site=site,
                operator=rule.operator,
                threshold=rule.value,
                description=f"{rule.text} at {site}: {rule.metric.summary} (system {system.system}, {rule.section})",
                hold_s=hold_s,
                tags={
                    "relight:system": system.system,
                    "relight:site": site,
                    "relight:severity": rule.severity,
                    "relight:component": rule.metric.domain,
                },
            )
            request = provider.alarm(alarm)
            if request is None:
                left_out[f"{rule.name} at {site}"] = f"CloudWatch has no formula for {rule.metric.name} there"
                continue
            requests.append(request)
            if apply:
                done[alarm.name] = await provider.put(alarm)
    return Result({"alarms": requests, **({"applied": done} if apply else {})}, left_out)
