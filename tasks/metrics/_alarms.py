"""Alarms of CloudWatch: rendered, and kept as rendered. Only alarms that carry our tags are ever changed.

Relied on (CloudWatch API reference): *DescribeAlarms* returns metric alarms only, unless ``AlarmTypes`` asks for more;
a name is one alarm's within a region; *PutCompositeAlarm* wants every alarm of its rule, and its suppressor, to exist,
ignores ``Tags`` in an update, and has its actions suppressed while the suppressor is in ALARM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tasks.aws import Aws
from tasks.errors import BadInput, SafetyRefusal
from tasks.marks import MARK

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
COMPARED_COMPOSITE = (
    "AlarmDescription", "ActionsEnabled", "AlarmActions", "OKActions", "InsufficientDataActions", "AlarmRule",
    "ActionsSuppressor", "ActionsSuppressorWaitPeriod", "ActionsSuppressorExtensionPeriod",
)  # fmt: skip
BOTH = ("MetricAlarm", "CompositeAlarm")


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


@dataclass(frozen=True)
class Composite:
    """Alarms of one site, taken together. ``rule``: AlarmRule, of ``fires``, ``is_silent``, ``every``, ``any_of``."""

    name: str
    site: str
    rule: str
    description: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Suppressor:
    """While ``alarm`` (a name, in each site's region) is in ALARM nothing is sent. Times in seconds."""

    alarm: str
    wait_s: int
    extension_s: int


def fires(name: str) -> str:
    return f'ALARM("{name}")'


def is_silent(name: str) -> str:
    """It has no data."""
    return f'INSUFFICIENT_DATA("{name}")'


def any_of(*terms: str) -> str:
    return terms[0] if len(terms) == 1 else f"({' OR '.join(terms)})"


def every(*terms: str) -> str:
    return " AND ".join(terms)


def composite_request(composite: Composite, suppressor: Suppressor | None, actions: tuple[str, ...]) -> dict[str, Any]:
    """The PutCompositeAlarm request."""
    suppressed = {
        "ActionsSuppressor": suppressor.alarm,
        "ActionsSuppressorWaitPeriod": suppressor.wait_s,
        "ActionsSuppressorExtensionPeriod": suppressor.extension_s,
    } if suppressor else {}  # fmt: skip
    return {
        "AlarmName": composite.name,
        "AlarmDescription": composite.description,
        "ActionsEnabled": True,
        "AlarmActions": list(actions),
        "OKActions": list(actions),
        "InsufficientDataActions": list(actions),
        "AlarmRule": composite.rule,
        **suppressed,
        "Tags": _tags(composite.tags),
    }


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
        "Tags": _tags(alarm.tags),
    }


async def keep(aws: Aws, client: Any, wanted: dict[str, Any]) -> str:
    """Make the alarm be as wanted. Raises SafetyRefusal for one of the same name that is not tagged as ours or is of
    the other kind, BadInput for a suppressor that does not exist.
    """
    name, composite = wanted["AlarmName"], "AlarmRule" in wanted
    put, what = (
        (client.put_composite_alarm, f"PutCompositeAlarm {name}")
        if composite
        else (client.put_metric_alarm, f"PutMetricAlarm {name}")
    )
    if "ActionsSuppressor" in wanted and not await look(aws, client, wanted["ActionsSuppressor"]):
        raise BadInput(
            f"alarm {name}: its suppressor {wanted['ActionsSuppressor']} does not exist in {client.meta.region_name};"
            " make it (it is in ALARM while there is maintenance), or take `suppressor` out of the settings"
        )
    found = await look(aws, client, name)
    if found is None:
        await aws.call(what, lambda: put(**wanted), changes=True)
        return "created"
    arn = found["AlarmArn"]
    tags = await aws.call(f"ListTagsForResource {name}", lambda: client.list_tags_for_resource(ResourceARN=arn))
    _ours(name, {t["Key"]: t["Value"] for t in tags["Tags"]}, {t["Key"]: t["Value"] for t in wanted["Tags"]})
    if composite != ("AlarmRule" in found):
        raise SafetyRefusal(f"alarm {name} exists as one of the other kind ({arn}); delete it first, if that is right")
    compared = COMPARED_COMPOSITE if composite else COMPARED
    if all(_same(_named(found.get(k)), _named(wanted.get(k))) for k in compared):
        return "same"
    change = wanted if composite else {k: v for k, v in wanted.items() if k != "Tags"}
    await aws.call(what, lambda: put(**change), changes=True)
    await aws.call(
        f"TagResource {name}", lambda: client.tag_resource(ResourceARN=arn, Tags=wanted["Tags"]), changes=True
    )
    return "updated"


async def look(aws: Aws, client: Any, name: str) -> dict[str, Any] | None:
    """The alarm of this name, of either kind; None for none."""
    answer = await aws.call(
        f"DescribeAlarms {name}", lambda: client.describe_alarms(AlarmNames=[name], AlarmTypes=list(BOTH))
    )
    found: dict[str, Any] | None = next(iter((*answer["MetricAlarms"], *answer["CompositeAlarms"])), None)
    return found


def _ours(name: str, carried: dict[str, str], wanted: dict[str, str]) -> None:
    if not OWNER.items() <= carried.items():
        raise SafetyRefusal(
            f"alarm {name} exists and is not relight's (no tag relight:owner=relight), so it is left alone; rename one"
        )
    if carried.get(MARK, wanted.get(MARK)) != wanted.get(MARK):
        raise SafetyRefusal(
            f"alarm {name} is relight's, and of system {carried[MARK]}, not of {wanted.get(MARK)}; rename one"
        )


def _tags(more: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": k, "Value": v} for k, v in {**OWNER, **more}.items()]


def _named(value: Any) -> Any:
    """An alarm that is given by its name may be told by its ARN, ``arn:…:alarm:NAME``."""
    return value.rpartition(":alarm:")[2] if isinstance(value, str) and value.startswith("arn:") else value


def _same(have: Any, wanted: Any) -> bool:
    """What is wanted is there; keys that AWS adds do not count."""
    if isinstance(wanted, dict):
        return isinstance(have, dict) and all(_same(have.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return len(have or ()) == len(wanted) and all(map(_same, have or (), wanted))
    return bool(have == wanted)
