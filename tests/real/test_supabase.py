"""Supabase's Management API against a server that checks the documented schemas; its database is real PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import pytest
from cloud_story import Run
from pg_cluster import PORT, Cluster
from supabase_server import ORGANIZATION, REF, TOKEN, supabase

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database.actions import Fence, Limit, Promote, Rejoin, Restart, Restore
from tasks.database.protocol import Database, Limited, Operated, Restartable, Restorable
from tasks.database.supabase import PROVIDER
from tasks.errors import (
    BadInput,
    EffectUnknown,
    LossAboveBudget,
    NotFenced,
    NotYet,
    Rejected,
    SafetyRefusal,
    Unreachable,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


class Venue:
    def __init__(self, server, cluster):
        self.server, self.cluster = server, cluster

    def settings(self, **more):
        west, east = ({"address": f"127.0.8.{n}:{PORT}"} for n in (31, 41))
        return {
            "project": REF,
            "name": "venue",
            "organization": ORGANIZATION,
            "token": "env:SUPABASE_TOKEN",
            "api": self.server.url,
            "primary": "main",
            "user": "relight",
            "password": f"file:{self.cluster.folder}/relight",
            "sslmode": "disable",
            "connect_timeout": "5s",
            "query_timeout": "15s",
            "stale_after": "10s",
            "timeout": "20s",
            "poll": "200ms",
            "patience": "2s",
            "build_timeout": "90s",
            "nodes": {
                "main": {"site": "west", "region": "eu-west-1", "from": {"east": f"127.0.8.131:{PORT}"}, **west},
                "east": {"site": "east", "region": "eu-central-1", **east},
            },
            **more,
        }

    def play(self, story, **more):
        async def main():
            around = Surroundings("venue", "database", ("west", "east"), LoopClock(), {}.__getitem__)
            db = PROVIDER(PROVIDER.Settings.model_validate(self.settings(**more)), around)
            try:
                await story(db)
            finally:
                await db.aclose()

        asyncio.run(main())

    def asked(self, path):
        return [given for _, p, given in self.server.heard if p == path]


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as found:
        (found.folder / "relight").write_text("relight-secret\n")
        with found.admin("west-pg1") as admin:
            admin.execute("ALTER DATABASE postgres OWNER TO relight")  # as it is at Supabase
        yield found


@pytest.fixture
def venue(cluster, monkeypatch):
    monkeypatch.setenv("SUPABASE_TOKEN", TOKEN)
    with supabase() as server:
        yield Venue(server, cluster)


def test_a_replica_is_set_up_removed_when_broken_and_followed(venue):
    venue.server.others = 250  # two pages come before ours

    async def story(db):
        assert all(isinstance(db, p) for p in (Database, Limited, Restorable, Restartable))
        assert not isinstance(db, Operated)
        assert await db.rejoin("east", "main") == "set up anew"
        assert await db.rejoin("east", "main") == "it followed already"
        venue.server.databases[0]["status"] = "INIT_FAILED"
        assert await db.rejoin("east", "main") == "set up anew"
        assert venue.asked("/read-replicas/remove") == [{"database_identifier": f"{REF}-rr-eu-central-1"}]
        assert len(venue.asked("/read-replicas/setup")) == 2
        assert (await Run(db).step(Rejoin(site="east")))["outcome"] == "already"
        await db.remove("east")
        assert not venue.server.databases
        with pytest.raises(Rejected, match="can only follow main"):
            await db.follow("main", "east")

    venue.play(story)


def test_a_promotion_is_refused_in_the_plan_with_what_to_do(venue):
    async def story(db):
        with pytest.raises(SafetyRefusal, match=r"lets nobody promote a read replica.*database\.restore"):
            await Promote(site="target").observe(Run(db).context(5))
        with pytest.raises(Rejected, match="cannot be promoted"):
            await db.promote("east")

    venue.play(story)


def test_fenced_by_sql_and_back(venue):
    async def story(db):
        run = Run(db)
        facts = await run.step(Fence(site="failed"))
        assert {p["outcome"] for p in facts["proofs"]["main"]["probes"]} == {"refused"}
        await Fence(site="failed").undo(run.context(60), facts["before"])
        assert (await db.try_write("main", "direct")).outcome == "accepted"

    async def another(db):
        with pytest.raises(Rejected, match="is named 'venue', expected 'other'"):
            await db.fence("main", orderly=False)
        assert (await db.try_write("main", "direct")).outcome == "accepted"

    venue.play(story)
    venue.play(another, name="other")


def test_restore_to_a_point_in_time(venue):
    """Refused above the budget and while it takes writes; a lost answer is found again by the new timeline."""

    def new_timeline(_unix):
        venue.cluster.command("stop", "west-pg1")
        (venue.cluster._data("west-pg1") / "standby.signal").touch()
        venue.cluster._own(venue.cluster._data("west-pg1") / "standby.signal", 0o600)
        venue.cluster.command("start", "west-pg1")
        with venue.cluster.admin("west-pg1") as admin:
            admin.execute("SELECT pg_promote(true)")

    venue.server.on_restore = new_timeline

    async def story(db):
        strict = Run(db)
        with pytest.raises(LossAboveBudget, match="may be lost"):
            await strict.step(Restore())
        run = Run(db, rpo_s={"database": 300.0})
        with pytest.raises(NotFenced, match="takes writes that a restore would lose"):
            await run.step(Restore())
        await run.step(Fence(site="failed"))
        with pytest.raises(Rejected, match="outside of what is kept"):
            await Run(db, waivers={"loss": "x"}).step(Restore(to=datetime.now(UTC) - timedelta(days=30)))
        before = (await db.view("main")).timeline
        venue.server.faults.extend(["", "", "", "lost"])  # backups; then project, backups, and the restore itself
        facts = await run.step(Restore(), attempts=200)
        assert run.tried
        assert facts["timeline"] == before + 1
        assert len(venue.asked("/database/backups/restore-pitr")) == 1

    venue.play(story)


def test_without_point_in_time_recovery_there_is_nothing_to_go_back_to(venue):
    venue.server.pitr = False

    async def story(db):
        with pytest.raises(Rejected, match="newest complete backup is of 2026-11-25 03:00"):
            await Run(db).step(Restore())
        with pytest.raises(Rejected, match="no point-in-time recovery"):
            await db.restore(datetime.now(UTC))

    venue.play(story)


def test_pooler_networks_bans_health_restart(venue):
    venue.server.banned = ["192.0.2.1", "192.0.2.2"]

    def restart():
        venue.cluster.command("stop", "west-pg1")
        venue.cluster.command("start", "west-pg1")

    venue.server.on_restart = restart

    async def story(db):
        assert await db.api.health() == {"db": "ACTIVE_HEALTHY", "pooler": "ACTIVE_HEALTHY"}
        await db.api.set_pool_size(100)
        assert (await db.api.pooler())["default_pool_size"] == 100
        assert await db.api.bans() == ("192.0.2.1", "192.0.2.2")
        await db.api.unban(("192.0.2.1",))
        assert await db.api.bans() == ("192.0.2.2",)
        await db.api.admit(("198.51.100.0/24", "2001:db8::/32"))
        assert await db.api.admitted() == ("198.51.100.0/24", "2001:db8::/32")
        run = Run(db)
        assert (await run.step(Restart(site="west")))["outcome"] == "done"
        assert (await run.step(Restart(site="west")))["outcome"] == "already"

    venue.play(story)


def test_the_pool_has_the_size_of_the_plan_or_nothing_is_changed(venue):
    server, path = venue.server, "/config/database/pooler"
    room = int(venue.cluster.query("west-pg1", "SHOW max_connections")[0][0]) - 3

    def limit(maximum, site="west"):
        return Limit(site=site, minimum=20, maximum=maximum, pooler="database")

    def told():
        return [given for given in venue.asked(path) if given]

    async def story(db):
        run = Run(db)
        seen = await limit(30).observe(run.context(60))
        assert seen.changes == (
            "the pooler of west keeps up to 15 server connections, 15 a user → up to 30, 30 a user",
        )
        assert told() == []
        for maximum, error, says in (
            (4000, BadInput, "Supabase takes 1 to 3000"),
            (room + 1, Rejected, f"more than the {room} that main takes"),
        ):
            with pytest.raises(error, match=says):
                await run.step(limit(maximum))
        with pytest.raises(Rejected, match="no replica in east"):
            await run.step(limit(30, "east"))
        server.databases.append({"identifier": "rr", "region": "eu-central-1", "type": "READ_REPLICA", "status": "x"})
        with pytest.raises(Rejected, match="of the project's own database, which is in west"):
            await run.step(limit(30, "east"))
        assert (await db.pool_limits("east")).size == 15
        server.name = "somebody else's"
        with pytest.raises(Rejected, match="nothing was changed"):
            await run.step(limit(30))
        server.name = "venue"
        server.faults.extend(["", "", "403"])  # the look, the name, the change
        with pytest.raises(Rejected, match=r"PATCH .* is not allowed, HTTP 403 .*look at the token"):
            await run.step(limit(30))
        assert (told(), server.pool_size) == ([], 15)
        server.frozen = True
        ctx = run.context(60)
        await limit(30).apply(ctx, await limit(30).observe(ctx))
        assert not (await limit(30).confirm(ctx)).holds, "read back, and not believed"
        assert server.pool_size == 15
        server.frozen = False
        server.faults.extend(["", "", "lost"])
        with pytest.raises(EffectUnknown):
            await run.step(limit(30))
        assert (await run.step(limit(30)))["outcome"] == "already", "what was lost is looked at"
        assert (await run.step(limit(35)))["maximum"] == 35
        assert told() == [{"default_pool_size": n} for n in (30, 30, 35)]

    venue.play(story)


def test_limits_faults_and_a_wrong_token(venue, monkeypatch):
    async def story(db):
        began = asyncio.get_running_loop().time()
        venue.server.faults.extend(["429"])
        with pytest.raises(NotYet, match="limit is reached"):
            await db.api.project()
        heard = len(venue.server.heard)
        await db.api.project()  # waited for what Retry-After said
        assert asyncio.get_running_loop().time() - began > 0.8
        assert len(venue.server.heard) == heard + 1
        for fault in ("503", "dropped"):
            venue.server.faults.append(fault)
            with pytest.raises(Unreachable):
                await db.api.project()
            venue.server.faults.append(fault)
            with pytest.raises(EffectUnknown):
                await db.api.set_up_replica("eu-central-1")
        assert not venue.server.databases
        monkeypatch.setenv("SUPABASE_TOKEN", "wrong")
        with pytest.raises(Rejected, match=r"not allowed, HTTP 401 .*look at the token"):
            await db.api.project()

    async def impatient(db):
        monkeypatch.setenv("SUPABASE_TOKEN", TOKEN)
        venue.server.faults.append("429")
        venue.server.retry_s = 60
        with pytest.raises(NotYet):
            await db.api.project()
        heard = len(venue.server.times)
        with pytest.raises(NotYet, match="asked to wait"):
            await db.api.project()
        assert len(venue.server.times) == heard  # nothing was sent

    async def nobody(db):
        with pytest.raises(Unreachable, match="no connection"):
            await db.api.set_up_replica("eu-central-1")

    venue.play(story)
    venue.play(impatient, patience="100ms")
    venue.play(nobody, api="http://127.0.0.1:9")


def test_a_dead_primary_is_not_fenced_since_supabase_starts_it_again(venue):
    venue.cluster.command("kill", "west-pg1")

    async def story(db):
        assert (await db.try_write("main", "direct")).outcome == "silent"
        with pytest.raises(NotFenced):
            await Run(db).step(Fence(site="failed"))

    try:
        venue.play(story)
    finally:
        venue.cluster.command("start", "west-pg1")


def test_a_hung_primary_is_not_fenced_by_its_silence(venue):
    venue.cluster.signal("west-pg1", signal.SIGSTOP)

    async def story(db):
        with pytest.raises(NotFenced):
            await Run(db).step(Fence(site="failed"))

    try:
        venue.play(story, query_timeout="500ms", connect_timeout="500ms")
    finally:
        venue.cluster.signal("west-pg1", signal.SIGCONT)
