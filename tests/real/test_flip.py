"""Switches that need no control plane: ARC's cluster (checked against its API model), and objects in an S3 server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import boto3
import iam
import pytest
from aws import OTHER_REGION, REGION
from aws_conformance import Refused, front
from strict_route53 import strict_route53

from flows.engine import roles
from tasks.aws import HEARD
from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo, Surroundings
from tasks.errors import (
    BadInput,
    EffectUnknown,
    LeaseHeld,
    LostCompare,
    NotYet,
    Rejected,
    SafetyRefusal,
    UnhealthyTarget,
    Unreachable,
)
from tasks.zones import arc, health_flip, route53
from tasks.zones.actions import Flip, Verify
from tasks.zones.protocol import Flipping

pytestmark = pytest.mark.real

HOSTS = tuple(f"127.0.8.{n}" for n in (41, 42, 43, 44, 45))
REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "ap-northeast-1", "ap-southeast-2")
PANEL = "arn:aws:route53-recovery-control::123456789012:controlpanel/0a1b"
CONTROLS = {s: f"{PANEL}/routingcontrol/{s}1" for s in ("west", "east")}
RULE = f"{PANEL}/safetyrule/9f"
WEST, EAST = {"west": True, "east": False}, {"west": False, "east": True}
BOTH, NONE = {"west": True, "east": True}, {"west": False, "east": False}
SERVICE = ("127.0.8.46", 5391)


class Cluster:
    """ARC's data plane: five endpoints of one state, an assertion rule (one site on at least), a waiting period."""

    def __init__(self, door):
        self.door, self.states, self.overridden, self.waiting = door, dict(WEST), [], False
        self.site_of = {arn: s for s, arn in CONTROLS.items()}
        door.handlers |= {"GetRoutingControlState": self.get, "UpdateRoutingControlStates": self.update}

    def get(self, params):
        arn = params["RoutingControlArn"]
        state = "On" if self.states[self.site_of[arn]] else "Off"
        return {"RoutingControlArn": arn, "RoutingControlState": state}

    def update(self, params):
        entries = params["UpdateRoutingControlStateEntries"]
        new = self.states | {self.site_of[e["RoutingControlArn"]]: e["RoutingControlState"] == "On" for e in entries}
        rules = params.get("SafetyRulesToOverride", [])
        if self.waiting:
            raise Refused(
                "ConflictException", "within the wait period of a safety rule", resourceId="9f", resourceType="rule"
            )
        if self.door_rule(new) and RULE not in rules:
            raise Refused("ConflictException", f"safety rule {RULE} is not met", resourceId="9f", resourceType="rule")
        self.overridden += rules
        self.states = new

    rule_says_no = False

    def door_rule(self, new):
        return self.rule_says_no or not any(new.values())


@pytest.fixture
def cluster(moto):
    with front("route53-recovery-cluster", hosts=HOSTS) as door:
        yield Cluster(door)


def arc_board(cluster, **changes):
    port = cluster.door.url.rpartition(":")[2]
    settings = {
        "timeout": "15s",
        "names": ["app.venue.test"],
        "endpoints": [{"region": r, "url": f"http://{h}:{port}"} for r, h in zip(REGIONS, HOSTS, strict=True)],
        "sites": {s: {"arn": arn, "reaches": [SERVICE[0]]} for s, arn in CONTROLS.items()},
    }
    around = Surroundings("test", "switches", ("west", "east"), LoopClock(), lambda _n: None)
    return arc.PROVIDER(arc.PROVIDER.Settings.model_validate({**settings, **changes}), around)


class Objects:
    """Two switches in two buckets of a real S3 server, each in the other site's region."""

    def __init__(self, moto, door):
        self.door = door
        self.s3 = {
            r: boto3.session.Session().client("s3", region_name=r, endpoint_url=moto.url)
            for r in (REGION, OTHER_REGION)
        }
        for region, client in self.s3.items():
            client.create_bucket(Bucket=f"flip-{region}", CreateBucketConfiguration={"LocationConstraint": region})
        self.place = {"west": OTHER_REGION, "east": REGION}
        self.put("west", "state=on epoch=1 owner=relight\n")
        self.put("east", "state=off epoch=1 owner=relight\n")

    def put(self, site, text):
        region = self.place[site]
        self.s3[region].put_object(Bucket=f"flip-{region}", Key=f"relight/{site}", Body=text.encode())

    def text(self, site):
        region = self.place[site]
        return self.s3[region].get_object(Bucket=f"flip-{region}", Key=f"relight/{site}")["Body"].read().decode()

    @property
    def states(self):
        return {s: self.text(s).startswith("state=on") for s in self.place}

    def close(self):
        for client in self.s3.values():
            client.close()


@pytest.fixture
def objects(aws):
    with front("s3", aws.url) as door:
        made = Objects(aws, door)
        yield made
        made.close()


def object_board(objects, **changes):
    sites = {
        s: {"region": r, "bucket": f"flip-{r}", "key": f"relight/{s}", "reaches": [SERVICE[0]]}
        for s, r in objects.place.items()
    }
    around = Surroundings("test", "switches", ("west", "east"), LoopClock(), lambda _n: None)
    return health_flip.PROVIDER(
        health_flip.PROVIDER.Settings.model_validate(
            {"timeout": "15s", "names": ["app.venue.test"], "sites": sites, **changes}
        ),
        around,
    )


GROUNDS = {
    "arc": ("cluster", arc_board, "zones.arc", "UpdateRoutingControlStates"),
    "objects": ("objects", object_board, "zones.health_flip", "PutObject"),
}


class Ground:
    def __init__(self, behind, make, write):
        self.behind, self.make, self.write = behind, make, write

    def run(self, test, **changes):
        async def main():
            board = self.make(self.behind, **changes)
            try:
                await test(board)
            finally:
                await board.aclose()

        asyncio.run(main())

    def writes(self):
        return self.behind.door.operations().count(self.write)


@pytest.fixture(params=list(GROUNDS))
def ground(request):
    fixture, make, provider, write = GROUNDS[request.param]
    token = HEARD.set(iam.HEARD[provider].add)
    yield Ground(request.getfixturevalue(fixture), make, write)
    HEARD.reset(token)


def by(epoch, **more):
    return Flipping(epoch, **more)


def test_a_flip_compares_and_sets(ground):
    async def body(board):
        assert await board.states() == WEST
        await board.flip(WEST, EAST, by(2))
        assert await board.states() == ground.behind.states == EAST
        before = ground.writes()
        await board.flip(WEST, EAST, by(2))  # a repetition finds its own effect
        assert ground.writes() == before
        with pytest.raises(LostCompare, match="Somebody else flipped"):
            await board.flip(BOTH, WEST, by(3))
        assert ground.behind.states == EAST
        with pytest.raises(BadInput, match="every site off"):
            await board.flip(EAST, NONE, by(3))

    ground.run(body)


def test_a_lost_answer_is_settled_by_reading(ground):
    async def body(board):
        ground.behind.door.order(ground.write, *["lost"] * 5)
        await board.flip(WEST, EAST, by(2))
        assert ground.behind.states == EAST

    ground.run(body)


def test_an_answer_that_never_came_for_nothing_done_is_unknown(ground):
    async def body(board):
        ground.behind.door.order(ground.write, *["dropped"] * 5)
        with pytest.raises(EffectUnknown):
            await board.flip(WEST, EAST, by(2))
        assert ground.behind.states == WEST
        ground.behind.door.clear()
        await board.flip(WEST, EAST, by(2))
        assert ground.behind.states == EAST

    ground.run(body)


def test_throttled_is_not_yet_and_nothing_changed(ground):
    async def body(board):
        ground.behind.door.order(ground.write, *["ThrottlingException"] * 5)
        with pytest.raises(NotYet):
            await board.flip(WEST, EAST, by(2))
        assert ground.behind.states == WEST

    ground.run(body)


def test_a_site_without_a_switch(ground):
    async def body(board):
        with pytest.raises(BadInput, match="no switch for site 'north'"):
            board.reached_at("north")
        assert board.sites() == ("west", "east")
        with pytest.raises(BadInput, match=r"other\.test\. does not follow switches; these do: app\.venue\.test\."):
            await step(name="other.test").observe(context(board))
        assert board.needs()

    ground.run(body)


# ---- ARC alone ----


@pytest.fixture
def of_arc(cluster):
    token = HEARD.set(iam.HEARD["zones.arc"].add)
    yield Ground(cluster, arc_board, "UpdateRoutingControlStates")
    HEARD.reset(token)


def test_four_of_five_endpoints_may_be_gone(of_arc):
    port = of_arc.behind.door.url.rpartition(":")[2]
    gone = [{"region": r, "url": f"http://127.0.8.{90 + n}:{port}"} for n, r in enumerate(REGIONS[1:])]
    kept = {"region": REGIONS[0], "url": f"http://{HOSTS[0]}:{port}"}

    async def body(board):
        await board.flip(WEST, EAST, by(2))
        assert of_arc.behind.states == EAST

    of_arc.run(body, endpoints=[*gone, kept])

    async def nobody(board):
        with pytest.raises(Unreachable):
            await board.states()

    of_arc.run(nobody, endpoints=gone)


def test_every_endpoint_is_asked_first_some_time(of_arc):
    async def body(board):
        hosts = []
        token = HEARD.set(lambda call: hosts.append(call.region))
        for _ in range(20):
            await board.states()
        HEARD.reset(token)
        assert len(set(hosts)) >= 4, "a random start"

    of_arc.run(body)


def test_an_endpoint_that_is_busy_is_passed_over(of_arc):
    async def body(board):
        of_arc.behind.door.order("GetRoutingControlState", *["EndpointTemporarilyUnavailableException"] * 3)
        of_arc.behind.door.order("UpdateRoutingControlStates", "503", "503", "EndpointTemporarilyUnavailableException")
        await board.flip(WEST, EAST, by(2))
        assert of_arc.behind.states == EAST

    of_arc.run(body)


def test_a_safety_rule_is_named_and_only_overridden_by_a_waiver(of_arc):
    of_arc.behind.rule_says_no = True

    async def body(board):
        with pytest.raises(SafetyRefusal, match=r"safety rule .*safetyrule/9f is not met.*--waive safety-rules"):
            await board.flip(WEST, EAST, by(2))
        assert of_arc.behind.states == WEST
        await board.flip(WEST, EAST, by(2, override=True))
        assert of_arc.behind.states == EAST
        assert of_arc.behind.overridden == [RULE]

    of_arc.run(body, override=[RULE])


def test_a_waiting_period_is_waited_for(of_arc):
    of_arc.behind.waiting = True

    async def body(board):
        with pytest.raises(NotYet, match="waiting period"):
            await board.flip(WEST, EAST, by(2))

    of_arc.run(body)


# ---- the objects alone ----


@pytest.fixture
def of_objects(objects):
    token = HEARD.set(iam.HEARD["zones.health_flip"].add)
    yield Ground(objects, object_board, "PutObject")
    HEARD.reset(token)


def test_an_older_epoch_never_flips(of_objects):
    async def body(board):
        await board.flip(WEST, EAST, by(7))
        assert of_objects.behind.text("east") == "state=on epoch=7 owner=relight\n"
        with pytest.raises(LeaseHeld, match="epoch 7"):
            await board.flip(EAST, WEST, by(6))
        assert of_objects.behind.states == EAST

    of_objects.run(body)


def test_somebody_who_writes_in_between_is_noticed(of_objects):
    async def body(board):
        get = board._get

        async def meanwhile(site):
            found = await get(site)
            if site == "west":
                board._get = get
                of_objects.behind.put("east", "state=off epoch=1 owner=relight\n")
                of_objects.behind.put("west", "state=on epoch=3 owner=relight\n")
            return found

        board._get = meanwhile
        with pytest.raises(LostCompare, match="somebody else wrote the switch of west"):
            await board.flip(WEST, EAST, by(4))
        assert of_objects.behind.states == BOTH, "on goes before off: never none"

    of_objects.run(body)


def test_what_is_no_switch_is_left_alone(of_objects):
    of_objects.behind.put("east", "hello")

    async def body(board):
        with pytest.raises(Rejected, match="is no switch of relight"):
            await board.flip(WEST, EAST, by(2))
        assert of_objects.behind.text("east") == "hello"

    of_objects.run(body)


def test_a_switch_that_is_not_there_yet_is_off_and_made(of_objects):
    of_objects.behind.s3[REGION].delete_object(Bucket=f"flip-{REGION}", Key="relight/east")

    async def body(board):
        assert await board.states() == WEST
        await board.flip(WEST, EAST, by(2))
        assert of_objects.behind.states == EAST

    of_objects.run(body)


def test_each_switch_is_written_in_the_other_sites_region(of_objects):
    async def body(board):
        calls = []
        token = HEARD.set(calls.append)
        await board.flip(WEST, EAST, by(2))
        HEARD.reset(token)
        assert {(c.operation, c.region) for c in calls if c.operation == "PutObject"} == {
            ("PutObject", REGION),
            ("PutObject", OTHER_REGION),
        }

    of_objects.run(body)


# ---- the action ----


def context(board, *, epoch=2, waivers=None, guard=lambda: None):
    clock = LoopClock()
    run = RunInfo("r1", "test", "failover", "forced", epoch, "2026-01-01T00:00:00+00:00", waivers or {})
    roles = {"west": "west", "east": "east", "target": "east"}
    return Context(run, clock, roles, lambda _n: board, clock.monotonic() + 60, guard=guard)


def step(**more):
    probe = f"tcp:{SERVICE[1]}"
    return Flip.model_validate(
        {"name": "app.venue.test", "site": "target", "probe": probe, "probe_timeout": "30s", **more}
    )


async def service():
    return await asyncio.start_server(lambda _r, w: w.close(), *SERVICE)


def test_flip_and_back(ground):
    async def body(board):
        ctx = context(board)
        seen = await step().observe(ctx)
        assert not seen.holds
        assert seen.changes == ("switch of west: on -> off", "switch of east: off -> on")
        assert ground.writes() == 0
        with pytest.raises(UnhealthyTarget, match=SERVICE[0].replace(".", r"\.")):
            await step().apply(ctx, seen)
        assert ground.behind.states == WEST
        async with await service():
            facts = seen.facts | await step().apply(ctx, seen)
            assert (await step().confirm(ctx)).holds
            assert (await step().observe(ctx)).holds
            await step().undo(ctx, facts)
            assert ground.behind.states == WEST
            await step().undo(ctx, facts)

    ground.run(body)


def test_a_held_lease_flips_nothing(ground):
    def held():
        raise LeaseHeld("the epoch moved")

    async def body(board):
        ctx = context(board, guard=held)
        async with await service():
            with pytest.raises(LeaseHeld):
                await step().apply(ctx, await step().observe(ctx))
        assert ground.behind.states == WEST

    ground.run(body)


def test_undo_leaves_alone_what_somebody_else_set(ground):
    async def body(board):
        ctx = context(board)
        seen = await step().observe(ctx)
        await board.flip(WEST, BOTH, by(3))
        with pytest.raises(LostCompare, match="left alone"):
            await step().undo(ctx, seen.facts)

    ground.run(body)


def test_a_flip_moves_the_answers_and_verify_proves_it(moto, of_objects):
    """Failover record sets whose health checks read the switches: not one call to Route 53 between west and east."""
    name, objects = "app.venue.test.", of_objects.behind
    values = {"west": "127.0.7.10", "east": "127.0.7.20"}
    names = {
        name: {
            "ttl": 1,
            "routing": "failover",
            "A": {s: {"values": [v], "health_check": s} for s, v in values.items()},
        }
    }

    async def body(board):
        HEARD.set(None)  # only the switches' calls are theirs
        around = Surroundings("test", "dns", ("west", "east"), LoopClock(), lambda _n: None)
        settings = {
            "hosted_zone": strict.zone("venue.test."), "zone": "venue.test.", "servers": list(strict.servers),
            "resolvers": [strict.servers[1]], "names": names, "requests_per_s": 1000, "poll": "20ms",
        }  # fmt: skip
        zone = route53.PROVIDER(route53.PROVIDER.Settings.model_validate(settings), around)
        await zone.swap(await zone.read(name, "A"), zone.wanted(name, "A", "west"), 1)
        await zone.in_sync(name, 60)
        strict.watches = lambda check: objects.states[check]
        ctx = replace(context(board), components={"switches": board, "dns": zone}.__getitem__)
        flip = step(ttl="1s")
        verify = Verify.model_validate({"name": name, "site": "target", "within": "60s", "ttl": "1s"})
        asked = len(strict.front.heard)
        async with await service():
            seen = await flip.observe(ctx)
            facts = seen.facts | await flip.apply(ctx, seen)
        assert (await flip.confirm(ctx)).holds
        after = replace(ctx, earlier=(Done("flip", "zones.flip", "done", facts),), deadline=ctx.deadline + 60)
        proof = await verify.apply(after, await verify.observe(after))
        assert proof["ttl_deadline_s"] == 2.0
        assert proof["servers"][zone.servers()[0]]["values"] == [values["east"]]
        assert len(strict.front.heard) == asked, "the control plane was needed"
        both = {"switches": board, "dns": zone}
        built = SimpleNamespace(of=lambda protocol: [(n, p) for n, p in both.items() if isinstance(p, protocol)])
        assert await roles._names(built, ("west", "east")) == {name: "east"}, "whatever its record sets say"
        await zone.aclose()

    with strict_route53(moto) as strict:
        of_objects.run(body)


def test_the_policies_allow_exactly_these_calls():
    for provider in ("zones.arc", "zones.health_flip"):
        iam.check(provider)
