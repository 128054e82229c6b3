"""Alarms of CloudWatch: rendered, and kept as rendered. Only alarms that carry our tags are ever changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tasks.aws import Aws
from tasks.errors import SafetyRefusal

OWNER = {"relight:owner": "relight"}
OPERATORS = {
    ">": "GreaterThanThreshold",
    ">=": "GreaterThanOrEqualToThreshold",
    "<": "LessThanThreshold",
    "<=": "LessThanOrEqualToThreshold",
}
"""CloudWatch has no == and no != for an alarm."""
COMPARED = (
    "AlarmDescription", "ActionsEnabled", "AlarmActions", "OKActions", "InsufficientDataActions", "ComparisonOperator",
    "Threshold", "EvaluationPeriods", "DatapointsToAlarm", "TreatMissingData", "Metrics",
)  # fmt: skip


@dataclass(frozen=True)
class Alarm:
    """A condition of a system file at one site. ``tags`` beside those of ownership."""

    name: str
    metric: str
    site: str
    operator: str
    threshold: float
    description: str
    hold_s: float
    tags: dict[str, str]


def request(alarm: Alarm, queries: list[dict[str, Any]], period_s: int, actions: tuple[str, ...]) -> dict[str, Any]:
    """The PutMetricAlarm request. Missing data is INSUFFICIENT_DATA, told to the same receiver, and never OK."""
    periods = max(1, math.ceil(alarm.hold_s / period_s))
    return {
        "AlarmName": alarm.name,
        "AlarmDescription": alarm.description,
        "ActionsEnabled": True,
        "AlarmActions": list(actions),
        "OKActions": list(actions),
        "InsufficientDataActions": list(actions),
        "ComparisonOperator": OPERATORS[alarm.operator],
        "Threshold": alarm.threshold,
        "EvaluationPeriods": periods,
        "DatapointsToAlarm": periods,
        "TreatMissingData": "missing",
        "Metrics": queries,
        "Tags": [{"Key": k, "Value": v} for k, v in {**OWNER, **alarm.tags}.items()],
    }


async def keep(aws: Aws, client: Any, wanted: dict[str, Any]) -> str:
    """Make the alarm be as wanted. Raises SafetyRefusal for one of the same name that is not tagged as ours."""
    name = wanted["AlarmName"]
    found = await aws.call(f"DescribeAlarms {name}", lambda: client.describe_alarms(AlarmNames=[name]))
    have = next(iter(found["MetricAlarms"]), None)
    if have is None:
        await aws.call(f"PutMetricAlarm {name}", lambda: client.put_metric_alarm(**wanted), changes=True)
        return "created"
    arn = have["AlarmArn"]
    tags = await aws.call(f"ListTagsForResource {name}", lambda: client.list_tags_for_resource(ResourceARN=arn))
    carried = {t["Key"]: t["Value"] for t in tags["Tags"]}
    if not OWNER.items() <= carried.items():
        raise SafetyRefusal(
            f"alarm {name} exists and is not relight's (no tag relight:owner=relight), so it is left alone; rename one"
        )
    if all(_same(have.get(k), wanted[k]) for k in COMPARED):
        return "same"
    change = {k: v for k, v in wanted.items() if k != "Tags"}
    await aws.call(f"PutMetricAlarm {name}", lambda: client.put_metric_alarm(**change), changes=True)
    await aws.call(
        f"TagResource {name}", lambda: client.tag_resource(ResourceARN=arn, Tags=wanted["Tags"]), changes=True
    )
    return "updated"


def _same(have: Any, wanted: Any) -> bool:
    """What is wanted is there; keys that AWS adds do not count."""
    if isinstance(wanted, dict):
        return isinstance(have, dict) and all(_same(have.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return len(have or ()) == len(wanted) and all(map(_same, have or (), wanted))
    return bool(have == wanted)
