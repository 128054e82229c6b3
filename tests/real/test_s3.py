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
    Rejected,
    SafetyRefusal,
    Unreachable,
)
from tasks.storage.actions import CopyFrom, TakeOver
from tasks.storage.s3 import MARK, PROVIDER

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
        deadline = time.monotonic() + 30
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
        store.process.wait(10)


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
    settings = PROVIDER.Settings.model_validate({"timeout": "2s", **keys, "sites": sites, **more})
    return PROVIDER(settings, SimpleNamespace(component="storage"))


def context(storage, *, mode="forced", waivers=None, rpo_s=60.0, guard=lambda: None, incident=NOW, active=None):
    clock = LoopClock()
    run = RunInfo("r1", "t", "failover", mode, 1, incident.isoformat(), waivers or {})
    roles = {"west": "west", "east": "east", "failed": "west", "target": "east"} | (
        {"active": active} if active else {}
    )
    rpo = {} if rpo_s is None else {"storage": rpo_s}
    return Context(run, clock, roles, {"storage": storage}.__getitem__, clock.monotonic() + 20, rpo, guard=guard)


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
        with_storage(test, timeout="200ms")
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
        assert time.monotonic() - began < 5

    try:
        with_storage(test, timeout="200ms")
    finally:
        stores["east"].go_on()


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
