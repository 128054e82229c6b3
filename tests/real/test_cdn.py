"""One suite for every CDN: CloudFront against moto's server (strict), and its simulated twin."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from types import SimpleNamespace

import iam
import pytest
import strict

from flows.engine.virtualtime import VirtualLoop
from tasks.aws import HEARD
from tasks.cdn import actions
from tasks.cdn.cloudfront import PROVIDER
from tasks.cdn.twin import CdnTwin
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
from tasks.simulation import Process, Simulation, enter
from tasks.world import World

pytestmark = pytest.mark.real
PROVIDER_NAME = "cdn.cloudfront"
SWITCH, INVALIDATE = actions.SwitchOrigin(site="target"), actions.Invalidate(paths=("/a/*", "/b"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("cdn")) as running:
        yield running


def origin(name):
    custom = {"HTTPPort": 80, "HTTPSPort": 443, "OriginProtocolPolicy": "https-only"}
    return {"Id": name, "DomainName": f"{name}.example.net", "CustomOriginConfig": custom}


@pytest.fixture
def distribution(server):
    """Default and /api/* from west, /static/* from an origin that is nobody's; groups ``main`` and ``east-first``."""
    server.reset()
    behaviour = {"ViewerProtocolPolicy": "allow-all", "TargetOriginId": "west", "MinTTL": 0}
    behaviours = [
        {**behaviour, "PathPattern": "/api/*"},
        {**behaviour, "PathPattern": "/s/*", "TargetOriginId": "other"},
    ]
    members = [{"OriginId": "west"}, {"OriginId": "east"}]
    group = {
        "Id": "main",
        "FailoverCriteria": {"StatusCodes": {"Quantity": 1, "Items": [503]}},
        "Members": {"Quantity": 2, "Items": members},
    }
    config = {
        "CallerReference": "c",
        "Comment": "venue",
        "Enabled": True,
        "Origins": {"Quantity": 3, "Items": [origin(n) for n in ("west", "east", "other")]},
        "OriginGroups": {"Quantity": 1, "Items": [group]},
        "DefaultCacheBehavior": behaviour,
        "CacheBehaviors": {"Quantity": 2, "Items": behaviours},
    }
    client = server.client("cloudfront")
    tags = {"Items": [{"Key": "relight:system", "Value": "venue"}]}
    made = client.create_distribution_with_tags(DistributionConfigWithTags={"DistributionConfig": config, "Tags": tags})
    found = made["Distribution"]
    return SimpleNamespace(id=found["Id"], arn=found["ARN"], client=client, server=server)


def cloudfront(distribution, test, **more):
    sites = {"west": {"id": "west"}, "east": {"id": "east"}}
    settings = {"timeout": "30s", "distribution": distribution.id, "sites": sites, **more}
    strict.with_provider(PROVIDER, settings, "cdn", test)


def config(distribution):
    return distribution.client.get_distribution_config(Id=distribution.id)["DistributionConfig"]


def targets(distribution):
    found = config(distribution)
    more = {b["PathPattern"]: b["TargetOriginId"] for b in found["CacheBehaviors"]["Items"]}
    return {"*": found["DefaultCacheBehavior"]["TargetOriginId"], **more}


async def take(step, ctx):
    seen = await step.observe(ctx)
    facts = await step.apply(ctx, seen)
    return seen, facts, await step.confirm(ctx)


# ---- what every CDN does ----


def by_cloudfront(distribution, test):
    def fault(call, kind):
        distribution.server.fault({"switch": "UpdateDistribution", "invalidate": "CreateInvalidation"}[call], kind)

    cloudfront(distribution, lambda cdn: test(cdn, fault))


def by_twin(distribution, test):
    async def main():
        enter(Process("test"))
        faults: dict[str, str] = {}

        class Faulty(Simulation):
            def turn(self, kind, what):
                return faults.pop(what.partition(".")[2].partition(" ")[0], None) if kind == "change" else None

        real = SimpleNamespace(sites=lambda: strict.SITES, control_plane=lambda: "us-east-1")
        world = World(strict.SITES)
        twin = CdnTwin(real, strict.around("cdn"), world, Faulty())
        await test(twin, lambda call, kind: faults.update({call: {"lose": "lost", "fail": "timeout"}[kind]}))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


EVERY = pytest.mark.parametrize("tell", [by_cloudfront, by_twin])


@EVERY
def test_the_origin_is_switched_deployed_and_switched_back(distribution, tell):
    async def test(cdn, fault):
        ctx = strict.context({"cdn": cdn})
        seen, facts, after = await take(SWITCH, ctx)
        assert seen.changes == ("origin: west -> east", "wait until it is deployed at every edge")
        assert seen.facts["control_plane"] == "us-east-1"
        assert after.holds
        assert facts["version_after"] != seen.facts["version"]
        assert (await SWITCH.observe(ctx)).holds
        version = (await cdn.edge()).version
        await SWITCH.apply(ctx, seen)
        assert (await cdn.edge()).version == version, "what is true is not written again"
        await SWITCH.undo(ctx, seen.facts)
        assert (await cdn.edge()).site == "west"

    tell(distribution, test)


@EVERY
def test_a_stale_version_changes_nothing(distribution, tell):
    async def test(cdn, fault):
        stale = (await cdn.edge()).version
        await cdn.switch("east", stale)
        with pytest.raises(LostCompare):
            await cdn.switch("west", stale)
        assert (await cdn.edge()).site == "east"

    tell(distribution, test)


@EVERY
@pytest.mark.parametrize("kind", ["lose", "fail"])
def test_a_lost_reply_is_unknown_and_the_next_try_ends_well(distribution, tell, kind):
    async def test(cdn, fault):
        ctx = strict.context({"cdn": cdn})
        fault("switch", kind)
        with pytest.raises(EffectUnknown):
            await SWITCH.apply(ctx, await SWITCH.observe(ctx))
        assert (await take(SWITCH, ctx))[2].holds
        fault("invalidate", kind)
        with pytest.raises(EffectUnknown):
            await INVALIDATE.apply(ctx, await INVALIDATE.observe(ctx))
        assert (await take(INVALIDATE, ctx))[2].holds

    tell(distribution, test)


@EVERY
def test_an_invalidation_is_made_once_a_run(distribution, tell):
    async def test(cdn, fault):
        ctx = strict.context({"cdn": cdn})
        assert await cdn.invalidated("none") is None
        _, _, after = await take(INVALIDATE, ctx)
        assert after.holds
        await INVALIDATE.apply(ctx, after)
        assert not (await INVALIDATE.observe(strict.context({"cdn": cdn}, run_id="run-2"))).holds
        assert not (await actions.Invalidate(paths=("/c",)).observe(ctx)).holds
        if tell is by_cloudfront:
            made = distribution.client.list_invalidations(DistributionId=distribution.id)["InvalidationList"]
            assert made["Quantity"] == 1

    tell(distribution, test)


@EVERY
def test_the_guard_stands_before_every_change(distribution, tell):
    def held():
        raise LeaseHeld("epoch moved")

    async def test(cdn, fault):
        ctx = strict.context({"cdn": cdn}, guard=held)
        for step in (SWITCH, INVALIDATE):
            with pytest.raises(LeaseHeld):
                await step.apply(ctx, await step.observe(ctx))
        assert (await cdn.edge()).site == "west"

    tell(distribution, test)


# ---- CloudFront alone ----


def test_only_paths_of_the_sites_are_switched_and_the_rest_stays(distribution):
    before = config(distribution)

    async def test(cdn):
        await take(SWITCH, strict.context({"cdn": cdn}))
        assert targets(distribution) == {"*": "east", "/api/*": "east", "/s/*": "other"}
        after = config(distribution)
        for part in ("Origins", "OriginGroups", "Comment", "Enabled", "PriceClass"):
            assert after[part] == before[part], part

    cloudfront(distribution, test)


def test_the_first_member_of_an_origin_group_is_switched(distribution):
    async def test(cdn):
        ctx = strict.context({"cdn": cdn})
        _, _, after = await take(SWITCH, ctx)
        assert after.holds
        members = config(distribution)["OriginGroups"]["Items"][0]["Members"]["Items"]
        assert [m["OriginId"] for m in members] == ["east", "west"]
        assert targets(distribution)["*"] == "west", "behaviours were left alone"

    cloudfront(distribution, test, group="main")


def test_a_change_that_is_not_deployed_yet_is_waited_for(distribution):
    distribution.server.set(settle_s=60)

    async def test(cdn):
        ctx = strict.context({"cdn": cdn}, left_s=1.0)
        with pytest.raises(NotYet, match="fetches from east, not deployed at every edge yet"):
            await SWITCH.apply(ctx, await SWITCH.observe(ctx))
        with pytest.raises(NotYet, match="in progress"):
            await INVALIDATE.apply(strict.context({"cdn": cdn}, left_s=1.0), await INVALIDATE.observe(ctx))
        assert not (await SWITCH.observe(ctx)).holds

    cloudfront(distribution, test)


def test_somebody_elses_change_is_kept(distribution):
    async def test(cdn):
        ctx = strict.context({"cdn": cdn})
        asked = cdn.edge

        async def meanwhile():
            """Another writer comes between the look and the change, once."""
            edge = await asked()
            cdn.edge = asked
            have = distribution.client.get_distribution_config(Id=distribution.id)
            other = have["DistributionConfig"] | {"Comment": "theirs"}
            distribution.client.update_distribution(Id=distribution.id, IfMatch=have["ETag"], DistributionConfig=other)
            return edge

        seen = await SWITCH.observe(ctx)
        cdn.edge = meanwhile
        await SWITCH.apply(ctx, seen)
        assert targets(distribution)["*"] == "east"
        assert config(distribution)["Comment"] == "theirs"

    cloudfront(distribution, test)


def test_the_server_itself_compares(distribution):
    """Beside our own look: a change that comes between GetDistribution and UpdateDistribution."""
    distribution.server.fault("UpdateDistribution", "PreconditionFailed")

    async def test(cdn):
        with pytest.raises(LostCompare, match="changed by somebody else"):
            await cdn.switch("east", (await cdn.edge()).version)

    cloudfront(distribution, test)


class Answering:
    """A network in which every URL answers with one status, or nothing does."""

    def __init__(self, status):
        self.status = status

    async def http(self, ask, *, within_s):
        if self.status is None:
            raise Unreachable("no connection")
        return SimpleNamespace(status=self.status, good=self.status < 300)


@pytest.mark.parametrize("status", [503, None])
def test_nothing_is_switched_to_an_origin_that_is_not_healthy(distribution, status):
    sites = {"west": {"id": "west"}, "east": {"id": "east", "check": "https://east.example.net/healthz"}}

    async def test(cdn):
        ctx = replace(strict.context({"cdn": cdn}), network=Answering(status))
        with pytest.raises(UnhealthyTarget, match="nothing was switched"):
            await SWITCH.apply(ctx, await SWITCH.observe(ctx))
        assert targets(distribution)["*"] == "west"
        await take(SWITCH, replace(ctx, network=Answering(200)))
        assert targets(distribution)["*"] == "east"

    cloudfront(distribution, test, sites=sites)


@pytest.mark.parametrize("owner", [None, "another"])
def test_what_is_not_marked_is_refused(distribution, owner):
    distribution.client.untag_resource(Resource=distribution.arn, TagKeys={"Items": ["relight:system"]})
    if owner:
        tags = {"Items": [{"Key": "relight:system", "Value": owner}]}
        distribution.client.tag_resource(Resource=distribution.arn, Tags=tags)

    async def test(cdn):
        for call in (cdn.edge(), cdn.switch("east", "v"), cdn.invalidate("r", ["/*"])):
            with pytest.raises(SafetyRefusal, match="not marked as a part of system venue"):
                await call
        assert targets(distribution)["*"] == "west"

    cloudfront(distribution, test)


def test_errors_say_what_is_not_there(distribution):
    async def test(cdn):
        with pytest.raises(BadInput, match="has no origin gone; it has east, main, other, west"):
            await cdn.switch("east", (await cdn.edge()).version)
        with pytest.raises(BadInput, match="no origin for site 'north'"):
            cdn.check("north")

    cloudfront(distribution, test, sites={"west": {"id": "west"}, "east": {"id": "gone"}})

    async def none(cdn):
        with pytest.raises(Rejected, match="NoSuchDistribution"):
            await cdn.edge()

    cloudfront(SimpleNamespace(id="E000"), none)


def test_throttled_hung_and_the_control_plane_is_heard(distribution):
    async def test(cdn):
        heard = []
        token = HEARD.set(heard.append)
        version = (await cdn.edge()).version
        HEARD.reset(token)
        assert {c.region for c in heard} == {"us-east-1"}
        for operation, call in (
            ("UpdateDistribution", lambda: cdn.switch("east", version)),
            ("CreateInvalidation", lambda: cdn.invalidate("r", ["/*"])),
        ):
            distribution.server.fault(operation, "throttle")
            with pytest.raises(NotYet, match="come back later"):
                await call()
        assert targets(distribution)["*"] == "west"

    cloudfront(distribution, test)

    async def hung(cdn):
        with pytest.raises(Unreachable, match="no answer within"):
            await cdn.edge()

    distribution.server.hang()
    with contextlib.ExitStack() as after:
        after.callback(distribution.server.go_on)
        cloudfront(distribution, hung, timeout="300ms")


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
