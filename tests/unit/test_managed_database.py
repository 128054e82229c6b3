"""Databases that somebody else runs: what is known without positions, marks of ownership, references to secrets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from tasks import catalog
from tasks.aws_secrets import Address, parse
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database._loss import Known, choose, estimate, judge
from tasks.database._managed import FENCED, FENCED_AT, OWNER, Managed, Unit, must_be_available, must_be_ours, tagged
from tasks.database._proof import judge as judge_proof
from tasks.database._replicas import _complete
from tasks.database._standing import Standing
from tasks.database.protocol import NodeView, WriteProbe
from tasks.database.twin import DatabaseTwin, GlobalTwin, LimitedTwin, ServedTwin
from tasks.errors import BadInput, EffectUnknown, MissingSecret, NotYet, Rejected

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def seen(node, behind_s, **more):
    """A secondary of a global database: no position, only the moment until which it is complete."""
    last = None if behind_s is None else NOW - timedelta(seconds=behind_s)
    return NodeView(node, "east", "answers", in_recovery=True, last_commit_at=last, **more)


def known(**more):
    return Known(primary="west", promise=None, doubt="", final=None, now=NOW, **more)


def test_without_positions_the_one_that_is_complete_longest_is_chosen():
    choice = choose([seen("a", 90), seen("b", 5), seen("c", None)])
    assert choice.chosen.node == "b"
    assert choice.passed_over["a"] == "it is 85.0 s behind"
    assert choice.passed_over["c"] == "how far it is cannot be told"


def test_a_position_counts_more_than_a_time():
    placed = replace(seen("a", 90), timeline=1, lsn=10)
    assert choose([seen("b", 1), placed]).chosen.node == "a"


def test_the_loss_is_the_time_until_now_and_zero_only_after_the_fence():
    loss = estimate(seen("a", 5), (), known())
    assert (loss.bound_s, loss.proven_zero, loss.lag_bytes) == (5.0, False, None)
    assert judge(loss, 10).state == "allowed"
    assert judge(loss, 2).state == "above_budget"
    assert judge(loss, 0).state == "above_budget"
    assert estimate(seen("a", 5), (), known(final_at=NOW - timedelta(seconds=5))).proven_zero
    assert not estimate(seen("a", 5), (), known(final_at=NOW - timedelta(seconds=4))).proven_zero
    nothing = estimate(seen("a", None), (), known())
    assert judge(nothing, 300).state == "unknown"


def test_caught_up_without_positions():
    assert _complete(seen("a", 5), [NOW - timedelta(seconds=5)]).holds
    assert not _complete(seen("a", 5), [NOW - timedelta(seconds=9), NOW]).holds
    assert not _complete(seen("a", None), [NOW]).holds
    assert not _complete(seen("a", 5), []).holds


def unit(**more):
    base = {
        "node": "west",
        "region": "eu-west-1",
        "name": "venue-west",
        "arn": "arn:aws:rds:eu-west-1:1:db:venue-west",
        "status": "available",
        "engine": "postgres",
        "version": "16.4",
        "source": None,
        "security_groups": ("sg-nobody",),
        "settled": True,
        "parameter_group": "venue",
        "writer": "venue-west",
        "tags": {OWNER: "venue"},
    }
    return Unit(**{**base, **more})


@pytest.mark.parametrize(
    ("more", "version", "said"),
    [
        ({"tags": {}}, None, "it has no such tag"),
        ({"tags": {OWNER: "other"}}, None, "it has 'other'"),
        ({"engine": "mysql"}, None, "runs mysql 16.4, expected postgres"),
        ({"version": "15.4"}, "16", "expected postgres 16"),
        ({"version": "160.1"}, "16", "expected postgres 16"),
        ({}, "16.3", "expected postgres 16.3"),
    ],
)
def test_what_is_not_ours_is_refused(more, version, said):
    with pytest.raises(Rejected, match=said):
        must_be_ours(unit(**more), "venue", "postgres", version)


def test_what_is_ours_passes():
    for version in (None, "16", "16.4"):
        assert must_be_ours(unit(), "venue", "postgres", version).name == "venue-west"
    must_be_available(unit())
    with pytest.raises(NotYet, match="is modifying, expected available"):
        must_be_available(unit(status="modifying"))


def test_a_fence_remembers_what_it_took():
    fenced = unit(tags={FENCED: "sg-app sg-admin", FENCED_AT: "2026-11-26T12:00:00+00:00"})
    assert fenced.groups_before_fence() == ("sg-app", "sg-admin")
    assert fenced.fenced_at() == NOW
    assert unit().groups_before_fence() == ("sg-nobody",)
    assert unit(tags={FENCED_AT: "-"}).fenced_at() is None


@pytest.mark.parametrize("landed", [True, False])
def test_a_tag_whose_answer_was_lost_is_looked_for(landed):
    class Control:
        tags: ClassVar[dict[str, str]] = {}

        async def tag(self, unit, **tags):
            self.tags = {"relight:fenced-at": tags["fenced_at"]} if landed else {}
            raise EffectUnknown("tagging venue-west: no answer")

        async def mine(self, node):
            return unit(tags=self.tags)

    if landed:
        asyncio.run(tagged(Control(), unit(), fenced_at="-"))
        return
    with pytest.raises(NotYet, match="does not have its tags yet"):
        asyncio.run(tagged(Control(), unit(), fenced_at="-"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("venue/db", Address("venue/db", (None,), "")),
        ("venue/db#password", Address("venue/db", (None,), "password")),
        ("venue/db?region=eu-west-1,eu-central-1#a", Address("venue/db", ("eu-west-1", "eu-central-1"), "a")),
        (
            "arn:aws:secretsmanager:eu-west-1:1:secret:x-AbCdEf#a",
            Address("arn:aws:secretsmanager:eu-west-1:1:secret:x-AbCdEf", ("eu-west-1",), "a"),
        ),
    ],
)
def test_a_reference_to_a_secret(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["#a", "?region=a", "x?zone=a", "x?region=", "x#", "x?region=a,"])
def test_a_malformed_reference(text):
    with pytest.raises(MissingSecret, match="expected aws-secret:NAME-OR-ARN"):
        parse(text)


SQL = {"database": "d", "user": "u"}
AT = {"site": "west", "region": "eu-west-1", "address": "a:5432"}
SETTINGS = {
    "database.postgresql": {**SQL, "nodes": {"west": {"site": "west", "address": "a:5432"}}},
    "database.rds": {**SQL, "nodes": {"west": {**AT, "instance": "w"}}},
    "database.aurora": {**SQL, "global_cluster": "g", "nodes": {"west": {**AT, "cluster": "w"}}},
    "database.supabase": {
        "project": "venuevenuevenuevenue",
        "name": "venue",
        "organization": "events",
        "token": "env:T",
        "primary": "west",
        "nodes": {"west": AT},
    },
}
TWIN_OF = {
    "database.postgresql": DatabaseTwin,
    "database.rds": ServedTwin,
    "database.aurora": GlobalTwin,
    "database.supabase": LimitedTwin,
}


def provider(name, **more):
    cls = catalog.provider(name)
    around = Surroundings("venue", "database", ("west", "east"), LoopClock(), {}.__getitem__)
    return cls(cls.Settings.model_validate({**SETTINGS[name], **more}), around)


@pytest.mark.parametrize("name", TWIN_OF)
def test_each_provider_has_the_twin_of_what_it_can_do(name):
    async def main():
        real = provider(name)
        try:
            assert next(t for p, t in catalog.twins("database") if isinstance(real, p)) is TWIN_OF[name]
        finally:
            await real.aclose()

    asyncio.run(main())


def test_a_primary_that_is_no_node():
    async def main():
        with pytest.raises(BadInput, match="primary is 'main', the nodes are west"):
            provider("database.supabase", primary="main")

    asyncio.run(main())


def test_that_nothing_listens_is_no_proof_where_a_service_starts_it_again(monkeypatch):
    """RDS and Aurora restart a dead server by themselves; only their own word, or the server's, fences it."""

    class Server:
        def __init__(self, outcome):
            self.outcome = outcome

        async def try_write(self, node, vantage):
            return WriteProbe(vantage, node, self.outcome, "connection refused", f"{vantage}:{node}")

    class Hosted(Managed):
        def __init__(self):
            """Nothing is built: only the way of a probe is looked at."""

    async def probes(outcome):
        monkeypatch.setattr(Standing, "try_write", Server(outcome).try_write.__func__, raising=False)
        monkeypatch.setattr(Hosted, "outcome", outcome, raising=False)
        return [await Hosted().try_write("west", v) for v in ("direct", "east")]

    silent = WriteProbe("host", "west", "silent", "no answer", "AWS")
    assert not judge_proof([*asyncio.run(probes("gone")), silent])[0]
    assert judge_proof([*asyncio.run(probes("refused")), silent])[0]
