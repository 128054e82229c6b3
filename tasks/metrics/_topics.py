"""An SNS topic that alarms are told to: is it there, may CloudWatch publish to it, who is subscribed?

Sources: SNS API reference (GetTopicAttributes, ListSubscriptionsByTopic: ``PendingConfirmation`` in place of an ARN);
IAM user guide, *Policy evaluation logic* and *IAM JSON policy elements*; SNS developer guide, *Default access policy*
(the account's own alarms pass ``AWS:SourceOwner``) and *Key management*: with the key ``alias/aws/sns`` no alarm of
CloudWatch can publish, because the policy of that key cannot be changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from tasks.aws import Aws
from tasks.errors import Rejected
from tasks.metrics.protocol import Topic

SERVICE = "cloudwatch.amazonaws.com"
PUBLISH = "sns:publish"
MANAGED_KEY = "alias/aws/sns"


def is_topic(arn: str) -> bool:
    """``arn:aws:sns:REGION:ACCOUNT:NAME``."""
    parts = arn.split(":")
    return len(parts) == 6 and parts[2] == "sns"


def region_of(arn: str) -> str:
    """Empty for what is no ARN."""
    parts = arn.split(":")
    return parts[3] if len(parts) > 5 else ""


async def topic(aws: Aws, client: Any, arn: str, source: str, receiver: str | None) -> Topic:
    """What is so of a topic. ``source``: how the alarms' ARNs begin; ``receiver``: URL, None for any over HTTPS."""
    try:
        answer = await aws.call(f"GetTopicAttributes {arn}", lambda: client.get_topic_attributes(TopicArn=arn))
    except Rejected as e:
        if e.facts.get("code") in ("NotFound", "NotFoundException"):
            return Topic(arn, exists=False, why="there is no such topic")
        raise
    attributes = answer["Attributes"]
    allowed, why = may_publish(str(attributes.get("Policy", "{}")), arn, source)
    if str(attributes.get("KmsMasterKeyId", "")).endswith(MANAGED_KEY):
        allowed, why = False, f"it is encrypted with {MANAGED_KEY}, with which no alarm can publish"
    confirmed, pending = await _subscribed(aws, client, arn)
    mine = receiver in confirmed if receiver else any(e.startswith("https://") for e in confirmed)
    return Topic(arn, exists=True, may_publish=allowed, confirmed=confirmed, pending=pending, receiver=mine, why=why)


async def _subscribed(aws: Aws, client: Any, arn: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Endpoints: confirmed, pending. What was deleted is listed for a while, and is neither."""
    confirmed, pending, asked = list[str](), list[str](), {"TopicArn": arn}
    while True:
        page = await aws.call(f"ListSubscriptionsByTopic {arn}", lambda: client.list_subscriptions_by_topic(**asked))
        for one in page["Subscriptions"]:
            state = str(one["SubscriptionArn"])
            if state == "PendingConfirmation":
                pending.append(str(one["Endpoint"]))
            elif state.startswith("arn:"):
                confirmed.append(str(one["Endpoint"]))
        if not page.get("NextToken"):
            return tuple(confirmed), tuple(pending)
        asked["NextToken"] = page["NextToken"]


def may_publish(policy: str, topic_arn: str, source: str) -> tuple[bool | None, str]:
    """Does a topic's policy let alarms whose ARNs begin with ``source`` publish? None: this cannot tell. And why."""
    try:
        statements = json.loads(policy).get("Statement", [])
    except (ValueError, AttributeError):
        return None, "its policy is no JSON"
    answers = {"Allow": list[bool | None](), "Deny": list[bool | None]()}
    for one in statements if isinstance(statements, list) else [statements]:
        answers.setdefault(str(one.get("Effect")), []).append(_applies(one, topic_arn, source))
    if True in answers["Deny"]:
        return False, "a statement of its policy denies it"
    if True in answers["Allow"] and None not in answers["Deny"]:
        return True, ""
    if None in (*answers["Allow"], *answers["Deny"]):
        return None, "its policy has conditions that cannot be judged from here"
    return False, f"no statement of its policy lets {SERVICE} publish"


def _applies(statement: Mapping[str, Any], topic_arn: str, source: str) -> bool | None:
    """Is the statement about an alarm that publishes? None: it has an element that is not understood here."""
    if {"NotAction", "NotPrincipal", "NotResource"} & set(statement):
        return None
    principal = statement.get("Principal", {})
    who = _list(principal) if isinstance(principal, str) else [p for v in principal.values() for p in _list(v)]
    about = (
        any(p in ("*", SERVICE) for p in who)
        and any(fnmatchcase(PUBLISH, a.lower()) for a in _list(statement.get("Action", [])))
        and any(fnmatchcase(topic_arn, r) for r in _list(statement.get("Resource", [])))
    )
    if not about:
        return False
    judged = [
        _condition(operator, key, _list(values), source)
        for operator, keys in statement.get("Condition", {}).items()
        for key, values in keys.items()
    ]
    return False if False in judged else None if None in judged else True


def _condition(operator: str, key: str, values: list[str], source: str) -> bool | None:
    """All that an alarm passes: its ARN, its account, and that it comes over TLS."""
    of, kind = key.lower(), operator.removesuffix("IfExists")
    if of in ("aws:sourceowner", "aws:sourceaccount"):
        passed = source.split(":")[4]
    elif of == "aws:sourcearn":
        passed = source + "x"
    elif of == "aws:securetransport":
        passed = "true"
    else:
        return None
    if kind == "StringNotEquals" and of != "aws:sourcearn":
        return passed not in values
    if kind not in ("StringEquals", "Bool", "StringLike", "ArnLike", "ArnEquals"):
        return None
    wild = kind in ("StringLike", "ArnLike", "ArnEquals")
    if any(fnmatchcase(passed, v) if wild else passed == v for v in values):
        return True
    some = of == "aws:sourcearn" and any(v.startswith(source) for v in values)
    return None if some else False


def _list(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, Iterable) and not isinstance(value, str) else [str(value)]
