"""ELBv2 and the traffic actions against moto's server (strict: draining takes time, lists come in pages, faults)."""

from __future__ import annotations

import asyncio
import itertools
import json
import shlex
from types import SimpleNamespace

import aws as ground
import iam
import pytest
import strict

from tasks.capacity import readiness
from tasks.clock import LoopClock
from tasks.errors import (
    BadInput,
    EffectUnknown,
    LeaseHeld,
    NotYet,
    Rejected,
    SafetyRefusal,
    UnhealthyTarget,
    Unreachable,
)
from tasks.network import Sockets
from tasks.readiness import Asked, Part
from tasks.traffic import actions
from tasks.traffic.elbv2 import PROVIDER
from tasks.traffic.manual import MANUAL
from tasks.traffic.twin import GroupsTwin
from tasks.world import World

pytestmark = pytest.mark.real
PROVIDER_NAME = "traffic.elbv2"
TAG = [{"Key": "relight:system", "Value": "venue"}]
WEIGHTS = {"west-app": 100, "east-app": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("elb")) as running:
        yield running


@pytest.fixture
def balancer(server):
    """An ALB with two listeners and a rule, all to two groups with two targets each; west has the weight."""
    server.reset()
    ec2, elb = server.client("ec2"), server.client("elbv2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    nets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"{ground.REGION}{z}")["Subnet"]
        for n, z in enumerate("ab")
    ]
    subnets = [n["SubnetId"] for n in nets]
    arn = elb.create_load_balancer(Name="venue", Subnets=subnets, Tags=TAG)["LoadBalancers"][0]["LoadBalancerArn"]
    groups = {}
    for name in WEIGHTS:
        made = elb.create_target_group(Name=name, Protocol="HTTP", Port=80, VpcId=vpc, TargetType="ip", Tags=TAG)[
            "TargetGroups"
        ][0]["TargetGroupArn"]
        groups[name] = made
        first = 10 if name == "west-app" else 20
        elb.register_targets(TargetGroupArn=made, Targets=[{"Id": f"10.0.0.{first + n}", "Port": 80} for n in range(2)])
    forward = {
        "Type": "forward",
        "ForwardConfig": {
            "TargetGroups": [{"TargetGroupArn": groups[n], "Weight": w} for n, w in WEIGHTS.items()],
            "TargetGroupStickinessConfig": {"Enabled": True, "DurationSeconds": 60},
        },
    }
    listeners = [
        elb.create_listener(LoadBalancerArn=arn, Protocol="HTTP", Port=port, DefaultActions=[forward])["Listeners"][0][
            "ListenerArn"
        ]
        for port in (80, 8080)
    ]
    rule = elb.create_rule(
        ListenerArn=listeners[0],
        Priority=7,
        Conditions=[{"Field": "path-pattern", "Values": ["/api/*"]}],
        Actions=[forward],
    )["Rules"][0]["RuleArn"]
    return SimpleNamespace(arn=arn, groups=groups, listeners=listeners, rule=rule, elb=elb, server=server)


def settings(**more):
    groups = {"west-app": {"site": "west"}, "east-app": {"site": "east", "weight": 80}}
    pool = {"healthy": 2, "groups": groups} | more.pop("pool", {})
    west = {"region": ground.REGION, "load_balancer": "venue", "pools": {"app": pool}}
    return {"timeout": "30s", "sites": {"west": west}, **more}


def elb(test, **more):
    strict.with_provider(PROVIDER, settings(**more), "traffic", test)


def weights(balancer):
    """route -> {group: weight}, as AWS has it."""
    names = {a: n for n, a in balancer.groups.items()}
    found = {}
    for port, listener in zip((80, 8080), balancer.listeners, strict=True):
        for rule in balancer.elb.describe_rules(ListenerArn=listener)["Rules"]:
            config = rule["Actions"][0]["ForwardConfig"]["TargetGroups"]
            found[f"{port}/{rule['Priority']}"] = {names[g["TargetGroupArn"]]: g["Weight"] for g in config}
    return found


def everywhere(west, east):
    return {key: {"west-app": west, "east-app": east} for key in ("80/7", "80/default", "8080/default")}


async def take(step, ctx):
    seen = await step.observe(ctx)
    facts = await step.apply(ctx, seen)
    return seen, facts, await step.confirm(ctx)


SHIFT = actions.Shift(at="west", to="east")


def test_shift_moves_every_listener_and_rule_and_undo_moves_them_back(balancer):
    own = [{"Key": "load_balancing.cross_zone.enabled", "Value": "false"}]
    balancer.elb.modify_target_group_attributes(TargetGroupArn=balancer.groups["east-app"], Attributes=own)

    async def test(traffic):
        ctx = strict.context({"traffic": traffic})
        seen = await SHIFT.observe(ctx)
        assert seen.changes[1:] == ("east-app: drain -> ready", "west-app: ready -> drain")
        assert weights(balancer) == everywhere(100, 0), "observe changed something"
        assert seen.facts["balancer"]["sticky_s"] == 60
        assert seen.facts["balancer"]["cross_zone"] == {"west-app": True, "east-app": False}
        assert sorted(seen.facts["balancer"]["routes"]) == ["listener 80", "listener 80 rule 7", "listener 8080"]
        seen, facts, after = await take(SHIFT, ctx)
        assert (facts["persisted"], after.holds) == (True, True)
        assert weights(balancer) == everywhere(0, 80)
        assert (await SHIFT.observe(ctx)).holds
        calls = len(weights(balancer))
        await SHIFT.apply(ctx, seen)  # again: nothing more
        assert calls == 3
        assert weights(balancer) == everywhere(0, 80)
        rule = balancer.elb.describe_rules(RuleArns=[balancer.rule])["Rules"][0]["Actions"][0]
        assert rule["ForwardConfig"]["TargetGroupStickinessConfig"]["DurationSeconds"] == 60, "stickiness was kept"
        await SHIFT.undo(ctx, seen.facts)
        assert weights(balancer) == everywhere(100, 0)

    elb(test)


def test_nothing_is_shifted_to_a_group_below_the_wanted_health(balancer):
    balancer.server.set(unhealthy=["10.0.0.20"])

    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=1.5)
        with pytest.raises(UnhealthyTarget, match="Nothing was drained"):
            await SHIFT.apply(ctx, await SHIFT.observe(ctx))
        with pytest.raises(UnhealthyTarget, match=r"1 healthy targets, 2 wanted \(1 healthy, 1 unhealthy\)"):
            await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 0)

    elb(test)


def test_a_dark_group_is_left_for_one_that_becomes_healthy_while_it_waits(balancer):
    balancer.server.set(unhealthy=["*"])

    async def test(traffic):
        ctx = strict.context({"traffic": traffic})
        going = asyncio.create_task(SHIFT.apply(ctx, await SHIFT.observe(ctx)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(going), 0.5)
        assert weights(balancer) == everywhere(100, 0)
        balancer.server.set(unhealthy=["10.0.0.10", "10.0.0.11"])
        await going
        assert weights(balancer) == everywhere(0, 80)

    elb(test)


def test_no_route_is_left_without_weight(balancer):
    async def test(traffic):
        with pytest.raises(UnhealthyTarget, match="would answer 503"):
            await traffic.set_admin("west", "app", "west-app", "drain")
        drain = actions.Drain(at="west", site="west")
        ctx = strict.context({"traffic": traffic})
        with pytest.raises(UnhealthyTarget, match="no healthy server but those of west"):
            await drain.apply(ctx, await drain.observe(ctx))
        assert weights(balancer) == everywhere(100, 0)

    elb(test)


@pytest.mark.parametrize("resource", ["balancer", "group"])
@pytest.mark.parametrize("owner", [None, "another"])
def test_what_is_not_marked_is_refused(balancer, resource, owner):
    arn = balancer.arn if resource == "balancer" else balancer.groups["east-app"]
    if owner is None:
        balancer.elb.remove_tags(ResourceArns=[arn], TagKeys=["relight:system"])
    else:
        balancer.elb.add_tags(ResourceArns=[arn], Tags=[{"Key": "relight:system", "Value": owner}])

    async def test(traffic):
        ctx = strict.context({"traffic": traffic})
        with pytest.raises(SafetyRefusal, match="not marked as a part of system venue"):
            await SHIFT.observe(ctx)
        with pytest.raises(SafetyRefusal, match="relight:system"):
            await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 0)

    elb(test)


def test_a_change_that_fails_half_way_is_put_back(balancer):
    balancer.server.fault("ModifyRule", "IncompatibleProtocols")

    async def test(traffic):
        with pytest.raises(Rejected, match="ModifyRule listener 80 rule 7 was refused: IncompatibleProtocols"):
            await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 0)

    elb(test)


def test_where_putting_back_fails_too_it_is_unknown_and_the_next_look_goes_on(balancer):
    balancer.server.fault("ModifyRule", "IncompatibleProtocols")
    balancer.server.fault("ModifyListener", "OperationNotPermitted", after=1)

    async def test(traffic):
        with pytest.raises(EffectUnknown, match="could not be put back at listener 80"):
            await traffic.set_admin("west", "app", "east-app", "ready")
        ctx = strict.context({"traffic": traffic})
        seen = await SHIFT.observe(ctx)
        assert "east-app: mixed -> ready" in seen.changes
        _, _, after = await take(SHIFT, ctx)
        assert after.holds
        assert weights(balancer) == everywhere(0, 80)

    elb(test)


def test_a_group_that_is_left_at_one_listener_only_is_drained(balancer):
    """Going back from a shift that broke off: west is mixed, and must not stay."""
    group = [{"TargetGroupArn": balancer.groups[n], "Weight": w} for n, w in (("west-app", 0), ("east-app", 80))]
    action = [{"Type": "forward", "ForwardConfig": {"TargetGroups": group}}]
    balancer.elb.modify_listener(ListenerArn=balancer.listeners[1], DefaultActions=action)

    async def test(traffic):
        ctx = strict.context({"traffic": traffic})
        assert "west-app: mixed -> drain" in (await SHIFT.observe(ctx)).changes
        await take(SHIFT, ctx)
        assert weights(balancer) == everywhere(0, 80)

    elb(test)


def test_a_lost_reply_is_unknown_put_back_and_repeatable(balancer):
    balancer.server.fault("ModifyListener", "lose", after=1)

    async def test(traffic):
        with pytest.raises(EffectUnknown):
            await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 0)
        await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 80)

    elb(test)


def test_throttling_is_waited_out_and_then_told(balancer):
    balancer.server.fault("ModifyListener", "throttle", times=2)

    async def test(traffic):
        await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 80)
        balancer.server.fault("ModifyRule", "throttle", times=9)
        with pytest.raises(NotYet, match="come back later"):
            await traffic.set_weight("west", "app", "east-app", 5)
        assert weights(balancer) == everywhere(100, 80), "the listener that was changed before was put back"

    elb(test)


def test_groups_and_listeners_come_in_pages(balancer):
    balancer.server.set(page=1)

    async def test(traffic):
        found = await traffic.servers("west", "app")
        assert {s.name: (s.site, s.admin, s.up, s.weight) for s in found} == {
            "west-app": ("west", "ready", True, 100),
            "east-app": ("east", "drain", True, 80),
        }
        assert found[1].members == ("10.0.0.20", "10.0.0.21")
        await traffic.set_admin("west", "app", "east-app", "ready")
        assert weights(balancer) == everywhere(100, 80)

    elb(test)


def test_hung_and_gone(balancer, monkeypatch):
    async def hung(traffic):
        with pytest.raises(Unreachable, match="no answer within"):
            await traffic.servers("west", "app")

    balancer.server.hang()
    try:
        elb(hung, timeout="300ms")
    finally:
        balancer.server.go_on()

    async def gone(traffic):
        ctx = strict.context({"traffic": traffic})
        seen = await actions.Shift(at="west", to="east", may_be_gone=True).observe(ctx)
        assert seen.facts["gone"] is True

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    elb(gone)


def test_what_is_not_there_is_told_by_name(balancer):
    async def test(traffic):
        with pytest.raises(BadInput, match="no balancer in site 'east'"):
            await traffic.servers("east", "app")
        with pytest.raises(BadInput, match="no pool 'db' at west"):
            await traffic.servers("west", "db")
        with pytest.raises(BadInput, match="no target group 'none'"):
            await traffic.set_admin("west", "app", "none", "ready")

    elb(test)

    async def foreign(traffic):
        with pytest.raises(BadInput, match="also forwards to east-app"):
            await traffic.servers("west", "app")

    elb(foreign, pool={"groups": {"west-app": {"site": "west"}}})


def test_a_target_is_drained_and_comes_back_and_enough_stay(balancer):
    async def test(traffic):
        ctx = strict.context({"traffic": traffic})
        step = actions.Deregister(at="west", server="west-app", target="10.0.0.10")
        assert (await step.observe(ctx)).facts["deregistration_delay_s"] == 300
        seen, facts, after = await take(step, ctx)
        assert (facts["stay"], after.holds) == (["10.0.0.11"], True)
        last = actions.Deregister(at="west", server="west-app", target="10.0.0.11")
        with pytest.raises(UnhealthyTarget, match="0 healthy targets would stay"):
            await last.apply(ctx, await last.observe(ctx))
        await step.undo(ctx, seen.facts)
        targets = await traffic.targets("west", "app", "west-app")
        assert {t.name for t in targets if t.state == "healthy"} == {"10.0.0.10", "10.0.0.11"}

    elb(test)


def test_a_draining_target_is_waited_for(balancer):
    balancer.server.set(settle_s=60)

    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=1.0)
        step = actions.Deregister(at="west", server="west-app", target="10.0.0.10")
        with pytest.raises(NotYet, match=r"10\.0\.0\.10 is draining; .* within 300 s"):
            await step.apply(ctx, await step.observe(ctx))

    elb(test)


def test_the_guard_stands_before_every_change(balancer):
    def held():
        raise LeaseHeld("epoch moved")

    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, guard=held)
        with pytest.raises(LeaseHeld):
            await SHIFT.apply(ctx, await SHIFT.observe(ctx))
        step = actions.Deregister(at="west", server="west-app", target="10.0.0.10")
        with pytest.raises(LeaseHeld):
            await step.apply(ctx, await step.observe(ctx))
        assert weights(balancer) == everywhere(100, 0)

    elb(test)


def test_database_connections_are_not_routed_here(balancer):
    async def test(traffic):
        ctx = strict.context({"traffic": traffic})
        with pytest.raises(BadInput, match="cannot close sessions of an old primary"):
            await actions.RoutePrimary(at="west").observe(ctx)

    elb(test)


# ---- a canary's group beside the others ----

CANARY = {"pool": {"groups": {"west-app": {"site": "west"}, "east-app": {"site": "east", "weight": 80}}}}
CANARY["pool"]["groups"]["west-canary"] = {"site": "west", "canary": True}
BEFORE = {"listener 80": (100, 0), "listener 80 rule 7": (100, 0)}


@pytest.fixture
def canary(balancer):
    """A canary's group with one target, named by one listener and its rule, not by the other listener."""
    elb = balancer.elb
    vpc = elb.describe_target_groups(Names=["west-app"])["TargetGroups"][0]["VpcId"]
    made = elb.create_target_group(Name="west-canary", Protocol="HTTP", Port=80, VpcId=vpc, TargetType="ip", Tags=TAG)
    arn = balancer.canary = made["TargetGroups"][0]["TargetGroupArn"]
    elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": "10.0.0.30", "Port": 80}])
    every = {**balancer.groups, "west-canary": arn}
    groups = [{"TargetGroupArn": a, "Weight": WEIGHTS.get(n, 0)} for n, a in every.items()]
    forward = [{"Type": "forward", "ForwardConfig": {"TargetGroups": groups}}]
    elb.modify_listener(ListenerArn=balancer.listeners[0], DefaultActions=forward)
    elb.modify_rule(RuleArn=balancer.rule, Actions=forward)
    return balancer


def shares(balancer):
    """route -> (weight of west-app, weight of the canary), of the routes that name it."""
    names = {a: n for n, a in balancer.groups.items()} | {balancer.canary: "canary"}
    found = {}
    for label, told in (
        ("listener 80", balancer.elb.describe_listeners(ListenerArns=balancer.listeners[:1])["Listeners"][0]),
        ("listener 80 rule 7", balancer.elb.describe_rules(RuleArns=[balancer.rule])["Rules"][0]),
    ):
        action = (told.get("DefaultActions") or told.get("Actions"))[0]
        have = {names[g["TargetGroupArn"]]: g["Weight"] for g in action["ForwardConfig"]["TargetGroups"]}
        assert have["east-app"] in (0, 80)
        found[label] = (have["west-app"], have["canary"])
    return found


def weigh(share):
    return actions.Weigh.model_validate({"at": "west", "share": share})


def test_a_canary_gets_its_share_where_it_is_named_and_undo_takes_it_away(canary):
    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120)
        seen, facts, after = await take(weigh("20%"), ctx)
        assert seen.changes[:2] == ("listener 80: west-canary 0 -> 25", "listener 80 rule 7: west-canary 0 -> 25")
        assert "keep it for 60 s" in seen.changes[2]
        assert "west-canary has 0% of the requests, and 1 healthy targets" in seen.summary
        assert (facts["share"], after.holds) == (dict.fromkeys(BEFORE, 20.0), True)
        assert shares(canary) == dict.fromkeys(BEFORE, (100, 25))
        other = canary.elb.describe_listeners(ListenerArns=canary.listeners[1:])["Listeners"][0]["DefaultActions"][0]
        assert len(other["ForwardConfig"]["TargetGroups"]) == 2, "a listener that has no canary gets none"
        assert (await weigh("20%").observe(ctx)).holds
        await weigh("20%").undo(ctx, seen.facts)
        assert shares(canary) == BEFORE
        back = await weigh("0%").observe(ctx)
        assert back.holds
        await weigh("0%").undo(ctx, facts | {"weights": {"listener 80": {"west-app": 100, "west-canary": 25}}})
        assert shares(canary) == BEFORE, "no undo gives a canary more than it has"

    elb(test, **CANARY)


def test_a_canary_with_all_requests_needs_as_many_targets_and_gives_them_back(canary):
    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120)
        seen = await weigh("100%").observe(ctx)
        with pytest.raises(UnhealthyTarget, match=r"1 healthy targets, and 100% .* west-app \(2 healthy\) want 2"):
            await weigh("100%").apply(ctx, seen)
        assert shares(canary) == BEFORE
        canary.elb.register_targets(TargetGroupArn=canary.canary, Targets=[{"Id": "10.0.0.31", "Port": 80}])
        await take(weigh("100%"), ctx)
        assert shares(canary) == dict.fromkeys(BEFORE, (0, 100))
        canary.server.set(unhealthy=["10.0.0.10", "10.0.0.11"])
        with pytest.raises(UnhealthyTarget, match="nobody beside canary west-canary is healthy"):
            await weigh("0%").apply(ctx, await weigh("0%").observe(ctx))
        canary.server.set(unhealthy=["10.0.0.10"])
        with pytest.raises(UnhealthyTarget, match="west-app has 1 healthy targets, 2 wanted"):
            await weigh("0%").apply(ctx, await weigh("0%").observe(ctx))
        assert shares(canary) == dict.fromkeys(BEFORE, (0, 100))
        canary.server.set(unhealthy=[])
        await take(weigh("0%"), ctx)
        assert shares(canary) == BEFORE

    elb(test, **CANARY)


def _forwards(canary, *groups):
    """The listener and its rule send to ``groups`` (ARN, weight) and to nobody else."""
    found = [{"TargetGroupArn": arn, "Weight": weight} for arn, weight in groups]
    forward = [{"Type": "forward", "ForwardConfig": {"TargetGroups": found}}]
    canary.elb.modify_listener(ListenerArn=canary.listeners[0], DefaultActions=forward)
    canary.elb.modify_rule(RuleArn=canary.rule, Actions=forward)


def _named_nowhere(canary):
    _forwards(canary, (canary.groups["west-app"], 100))


def _drained(canary):
    """What is drained is not served by a canary instead, nor made ready by its step."""
    _forwards(canary, (canary.groups["west-app"], 0), (canary.canary, 0))


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda c: c.server.set(unhealthy=["10.0.0.30"]), UnhealthyTarget, "canary west-canary has 0 healthy targets"),
        (_drained, BadInput, "forwards to west-canary and to a server beside it, with weight"),
        (_named_nowhere, BadInput, "none of listener 80, listener 80 rule 7, listener 8080 forwards to west-canary"),
        (
            lambda c: c.elb.remove_tags(ResourceArns=[c.canary], TagKeys=["relight:system"]),
            SafetyRefusal,
            "west-canary.* is not marked as a part of system venue",
        ),
    ],
    ids=["unhealthy", "drained", "another-balancers", "unmarked"],
)
def test_a_canary_is_refused_at_the_moment_of_the_change(canary, spoil, error, says):
    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120)
        seen = await weigh("20%").observe(ctx)
        spoil(canary)
        calls = weights_of_all(canary)
        with pytest.raises(error, match=says):
            await weigh("20%").apply(ctx, seen)
        assert weights_of_all(canary) == calls, "nothing was changed"

    elb(test, **CANARY)


def weights_of_all(balancer):
    """Every action, as it is."""
    rules = balancer.elb.describe_rules(RuleArns=[balancer.rule])["Rules"]
    return [
        balancer.elb.describe_listeners(ListenerArns=balancer.listeners)["Listeners"][n]["DefaultActions"]
        for n in (0, 1)
    ] + [rules[0]["Actions"]]


def test_a_share_that_fails_half_way_is_put_back_and_the_guard_stands_before_it(canary):
    def held():
        raise LeaseHeld("epoch moved")

    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120, guard=held)
        with pytest.raises(LeaseHeld):
            await weigh("20%").apply(ctx, await weigh("20%").observe(ctx))
        canary.server.fault("ModifyRule", "IncompatibleProtocols")
        ctx = strict.context({"traffic": traffic}, left_s=120)
        with pytest.raises(Rejected, match="IncompatibleProtocols"):
            await weigh("20%").apply(ctx, await weigh("20%").observe(ctx))
        assert shares(canary) == BEFORE

    elb(test, **CANARY)


def test_a_move_takes_a_canarys_weight_away_and_needs_no_canary(canary):
    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120)
        await take(weigh("20%"), ctx)
        with pytest.raises(UnhealthyTarget, match="would answer 503"):
            await traffic.set_admin("west", "app", "west-app", "drain")  # the canary would get everything
        with pytest.raises(BadInput, match="gets a share only"):
            await traffic.set_admin("west", "app", "west-canary", "ready")
        seen, _, after = await take(SHIFT, ctx)
        assert "west-canary: ready -> drain" in seen.changes
        assert after.holds
        assert shares(canary) == dict.fromkeys(BEFORE, (0, 0))
        await SHIFT.undo(ctx, seen.facts)
        assert shares(canary) == BEFORE, "a move that is undone gives a canary nothing"

    elb(test, **CANARY)
    _named_nowhere(canary)
    canary.elb.delete_target_group(TargetGroupArn=canary.canary)

    async def without(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120)
        _, _, after = await take(SHIFT, ctx)
        assert after.holds

    elb(without, **CANARY)


def test_the_commands_by_hand_give_a_canary_its_share(canary):
    commands = []

    async def test(traffic):
        ctx = strict.context({"traffic": traffic}, left_s=120)
        commands.extend(await MANUAL["traffic.weigh"](weigh("20%"), ctx))

    elb(test, **CANARY)
    look, *changes = [dict(itertools.pairwise(shlex.split(c.run))) for c in commands]
    assert look["--target-group-arn"] == canary.canary, "what gets more is looked at first"
    for words in changes:  # the AWS CLI itself takes such lines in test_event_venue
        if "--listener-arn" in words:
            arn, given = words["--listener-arn"], json.loads(words["--default-actions"])
            canary.elb.modify_listener(ListenerArn=arn, DefaultActions=given)
        else:
            canary.elb.modify_rule(RuleArn=words["--rule-arn"], Actions=json.loads(words["--actions"]))
    assert shares(canary) == dict.fromkeys(BEFORE, (100, 25))


async def story(told, traffic):
    """What a balancer does, as the provider and its twin must both tell it."""

    def plain(servers):
        return {s.name: (s.site, s.admin, s.up, s.weight > 0, len(s.members)) for s in servers}

    async def states():
        return sorted(t.state for t in await traffic.targets("west", "app", "west-app"))

    await told("sites", asyncio.sleep(0, traffic.sites()))
    await told("closes sessions", asyncio.sleep(0, traffic.closes_sessions))
    await told("groups", asyncio.sleep(0, traffic.groups("west", "app")))
    await told("servers", traffic.servers("west", "app"), plain)
    await told("drain the only one", traffic.set_admin("west", "app", "west-app", "drain"))
    await told("make the other one ready", traffic.set_admin("west", "app", "east-app", "ready"))
    await told("both", traffic.servers("west", "app"), plain)
    await told("the same again", traffic.set_admin("west", "app", "east-app", "ready"))
    await told("drain the first", traffic.set_admin("west", "app", "west-app", "maint"))
    await told("one", traffic.servers("west", "app"), plain)
    await told("drain the last", traffic.set_admin("west", "app", "east-app", "drain"))
    await told("a group that is not there", traffic.set_admin("west", "app", "none", "ready"))
    await told("keep", traffic.persist("west"))
    target = (await traffic.targets("west", "app", "west-app"))[0]
    await told("take a target out", traffic.deregister("west", "app", "west-app", target))
    await told.becomes("one stays", states, ["healthy"])
    await told("and in again", traffic.register("west", "app", "west-app", target))
    await told.becomes("two", states, ["healthy", "healthy"])


def test_the_twin_tells_the_same_story(balancer):
    real = strict.told_by(elb, story)
    groups = {"west-app": "west", "east-app": "east"}
    shape = SimpleNamespace(sites=lambda: ("west",), closes_sessions=False, groups=lambda _site, _pool: groups)

    def world():
        admin = {f"{s}-app{n}": "ready" if s == "west" else "maint" for s in strict.SITES for n in (1, 2)}
        since = {"west": -1e9, "east": -1e9}
        return World(
            strict.SITES,
            running={s: {f"{s}-app1", f"{s}-app2"} for s in ("west", "east")},
            ready_since=since,
            admin={("west", "app"): admin},
        )

    assert strict.told_by(lambda test: strict.by_twin(GroupsTwin, shape, world, "traffic", test), story) == real


def test_the_targets_of_a_move_are_held_against_the_limit(balancer):
    balancer.elb.deregister_targets(
        TargetGroupArn=balancer.groups["east-app"], Targets=[{"Id": "10.0.0.21", "Port": 80}]
    )

    def found(limit):
        balancer.server.set(settle_s=0.0, limits={"targets-per-application-load-balancer": limit})
        findings = []

        async def test(provider):
            asked = Asked("west", "east", LoopClock(), Sockets())
            findings.extend(await readiness.room(asked, Part("traffic", provider, PROVIDER.Settings(**settings()))))

        elb(test)
        return [(f.check, f.level, f.says) for f in findings]

    says = "targets of venue: 3 used, {} allowed, a move needs 1 more"
    assert found(4) == [("quota", "ok", says.format(4))]
    assert found(3) == [("quota", "failing", says.format(3))]


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
