"""One way to AWS: what it hears, and botocore's errors as ours, against a real server that is well, hung and gone."""

from __future__ import annotations

import asyncio

import pytest
from aws import OTHER_REGION, REGION

from tasks.aws import HEARD, Account, Aws
from tasks.errors import EffectUnknown, Rejected, Unreachable

pytestmark = pytest.mark.real


def with_aws(test, **account):
    async def main():
        way = Aws(Account.model_validate({"timeout": "20s", **account}), "component")
        try:
            await test(way)
        finally:
            await way.aclose()

    asyncio.run(main())


def test_every_call_is_heard_with_its_region(aws):
    async def test(way):
        calls = []
        token = HEARD.set(calls.append)
        for region in (REGION, OTHER_REGION):
            sqs = await way.client("sqs", region)
            await way.call("listing", lambda sqs=sqs: sqs.list_queues())
        HEARD.reset(token)
        assert [(c.service, c.operation, c.region) for c in calls] == [
            ("sqs", "ListQueues", REGION),
            ("sqs", "ListQueues", OTHER_REGION),
        ]
        assert calls[0].host == aws.url.removeprefix("http://")

    with_aws(test)


def test_a_no_is_rejected_with_its_code(aws):
    async def test(way):
        sqs = await way.client("sqs", REGION)
        with pytest.raises(Rejected, match="component: asking was refused") as e:
            await way.call("asking", lambda: sqs.get_queue_url(QueueName="none"))
        assert e.value.facts["code"].endswith("NonExistentQueue")

    with_aws(test)


def test_a_hung_server_is_unknown_only_where_something_may_have_changed(aws):
    async def test(way):
        sqs = await way.client("sqs", REGION)
        with pytest.raises(Unreachable, match="no answer within"):
            await way.call("listing", sqs.list_queues)
        with pytest.raises(EffectUnknown, match="no answer within"):
            await way.call("making", lambda: sqs.create_queue(QueueName="q"), changes=True)

    aws.hang()
    try:
        with_aws(test, timeout="300ms")
    finally:
        aws.go_on()


def test_nobody_there_is_unreachable(aws, monkeypatch):
    async def test(way):
        sqs = await way.client("sqs", REGION)
        with pytest.raises(Unreachable, match="no connection"):
            await way.call("making", lambda: sqs.create_queue(QueueName="q"), changes=True)

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with_aws(test)
