"""The shipped IAM policies: each is of a provider, narrow, spelled right; and the comparison itself can fail."""

from __future__ import annotations

import re

import iam
import pytest

from tasks import catalog
from tasks.aws import Call

pytestmark = pytest.mark.real
REPORTS = {"iam:GenerateCredentialReport", "iam:GenerateServiceLastAccessedDetails"}
"""They make a report and change nothing: access level Read in the service authorization reference."""


def call(service, operation):
    return Call(service, operation, "eu-west-1", "host")


@pytest.mark.parametrize("provider", iam.policies())
def test_a_policy_is_of_a_provider_and_spelled_right(provider):
    assert provider in {*catalog.provider_names(), "aws-secret", "aws-iam"}
    policy = iam.policies()[provider]
    assert policy["Version"] == "2012-10-17"
    actions = iam.allowed(policy)
    assert set(actions) <= iam.known_actions(), "no operation of botocore takes it"
    each = [(a, str(s["Resource"])) for s in policy["Statement"] for a in s["Action"]]
    assert len(each) == len(set(each)), "an action is allowed twice"


@pytest.mark.parametrize("provider", iam.policies())
def test_a_policy_is_narrow(provider):
    for statement in iam.policies()[provider]["Statement"]:
        assert statement["Effect"] == "Allow"
        assert re.fullmatch(r"[A-Za-z0-9]+", statement["Sid"]), "every statement says what it is for"
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}, "no NotAction, no NotResource"
        assert isinstance(statement["Action"], list)
        assert not [a for a in statement["Action"] if "*" in a]
        if statement["Resource"] == "*":
            reads = ("Describe", "Get", "List", "Search")
            narrowed = statement.get("Condition") or all(
                a.partition(":")[2].startswith(reads) or a in REPORTS for a in statement["Action"]
            )
            assert narrowed, "what changes something names what it may change, or the mark that it must carry"


def test_the_comparison_finds_what_is_missing_and_what_is_too_much():
    policy = {"Statement": [{"Action": ["s3:ListBucket", "s3:PutObject"]}, {"Action": "route53:GetChange"}]}
    calls = {call("s3", "ListObjectsV2"), call("route53", "ListResourceRecordSets"), call("sts", "GetCallerIdentity")}
    assert iam.differences(calls, policy) == [
        "route53:ListResourceRecordSets is used and not allowed",
        "route53:GetChange is allowed and not used",
        "s3:PutObject is allowed and not used",
    ]


@pytest.mark.parametrize(
    ("service", "operation", "actions"),
    [
        ("elbv2", "ModifyListener", ("elasticloadbalancing:ModifyListener",)),
        ("s3", "HeadObject", ("s3:GetObject",)),
        ("s3", "DeleteBucketTagging", ("s3:PutBucketTagging",)),
        ("service-quotas", "GetServiceQuota", ("servicequotas:GetServiceQuota",)),
        ("rds", "PromoteReadReplica", ("rds:PromoteReadReplica",)),
    ],
)
def test_operations_take_the_permissions_of_the_authorization_reference(service, operation, actions):
    assert iam.actions_of(call(service, operation)) == actions


def test_a_check_without_calls_fails():
    with pytest.raises(AssertionError, match="no call was heard"):
        iam.check("no.provider")
