"""RDS with a cross-region read replica: moto and a service that takes its time in front, real PostgreSQL behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import iam
import psycopg
import pytest
from aws import OTHER_REGION, REGION
from aws_rds import Plant, service
from cloud_story import Run
from pg_cluster import Cluster

from tasks.capacity import readiness
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database.actions import CatchUp, Fence, Follow, Promote, ReadyToSwitch, Rejoin
from tasks.database.protocol import Database, Drained, Operated, Witnessed
from tasks.database.rds import PROVIDER
from tasks.errors import BadInput, EffectUnknown, LossAboveBudget, NotFenced, NotYet, Rejected
from tasks.network import Sockets
from tasks.quotas import Allowance
from tasks.readiness import Asked, Part

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
PROVIDER_NAME = "database.rds"

WEST, EAST = "venue-west", "venue-east"
FENCE, PROMOTE = Fence(site="failed"), Promote(site="target")


class Venue:
    """The system as it stands in two regions: settings, the service, the servers."""

    def __init__(self, aws, rds, plant, cluster):
        self.aws, self.rds, self.plant, self.cluster = aws, rds, plant, cluster
        self.groups = {}
        for region in (REGION, OTHER_REGION):
            ec2, db = aws.client("ec2", region), aws.client("rds", region)
            vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
            made = [
                ec2.create_security_group(GroupName=n, Description=n, VpcId=vpc)["GroupId"] for n in ("app", "nobody")
            ]
            rule = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
            ec2.authorize_security_group_ingress(GroupId=made[0], IpPermissions=[rule])
            self.groups[region] = made
            db.create_db_parameter_group(
                DBParameterGroupName="venue", DBParameterGroupFamily="postgres15", Description="of its own"
            )
        tags = [{"Key": "relight:system", "Value": "venue"}]
        source = aws.client("rds").create_db_instance(
            DBInstanceIdentifier=WEST,
            Engine="postgres",
            EngineVersion="15.4",
            DBInstanceClass="db.r6g.large",
            AllocatedStorage=20,
            MasterUsername="postgres",
            MasterUserPassword="password1",
            DBParameterGroupName="venue",
            VpcSecurityGroupIds=[self.groups[REGION][0]],
            BackupRetentionPeriod=7,
            Tags=tags,
        )["DBInstance"]
        aws.client("rds", OTHER_REGION).create_db_instance_read_replica(
            DBInstanceIdentifier=EAST,
            SourceDBInstanceIdentifier=source["DBInstanceArn"],
            SourceRegion=REGION,
            VpcSecurityGroupIds=[self.groups[OTHER_REGION][0]],
            DBParameterGroupName="venue",
            Tags=tags,
        )

    def settings(self, **more):
        def node(site, region, name):
            near, far = (w.address for w in self.plant.ways[name])
            quarantine = self.groups[region][1]
            other = {"west": "east", "east": "west"}[site]
            return {
                "site": site,
                "region": region,
                "instance": name,
                "address": near,
                "from": {other: far},
                "quarantine": quarantine,
            }

        return {
            "database": "postgres",
            "user": "relight",
            "password": f"file:{self.cluster.folder}/relight",
            "sslmode": "disable",
            "connect_timeout": "500ms",
            "query_timeout": "15s",
            "timeout": "20s",
            "poll": "50ms",
            "stale_after": "10s",
            "change_timeout": "60s",
            "promote_timeout": "60s",
            "build_timeout": "90s",
            "nodes": {"west": node("west", REGION, WEST), "east": node("east", OTHER_REGION, EAST)},
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

    def writes(self, node, count):
        for n in range(count):
            self.cluster.query(node, "INSERT INTO rows VALUES (%s) RETURNING n", 1000 + n)

    def shown(self, name, region):
        return self.aws.client("rds", region).describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]


@pytest.fixture
def venue(aws):
    with Cluster() as cluster, contextlib.ExitStack() as stack:
        (cluster.folder / "relight").write_text("relight-secret\n")
        plant = Plant(cluster, {WEST: "west-pg1", EAST: "east-pg1"})
        stack.callback(plant.close)
        rds = stack.enter_context(service(aws, plant))
        yield Venue(aws, rds, plant, cluster)


def test_forced_failover_and_the_way_back(venue):
    """Quarantine is the proof, a loss is only taken by name, a promotion takes its time, and the old one is kept."""
    venue.writes("west-pg1", 5)

    async def story(db):
        assert all(isinstance(db, p) for p in (Database, Witnessed, Drained))
        assert not isinstance(db, Operated)
        run = Run(db)
        facts = await run.step(ReadyToSwitch(site="target"))
        assert (facts["primary"], facts["chosen"]) == ("west", "east")
        with pytest.raises(NotFenced):
            await run.step(PROMOTE)
        facts = await run.step(FENCE)
        assert "which admits nobody, and a restart" in facts["means"]["west"]
        assert facts["proofs"]["west"]["why"].startswith("AWS in eu-west-1 says that venue-west admits nobody")
        assert (await db.try_write("west", "direct")).outcome == "silent"  # as packets that are dropped
        with pytest.raises(LossAboveBudget, match="asynchronous"):
            await run.step(PROMOTE)
        assert (await db.view("east")).in_recovery
        accepted = Run(db, waivers={"loss": "ops: a replica in another region"})
        await accepted.step(FENCE)
        began = len(venue.rds.heard)
        facts = await accepted.step(PROMOTE)
        assert facts["write_seen_from"] == ["west", "east", "direct"]
        assert [h.operation for h in venue.rds.heard[began:]].count("PromoteReadReplica") == 1
        assert (await accepted.step(PROMOTE))["outcome"] == "already"
        with pytest.raises(Rejected, match="stays fenced"):
            await db.unfence("west")
        with pytest.raises(Rejected, match="keeps the source it was made from"):
            await db.follow("west", "east")
        for days in (0, 1):
            venue.aws.client("rds", OTHER_REGION).modify_db_instance(
                DBInstanceIdentifier=EAST, BackupRetentionPeriod=days
            )
            if not days:
                with pytest.raises(Rejected, match="keeps no backups"):
                    await db.rejoin("west", "east")
        facts = await accepted.step(Rejoin(site="west"), attempts=5)
        assert "kept as venue-west-2" in facts["how"]["west"]

    with contextlib.closing(venue.cluster.client("west-pg1")) as client:  # one of the application's, from before
        venue.play(story)
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")  # what was connected was ended
    made = venue.shown(WEST, REGION)
    assert made["ReadReplicaSourceDBInstanceIdentifier"].endswith(f":{EAST}")
    assert [g["VpcSecurityGroupId"] for g in made["VpcSecurityGroups"]] == [venue.groups[REGION][0]]
    names = [i["DBInstanceIdentifier"] for i in venue.aws.client("rds").describe_db_instances()["DBInstances"]]
    assert len(names) == 2


def test_planned_switch_loses_nothing(venue):
    """Read only by the parameter group, the replica catches up, and only then is it promoted: zero is proven."""
    venue.writes("west-pg1", 50)

    async def story(db):
        run = Run(db, mode="graceful")
        facts = await run.step(FENCE)
        assert facts["final"]["west"]["lsn"] > 0
        assert {p["outcome"] for p in facts["proofs"]["west"]["probes"]} == {"refused", "runs"}
        await run.step(CatchUp(site="target"))
        facts = await run.step(PROMOTE)
        assert facts["rpo"]["proven_zero"]
        assert (await run.step(Follow()))["left_out"] == ["west"]

    venue.play(story)
    assert venue.cluster.query("east-pg1", "SELECT count(*) FROM rows") == [(50,)]


def test_a_fence_is_taken_back_while_nobody_was_promoted(venue):
    async def story(db):
        run = Run(db)
        facts = await run.step(FENCE)
        assert [g["VpcSecurityGroupId"] for g in venue.shown(WEST, REGION)["VpcSecurityGroups"]] == [
            venue.groups[REGION][1]
        ]
        await FENCE.undo(run.context(100), facts["before"])
        probe = await db.try_write("west", "direct")
        assert probe.outcome == "accepted", probe
        await FENCE.undo(run.context(100), facts["before"])  # and again: nothing is left to do

    venue.play(story)
    assert [g["VpcSecurityGroupId"] for g in venue.shown(WEST, REGION)["VpcSecurityGroups"]] == [
        venue.groups[REGION][0]
    ]


def test_lost_replies_throttling_and_a_resume_in_the_middle(venue):
    """Told once although its answer was lost; an engine that comes later finds it on its way and only waits."""
    venue.rds.held["PromoteReadReplica"] = threading.Event()

    async def story(db):
        run = Run(db, waivers={"loss": "test"})
        venue.rds.order("DescribeDBInstances", "Throttling", "Throttling")
        venue.rds.order("ModifyDBInstance", "lost")
        venue.rds.order("RebootDBInstance", "lost")
        facts = await run.step(FENCE, attempts=10)
        assert not facts["loose"]
        assert set(run.tried) <= {"NotYet", "NotFenced"} or run.tried
        venue.rds.order("PromoteReadReplica", "lost")
        with pytest.raises(EffectUnknown):
            await run.step(PROMOTE)
        later = Run(db, waivers={"loss": "test"})
        later.earlier = run.earlier
        with pytest.raises(NotYet, match="is modifying"):
            await later.step(PROMOTE)
        venue.rds.held["PromoteReadReplica"].set()
        assert (await later.step(PROMOTE, attempts=100))["primary"] == "east"

    venue.play(story)
    assert venue.rds.operations().count("PromoteReadReplica") == 1


def test_the_failed_region_is_away(venue):
    """Nothing is proven of it, and nothing is asked of it for the promotion; the waiver says who takes that risk."""
    venue.rds.away.add(REGION)
    for way in venue.plant.ways[WEST]:
        way.open = False
        way.hang_up()

    async def story(db):
        with pytest.raises(NotFenced, match="may still take writes"):
            await Run(db).step(FENCE)
        run = Run(db, waivers={"fence": "ops: the region is dark", "loss": "ops"})
        facts = await run.step(FENCE)
        assert facts["waived"]
        assert (await run.step(PROMOTE))["primary"] == "east"

    venue.play(story)


def test_what_is_not_ours_or_not_fit_is_never_touched(venue):
    east = venue.aws.client("rds", OTHER_REGION)
    arn = venue.shown(EAST, OTHER_REGION)["DBInstanceArn"]
    west = venue.shown(WEST, REGION)["DBInstanceArn"]

    async def not_marked(db):
        with pytest.raises(Rejected, match="not marked as ours: expected the tag relight:system = 'venue'"):
            await db.promote("east")
        with pytest.raises(Rejected, match="not marked as ours"):
            await db.fence("west", orderly=False)

    async def marked(db):
        with pytest.raises(Rejected, match="lets somebody in; a quarantine must have no rule"):
            await db._quarantine(await db._instances.mine("west"), venue.groups[REGION][0])
        with pytest.raises(Rejected, match="is a replica"):
            await db.fence("east", orderly=False)
        with pytest.raises(Rejected, match="is a replica"):
            await db.quiesce("east")
        with pytest.raises(Rejected, match="no replica any more"):
            await db.promote("west")
        (room,) = await db.allowances("west", "east")  # the way back makes a replica in west, beside the old instance
        assert room == Allowance(f"DB instances in {REGION}", 40.0, 1.0, 1.0, "rds L-7B6409FD", "west")
        venue.rds.most = 1
        asked = Asked("west", "east", LoopClock(), Sockets())
        (found,) = await readiness.room(asked, Part("database", db, db.Settings.model_validate(venue.settings())))
        assert (found.check, found.level, found.site) == ("quota", "warning", "west")
        assert found.says.endswith("1 used, 1 allowed, the way back needs 1 more")
        before = (await db.ask_host("west")).outcome
        assert before == "runs"

    async def another_version(db):
        with pytest.raises(Rejected, match=r"runs postgres 15\.4, expected postgres 16"):
            await db.promote("east")

    for client, name in ((east, arn), (venue.aws.client("rds"), west)):
        client.remove_tags_from_resource(ResourceName=name, TagKeys=["relight:system"])
        client.add_tags_to_resource(ResourceName=name, Tags=[{"Key": "relight:system", "Value": "another"}])
    venue.play(not_marked)
    for client, name in ((east, arn), (venue.aws.client("rds"), west)):
        client.add_tags_to_resource(ResourceName=name, Tags=[{"Key": "relight:system", "Value": "venue"}])
    venue.play(marked)
    venue.play(another_version, engine_version="16")
    assert not {"PromoteReadReplica", "ModifyDBInstance", "ModifyDBParameterGroup", "RebootDBInstance"} & set(
        venue.rds.operations()
    )


def test_a_quarantine_without_a_restart_is_no_fence(venue):
    """What was connected before may still write: only the event of a later restart is proof."""
    venue.rds.quiet = True

    async def story(db):
        run = Run(db)
        with pytest.raises(NotYet, match="no event yet that says it did"):
            await run.step(FENCE)
        assert (await db.ask_host("west")).outcome == "runs"
        with pytest.raises(NotFenced, match="which proves nothing"):
            await run.step(PROMOTE)

    venue.play(story, change_timeout="6s")


def test_a_promotion_waits_for_rds_to_be_done(venue):
    """A replica that is being backed up cannot be promoted (API Reference, PromoteReadReplica): that passes."""
    venue.rds.moving[OTHER_REGION, EAST] = "backing-up"

    async def story(db):
        run = Run(db, mode="graceful")
        await run.step(FENCE)
        await run.step(CatchUp(site="target"))
        with pytest.raises(NotYet, match="is backing-up, expected available"):
            await run.step(PROMOTE)
        del venue.rds.moving[OTHER_REGION, EAST]
        assert (await run.step(PROMOTE))["primary"] == "east"

    venue.play(story)


def test_a_wrong_system_file():
    node = {"site": "east", "region": REGION, "instance": "a", "address": "a:5432"}

    async def main():
        around = Surroundings("venue", "database", ("west",), LoopClock(), {}.__getitem__)
        with pytest.raises(BadInput, match="nodes are in sites east"):
            PROVIDER(PROVIDER.Settings.model_validate({"database": "d", "user": "u", "nodes": {"a": node}}), around)

    asyncio.run(main())


def test_the_policy_allows_exactly_the_calls_that_were_made():
    iam.check(PROVIDER_NAME)
