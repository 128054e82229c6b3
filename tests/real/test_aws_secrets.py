"""``aws-secret:`` references against moto's Secrets Manager: regions, JSON, what is kept, and what is never shown."""

from __future__ import annotations

import asyncio
import json
import time

import iam
import pytest
from aws import OTHER_REGION, REGION
from aws_conformance import front

from tasks import aws_secrets
from tasks.errors import MissingSecret, Unreachable
from tasks.secrets import redact, resolve, resolved

pytestmark = pytest.mark.real
PROVIDER_NAME = "aws-secret"
NAME = "venue/database"
HERE = f"aws-secret:{NAME}?region={REGION}"


@pytest.fixture
def keeper(aws, monkeypatch):
    aws_secrets.forget()
    monkeypatch.setattr(aws_secrets, "TIMEOUT_S", 20.0)
    value = json.dumps({"username": "relight", "password": "p4ssw0rd", "port": 5432})
    made = aws.client("secretsmanager").create_secret(Name=NAME, SecretString=value)
    aws.client("secretsmanager", OTHER_REGION).create_secret(Name="plain", SecretString="only-here")
    with front("secretsmanager", aws.url) as it:
        it.arn = made["ARN"]
        yield it
    aws_secrets.forget()


def value(reference):
    return resolve(reference).get_secret_value()


def test_values_keys_regions_and_arns(keeper, monkeypatch):
    assert value(f"{HERE}#password") == "p4ssw0rd"
    assert value(f"{HERE}#port") == "5432"
    assert json.loads(value(HERE))["username"] == "relight"
    assert value(f"aws-secret:{keeper.arn}#password") == "p4ssw0rd"
    assert value(f"aws-secret:plain?region={REGION},{OTHER_REGION}") == "only-here"
    monkeypatch.setenv("AWS_DEFAULT_REGION", OTHER_REGION)
    assert value("aws-secret:plain") == "only-here"
    assert redact("it is p4ssw0rd, only-here") == "it is ***, ***"


def test_it_is_asked_once_and_outlives_an_outage(keeper, monkeypatch):
    assert [value(f"{HERE}#password") for _ in range(3)] == ["p4ssw0rd"] * 3
    assert keeper.operations() == ["GetSecretValue"]
    monkeypatch.setattr(aws_secrets, "FRESH_S", 0.0)
    keeper.order("GetSecretValue", "dropped", "InternalServiceError", "503")
    assert [value(f"{HERE}#password") for _ in range(3)] == ["p4ssw0rd"] * 3
    assert len(keeper.operations()) == 4


def test_a_keeper_that_hangs_costs_its_time_out_and_not_the_loop(keeper, monkeypatch):
    monkeypatch.setattr(aws_secrets, "TIMEOUT_S", 2.0)
    keeper.order("GetSecretValue", 15.0)

    async def main():
        began = time.monotonic()
        task = asyncio.ensure_future(resolved(f"{HERE}#password"))
        await asyncio.sleep(0.05)
        assert not task.done()  # the loop went on
        with pytest.raises(Unreachable, match="no answer"):
            await task
        assert time.monotonic() - began < 10

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (f"aws-secret:none?region={REGION}", "ResourceNotFoundException"),
        (f"{HERE}#token", "no JSON object with a value 'token'"),
        (f"aws-secret:{NAME}?zone=a", "expected aws-secret:NAME-OR-ARN"),
        (f"aws-secret:{NAME}#", "expected aws-secret:NAME-OR-ARN"),
        (f"aws-secret:{NAME}?region=", "expected aws-secret:NAME-OR-ARN"),
    ],
)
def test_what_cannot_be_read_says_why_without_a_value(keeper, reference, said):
    with pytest.raises(MissingSecret, match=said) as e:
        value(reference)
    assert "p4ssw0rd" not in str(e.value)


def test_denied_says_what_to_allow(keeper):
    keeper.order("GetSecretValue", "AccessDeniedException")
    with pytest.raises(MissingSecret, match="allow secretsmanager:GetSecretValue"):
        value(f"{HERE}#password")


def test_nobody_there_is_unreachable(keeper, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="does not answer"):
        value(f"{HERE}#password")


def test_the_policy_allows_exactly_the_calls_that_were_made():
    iam.check(PROVIDER_NAME)
