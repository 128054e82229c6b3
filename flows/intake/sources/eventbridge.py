"""CloudWatch through an EventBridge API destination, and what a CloudWatch alarm gives to a Lambda function.

EventBridge retries for up to 24 hours: the age of the event decides whether it may still trigger.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake import cloudwatch
from flows.intake.event import Alert, Delivery, Malformed, moment, text, texts
from flows.intake.source import Source

CHANGED = "CloudWatch Alarm State Change"
CONFIGURED = "CloudWatch Alarm Configuration Change"


class EventBridge(Source):
    """The connection's API key header is one of those that a token is shown in; basic works as well."""

    name: ClassVar[str] = "eventbridge"

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        return text(body.get("id")) if isinstance(body, dict) else ""

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if not isinstance(body, dict) or not ("detail-type" in body or "alarmData" in body):
            raise Malformed("no `detail-type`: does an input transformer reshape the event?")
        return (alert(body),)


def alert(body: dict[str, Any]) -> Alert:
    """One event. Raises Malformed."""
    account = text(body.get("account")) or text(body.get("accountId"))
    if "alarmData" in body:
        found, arn, kind = body["alarmData"], text(body.get("alarmArn")), CHANGED
    else:
        resources = body.get("resources")
        arn = text(resources[0]) if isinstance(resources, list) and resources else ""
        found, kind = body.get("detail"), text(body.get("detail-type"))
    # names that begin with "aws." are AWS's own; anybody may put the same detail-type under another
    if kind not in (CHANGED, CONFIGURED) or text(body.get("source")) != "aws.cloudwatch":
        labels = texts({"detail_type": kind, "origin": body.get("source"), "account": account})
        return Alert(kind="unknown", fingerprint=arn, title=kind, labels=labels, started_at=moment(body.get("time")))
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        raise Malformed("no state of an alarm: does an input transformer reshape the event?")
    read = cloudwatch.by_event(arn, account, found, body.get("time"))
    return read.model_copy(update={"kind": "config"}) if kind == CONFIGURED else read


SOURCE = EventBridge
