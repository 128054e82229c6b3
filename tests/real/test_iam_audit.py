"""The annual audit's look at AWS IAM against moto: keys, passwords, roles, relight's own principal; and what fails."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import iam
import pytest
import strict
from aws import ACCOUNT

from flows.reviews import awsusers
from tasks.aws import Account
from tasks.clock import LoopClock

pytestmark = pytest.mark.real
PROVIDER_NAME = "aws-iam"
LATER = datetime.now(UTC) + timedelta(days=100)
"""moto dates everything today, so the audit looks at it 100 days later."""


def policy(*actions, effect="Allow"):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": effect, "Action": actions, "Resource": "*"}]})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("iam")) as found:
        yield found


@pytest.fixture(scope="module")
def account(server):
    """A user with a key and a password, a role that nobody takes on, and relight's own role that is in use."""
    client = server.client("iam")
    client.create_user(UserName="clerk")
    key = client.create_access_key(UserName="clerk")["AccessKey"]["AccessKeyId"]
    off = client.create_access_key(UserName="clerk")["AccessKey"]["AccessKeyId"]
    client.update_access_key(UserName="clerk", AccessKeyId=off, Status="Inactive")
    client.create_login_profile(UserName="clerk", Password="correct horse")
    trust = policy("sts:AssumeRole")
    for role in ("left-over", "relight"):
        client.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
    client.put_role_policy(RoleName="relight", PolicyName="mine", PolicyDocument=policy("route53:*", "sts:AssumeRole"))
    managed = client.create_policy(
        PolicyName="old", PolicyDocument=policy("rds:DeleteDBInstance", "iam:ListAccessKeys")
    )
    client.attach_role_policy(RoleName="relight", PolicyArn=managed["Policy"]["Arn"])
    client.put_role_policy(RoleName="relight", PolicyName="no", PolicyDocument=policy("s3:*", effect="Deny"))
    found = server.client("sts").assume_role(RoleArn=f"arn:aws:iam::{ACCOUNT}:role/relight", RoleSessionName="audit")
    return SimpleNamespace(client=client, key=key, off=off, credentials=found["Credentials"])


@pytest.fixture
def as_relight(account, monkeypatch):
    """Credentials of the role, as an instance has them."""
    for name, of in (("ACCESS_KEY_ID", "AccessKeyId"), ("SECRET_ACCESS_KEY", "SecretAccessKey")):
        monkeypatch.setenv(f"AWS_{name}", account.credentials[of])
    monkeypatch.setenv("AWS_SESSION_TOKEN", account.credentials["SessionToken"])


def system(provider="zones.route53"):
    component = SimpleNamespace(provider=provider, settings={"zone": "venue.example"})
    sites = {name: SimpleNamespace(region=region) for name, region in (("w", "eu-west-1"), ("e", "eu-central-1"))}
    return SimpleNamespace(
        settings={"dns": Account(timeout=30.0)}, system=SimpleNamespace(components={"dns": component}, sites=sites)
    )


def audited(now=LATER, loaded=None):
    async def main():
        return await awsusers.audit(loaded or system(), LoopClock(), now)

    return {f.key: f for f in asyncio.run(main())}


def test_what_nobody_uses_is_found_and_what_is_in_use_is_not(server, account, as_relight):
    server.set(advisor={"route53": "2026-11-20T00:00:00+00:00", "rds": "", "sts": "2026-11-01T00:00:00+00:00"})
    found = audited()
    key = found[f"iam-key {account.key}"]
    assert (key.severity, "not used for" in key.title) == ("warning", True)
    assert f"--user-name clerk --access-key-id {account.key} --status Inactive" in key.fix
    assert found[f"iam-key {account.off}"].severity == "info"
    assert "delete-login-profile --user-name clerk" in found["iam-password clerk"].fix
    roles = found["iam-roles-unused"]
    assert "left-over" in roles.title
    assert "relight" not in roles.title, "the audit itself uses it"
    assert "AWSDenyAll" in roles.fix
    beyond = found[f"iam-beyond arn:aws:iam::{ACCOUNT}:role/relight"]
    assert "may do 3 things" in beyond.title
    lines = dict(line.split(": ", 1) for line in beyond.detail.splitlines())
    assert "rds was never asked in 400 days" in lines["rds:DeleteDBInstance"]
    assert "policy/old" in lines["rds:DeleteDBInstance"]
    assert "needed of it: route53:ChangeResourceRecordSets" in lines["route53:*"]
    assert "route53 was last asked on 2026-11-20" in lines["route53:*"]
    assert "inline policy mine of role relight" in lines["sts:AssumeRole"]
    assert "iam:ListAccessKeys" not in lines
    assert "has Deny in a statement" in beyond.evidence
    lacks = found[f"iam-lacks arn:aws:iam::{ACCOUNT}:role/relight"]
    assert "iam:GetCredentialReport" in lacks.detail
    assert "route53" not in lacks.detail
    assert "put-role-policy --role-name relight --policy-name relight-aws-iam" in lacks.fix
    assert not [f for f in found.values() if f.severity == "unknown"]


def test_today_nothing_is_unused_for_long_and_roots_keys_are_critical(server, account, as_relight):
    server.set(advisor={}, root_keys=1)
    found = audited(datetime.now(UTC))
    server.set(root_keys=0)
    assert found.pop("iam-root-keys").severity == "critical"
    assert set(found) == {f"iam-key {account.off}", *(k for k in found if k.startswith(("iam-beyond", "iam-lacks")))}


def test_a_user_may_be_relights_principal_and_an_advisor_that_is_not_there_is_unknown(server, account, monkeypatch):
    account.client.create_user(UserName="robot")
    made = account.client.create_access_key(UserName="robot")["AccessKey"]
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
        server.set(advisor=None)
        found = audited()
    assert found["iam-advisor"].severity == "unknown"
    assert "generate_service_last_accessed_details" in found["iam-advisor"].evidence
    assert "put-user-policy --user-name robot" in found[f"iam-lacks arn:aws:iam::{ACCOUNT}:user/robot"].fix
    key = found[f"iam-key {made['AccessKeyId']}"]
    assert "last used on" in key.evidence
    assert "never used" in found[f"iam-key {account.key}"].evidence


def test_each_source_that_fails_is_unknown_and_the_others_are_told_all_the_same(server, as_relight, monkeypatch):
    server.set(advisor={}, looked=[])
    monkeypatch.setattr("tasks.aws_iam.MADE_S", 0.0)  # the advisor's first look finds a job that is under way
    for operation in ("GenerateCredentialReport", "GetAccessKeyLastUsed"):
        server.fault(operation, "AccessDenied")
    found = audited()
    unknown = {k: f for k, f in found.items() if f.severity == "unknown"}
    assert set(unknown) == {"iam-passwords", "iam-keys", "iam-advisor"}
    assert "was not made within 0 s" in unknown.pop("iam-advisor").evidence
    assert all("not allowed (AccessDenied)" in f.evidence and "aws-iam.json" in f.fix for f in unknown.values())
    assert {"iam-roles-unused", f"iam-beyond arn:aws:iam::{ACCOUNT}:role/relight"} <= set(found)


def test_an_account_that_tells_nothing_of_its_policies_still_tells_of_its_passwords(server, account):
    server.fault("GetAccountAuthorizationDetails", "throttle")
    found = audited()
    assert found["iam-account"].severity == "unknown"
    assert found["iam-password clerk"].severity == "warning"
    server.set(away=["eu-west-1"])
    found = audited()["iam-principal"]  # moto's own credentials; the other region says whose they are
    server.set(away=[])
    assert "is no user and no role of this account" in found.evidence


def test_an_account_that_is_dark_is_unknown_and_a_system_without_aws_is_not_asked(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        found = audited()
    assert {k: f.severity for k, f in found.items()} == {"iam-account": "unknown", "iam-passwords": "unknown"}
    assert audited(loaded=SimpleNamespace(settings={}, system=SimpleNamespace(components={}, sites={}))) == {}


def test_the_policy_is_what_was_called():
    iam.check(PROVIDER_NAME)
