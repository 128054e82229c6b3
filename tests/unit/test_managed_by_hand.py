"""Databases at AWS by hand: which lines, for what is there at the export."""

from __future__ import annotations

import asyncio

import pytest

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database import aurora, rds
from tasks.database._managed import Unit
from tasks.errors import Rejected
from tasks.manual import NoManual, secret


class Control:
    """A control plane that has one unit."""

    def __init__(self, unit):
        self.unit = unit

    async def mine(self, _node):
        if self.unit is None:
            raise Rejected("it is not marked as ours")
        return self.unit


def unit(**more):
    given = {
        "node": "west", "region": "eu-west-1", "name": "venue-west", "arn": "arn:west", "status": "available",
        "engine": "postgres", "version": "16.4", "source": None, "security_groups": ("sg-a", "sg-b"), "settled": True,
        "parameter_group": "venue", "writer": "venue-west", "tags": {},
    }  # fmt: skip
    return Unit(**{**given, **more})


async def asked(kind, found, question, **more):
    """What a provider answers to ``question``, where its control plane has ``found``."""
    node = {"site": "west", "region": "eu-west-1", "address": "127.0.0.1:1", "quarantine": "sg-nobody"}
    named = {rds: {"instance": "venue-west"}, aurora: {"cluster": "venue-west"}}[kind]
    whole = {"global_cluster": "venue"} if kind is aurora else {}
    given = {"database": "venue", "user": "relight", "nodes": {"west": {**node, **named, **more}}, **whole}
    around = Surroundings("venue", "database", ("west",), LoopClock(), {}.__getitem__)
    made = kind.PROVIDER(kind.PROVIDER.Settings.model_validate(given), around)
    made._control = Control(found)
    return await question(made)


def lines(answer):
    return [getattr(c, "run", "") for c in answer]


def fenced(found, kind=rds, *, orderly=False, **more):
    return asyncio.run(asked(kind, found, lambda d: d.fenced("west", orderly=orderly), **more))


@pytest.mark.parametrize(("kind", "noun"), [(rds, "instance"), (aurora, "cluster")])
def test_the_groups_are_kept_before_they_are_changed_and_the_restart_comes_after(kind, noun):
    typed = "\n".join(lines(fenced(unit(), kind)))
    words = [
        "describe-security-groups --group-ids sg-nobody",
        "'Key=relight:fenced,Value=sg-a sg-b'",
        f"modify-db-{noun} --db-{noun}-identifier venue-west --vpc-security-group-ids sg-nobody --apply-immediately",
        f"describe-db-{noun}s",
        'Key=relight:fenced-at,Value="$(date',
        "reboot-db-instance",
        "describe-events",
    ]
    assert [typed.index(w) for w in words] == sorted(typed.index(w) for w in words)
    assert all("--region eu-west-1" in line for line in lines(fenced(unit(), kind))[:-1])


def test_without_a_quarantine_or_in_order_writes_end_and_one_is_tried():
    for answer in (fenced(unit(), quarantine=None), fenced(unit(), orderly=True)):
        typed = lines(answer)
        assert "ParameterName=default_transaction_read_only,ParameterValue=1" in typed[0]
        assert "pg_terminate_backend" in typed[2]
        assert answer[-1].expected == "cannot execute INSERT in a read-only transaction"


def test_what_cannot_be_done_is_said():
    (replica,) = fenced(unit(source="east"))
    assert isinstance(replica, NoManual)
    (cannot,) = fenced(unit(parameter_group="default.postgres16"), orderly=True)
    assert isinstance(cannot, NoManual)
    with pytest.raises(Rejected, match="not marked"):
        fenced(None)


def test_aurora_loses_data_only_where_it_must():
    def promoted(*, orderly):
        answer = asyncio.run(asked(aurora, unit(), lambda d: d.promoted("west", orderly=orderly)))
        return "\n".join(lines(answer))

    assert "switchover-global-cluster" in promoted(orderly=True)
    assert "allow-data-loss" not in promoted(orderly=True)
    assert "failover-global-cluster" in promoted(orderly=False)
    assert "--allow-data-loss" in promoted(orderly=False)


def test_a_secret_of_aws_is_asked_for_by_name_in_its_regions_and_only_its_key_is_used():
    told = secret("aws-secret:venue/db?region=eu-central-1,eu-west-1#password")
    first, second = (f"aws --region {r} secretsmanager get-secret-value" for r in ("eu-central-1", "eu-west-1"))
    assert told.index(first) < told.index(f"|| {second}")
    assert "password" in told
    assert "?region" not in told
    assert secret("aws-secret:venue") == (
        "$(aws secretsmanager get-secret-value --secret-id venue --query SecretString --output text)"
    )
