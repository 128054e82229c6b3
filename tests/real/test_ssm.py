"""Commands on a host: one suite for a local process and for Run Command against moto's server (strict)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import aws as ground
import iam
import pytest
import strict

from tasks.aws import HEARD
from tasks.errors import BadInput, EffectUnknown, NotYet, SafetyRefusal, Unreachable
from tasks.hosts import local, ssm
from tasks.hosts.protocol import ByHand

pytestmark = pytest.mark.real
PROVIDER_NAME = "hosts.ssm"
COMMANDS = {
    "say": ["echo", "{target}", "and", "{upstream}"],
    "fail": ["sh", "-c", "echo out; echo err >&2; exit 3"],
    "hang": ["sleep", "60"],
    "quote": ["echo", "a b; echo $HOME"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("ssm")) as running:
        yield running


@pytest.fixture
def instance(server):
    server.reset()
    ec2 = server.client("ec2")
    made = ec2.run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "relight:system", "Value": "venue"}]}],
    )["Instances"][0]["InstanceId"]
    return SimpleNamespace(id=made, ec2=ec2, ssm=server.client("ssm"), server=server)


def by_ssm(instance, test, **more):
    where = {"instance": instance.id, "region": ground.REGION}
    settings = {"timeout": "30s", "commands": COMMANDS, "targets": {"pg1": where, "pg2": where}, **more}
    strict.with_provider(ssm.PROVIDER, settings, "hosts", test)


def by_local(instance, test):
    strict.with_provider(local.PROVIDER, {"commands": COMMANDS, "targets": ["pg1", "pg2"]}, "hosts", test)


EVERY = pytest.mark.parametrize("tell", [by_local, by_ssm])


@EVERY
def test_a_command_runs_and_says_its_status_and_output(instance, tell):
    instance.server.set(command={"status": "Success", "code": 0, "stdout": "pg1 and pg2\n"})

    async def test(hosts):
        ran = await hosts.run("say", "pg1", timeout_s=60, values={"upstream": "pg2"})
        assert (ran.status, ran.stdout, ran.stderr) == (0, "pg1 and pg2", "")
        assert hosts.knows("say")
        assert not hosts.knows("none")

    tell(instance, test)


@EVERY
def test_a_command_that_fails_is_no_error_of_ours(instance, tell):
    instance.server.set(command={"status": "Failed", "code": 3, "stdout": "out\n", "stderr": "err\n"})

    async def test(hosts):
        ran = await hosts.run("fail", "pg1", timeout_s=60)
        assert (ran.status, ran.stdout, ran.stderr) == (3, "out", "err")

    tell(instance, test)


@EVERY
def test_only_what_the_system_file_names_runs(instance, tell):
    async def test(hosts):
        with pytest.raises(BadInput, match="has no command 'none'; it has fail, hang, quote, say"):
            await hosts.run("none", "pg1", timeout_s=1)
        with pytest.raises(BadInput, match=r"target 'web' is not one of its targets \(pg1, pg2\)"):
            await hosts.run("fail", "web", timeout_s=1)
        with pytest.raises(BadInput, match="upstream '; rm' is not one of its targets"):
            await hosts.run("say", "pg1", timeout_s=1, values={"upstream": "; rm"})
        with pytest.raises(BadInput, match=r"needs \{upstream\}, which is not given"):
            await hosts.run("say", "pg1", timeout_s=1)

    tell(instance, test)
    assert instance.ssm.list_commands()["Commands"] == []


@EVERY
def test_a_command_that_does_not_end_in_time_is_unknown(instance, tell):
    instance.server.set(command={"lost": True})

    async def test(hosts):
        with pytest.raises(EffectUnknown, match="did not end"):
            await hosts.run("hang", "pg1", timeout_s=0.7)

    tell(instance, test)


def test_words_are_quoted_and_the_id_and_the_region_are_kept(instance):
    async def test(hosts):
        heard = []
        token = HEARD.set(heard.append)
        ran = await hosts.run("quote", "pg1", timeout_s=60)
        HEARD.reset(token)
        (command,) = instance.ssm.list_commands()["Commands"]
        assert command["Parameters"]["commands"] == ["echo 'a b; echo $HOME'"]
        assert command["Parameters"]["executionTimeout"] == ["60"]
        assert ran.reference == command["CommandId"]
        assert {c.region for c in heard} == {ground.REGION}

    by_ssm(instance, test)


def test_the_line_by_hand_runs_the_same_command_and_prints_what_it_printed(instance):
    """Typed with the AWS CLI; the words stay words."""
    instance.server.set(command={"status": "Success", "code": 0, "stdout": "a b; echo $HOME\n"})

    async def test(hosts):
        assert isinstance(hosts, ByHand)
        with pytest.raises(BadInput, match="target 'web' is not one of its targets"):
            hosts.line("quote", "web")
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        argv = ["bash", "-c", hosts.line("quote", "pg1")]
        ran = await asyncio.to_thread(
            subprocess.run, argv, env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert (ran.returncode, ran.stdout.strip()) == (0, "a b; echo $HOME"), ran.stderr
        (command,) = instance.ssm.list_commands()["Commands"]
        assert command["Parameters"]["commands"] == ["echo 'a b; echo $HOME'"]

    by_ssm(instance, test)


def test_a_command_whose_reply_was_lost_is_found_and_followed(instance):
    instance.server.set(command={"status": "Success", "code": 0, "stdout": "once"})
    instance.server.fault("SendCommand", "lose")

    async def test(hosts):
        ran = await hosts.run("quote", "pg1", timeout_s=60)
        assert ran.stdout == "once"
        assert len(instance.ssm.list_commands()["Commands"]) == 1, "it was sent again"

    by_ssm(instance, test)


def test_a_command_that_was_perhaps_never_sent_is_unknown(instance):
    instance.server.fault("SendCommand", "fail")

    async def test(hosts):
        with pytest.raises(EffectUnknown, match="not among the instance's invocations yet"):
            await hosts.run("quote", "pg1", timeout_s=1)

    by_ssm(instance, test)


def test_looking_after_it_survives_throttling_and_failing_looks(instance):
    instance.server.fault("GetCommandInvocation", "throttle", times=2)
    instance.server.fault("GetCommandInvocation", "fail", times=1)

    async def test(hosts):
        assert (await hosts.run("quote", "pg1", timeout_s=60)).status == 0
        instance.server.fault("SendCommand", "throttle")
        with pytest.raises(NotYet, match="come back later"):
            await hosts.run("quote", "pg1", timeout_s=60)

    by_ssm(instance, test)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"status": "TimedOut", "details": "DeliveryTimedOut"}, Unreachable),
        ({"status": "Failed", "details": "Undeliverable"}, Unreachable),
        ({"status": "TimedOut", "details": "ExecutionTimedOut"}, EffectUnknown),
        ({"status": "Cancelled", "details": "Cancelled"}, EffectUnknown),
    ],
)
def test_what_never_ran_is_told_from_what_may_have(instance, how, error):
    instance.server.set(command={"code": -1, **how})

    async def test(hosts):
        with pytest.raises(error, match="command id"):
            await hosts.run("quote", "pg1", timeout_s=60)

    by_ssm(instance, test)


def test_an_instance_that_is_not_managed_is_unreachable(instance):
    instance.server.fault("SendCommand", "InvalidInstanceId")

    async def test(hosts):
        with pytest.raises(Unreachable, match="not managed or its agent does not answer"):
            await hosts.run("quote", "pg1", timeout_s=60)

    by_ssm(instance, test)


@pytest.mark.parametrize("owner", [None, "another"])
def test_what_is_not_marked_is_refused(instance, owner):
    instance.ec2.delete_tags(Resources=[instance.id], Tags=[{"Key": "relight:system"}])
    if owner:
        instance.ec2.create_tags(Resources=[instance.id], Tags=[{"Key": "relight:system", "Value": owner}])

    async def test(hosts):
        with pytest.raises(SafetyRefusal, match="not marked as a part of system venue"):
            await hosts.run("quote", "pg1", timeout_s=60)

    by_ssm(instance, test)
    assert instance.ssm.list_commands()["Commands"] == []


def test_hung(instance):
    async def test(hosts):
        with pytest.raises(Unreachable, match="no answer within"):
            await hosts.run("quote", "pg1", timeout_s=60)

    instance.server.hang()
    try:
        by_ssm(instance, test, timeout="300ms")
    finally:
        instance.server.go_on()


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
