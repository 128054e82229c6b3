"""Route 53 behind its strict layer: what only Route 53 has. What every zone must do is in test_zones.py."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import iam
import pytest
from strict_route53 import strict_route53

from tasks.aws import HEARD
from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo, Surroundings
from tasks.errors import BadInput, EffectUnknown, LostCompare, NotYet, Rejected, SafetyRefusal, UnhealthyTarget
from tasks.zones import _routing as routing
from tasks.zones import actions
from tasks.zones._route53_calls import REQUESTS
from tasks.zones.protocol import Owned, Pace, RRset
from tasks.zones.route53 import PROVIDER

pytestmark = pytest.mark.real
PROVIDER_NAME = "zones.route53"

ZONE, NAME, LB_ZONE = "venue.test.", "app.venue.test.", "Z32O12XQLNTSW2"
WEST, EAST = "127.0.7.10", "127.0.7.20"
NAMES = {
    NAME: {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
    "new.venue.test.": {"ttl": 2, "A": {"west": [WEST], "east": [EAST]}},
    "lb.venue.test.": {
        "A": {s: {"alias": {"hosted_zone": LB_ZONE, "name": f"{s}.elb.test"}} for s in ("west", "east")}
    },
    "shared.venue.test.": {
        "ttl": 2, "routing": "weighted",
        "A": {"west": {"values": [WEST]}, "east": {"values": [EAST], "health_check": "hc-east"}},
    },
    "either.venue.test.": {
        "ttl": 2, "routing": "failover",
        "A": {"west": {"values": [WEST], "health_check": "hc-w"}, "east": {"values": [EAST], "health_check": "hc-e"}},
    },
    "www.venue.test.": {"ttl": 2, "CNAME": {"west": ["West.cdn.test"], "east": ["east.cdn.test"]}},
}  # fmt: skip


def a(name, *values, ttl=2, **more):
    return {"Name": name, "Type": "A", "TTL": ttl, "ResourceRecords": [{"Value": v} for v in values], **more}


@pytest.fixture(scope="module")
def strict(moto):
    with strict_route53(moto) as it:
        it.addresses = {"west.elb.test.": (WEST, "127.0.7.11"), "east.elb.test.": (EAST, "127.0.7.21")}
        yield it


@pytest.fixture
def zone_id(strict, aws):
    strict.sync_s, strict.busy_s, strict.per_s, strict.page, strict.unhealthy = 0.05, 0.0, 1000.0, 300, set()
    strict.throttled = 0
    strict.front.clear()
    return strict.zone(ZONE, a(NAME, WEST))


def provider(strict, zone_id, **changes):
    settings = {
        "hosted_zone": zone_id, "zone": ZONE, "servers": list(strict.servers), "resolvers": [strict.servers[1]],
        "names": NAMES, "requests_per_s": 1000, "poll": "20ms", "patience": "20s", "timeout": "15s",
        "dns_timeout": "10s",
    }  # fmt: skip
    around = Surroundings("test", "dns", ("west", "east"), LoopClock(), lambda _name: None)
    return PROVIDER(PROVIDER.Settings.model_validate({**settings, **changes}), around)


def context(zone, epoch=1, left_s=90.0, earlier=(), guard=lambda: None):
    clock = LoopClock()
    run = RunInfo("r1", "test", "failover", "forced", epoch, "2026-01-01T00:00:00+00:00")
    roles = {"west": "west", "east": "east", "target": "east"}
    return Context(run, clock, roles, lambda _n: zone, clock.monotonic() + left_s, earlier=earlier, guard=guard)


@pytest.fixture
def with_zone(strict, zone_id):
    def run(test, **changes):
        async def main():
            zone = provider(strict, zone_id, **changes)
            try:
                await test(zone)
            finally:
                await zone.aclose()

        asyncio.run(main())

    return run


def test_a_swap_is_one_batch_of_exact_deletes_and_creates(strict, zone_id, with_zone):
    async def body(zone):
        old = await zone.read(NAME, "A")
        assert old == Owned(RRset(NAME, "A", 2, (WEST,)), None, None)
        await zone.swap(old, zone.wanted(NAME, "A", "east"), 3)
        await zone.in_sync(NAME, 60)
        now = await zone.read(NAME, "A")
        assert now == Owned(RRset(NAME, "A", 2, (EAST,)), 3, None)
        await zone.swap(now, RRset(NAME, "A", 5, (WEST,)), 4)
        sent = [
            h.params["ChangeBatch"]["Changes"] for h in strict.front.heard if h.operation == "ChangeResourceRecordSets"
        ]
        assert [c["Action"] for c in sent[0]] == ["DELETE", "CREATE", "CREATE"]
        assert [c["Action"] for c in sent[1]] == ["DELETE", "DELETE", "CREATE", "CREATE"]
        assert (await zone.read(NAME, "A")).rrset == RRset(NAME, "A", 5, (WEST,))

    with_zone(body)


def test_in_sync_waits_for_every_server_and_says_so_when_time_is_up(strict, with_zone):
    strict.sync_s = 2.5

    async def body(zone):
        await zone.swap(await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east"), 3)
        with pytest.raises(NotYet, match=r"change /change/C\d+ of app\.venue\.test\. is PENDING"):
            await zone.in_sync(NAME, 0.1)
        began = time.monotonic()
        await zone.in_sync(NAME, 60)
        assert time.monotonic() - began < 20
        for server in zone.servers():
            assert (await zone.ask(server, NAME, "A")).rrset.values == (EAST,)
        asked = strict.front.operations().count("GetChange")
        await zone.in_sync(NAME, 60)
        assert strict.front.operations().count("GetChange") == asked, "what is in sync is not asked about again"

    with_zone(body)


def test_throttling_and_a_prior_request_are_waited_for(strict, with_zone):
    async def body(zone):
        old = await zone.read(NAME, "A")
        strict.front.order("ChangeResourceRecordSets", "Throttling", "PriorRequestNotComplete", "Throttling")
        strict.front.order("ListResourceRecordSets", "Throttling")
        await zone.swap(old, zone.wanted(NAME, "A", "east"), 3)
        assert strict.front.operations().count("ChangeResourceRecordSets") == 4
        assert (await zone.read(NAME, "A")).epoch == 3

    with_zone(body)


def test_patience_ends(strict, with_zone):
    async def body(zone):
        old = await zone.read(NAME, "A")
        strict.front.order("ChangeResourceRecordSets", *["PriorRequestNotComplete"] * 50)
        with pytest.raises(NotYet, match="PriorRequestNotComplete"):
            await zone.swap(old, zone.wanted(NAME, "A", "east"), 3)
        assert (await zone.read(NAME, "A")).epoch is None

    with_zone(body, patience="600ms")


def test_an_account_that_takes_five_requests_a_second(strict, with_zone):
    strict.per_s = 5  # those that arrive late and close together are throttled, and sent again

    async def body(zone):
        began = time.monotonic()
        for _ in range(5):
            await zone.read(NAME, "A")
        assert time.monotonic() - began > 2, "eleven requests: five at once, five a second later, and one more"

    with_zone(body, requests_per_s=5)


@pytest.mark.parametrize("code", ["InvalidChangeBatch", "InvalidInput"])
def test_both_codes_are_a_lost_compare_or_a_plain_no(strict, zone_id, with_zone, code):
    async def body(zone):
        old, east = await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east")
        strict.front.order("ChangeResourceRecordSets", code)
        with pytest.raises(Rejected, match=rf"changed nothing.*{code}") as e:
            await zone.swap(old, east, 3)
        assert not isinstance(e.value, LostCompare), "what is there is what was expected: it is not the compare"
        zone._api.change = _meanwhile(strict, zone_id, zone._api.change)
        with pytest.raises(LostCompare, match=r"127\.0\.7\.99"):
            await zone.swap(old, east, 3)
        assert strict.holds(zone_id, NAME, "A")[0]["ResourceRecords"] == [{"Value": "127.0.7.99"}]
        assert strict.holds(zone_id, "_relight." + NAME, "TXT") == []

    with_zone(body)


def _meanwhile(strict, zone_id, change):
    async def changed(what, batch):
        strict.by_hand(zone_id, ("DELETE", a(NAME, WEST)), ("CREATE", a(NAME, "127.0.7.99")))
        return await change(what, batch)

    return changed


def test_a_503_and_a_lost_answer_are_settled_by_reading(strict, with_zone):
    async def body(zone):
        old, east = await zone.read(NAME, "A"), zone.wanted(NAME, "A", "east")
        strict.front.order("ChangeResourceRecordSets", "503", "dropped", "lost")
        for _ in range(2):
            with pytest.raises(EffectUnknown, match="epoch none"):
                await zone.swap(old, east, 3)
        await zone.swap(old, east, 3)
        assert (await zone.read(NAME, "A")) == Owned(east, 3, None)
        await zone.in_sync(NAME, 60)  # its id is lost: only the servers can be asked

    with_zone(body)


def test_weights_move_and_every_record_set_is_compared(strict, zone_id, with_zone):
    name = "shared.venue.test."
    strict.by_hand(
        zone_id,
        ("CREATE", a(name, WEST, SetIdentifier="west", Weight=100)),
        ("CREATE", a(name, EAST, SetIdentifier="east", Weight=0, HealthCheckId="hc-east")),
    )

    async def body(zone):
        old = await zone.read(name, "A")
        assert old.rrset == zone.wanted(name, "A", "west")
        assert old.rrset.targets == (WEST,)
        east = zone.wanted(name, "A", "east")
        assert east.values == (f"id=east weight=100 health=hc-east ttl=2 {EAST}", f"id=west weight=0 ttl=2 {WEST}")
        await zone.swap(old, east, 3)
        await zone.in_sync(name, 60)
        assert {r["SetIdentifier"]: r["Weight"] for r in strict.holds(zone_id, name, "A")} == {"west": 0, "east": 100}
        assert (await zone.served(east)).fits((await zone.ask(zone.servers()[0], name, "A")).rrset.values)
        # a weight that somebody else moved is a difference
        now = await zone.read(name, "A")
        strict.by_hand(
            zone_id,
            ("DELETE", a(name, WEST, SetIdentifier="west", Weight=0)),
            ("CREATE", a(name, WEST, SetIdentifier="west", Weight=7)),
        )
        with pytest.raises(LostCompare, match="weight=7"):
            await zone.swap(now, old.rrset, 4)

    with_zone(body)


def test_failover_changes_roles(strict, zone_id, with_zone):
    name = "either.venue.test."

    async def body(zone):
        west, east = (zone.wanted(name, "A", s) for s in ("west", "east"))
        await zone.swap(await zone.read(name, "A"), west, 1)
        await zone.swap(await zone.read(name, "A"), east, 2)
        await zone.in_sync(name, 60)
        roles = {r["SetIdentifier"]: r["Failover"] for r in strict.holds(zone_id, name, "A")}
        assert roles == {"west": "SECONDARY", "east": "PRIMARY"}
        assert (await zone.read(name, "A")).rrset == east
        strict.unhealthy = {"hc-e"}
        answer = (await zone.ask(zone.servers()[0], name, "A")).rrset.values
        assert answer == (WEST,)
        assert not (await zone.served(east)).fits(answer), "its own failover took it away from where it was pointed"

    with_zone(body)


def test_an_alias_is_probed_and_verified_by_what_is_behind_it(strict, zone_id, with_zone):
    name = "lb.venue.test."

    async def body(zone):
        west, east = (zone.wanted(name, "A", s) for s in ("west", "east"))
        assert east.values == (f"alias {LB_ZONE} east.elb.test. evaluate",)
        assert east.targets == ("east.elb.test.",)
        await zone.swap(await zone.read(name, "A"), west, 1)
        await zone.swap(await zone.read(name, "A"), east, 2)
        await zone.in_sync(name, 60)
        served = await zone.served(east)
        assert served.part
        assert served.ttl is None
        assert served.fits((await zone.ask(zone.servers()[1], name, "A")).rrset.values)
        assert not served.fits((WEST,))
        target = {"HostedZoneId": LB_ZONE, "DNSName": "east.elb.test.", "EvaluateTargetHealth": True}
        assert strict.holds(zone_id, name, "A") == [{"Name": name, "Type": "A", "AliasTarget": target}]

    with_zone(body)


def test_cname_in_any_spelling_is_deleted_as_it_is_spelled(strict, zone_id, with_zone):
    name = "www.venue.test."
    cname = {"Name": name, "Type": "CNAME", "TTL": 2, "ResourceRecords": [{"Value": "West.CDN.test"}]}
    strict.by_hand(zone_id, ("CREATE", cname))

    async def body(zone):
        old = await zone.read(name, "CNAME")
        assert old.rrset == zone.wanted(name, "CNAME", "west")
        await zone.swap(old, zone.wanted(name, "CNAME", "east"), 1)
        assert strict.holds(zone_id, name, "CNAME")[0]["ResourceRecords"] == [{"Value": "east.cdn.test."}]

    with_zone(body)


def test_routing_that_could_not_be_put_back_is_left_alone(strict, zone_id, with_zone):
    strict.by_hand(zone_id, ("CREATE", a("new.venue.test.", WEST, SetIdentifier="x", Region="eu-west-1")))

    async def body(zone):
        old = await zone.read("new.venue.test.", "A")
        with pytest.raises(Rejected, match=r"Region=eu-west-1, which relight does not know"):
            await zone.swap(old, zone.wanted("new.venue.test.", "A", "east"), 1)

    with_zone(body)


def test_an_epoch_record_of_somebody_else_is_never_overwritten(strict, zone_id, with_zone):
    text = {"Name": "_relight." + NAME, "Type": "TXT", "TTL": 2, "ResourceRecords": [{"Value": '"owner=terraform"'}]}
    strict.by_hand(zone_id, ("CREATE", text))

    async def body(zone):
        with pytest.raises(Rejected, match="was not written by relight"):
            await zone.read(NAME, "A")

    with_zone(body)


def test_batches_above_the_limits_are_never_sent(strict, with_zone):
    async def body(zone):
        many = RRset(NAME, "A", 2, tuple(f"10.0.{n // 256}.{n % 256}" for n in range(1000)))
        with pytest.raises(BadInput, match="takes 1002 records"):
            await zone.swap(await zone.read(NAME, "A"), many, 1)
        assert "ChangeResourceRecordSets" not in strict.front.operations()

    with_zone(body)


def test_another_zone_behind_the_id_is_refused(strict, zone_id, with_zone):
    async def body(zone):
        with pytest.raises(Rejected, match=r"is venue\.test\., and the system file calls it other\.test\."):
            await zone.read("app.other.test.", "A")

    with_zone(body, zone="other.test.", names={"app.other.test.": NAMES[NAME]})


def test_access_warns_of_the_control_plane_and_changes_nothing(strict, zone_id, with_zone):
    async def body(zone):
        access = await zone.check_access(NAME, "A")
        assert access.primary == "route53 (us-east-1)"
        assert "control plane: route53 (us-east-1)" in access.warnings[0]
        assert "accelerated recovery is not reported" in access.warnings[1]
        assert abs(access.skew_s) < 30
        ready = await actions.Ready.model_validate({"name": NAME}).observe(context(zone))
        assert ready.holds, ready.summary
        strict.front.order("ChangeResourceRecordSets", "AccessDenied")
        with pytest.raises(Rejected, match=r"not allowed.*deployments/iam"):
            await zone.check_access(NAME, "A")

    before = strict.holds(zone_id, NAME, "A")
    with_zone(body)
    assert strict.holds(zone_id, NAME, "A") == before


def test_accelerated_recovery_and_other_name_servers(strict, zone_id, with_zone):
    def hosted_zone(_params):
        zone = {"Id": zone_id, "Name": ZONE, "CallerReference": "x", "Config": {"PrivateZone": False}}
        features = {"AcceleratedRecoveryStatus": "ENABLED"}
        return {"HostedZone": {**zone, "Features": features}, "DelegationSet": {"NameServers": ["ns-1.awsdns.test"]}}

    async def body(zone):
        control, other = (await zone.check_access(NAME, "A")).warnings
        assert "control plane" in control
        assert "ns-9.awsdns.test. is not among the zone's name servers (ns-1.awsdns.test.)" in other

    strict.front.handlers["GetHostedZone"] = hosted_zone
    try:
        with_zone(body, servers=["ns-9.awsdns.test:53", strict.servers[0]])
    finally:
        del strict.front.handlers["GetHostedZone"]


def test_point_verify_and_undo_of_an_alias(strict, zone_id, with_zone):
    name, ports = "lb.venue.test.", 5381

    async def body(zone):
        await zone.swap(await zone.read(name, "A"), zone.wanted(name, "A", "west"), 1)
        await zone.in_sync(name, 60)
        point = actions.Point.model_validate({"name": name, "site": "target", "probe": f"tcp:{ports}"})
        ctx = context(zone, 2)
        seen = await point.observe(ctx)
        assert seen.facts["control_plane"] == "route53 (us-east-1)"
        assert [c["Action"] for c in json.loads(seen.facts["inverse"][0])["Changes"]] == ["DELETE", "CREATE"]
        with pytest.raises(UnhealthyTarget, match=r"east\.elb\.test"):
            await point.apply(ctx, seen)
        point = _Trusting.model_validate({"name": name, "site": "target", "probe": f"tcp:{ports}"})
        facts = seen.facts | await point.apply(ctx, seen)
        assert (await point.confirm(ctx)).holds
        done = Done("point", "zones.point", "done", facts)
        verify = actions.Verify.model_validate({"name": name, "site": "target", "within": "60s", "wait_out_ttl": False})
        assert (await verify.confirm(context(zone, 2, earlier=(done,)))).holds
        await point.undo(ctx, facts)
        assert (await zone.read(name, "A")).rrset == zone.wanted(name, "A", "west")

    with_zone(body)


class _Trusting(actions.Point):
    """The probe needs a resolver of this machine, which knows nothing of the test's names."""

    async def _need_healthy(self, ctx, rrset):
        return list(rrset.targets)


def test_point_refuses_other_controllers_unless_it_was_taken_from_them(strict, zone_id, with_zone):
    mark = '"heritage=external-dns,external-dns/owner=cluster"'
    txt = {"Name": "a-" + NAME, "Type": "TXT", "TTL": 2, "ResourceRecords": [{"Value": mark}]}
    strict.by_hand(zone_id, ("CREATE", txt))
    owner = {"Name": "_owner.a." + NAME, "Type": "TXT", "TTL": 2, "ResourceRecords": [{"Value": '"octodns"'}]}

    async def body(zone):
        point = {"name": NAME, "site": "target", "probe": "tcp:80"}
        with pytest.raises(SafetyRefusal, match=r"external-dns.*taken_from: \[external-dns\]"):
            await actions.Point.model_validate(point).observe(context(zone))
        taken = actions.Point.model_validate({**point, "taken_from": ["external-dns"]})
        assert "external-dns" in (await taken.observe(context(zone))).facts["warnings"][0]
        strict.by_hand(zone_id, ("CREATE", owner))
        with pytest.raises(SafetyRefusal, match="octoDNS"):
            await taken.observe(context(zone))

    with_zone(body)


def test_one_look_of_point_takes_few_requests(strict, with_zone):
    async def body(zone):
        calls = []
        token = HEARD.set(calls.append)
        await actions.Point.model_validate({"name": NAME, "site": "target", "probe": "tcp:80"}).observe(context(zone))
        HEARD.reset(token)
        assert len(calls) <= 7, [c.operation for c in calls]
        assert {c.region for c in calls} == {"us-east-1"}

    with_zone(body)


def test_a_move_takes_no_more_requests_than_readiness_counts_with(strict, with_zone):
    async def body(zone):
        ctx, calls = context(zone), []
        point = _Trusting.model_validate({"name": NAME, "site": "target", "probe": "tcp:80"})
        token = HEARD.set(calls.append)
        await point.apply(ctx, await point.observe(ctx))
        assert (await point.confirm(ctx)).holds
        HEARD.reset(token)
        assert REQUESTS / 2 <= len(calls) <= REQUESTS, [c.operation for c in calls]
        assert zone.pace() == Pace(len(NAMES) * REQUESTS, 1000.0)

    with_zone(body)


def test_over_a_thousand_record_sets_at_one_name(strict, zone_id, with_zone):
    strict.page = 100
    name = "shared.venue.test."
    many = [("CREATE", a(name, WEST, SetIdentifier=f"id {n:04}", Weight=n % 200)) for n in range(1003)]
    for n in range(0, len(many), 500):
        strict.by_hand(zone_id, *many[n : n + 500])

    async def body(zone):
        found = (await zone.read(name, "A")).rrset
        assert len(found.values) == 1003
        assert routing.members(found.values, 2)[0].identifier == "id 0000"
        assert strict.front.operations().count("ListResourceRecordSets") == 12
        assert replace(found) == found

    with_zone(body)


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
