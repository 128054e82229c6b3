"""May an alarm publish to a topic, as its policy says?"""

from __future__ import annotations

import json

import pytest

from tasks.metrics._topics import may_publish

TOPIC = "arn:aws:sns:eu-west-1:111122223333:relight"
ALARMS = "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:relight-shop-"
ACCOUNT, SERVICE = "111122223333", {"Service": "cloudwatch.amazonaws.com"}


def allow(condition=None, *, effect="Allow", principal=SERVICE, action="sns:Publish", resource=TOPIC):
    more = {"Condition": condition} if condition else {}
    return {"Effect": effect, "Principal": principal, "Action": action, "Resource": resource, **more}


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([allow()], True),
        ([allow(action=["SNS:Subscribe", "SNS:Publish"], principal={"AWS": "*"})], True),
        ([allow(action="SNS:*", resource="*", principal="*")], True),
        ([allow({"StringEquals": {"AWS:SourceOwner": ACCOUNT}})], True),
        ([allow({"StringEquals": {"aws:SourceAccount": "999999999999"}})], False),
        ([allow({"ArnLike": {"aws:SourceArn": "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:*"}})], True),
        ([allow({"ArnLike": {"aws:SourceArn": "arn:aws:cloudwatch:us-east-1:111122223333:alarm:*"}})], False),
        ([allow({"ArnEquals": {"aws:SourceArn": ALARMS + "cpu-north"}})], None),
        ([allow({"StringEquals": {"aws:PrincipalOrgID": "o-1"}})], None),
        ([allow(principal={"Service": "events.amazonaws.com"})], False),
        ([allow(action="sns:Subscribe")], False),
        ([allow(resource=TOPIC + "-other")], False),
        ([allow(), allow(effect="Deny")], False),
        ([allow(), allow({"Bool": {"aws:SecureTransport": "false"}}, effect="Deny", principal="*")], True),
        ([allow(), allow({"StringNotEquals": {"aws:SourceAccount": ACCOUNT}}, effect="Deny", principal="*")], True),
        ([allow(), allow({"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}}, effect="Deny", principal="*")], None),
        ([], False),
    ],
)
def test_a_policy(statements, expected):
    assert may_publish(json.dumps({"Statement": statements}), TOPIC, ALARMS)[0] is expected


def test_one_statement_without_a_list_and_no_json():
    assert may_publish(json.dumps({"Statement": allow()}), TOPIC, ALARMS)[0] is True
    assert may_publish("none", TOPIC, ALARMS)[0] is None
