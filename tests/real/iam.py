"""A provider's policy in ``deployments/iam`` allows exactly the calls that its tests heard it make.

A test module of a provider on AWS says ``PROVIDER_NAME = "zones.route53"``: ``conftest.py`` then notes every call that
``tasks.aws`` hears in it. Its last test is ``iam.check("zones.route53")``: nothing may be missing in
``deployments/iam/zones.route53.json``, and nothing may be allowed that was never used.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import botocore.loaders

from tasks.aws import Call

FOLDER = Path(__file__).parents[2] / "deployments" / "iam"
HEARD: dict[str, set[Call]] = defaultdict(set)
"""provider -> every call that was heard in its tests of this session."""

PREFIXES = {
    "elbv2": "elasticloadbalancing",
    "service-quotas": "servicequotas",
    "s3control": "s3",
    "ses": "ses",
}
"""boto3's service -> its prefix in IAM, where that is another one (service authorization reference)."""
ACTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("s3", "ListObjects"): ("s3:ListBucket",),
    ("s3", "ListObjectsV2"): ("s3:ListBucket",),
    ("s3", "ListObjectVersions"): ("s3:ListBucketVersions",),
    ("s3", "ListBuckets"): ("s3:ListAllMyBuckets",),
    ("s3", "HeadBucket"): ("s3:ListBucket",),
    ("s3", "HeadObject"): ("s3:GetObject",),
    ("s3", "CopyObject"): ("s3:GetObject", "s3:PutObject"),
    ("s3", "DeleteObjects"): ("s3:DeleteObject",),
    ("s3", "DeleteBucketTagging"): ("s3:PutBucketTagging",),
    ("s3", "GetBucketReplication"): ("s3:GetReplicationConfiguration",),
    ("s3", "PutBucketReplication"): ("s3:PutReplicationConfiguration",),
    ("s3", "DeleteBucketReplication"): ("s3:PutReplicationConfiguration",),
    ("s3", "GetBucketLifecycleConfiguration"): ("s3:GetLifecycleConfiguration",),
    ("s3", "GetBucketEncryption"): ("s3:GetEncryptionConfiguration",),
    ("sts", "GetCallerIdentity"): (),
}
"""(service, operation) -> the permissions that it takes, where they are not the operation's own name."""


def actions_of(call: Call) -> tuple[str, ...]:
    """What a policy must allow for one call."""
    own = (f"{PREFIXES.get(call.service, call.service)}:{call.operation}",)
    return ACTIONS.get((call.service, call.operation), own)


def policies() -> dict[str, Any]:
    """Provider -> its policy."""
    return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(FOLDER.glob("*.json"))}


def allowed(policy: dict[str, Any]) -> list[str]:
    """Every action that a policy allows, as written."""
    found: list[str] = []
    for statement in policy["Statement"]:
        actions = statement["Action"]
        found += [actions] if isinstance(actions, str) else actions
    return found


def differences(calls: set[Call], policy: dict[str, Any]) -> list[str]:
    """Both ways: what is used and not allowed, what is allowed and not used."""
    needed, have = {a for c in calls for a in actions_of(c)}, set(allowed(policy))
    return [f"{a} is used and not allowed" for a in sorted(needed - have)] + [
        f"{a} is allowed and not used" for a in sorted(have - needed)
    ]


def check(provider: str) -> None:
    """The last test of a provider's module: all of them must have run before it."""
    assert HEARD[provider], "no call was heard: does the module say PROVIDER_NAME, and did its tests run?"
    found = differences(HEARD[provider], policies()[provider])
    assert found == [], f"deployments/iam/{provider}.json"


@cache
def known_actions() -> frozenset[str]:
    """Every permission that some operation of some service of botocore's takes, to find a name that is misspelled."""
    loader = botocore.loaders.Loader()
    found: set[str] = set()
    for service in SERVICES:
        for operation in loader.load_service_model(service, "service-2")["operations"]:
            found |= set(actions_of(Call(service, operation, "", "")))
    return frozenset(found)


SERVICES = (
    "autoscaling", "ce", "cloudfront", "cloudwatch", "ec2", "elbv2", "iam", "rds", "route53",
    "route53-recovery-cluster", "route53-recovery-control-config", "s3", "s3control", "secretsmanager",
    "service-quotas", "sns", "ssm", "sts",
)  # fmt: skip
"""Of boto3, those that relight's providers speak to."""
