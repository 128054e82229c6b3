"""A CloudWatch alarm, in each of the three shapes that AWS sends it in."""

from __future__ import annotations

import re
from typing import Any

from flows.intake.event import Alert, Evidence, Kind, moment, part, text, texts

KINDS: dict[str, Kind] = {"ALARM": "firing", "OK": "resolved", "INSUFFICIENT_DATA": "no_data"}
"""No data is neither that something fires nor that it is over."""
_POINTS = re.compile(r"(\d+) out of the last (\d+) datapoints?")


def by_sns(found: dict[str, Any]) -> Alert:
    """The ``Message`` of a notification. It does not say when an alarm that ended had begun."""
    trigger = part(found.get("Trigger"))
    arn = text(found.get("AlarmArn"))
    labels = _labels(arn, text(found.get("AlarmName")), text(found.get("AWSAccountId")))
    labels |= texts({"metric": trigger.get("MetricName"), "namespace": trigger.get("Namespace")})
    dimensions = trigger.get("Dimensions")
    for one in dimensions if isinstance(dimensions, list) else []:
        labels |= texts({text(part(one).get("name")): part(one).get("value")})
    changed = moment(found.get("StateChangeTime"))
    reason = text(found.get("NewStateReason"))
    return Alert(
        kind=KINDS.get(text(found.get("NewStateValue")), "unknown"),
        fingerprint=arn,
        started_at=changed,
        basis="state_change",
        observed_at=changed,
        title=labels.get("alertname", ""),
        labels=labels,
        annotations=texts({"description": found.get("AlarmDescription"), "reason": reason}),
        evidence=Evidence(m_of_n=m_of_n(reason)),
        closes="fingerprint",
    )


def by_event(arn: str, account: str, alarm: dict[str, Any], sent: Any) -> Alert:
    """The ``detail`` of an EventBridge event, or the ``alarmData`` of a Lambda action. ``sent``: the event's time.

    A suppressed composite alarm is sent all the same; ``actionsSuppressedBy`` says so, and it is the maintenance window
    of whoever set it. An alarm that ended began when its previous state did.
    """
    state, previous = part(alarm.get("state")), part(alarm.get("previousState"))
    kind = KINDS.get(text(state.get("value")), "unknown")
    suppressed = text(state.get("actionsSuppressedBy"))
    changed = moment(state.get("timestamp"))
    ended = kind == "resolved" and text(previous.get("value")) == "ALARM"
    reason = text(state.get("reason"))
    configuration = part(alarm.get("configuration"))
    labels = _labels(arn, text(alarm.get("alarmName")), account)
    metrics = configuration.get("metrics")
    for one in metrics if isinstance(metrics, list) else []:
        metric = part(part(part(one).get("metricStat")).get("metric"))
        labels |= texts({"metric": metric.get("name"), "namespace": metric.get("namespace")})
        labels |= texts(metric.get("dimensions"))
    return Alert(
        kind="suppressed" if suppressed and kind == "firing" else kind,
        fingerprint=arn,
        started_at=(moment(previous.get("timestamp")) if ended else None) or changed,
        basis="state_change",
        observed_at=changed or moment(sent),
        title=labels.get("alertname", ""),
        labels=labels,
        annotations=texts({"description": configuration.get("description"), "reason": reason}),
        evidence=Evidence(m_of_n=m_of_n(reason)),
        suppressed_by=suppressed,
        closes="fingerprint",
    )


def m_of_n(reason: str) -> str | None:
    """``2 of 3`` datapoints, from the sentence in which CloudWatch says it."""
    found = _POINTS.search(reason)
    return f"{found[1]} of {found[2]}" if found else None


def _labels(arn: str, name: str, account: str) -> dict[str, str]:
    pieces = arn.split(":")
    region = pieces[3] if len(pieces) > 6 else ""
    return texts({"alertname": name, "account": account, "region": region})
