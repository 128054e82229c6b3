"""The S3 provider and the storage actions against two real S3 servers (moto), one a site."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import boto3
import iam
import pytest
import strict
from aws_conformance import Refused, front
from hanging import hang

from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import (
    BadInput,
    Contradiction,
    EffectUnknown,
    LeaseHeld,
    LossAboveBudget,
    MissingSecret,
    NotYet,
    Rejected,
    SafetyRefusal,
    Unreachable,
)
from tasks.storage import access_point
from tasks.storage.actions import CopyFrom, CopyIsWhole, RouteTo, TakeOver
from tasks.storage.s3 import MARK, PROVIDER
from tasks.storage.twin import RoutedTwin
from tasks.world import World

pytestmark = pytest.mark.real
PROVIDER_NAME = "storage.s3"

ADDRESSES = {"west": "127.0.6.80", "east": "127.0.6.81"}
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class Store:
    """A real S3 server process with one bucket."""

    def __init__(self, site: str, folder: Path) -> None:
        binary = shutil.which("moto_server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if binary is None:
            reason = "moto_server is not installed (pip install 'moto[server]')"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        self.site, self.address, self.bucket = site, ADDRESSES[site], f"venue-{site}"
        with (folder / f"{site}.log").open("wb") as log:
            self.process = subprocess.Popen([binary, "-H", self.address, "-p", "9000"], stdout=log, stderr=log)
        self.s3 = boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://{self.address}:9000",
            region_name="us-east-1",
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 90
        while True:
            with socket.socket() as s:
                if s.connect_ex((self.address, 9000)) == 0:
                    return
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def put(self, key: str, body: str = "x") -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body.encode())

    def keys(self) -> list[str]:
        return [o["Key"] for o in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())]

    def tag(self, **tags: str) -> None:
        pairs = [{"Key": k.replace("_", "-"), "Value": v} for k, v in tags.items()]
        self.s3.put_bucket_tagging(Bucket=self.bucket, Tagging={"TagSet": pairs})

    def tags(self) -> dict[str, str]:
        return {t["Key"]: t["Value"] for t in self.s3.get_bucket_tagging(Bucket=self.bucket)["TagSet"]}

    def empty(self) -> None:
        existing = {b["Name"] for b in self.s3.list_buckets()["Buckets"]}
        if self.bucket in existing:
            while keys := self.keys():
                self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": k} for k in keys]})
            self.s3.delete_bucket(Bucket=self.bucket)
        self.s3.create_bucket(Bucket=self.bucket)
        self.s3.delete_bucket_tagging(Bucket=self.bucket)  # this server keeps them beyond the bucket

    def hang(self) -> None:
        hang(self.process.pid)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    stores = {site: Store(site, folder) for site in ADDRESSES}
    for store in stores.values():
        store.wait()
    yield stores
    for store in stores.values():
        store.s3.close()
        store.process.kill()
        store.process.wait(60)


@pytest.fixture
def stores(servers, tmp_path, monkeypatch):
    (tmp_path / "access").write_text("k\n")
    (tmp_path / "secret").write_text("s3cr3t-value\n")
    monkeypatch.setenv("KEYS", str(tmp_path))
    for store in servers.values():
        store.empty()
    servers["east"].tag(relight_source="west", owner="venue")
    return servers


def provider(**more: object):
    sites = {s: {"endpoint": f"http://{a}:9000", "bucket": f"venue-{s}"} for s, a in ADDRESSES.items()}
    keys = {"access_key": "file:$KEYS/access", "secret_key": "file:$KEYS/secret"}
    settings = PROVIDER.Settings.model_validate({"timeout": "20s", **keys, "sites": sites, **more})
    return PROVIDER(settings, SimpleNamespace(component="storage"))


def context(storage, *, mode="forced", waivers=None, rpo_s=60.0, guard=lambda: None, incident=NOW, active=None):
    clock = LoopClock()
    run = RunInfo("r1", "t", "failover", mode, 1, incident.isoformat(), waivers or {})
    roles = {"west": "west", "east": "east", "failed": "west", "target": "east"} | (
        {"active": active} if active else {}
    )
    rpo = {} if rpo_s is None else {"storage": rpo_s}
    return Context(run, clock, roles, {"storage": storage}.__getitem__, clock.monotonic() + 90, rpo, guard=guard)


async def run(ctx, step):
    seen = await step.observe(ctx)
    facts = await step.apply(ctx, seen)
    return seen, facts, await step.confirm(ctx)


def with_storage(test, **more):
    async def main():
        storage = provider(**more)
        try:
            await test(storage)
        finally:
            await storage.aclose()

    asyncio.run(main())


def test_view_counts_over_a_thousand_objects_without_its_own(stores):
    west = stores["west"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: west.put(f"o{n:04}", "ab"), range(1003)))
    west.put("relight-probe/left-over")
    west.put(f"{MARK}east", "2026-01-01T11:59:00+00:00\n")

    async def test(storage):
        found = await storage.view("west")
        assert (found.objects, found.bytes) == (1003, 2006)
        assert datetime.fromisoformat(found.newest).tzinfo is not None
        assert found.copied == {"east": "2026-01-01T11:59:00+00:00"}

    with_storage(test)


def test_probe_leaves_nothing_and_source_keeps_other_tags(stores):
    async def test(storage):
        await storage.probe("east", "nonce")
        assert stores["east"].keys() == []
        assert await storage.source("east") == "west"
        assert await storage.source("west") is None
        for _ in range(2):
            await storage.set_source("east", None)
        assert stores["east"].tags() == {"owner": "venue"}
        await storage.set_source("west", "east")
        await storage.set_source("west", None)
        assert await storage.source("west") is None
        with pytest.raises(BadInput, match="from itself"):
            await storage.set_source("west", "west")

    with_storage(test)


def test_take_over_stops_copying_probes_and_undo_sets_back(stores):
    for store in stores.values():
        store.put("poster.png")

    async def test(storage):
        ctx = context(storage)
        step = TakeOver()
        seen = await step.observe(ctx)
        assert not seen.holds
        assert seen.changes[0] == "stop copying from west into the bucket of east"
        assert stores["east"].tags()["relight-source"] == "west", "observe changed something"
        seen, facts, after = await run(ctx, step)
        assert after.holds
        assert facts["rpo"] | {"basis": ""} == {
            "objects_behind": 0,
            "bound_s": 0.0,
            "basis": "",
            "allowed_s": 60.0,
            "met": True,
            "waived": None,
        }
        assert stores["east"].tags() == {"owner": "venue"}
        assert stores["east"].keys() == ["poster.png"]
        assert (await step.observe(ctx)).holds
        await step.undo(ctx, seen.facts)
        assert stores["east"].tags() == {"owner": "venue", "relight-source": "west"}

    with_storage(test)


def test_dark_source_is_bounded_by_the_mark_and_refused_above_the_budget(stores):
    stores["east"].put("poster.png")
    stores["east"].put(f"{MARK}west", NOW.isoformat())
    stores["west"].hang()

    async def test(storage):
        late = context(storage, incident=NOW + timedelta(seconds=90))
        step = TakeOver()
        seen = await step.observe(late)
        with pytest.raises(LossAboveBudget, match=r"at most 90\.0 s .*west is silent.* allowed are 1m"):
            await step.apply(late, seen)
        assert stores["east"].tags()["relight-source"] == "west", "refused, yet changed"
        waived = context(storage, incident=NOW + timedelta(seconds=90), waivers={"loss": "kim: site is gone"})
        facts = await step.apply(waived, seen)
        assert facts["rpo"]["met"] is False
        assert facts["rpo"]["objects_behind"] is None
        assert facts["rpo"]["waived"] == "kim: site is gone"
        await storage.set_source("east", "west")
        seen, facts, after = await run(context(storage, incident=NOW + timedelta(seconds=30)), step)
        assert (facts["rpo"]["bound_s"], facts["rpo"]["met"], after.holds) == (30.0, True, True)

    try:
        with_storage(test, timeout="1s")
    finally:
        stores["west"].go_on()


def test_graceful_waits_for_the_copier(stores):
    stores["west"].put("poster.png")

    async def test(storage):
        ctx = context(storage, mode="graceful")
        step = TakeOver()
        seen = await step.observe(ctx)
        assert seen.facts["rpo"]["objects_behind"] == 1
        applying = asyncio.create_task(step.apply(ctx, seen))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(applying), 0.4)
        assert stores["east"].tags()["relight-source"] == "west"
        stores["east"].put("poster.png")
        assert (await applying)["rpo"]["objects_behind"] == 0

    with_storage(test)


def test_forced_waits_only_as_long_as_it_was_told(stores):
    stores["west"].put("poster.png")
    stores["east"].put(f"{MARK}west", datetime.now(UTC).isoformat())

    async def test(storage):
        step = TakeOver(catch_up="300ms")
        ctx = context(storage)
        facts = await step.apply(ctx, await step.observe(ctx))
        assert facts["rpo"]["objects_behind"] == 1
        assert facts["rpo"]["met"]

    with_storage(test)


def test_wrong_direction_guard_and_same_site(stores):
    def held():
        raise LeaseHeld("epoch moved")

    async def test(storage):
        ctx = context(storage, guard=held)
        with pytest.raises(LeaseHeld):
            await TakeOver().apply(ctx, await TakeOver().observe(ctx))
        assert stores["east"].tags()["relight-source"] == "west"
        with pytest.raises(BadInput, match="both east"):
            await TakeOver(site="east", source="east").observe(ctx)
        stores["west"].tag(relight_source="north")
        step = TakeOver(site="west", source="east")
        seen = await step.observe(ctx)
        with pytest.raises(Contradiction, match="copied from north, not from east"):
            await step.apply(context(storage), seen)

    with_storage(test)


def test_copy_from_refuses_the_active_site_and_a_loop(stores):
    async def test(storage):
        step = CopyFrom(site="west", source="east")
        ctx = context(storage, active="east")
        with pytest.raises(SafetyRefusal, match="bucket of east is itself copied from west"):
            await step.apply(ctx, await step.observe(ctx))
        await storage.set_source("east", None)
        with pytest.raises(SafetyRefusal, match="west is the active site"):
            await step.apply(context(storage, active="west"), await step.observe(ctx))
        seen, _, after = await run(ctx, step)
        assert after.holds
        assert stores["west"].tags() == {"relight-source": "east"}
        await step.undo(ctx, seen.facts)
        assert await storage.source("west") is None

    with_storage(test)


def test_errors_name_the_bucket_and_never_the_key(stores, tmp_path):
    async def test(storage):
        with pytest.raises(Rejected, match=r"bucket nowhere-at-all of east: listing was refused: NoSuchBucket"):
            await storage.view("east")
        with pytest.raises(Unreachable, match="bucket venue-west of west: no connection for listing"):
            await storage.view("west")
        (tmp_path / "secret").unlink()
        with pytest.raises(MissingSecret) as e:
            await storage.view("east")
        assert "s3cr3t-value" not in str(e.value)

    sites = {
        "west": {"endpoint": "http://127.0.6.82:9000", "bucket": "venue-west"},
        "east": {"endpoint": "http://127.0.6.81:9000", "bucket": "nowhere-at-all"},
    }
    with_storage(test, sites=sites)


def test_hung_store_is_bounded_and_a_lost_reply_is_unknown(stores):
    async def test(storage):
        await storage.source("east")
        storage._tags = lambda _site: asyncio.sleep(0, {"relight-source": "west"})
        stores["east"].hang()
        began = time.monotonic()
        with pytest.raises(Unreachable, match="no answer to listing"):
            await storage.view("east")
        with pytest.raises(EffectUnknown, match="no answer to tagging"):
            await storage.set_source("east", None)
        assert time.monotonic() - began < 20

    try:
        with_storage(test, timeout="1s")
    finally:
        stores["east"].go_on()


# ---- buckets of AWS itself: marked, versioned, replicated by the store ----

REGIONS = {"west": "eu-west-1", "east": "eu-central-1"}


class Replicas:
    """Two buckets on the strict server; what S3 copies, the test puts there."""

    def __init__(self, server) -> None:
        self.server = server
        self.s3 = {s: server.client("s3", r) for s, r in REGIONS.items()}

    def build(self) -> None:
        self.server.reset()
        for site, region in REGIONS.items():
            where = {"Bucket": f"venue-{site}"}
            self.s3[site].create_bucket(**where, CreateBucketConfiguration={"LocationConstraint": region})
            self.tag(site, "relight:system", "venue")
            self.s3[site].put_bucket_versioning(**where, VersioningConfiguration={"Status": "Enabled"})
        self.rule()

    def tag(self, site: str, key: str, value: str) -> None:
        tags = {"TagSet": [{"Key": key, "Value": value}]}
        self.s3[site].put_bucket_tagging(Bucket=f"venue-{site}", Tagging=tags)

    def rule(self, prefix: str = "", status: str = "Enabled") -> None:
        time = {"Status": "Enabled", "Time": {"Minutes": 15}}
        rule = {
            "ID": "all",
            "Priority": 1,
            "Status": status,
            "Filter": {"Prefix": prefix},
            "DeleteMarkerReplication": {"Status": "Enabled"},
            "Destination": {"Bucket": "arn:aws:s3:::venue-east", "ReplicationTime": time},
        }
        self.s3["west"].put_bucket_replication(
            Bucket="venue-west",
            ReplicationConfiguration={"Role": "arn:aws:iam::123456789012:role/copier", "Rules": [rule]},
        )

    def put(self, key: str, *sites: str, body: str = "x") -> None:
        for site in sites or REGIONS:
            self.s3[site].put_object(Bucket=f"venue-{site}", Key=key, Body=body.encode())

    def late(self, seconds: float, at: datetime) -> None:
        names = (("SourceBucket", "venue-west"), ("DestinationBucket", "venue-east"), ("RuleId", "all"))
        point = {
            "MetricName": "ReplicationLatency",
            "Dimensions": [{"Name": n, "Value": v} for n, v in names],
            "Timestamp": at,
            "Value": seconds,
        }
        watch = self.server.client("cloudwatch", REGIONS["east"])
        watch.put_metric_data(Namespace="AWS/S3", MetricData=[point])

    def play(self, test) -> None:
        sites = {s: {"bucket": f"venue-{s}", "region": r} for s, r in REGIONS.items()}
        strict.with_provider(PROVIDER, {"timeout": "30s", "sites": sites}, "storage", test)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("copies")) as server:
        yield Replicas(server)


@pytest.fixture
def replicas(cloud):
    cloud.build()
    return cloud


def test_a_bucket_without_the_mark_is_never_changed(replicas):
    async def test(storage):
        await storage.set_source("east", "west")
        for value in ("another", ""):
            replicas.tag("east", "relight:system" if value else "owner", value or "venue")
            with pytest.raises(SafetyRefusal, match=r"venue-east of east is not marked as a part of system venue"):
                await storage.set_source("east", "west")
            with pytest.raises(SafetyRefusal, match="not marked"):
                await storage.probe("east", "n")
            assert (await storage.view("east")).objects == 0, "looking is always allowed"
        listed = replicas.s3["east"].list_object_versions(Bucket="venue-east")
        assert not {"Versions", "DeleteMarkers"} & set(listed), "something was written"

    replicas.play(test)


def test_a_whole_copy_over_several_pages_and_what_is_not_one(replicas):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: replicas.put(f"o{n:04}"), range(123)))
    replicas.server.set(replication={"venue-west": "COMPLETED"})
    step = CopyIsWhole()

    async def test(storage):
        ctx = context(storage)
        seen, facts, _ = await run(ctx, step)
        assert seen.holds, seen.summary
        assert (facts["compared"]["objects"], facts["compared"]["sampled"]) == (123, 20)
        assert facts["replication"]["statuses"] == {"COMPLETED": 20}
        assert facts["replication"]["time_control_s"] == 900
        # Deleted at both, deleted at the target only: nothing is lost, the versions are there.
        for site in REGIONS:
            replicas.s3[site].delete_object(Bucket=f"venue-{site}", Key="o0001")
        replicas.s3["east"].delete_object(Bucket="venue-east", Key="o0002")
        replicas.put("only-here", "east")
        found = await storage.compare("east", "west", 5)
        assert (found.objects, found.missing, found.hidden, found.extra) == (122, 0, 1, 1)
        assert found.examples["hidden"] == ("o0002",)
        assert (await step.observe(ctx)).holds, "a delete marker is not data loss"
        # On its way; then of the same size with another content, found by reading it.
        replicas.put("new", "west")
        replicas.put("changed", "west", body="a")
        replicas.put("changed", "east", body="b")
        replicas.server.set(replication={"venue-west": "COMPLETED", "venue-west/new": "PENDING"})
        thorough = CopyIsWhole(read=1000)
        with pytest.raises(NotYet, match=r"1 objects are PENDING; 1 objects are missing \(new\)"):
            await thorough.apply(replicas_in(ctx, 0.0), seen)
        waiting = asyncio.create_task(step.apply(ctx, seen))
        replicas.put("new", "east")
        replicas.server.set(replication={"venue-west": "COMPLETED"})
        await waiting
        found = await storage.compare("east", "west", 1000)
        assert (found.missing, found.sampled) == (0, 123)

    replicas.play(test)


def replicas_in(ctx, seconds):
    """The same run with so much time left."""
    return Context(ctx.run, ctx.clock, ctx.roles, ctx.components, ctx.clock.monotonic() + seconds)


def test_what_waiting_does_not_mend_fails_at_once(replicas):
    for key in ("a", "b"):
        replicas.put(key)
    west = replicas.s3["west"]

    async def refused(storage, why):
        with pytest.raises(Rejected, match=why):
            await CopyIsWhole().apply(context(storage), None)
        assert not (await CopyIsWhole().observe(context(storage))).holds

    async def test(storage):
        replicas.server.set(replication={"venue-west": "COMPLETED", "venue-west/b": "FAILED"})
        await refused(storage, r"replication of 1 objects has FAILED \(b\)")
        replicas.server.set(replication={})
        replicas.rule(prefix="posters/")
        await refused(storage, "no enabled rule that copies all")
        replicas.rule(status="Disabled")
        await refused(storage, "no enabled rule that copies all")
        west.delete_bucket_replication(Bucket="venue-west")
        await refused(storage, "no enabled rule that copies all")
        for site in REGIONS:
            suspended = {"Status": "Suspended"}
            replicas.s3[site].put_bucket_versioning(Bucket=f"venue-{site}", VersioningConfiguration=suspended)
        await refused(storage, "versioning is off at east; versioning is off at west")

    replicas.play(test)


def test_content_of_the_same_size_is_compared_by_reading(replicas):
    replicas.put("poster", "west", body="before")
    replicas.put("poster", "east", body="after!")

    async def test(storage):
        assert (await storage.compare("east", "west", 0)).different == 0, "by its size alone nobody can tell"
        found = await storage.compare("east", "west", 1)
        assert (found.different, found.examples["different"]) == (1, ("poster",))

    replicas.play(test)


def test_a_dark_region_is_bounded_by_the_metric_of_the_other(replicas):
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    replicas.put("poster")
    replicas.tag("east", "relight:system", "venue")
    step = TakeOver()

    async def test(storage):
        await storage.set_source("east", "west")
        replicas.late(12.0, now - timedelta(minutes=1))
        replicas.server.set(away=[REGIONS["west"]])
        ctx = context(storage, incident=now, rpo_s=900.0)
        seen = await step.observe(ctx)
        assert seen.facts["rpo"]["bound_s"] == 72.0, "a minute, and what it was behind at its start"
        assert "the store's replication metric" in seen.facts["rpo"]["basis"]
        _, facts, after = await run(ctx, step)
        assert after.holds
        assert facts["rpo"]["met"]

    replicas.play(test)


# ---- the one name before all buckets ----

ARN = "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"


class Controls:
    """The failover controls, as the API reference has them, behind botocore's own model of the service."""

    def __init__(self, service) -> None:
        self.service, self.dials = service, {"venue-west": 100, "venue-east": 0}
        service.handlers = {
            "GetMultiRegionAccessPointRoutes": self.get,
            "SubmitMultiRegionAccessPointRoutes": self.submit,
        }

    def get(self, asked):
        assert (asked["AccountId"], asked["Mrap"]) == ("123456789012", ARN)
        where = dict(zip(("venue-west", "venue-east", "other"), (*REGIONS.values(), "us-east-2"), strict=True))
        routes = [{"Bucket": b, "Region": where[b], "TrafficDialPercentage": d} for b, d in self.dials.items()]
        return {"Mrap": ARN, "Routes": routes}

    def submit(self, asked):
        wanted = {**self.dials, **{r["Bucket"]: r["TrafficDialPercentage"] for r in asked["RouteUpdates"]}}
        if not any(wanted.values()):
            raise Refused("InvalidRequest", "at least one Region must be active")
        self.dials = wanted
        return {}


@pytest.fixture
def controls(monkeypatch):
    """The account's id is a part of the host name, so boto3 goes to it through a proxy, as behind a firewall."""
    with front("s3control") as service:
        # The user guide's own example is an ARN with a slash (*Failover controls*); the model's pattern has none.
        service.wider = tuple(f"{op}MultiRegionAccessPointRoutesRequest.Mrap is" for op in ("Get", "Submit"))
        for name, value in strict.aws.KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3_CONTROL", "http://s3-control.test")
        monkeypatch.setenv("HTTP_PROXY", service.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield Controls(service)


def routed(test, **more):
    sites = {s: {"bucket": f"venue-{s}", "region": r} for s, r in REGIONS.items()}
    strict.with_provider(access_point.PROVIDER, {"arn": ARN, "sites": sites, **more}, "access-point", test)


def led(point, **more):
    return strict.context({"access-point": point}, **more)


async def failover(told, point):
    """One story, for the provider and its twin."""
    on = {"west": True, "east": False}
    await told("at first", point.active(), dict)
    await told("nowhere", point.route(on, {"west": False, "east": False}))
    await told("not all", point.route(on, {"east": True}))
    await told("moved", point.route({"west": False, "east": True}, {"west": True, "east": True}))
    await told("over", point.route(on, {"west": False, "east": True}))
    await told("again", point.route(on, {"west": False, "east": True}))
    await told("then", point.active(), dict)


def test_the_access_point_and_its_twin_tell_the_same_story(controls):
    sites = {"sites": {s: {"bucket": f"venue-{s}", "region": r} for s, r in REGIONS.items()}, "arn": ARN}
    real = access_point.PROVIDER(access_point.AccessPointSettings.model_validate(sites), strict.around("access-point"))
    here = strict.told_by(routed, failover)
    world = lambda: World(("west", "east"))  # noqa: E731
    twin = strict.told_by(lambda test: strict.by_twin(RoutedTwin, real, world, "access-point", test), failover)
    assert here == twin
    assert dict(here)["then"] == {"west": False, "east": True}


def test_the_name_leads_to_the_target_and_back_while_control_regions_fail(controls):
    controls.service.order("GetMultiRegionAccessPointRoutes", "503", "dropped", "Throttling")
    controls.service.order("SubmitMultiRegionAccessPointRoutes", "503", "lost")

    async def test(point):
        step, ctx = RouteTo(), led(point)
        seen, _, after = await run(ctx, step)
        assert seen.changes == ("west: passive", "east: active")
        assert after.holds
        assert controls.dials == {"venue-west": 0, "venue-east": 100}
        await step.undo(ctx, seen.facts)
        assert controls.dials == {"venue-west": 100, "venue-east": 0}

    routed(test)


def test_every_control_region_down_is_said_and_a_lost_change_is_unknown(controls):
    async def test(point):
        with pytest.raises(Unreachable, match="in "):
            await point.active()
        on = {"west": True, "east": False}
        with pytest.raises(EffectUnknown):
            await point.route(on, {"west": False, "east": True})

    controls.service.order("GetMultiRegionAccessPointRoutes", "503", "503", "pass")
    controls.service.order("SubmitMultiRegionAccessPointRoutes", "lost", "503")
    routed(test, control_regions=["us-west-2", "eu-west-1"])


def test_another_bucket_behind_the_name_stops_everything(controls):
    controls.dials["other"] = 0

    async def test(point):
        with pytest.raises(Contradiction, match=r"leads to other .*Nothing is changed"):
            await RouteTo().observe(led(point))

    routed(test)

    def held():
        raise LeaseHeld("epoch moved")

    async def stale(point):
        seen = await RouteTo().observe(led(point))
        with pytest.raises(LeaseHeld):
            await RouteTo().apply(led(point, guard=held), seen)

    del controls.dials["other"]
    routed(stale)
    assert "SubmitMultiRegionAccessPointRoutes" not in controls.service.operations()


def test_the_policies_allow_exactly_these_calls():
    mine, other = (iam.HEARD[PROVIDER_NAME], {c for c in iam.HEARD[PROVIDER_NAME] if c.service == "s3control"})
    iam.HEARD["storage.access_point"] |= other
    mine -= other
    iam.check(PROVIDER_NAME)
    iam.check("storage.access_point")
