"""Auto Scaling groups and the capacity actions against moto's server (strict: launches take time, or fail)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import aws as ground
import iam
import pytest
import strict
from botocore.exceptions import ClientError

from tasks.aws import HEARD
from tasks.capacity import actions, readiness
from tasks.capacity._asg import GroupSettings
from tasks.capacity._rules import TARGET, UP
from tasks.capacity.autoscaling import PROVIDER
from tasks.capacity.protocol import Limits, Rolling
from tasks.capacity.twin import GroupTwin
from tasks.clock import LoopClock
from tasks.errors import BadInput, EffectUnknown, LeaseHeld, NotYet, Rejected, SafetyRefusal, Unreachable
from tasks.network import Sockets
from tasks.readiness import Asked, Part
from tasks.world import World
from tasks.world_parts import Node

pytestmark = pytest.mark.real
PROVIDER_NAME = "capacity.autoscaling"
REGIONS = {"west": ground.REGION, "east": ground.OTHER_REGION}
PLAN = {
    "min_instances": 2,
    "max_instances": 10,
    "target_cpu_utilization": "70%",
    "cooldown_period": 300,
    "scale_up": {"adjustment": "+2", "cooldown": 300},
    "scale_down": {"adjustment": -1, "cooldown": 600},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("asg")) as running:
        yield running


@pytest.fixture
def groups(server):
    """A group in each region: two instances in west, one in east."""
    server.reset()
    server.set(settle_s=0.0)
    for site, count in (("west", 2), ("east", 1)):
        region = REGIONS[site]
        ec2, asg = server.client("ec2", region), server.client("autoscaling", region)
        template = ec2.create_launch_template(
            LaunchTemplateName="app", LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "t3.large"}
        )["LaunchTemplate"]["LaunchTemplateId"]
        asg.create_auto_scaling_group(
            AutoScalingGroupName=f"venue-{site}",
            LaunchTemplate={"LaunchTemplateId": template, "Version": "1"},
            MinSize=1,
            MaxSize=4,
            DesiredCapacity=count,
            AvailabilityZones=[f"{region}a", f"{region}b"],
            Tags=[{"Key": "relight:system", "Value": "venue", "PropagateAtLaunch": True}],
        )
    server.set(settle_s=0.3)
    return server


def asg(server, site="east"):
    return server.client("autoscaling", REGIONS[site])


def group(server, site="east"):
    return asg(server, site).describe_auto_scaling_groups(AutoScalingGroupNames=[f"venue-{site}"])["AutoScalingGroups"][
        0
    ]


def capacity(test, **more):
    sites = {s: {"region": r, "group": f"venue-{s}"} for s, r in REGIONS.items()}
    settings = {"timeout": "30s", "sites": sites, "minimum": 1, "maximum": 10, "vcpus": 2, **more}
    strict.with_provider(PROVIDER, settings, "capacity", test)


async def take(step, ctx):
    seen = await step.observe(ctx)
    facts = await step.apply(ctx, seen)
    return seen, facts, await step.confirm(ctx)


def test_ensure_grows_the_target_to_what_runs_elsewhere_and_undo_shrinks_it(groups):
    async def test(provider):
        ctx = strict.context({"capacity": provider})
        step = actions.Ensure(site="target")
        seen, _, after = await take(step, ctx)
        assert seen.facts["wanted"] == 2
        assert seen.facts["group"]["region"] == ground.OTHER_REGION
        assert after.holds
        assert group(groups)["DesiredCapacity"] == 2
        assert (await step.observe(ctx)).holds
        await step.undo(ctx, seen.facts)
        assert group(groups)["DesiredCapacity"] == 1

    capacity(test)


def test_instances_on_their_way_run_and_are_not_ready(groups):
    groups.set(settle_s=60)

    async def test(provider):
        await provider.scale("east", 3)
        found = await provider.instances("east")
        assert (sum(i.running for i in found), sum(i.ready for i in found)) == (3, 1)

    capacity(test)


def test_growing_never_lowers_what_was_asked_for(groups):
    groups.set(settle_s=60)
    asg(groups).set_desired_capacity(AutoScalingGroupName="venue-east", DesiredCapacity=4)
    one = group(groups)["Instances"][0]["InstanceId"]
    for instance in group(groups)["Instances"]:
        if instance["InstanceId"] != one:
            asg(groups).set_instance_health(InstanceId=instance["InstanceId"], HealthStatus="Unhealthy")

    async def test(provider):
        await provider.scale("east", 2)
        assert group(groups)["DesiredCapacity"] == 4

    capacity(test)


def test_the_maximum_of_the_group_is_raised_within_the_limits_of_the_system(groups):
    async def test(provider):
        await provider.scale("east", 6)
        assert (group(groups)["MaxSize"], group(groups)["DesiredCapacity"]) == (6, 6)
        with pytest.raises(BadInput, match="11 instances at east asked for; allowed are 1 to 10"):
            await provider.scale("east", 11)
        with pytest.raises(Rejected, match="MinSize is 1"):
            await provider._ask_for("east", await provider._group("east"), 0)

    capacity(test)


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        (
            "We currently do not have sufficient t3.large capacity in the Availability Zone you requested.",
            NotYet,
            r"no capacity for it: .*zones eu-central-1a, eu-central-1b and types t3.large: add other zones",
        ),
        (
            "You have requested more vCPU capacity than your current vCPU limit of 32 allows",
            Rejected,
            "the account may not run more in eu-central-1",
        ),
        ("The image is gone", NotYet, "the last launch failed: The image is gone"),
    ],
)
def test_a_launch_that_fails_is_told_with_what_to_do(groups, message, error, told):
    groups.set(no_capacity=message)
    asg(groups).set_desired_capacity(AutoScalingGroupName="venue-east", DesiredCapacity=3)

    async def test(provider):
        ctx = strict.context({"capacity": provider}, left_s=2.0)
        step = actions.Ensure(site="target", count=3)
        with pytest.raises(error, match=told):
            await step.apply(ctx, await step.observe(ctx))
        assert (await provider.explain("east"))["last_launch_failed"] == message

    capacity(test)


def test_suspended_processes_are_told_or_resumed(groups):
    asg(groups).suspend_processes(AutoScalingGroupName="venue-east", ScalingProcesses=["Launch", "AZRebalance"])

    async def refused(provider):
        ctx = strict.context({"capacity": provider})
        step = actions.Ensure(site="target")
        seen = await step.observe(ctx)
        assert seen.facts["group"]["suspended"] == ["AZRebalance", "Launch"]
        with pytest.raises(Rejected, match="Launch suspended, so it cannot grow"):
            await step.apply(ctx, seen)
        assert group(groups)["DesiredCapacity"] == 1

    capacity(refused)

    async def resumed(provider):
        await provider.scale("east", 2)
        assert [p["ProcessName"] for p in group(groups)["SuspendedProcesses"]] == ["AZRebalance"]
        assert group(groups)["DesiredCapacity"] == 2

    capacity(resumed, resume=True)


def test_a_warm_pool_is_seen(groups):
    asg(groups).put_warm_pool(AutoScalingGroupName="venue-east", MinSize=1, PoolState="Stopped")

    async def test(provider):
        assert (await provider.explain("east"))["warm_pool"] == {"state": "Stopped", "instances": 0}
        assert (await provider.explain("west"))["warm_pool"] is None

    capacity(test)


@pytest.mark.parametrize("owner", [None, "another"])
def test_what_is_not_marked_is_refused(groups, owner):
    tag = {"ResourceId": "venue-east", "ResourceType": "auto-scaling-group", "Key": "relight:system"}
    asg(groups).delete_tags(Tags=[tag])
    if owner:
        asg(groups).create_or_update_tags(Tags=[{**tag, "Value": owner, "PropagateAtLaunch": True}])

    async def test(provider):
        for call in (
            provider.instances("east"),
            provider.scale("east", 3),
            provider.set_scaling("east", actions.Policy(site="east", auto_scaling=PLAN).auto_scaling.scaling()),
            provider.roll_back("east"),
        ):
            with pytest.raises(SafetyRefusal, match="not marked as a part of system venue"):
                await call
        assert group(groups)["DesiredCapacity"] == 1

    capacity(test)


def test_the_plan_becomes_policies_drift_is_shown_and_undo_takes_them_away(groups):
    step = actions.Policy(site="east", auto_scaling=PLAN)

    async def test(provider):
        ctx = strict.context({"capacity": provider})
        seen = await step.observe(ctx)
        assert "maximum: 4 -> 10" in seen.changes
        assert "target_cpu: not set -> 70.0" in seen.changes
        seen, _, after = await take(step, ctx)
        assert after.holds
        found = {p["PolicyName"]: p for p in asg(groups).describe_policies()["ScalingPolicies"]}
        assert found[TARGET]["TargetTrackingConfiguration"]["TargetValue"] == 70.0
        assert (found[UP]["ScalingAdjustment"], found[UP]["Cooldown"]) == (2, 300)
        assert group(groups)["DefaultCooldown"] == 300
        await step.apply(ctx, seen)
        asg(groups).put_scaling_policy(
            AutoScalingGroupName="venue-east", PolicyName=UP, PolicyType="SimpleScaling",
            AdjustmentType="ChangeInCapacity", ScalingAdjustment=5, Cooldown=10,
        )  # fmt: skip
        assert (await step.observe(ctx)).changes == ("up: 5 -> 2", "up_cooldown_s: 10 -> 300")
        await step.undo(ctx, seen.facts)
        assert asg(groups).describe_policies()["ScalingPolicies"] == []
        assert (group(groups)["MinSize"], group(groups)["MaxSize"]) == (1, 4)

    capacity(test)


def test_limits_of_the_plan_become_the_groups_own(groups):
    async def test(provider):
        ctx, step = strict.context({"capacity": provider}), actions.Keep(site="east", minimum=1, maximum=6)
        seen = await step.observe(ctx)
        assert seen.changes == ("limits of east: 1 to 4 → 1 to 6",)
        await step.apply(ctx, seen)
        assert (group(groups)["MinSize"], group(groups)["MaxSize"]) == (1, 6)
        assert (await step.confirm(ctx)).holds

    capacity(test)


def test_the_groups_own_limits_are_read_and_set(groups):
    async def test(provider):
        assert await provider.live_limits("east") == Limits(1, 4)
        await provider.set_limits("east", Limits(1, 6))
        assert (group(groups)["MinSize"], group(groups)["MaxSize"]) == (1, 6)
        asg(groups).set_desired_capacity(AutoScalingGroupName="venue-east", DesiredCapacity=3)
        with pytest.raises(SafetyRefusal, match="a maximum of 2 would stop some"):
            await provider.set_limits("east", Limits(1, 2))

    capacity(test)


def test_a_plan_below_what_is_asked_for_is_refused(groups):
    asg(groups).set_desired_capacity(AutoScalingGroupName="venue-east", DesiredCapacity=4)
    step = actions.Policy(site="east", auto_scaling=PLAN | {"max_instances": 3})

    async def test(provider):
        ctx = strict.context({"capacity": provider})
        with pytest.raises(SafetyRefusal, match="4 instances are asked for; a maximum of 3 would stop some"):
            await step.apply(ctx, await step.observe(ctx))
        assert group(groups)["DesiredCapacity"] == 4
        assert group(groups)["MaxSize"] == 4

    capacity(test)


def test_the_quota_is_compared_with_the_maximum(groups):
    async def test(provider):
        ctx = strict.context({"capacity": provider})
        step = actions.Quota(site="target")
        seen = await step.observe(ctx)
        assert (seen.holds, seen.facts["needed_vcpus"], seen.facts["allowed_vcpus"]) == (True, 20.0, 64.0)
        groups.set(vcpus=8.0)
        with pytest.raises(Rejected, match="20 vCPUs needed at most at east, 8 allowed"):
            await step.apply(ctx, seen)

    capacity(test)


def test_vcpus_for_all_of_the_load_must_fit_beside_what_else_runs(groups):
    def found(**state):
        groups.set(**state)
        findings = []

        async def test(provider):
            asked = Asked("west", "east", LoopClock(), Sockets())
            findings.extend(await readiness.room(asked, Part("capacity", provider, GroupSettings(region="", group=""))))

        capacity(test)
        return [(f.check, f.level, f.says) for f in findings]

    says = f"vCPUs on demand in {ground.OTHER_REGION}: {{}}, 64 allowed, a move needs 2 more"
    assert found(vcpus=64.0, vcpus_used=62.0) == [("quota", "ok", says.format("62 used"))]
    assert found(vcpus_used=63.0) == [("quota", "failing", says.format("63 used"))]
    assert found(vcpus_used=-1.0) == [("quota", "unknown", says.format("what is used is not told"))]


REFRESH = actions.RefreshAll(site="east", version="2", warmup="1s")


def test_a_refresh_is_watched_to_its_end_and_is_not_started_twice(groups):
    async def test(provider):
        ctx = strict.context({"capacity": provider})
        seen, facts, after = await take(REFRESH, ctx)
        assert len(seen.changes) == 1
        assert facts["refresh"]["status"] == "Successful"
        assert after.holds
        assert (await REFRESH.observe(ctx)).holds
        assert groups.strict()["refreshes"] == 1
        preferences = asg(groups).describe_instance_refreshes(AutoScalingGroupName="venue-east")["InstanceRefreshes"][
            0
        ]["Preferences"]
        assert (preferences["MinHealthyPercentage"], preferences["SkipMatching"]) == (90, True)
        await REFRESH.undo(ctx, seen.facts)
        assert set((await provider.versions("east")).values()) == {"1"}

    capacity(test)


def test_a_refresh_whose_reply_was_lost_is_found_again(groups):
    groups.fault("StartInstanceRefresh", "lose")

    async def test(provider):
        ctx = strict.context({"capacity": provider})
        assert (await take(REFRESH, ctx))[2].holds
        assert groups.strict()["refreshes"] == 1
        groups.fault("StartInstanceRefresh", "fail")
        other = REFRESH.model_copy(update={"version": "3"})
        with pytest.raises(EffectUnknown):  # no such refresh is seen, so nobody knows
            await other.apply(ctx, await other.observe(ctx))

    capacity(test)


def test_a_refresh_that_goes_on_is_turned_round_by_undo(groups):
    groups.set(settle_s=60)

    async def test(provider):
        ctx = strict.context({"capacity": provider}, left_s=1.0)
        seen = await REFRESH.observe(ctx)
        with pytest.raises(NotYet, match="InProgress"):
            await REFRESH.apply(ctx, seen)
        other = REFRESH.model_copy(update={"version": "3"})
        with pytest.raises(Rejected, match="to version 2 is InProgress"):
            await other.apply(ctx, await other.observe(ctx))
        groups.set(settle_s=0.2)
        await REFRESH.undo(strict.context({"capacity": provider}), seen.facts)
        assert (await provider.newest_refresh("east")).status == "RollbackSuccessful"
        assert set((await provider.versions("east")).values()) == {"1"}

    capacity(test)


def test_a_refresh_that_fails_says_so(groups):
    groups.set(refresh="Failed")

    async def test(provider):
        ctx = strict.context({"capacity": provider})
        with pytest.raises(Rejected, match="ended as Failed"):
            await REFRESH.apply(ctx, await REFRESH.observe(ctx))

    capacity(test)


def test_ready_can_mean_that_the_balancer_says_so_too(groups):
    elb, ec2 = groups.client("elbv2", REGIONS["east"]), groups.client("ec2", REGIONS["east"])
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    arn = elb.create_target_group(Name="app", Protocol="HTTP", Port=80, VpcId=vpc)["TargetGroups"][0]["TargetGroupArn"]
    asg(groups).attach_load_balancer_target_groups(AutoScalingGroupName="venue-east", TargetGroupARNs=[arn])
    (instance,) = [i["InstanceId"] for i in group(groups)["Instances"]]

    async def test(provider):
        assert [i.ready for i in await provider.instances("east")] == [True]
        groups.set(unhealthy=[instance])
        assert [(i.running, i.ready) for i in await provider.instances("east")] == [(True, False)]

    capacity(test, balanced=True)


def test_throttled_contended_lost_hung_and_guarded(groups):
    def held():
        raise LeaseHeld("epoch moved")

    async def test(provider):
        for code in ("throttle", "ScalingActivityInProgress", "ResourceContention"):
            groups.fault("SetDesiredCapacity", code)
            with pytest.raises(NotYet, match="come back later"):
                await provider.scale("east", 2)
        groups.fault("SetDesiredCapacity", "lose")
        with pytest.raises(EffectUnknown):
            await provider.scale("east", 2)
        assert group(groups)["DesiredCapacity"] == 2
        await provider.scale("east", 2)
        ctx = strict.context({"capacity": provider}, guard=held)
        for step in (
            actions.Ensure(site="east", count=4),
            actions.Policy(site="east", auto_scaling=PLAN),
            REFRESH,
        ):
            with pytest.raises(LeaseHeld):
                await step.apply(ctx, await step.observe(ctx))
        assert group(groups)["DesiredCapacity"] == 2
        with pytest.raises(BadInput, match="no site 'north'"):
            await provider.instances("north")

    capacity(test)

    async def hung(provider):
        with pytest.raises(Unreachable, match="no answer within"):
            await provider.instances("east")

    groups.hang()
    try:
        capacity(hung, timeout="300ms")
    finally:
        groups.go_on()


def test_the_failed_region_is_not_needed(groups):
    """West does not answer; growing east goes on, with the minimum of the system file."""
    groups.fault("DescribeAutoScalingGroups", "fail", times=1)

    async def test(provider):
        ctx = strict.context({"capacity": provider})
        with pytest.raises((Unreachable, ClientError)):
            await provider.instances("west")
        heard = []
        token = HEARD.set(heard.append)
        step = actions.Ensure(site="east", count=2)
        await take(step, ctx)
        HEARD.reset(token)
        assert {c.region for c in heard} == {ground.OTHER_REGION}

    capacity(test)


async def story(told, group):
    """What a group does, as the provider and its twin must both tell it."""

    async def ready():
        return sum(i.ready for i in await group.instances("east"))

    async def version():
        return sorted(set((await group.versions("east")).values()))

    async def status():
        return (await group.newest_refresh("east")).status

    wanted = actions.Policy(site="east", auto_scaling=PLAN).auto_scaling.scaling()
    await told("limits", asyncio.sleep(0, group.limits("east")))
    await told("below the limits", group.scale("east", 0))
    await told("above the limits", group.scale("east", 11))
    await told("grow", group.scale("east", 3))
    await told.becomes("three are ready", ready, 3)
    await told("the same again", group.scale("east", 3))
    await told("one less", group.scale("east", 2))
    await told.becomes("two are ready", ready, 2)
    await told("rules", group.set_scaling("east", wanted))
    await told("they are kept", group.scaling("east"), lambda found: (found[0] == wanted, found[1]))
    await told("rules that would stop some", group.set_scaling("east", replace(wanted, minimum=1, maximum=1)))
    await told("quota", group.quota("east"))
    await told("no refresh yet", group.newest_refresh("east"))
    await told("nothing to roll back", group.roll_back("east"))
    await told("refresh", group.start_refresh("east", Rolling("2", 90, 110, 1)))
    await told("the same refresh again", group.start_refresh("east", Rolling("2", 90, 110, 1)))
    await told("another one beside it", group.start_refresh("east", Rolling("3", 90, 110, 1)))
    await told.becomes("it ends", status, "Successful")
    await told("all of version 2", version())
    await told("and another one", group.start_refresh("east", Rolling("3", 90, 110, 1)))
    await told("turn round", group.roll_back("east"))
    await told.becomes("it is back", status, "RollbackSuccessful")
    await told("still version 2", version())


def test_the_twin_tells_the_same_story(groups):
    groups.set(settle_s=3.0)  # so long a refresh is under way, also where each call takes its time
    real = strict.told_by(capacity, story)
    limited = SimpleNamespace(limits=lambda _site: Limits(1, 10))

    def world():
        return World(
            strict.SITES,
            running={"west": {"west-app1", "west-app2"}, "east": {"east-app1"}},
            ready_since={"west": -1e9, "east": -1e9},
            admin=ADMIN,
        )

    node = Node("db", "east", replica=False)

    def run(test):
        strict.by_twin(GroupTwin, limited, lambda: replace(world(), nodes={"db": node}), "capacity", test)

    assert strict.told_by(run, story) == real


ADMIN = {(s, "db"): {"db": "ready"} for s in strict.SITES}
"""Instances are ready when their database is."""


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
