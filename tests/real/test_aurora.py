"""Aurora global database: moto and a service that fails over in front, real PostgreSQL behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import iam
import pytest
from aws import OTHER_REGION, REGION
from aws_aurora import aurora
from aws_rds import Plant, Way
from cloud_story import Run
from pg_cluster import NODES, PORT, Cluster

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database.actions import CatchUp, Fence, Follow, Promote, ReadyToSwitch, Rejoin
from tasks.database.aurora import PROVIDER
from tasks.database.protocol import Database, Drained, Operated, Witnessed
from tasks.errors import EffectUnknown, LossAboveBudget, NotFenced, NotYet, Rejected, UnhealthyTarget

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
PROVIDER_NAME = "database.aurora"

WEST, EAST = "venue-west", "venue-east"
FENCE, PROMOTE = Fence(site="failed"), Promote(site="target")


class Venue:
    def __init__(self, aws, rds, plant, cluster):
        self.aws, self.rds, self.plant, self.cluster, self.groups = aws, rds, plant, cluster, {}
        for region in (REGION, OTHER_REGION):
            ec2 = aws.client("ec2", region)
            vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
            made = [
                ec2.create_security_group(GroupName=n, Description=n, VpcId=vpc)["GroupId"] for n in ("app", "nobody")
            ]
            rule = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
            ec2.authorize_security_group_ingress(GroupId=made[0], IpPermissions=[rule])
            self.groups[region] = made
        self.arns = {}
        self.readers = {n: Way((f"127.0.8.{NODES[i][1]}", PORT)) for n, i in plant.nodes.items()}
        plant.more.extend(self.readers.values())
        plant.admit(EAST, clients=False)  # the writer endpoint of a secondary
        aws.client("rds").create_global_cluster(
            GlobalClusterIdentifier="venue", Engine="aurora-postgresql", EngineVersion="15.4"
        )
        for region, name in ((REGION, WEST), (OTHER_REGION, EAST)):
            rds = aws.client("rds", region)
            rds.create_db_cluster_parameter_group(
                DBClusterParameterGroupName="venue", DBParameterGroupFamily="aurora-postgresql15", Description="own"
            )
            login = {"MasterUsername": "postgres", "MasterUserPassword": "password1"} if region == REGION else {}
            made = rds.create_db_cluster(
                DBClusterIdentifier=name,
                Engine="aurora-postgresql",
                EngineVersion="15.4",
                GlobalClusterIdentifier="venue",
                DBClusterParameterGroupName="venue",
                VpcSecurityGroupIds=[self.groups[region][0]],
                Tags=[{"Key": "relight:system", "Value": "venue"}],
                **login,
            )
            self.arns[name] = made["DBCluster"]["DBClusterArn"]
            rds.create_db_instance(
                DBInstanceIdentifier=f"{name}-1",
                DBClusterIdentifier=name,
                Engine="aurora-postgresql",
                DBInstanceClass="db.r6g.large",
            )

    def settings(self):
        def node(site, region, name):
            near, far = (w.address for w in self.plant.ways[name])
            other = {"west": "east", "east": "west"}[site]
            return {
                "site": site,
                "region": region,
                "cluster": name,
                "address": near,
                "from": {other: far},
                "reader": self.readers[name].address,
                "quarantine": self.groups[region][1],
            }

        return {
            "global_cluster": "venue",
            "database": "postgres",
            "user": "relight",
            "password": f"file:{self.cluster.folder}/relight",
            "sslmode": "disable",
            "connect_timeout": "500ms",
            "query_timeout": "15s",
            "timeout": "20s",
            "poll": "50ms",
            "change_timeout": "60s",
            "promote_timeout": "60s",
            "build_timeout": "90s",
            "nodes": {"west": node("west", REGION, WEST), "east": node("east", OTHER_REGION, EAST)},
        }

    def play(self, story):
        async def main():
            around = Surroundings("venue", "database", ("west", "east"), LoopClock(), {}.__getitem__)
            db = PROVIDER(PROVIDER.Settings.model_validate(self.settings()), around)
            try:
                await story(db)
            finally:
                await db.aclose()

        asyncio.run(main())


@pytest.fixture
def venue(aws):
    with Cluster() as cluster, contextlib.ExitStack() as stack:
        (cluster.folder / "relight").write_text("relight-secret\n")
        plant = Plant(cluster, {WEST: "west-pg1", EAST: "east-pg1"})
        stack.callback(plant.close)
        yield Venue(aws, stack.enter_context(aurora(aws, plant)), plant, cluster)


def calls(venue):
    return [o for o in venue.rds.operations() if "Global" in o and o != "DescribeGlobalClusters"]


def test_forced_failover_by_the_service(venue):
    """Fenced by quarantine; the loss is the lag that CloudWatch has, and a failover that may lose data is one call."""
    venue.rds.lag(EAST, OTHER_REGION, 800)

    async def story(db):
        assert all(isinstance(db, p) for p in (Database, Witnessed))
        assert not isinstance(db, Operated)
        assert not isinstance(db, Drained)
        run = Run(db, rpo_s={"database": 0.0})
        facts = await run.step(ReadyToSwitch(site="target"))
        assert (facts["primary"], facts["chosen"]) == ("west", "east")
        with pytest.raises(NotFenced):
            await run.step(PROMOTE)
        facts = await run.step(FENCE)
        assert "admits nobody" in facts["proofs"]["west"]["why"]
        with pytest.raises(LossAboveBudget, match="from the moment up to which its service says"):
            await run.step(PROMOTE)
        run = Run(db, rpo_s={"database": 300.0})  # a lag of seconds is within five minutes
        await run.step(FENCE)
        facts = await run.step(PROMOTE)
        assert 0.8 <= facts["rpo"]["bound_s"] < 200
        assert facts["rpo"]["met"]
        assert calls(venue) == ["FailoverGlobalCluster"]
        assert venue.rds.heard[-1].params
        assert (await run.step(PROMOTE))["outcome"] == "already"
        with pytest.raises(NotYet, match="bringing west back itself"):
            await db.follow("west", "east")
        await asyncio.to_thread(venue.rds.back, WEST, venue.arns[WEST], EAST)
        facts = await run.step(Rejoin(site="west"), attempts=200)
        assert facts["outcome"] == "already" or facts["how"]["west"] == "by Aurora itself"
        await run.step(Follow())

    venue.play(story)


def test_planned_switchover_loses_nothing(venue):
    async def story(db):
        run = Run(db, mode="graceful")
        facts = await run.step(FENCE)
        assert set(facts["final"]["west"]) == {"at"}
        with pytest.raises(NotYet, match="no replica of east is fit"):
            await run.step(CatchUp(site="target"), left_s=1)
        later = Run(db, mode="graceful")
        later.earlier = run.earlier
        before = facts["final"]["west"]["at"]
        facts["final"]["west"]["at"] = (
            before[:17] + "00+00:00"
        )  # moto's minutes are whole: that of the fence began then
        venue.rds.lag(EAST, OTHER_REGION, 0)
        await later.step(CatchUp(site="target"), left_s=100)
        facts = await later.step(PROMOTE)
        assert facts["rpo"]["proven_zero"]
        assert calls(venue) == ["SwitchoverGlobalCluster"]

    venue.play(story)


def test_lost_reply_of_a_failover_and_a_lag_that_nobody_knows(venue):
    venue.rds.held["FailoverGlobalCluster"] = threading.Event()

    async def story(db):
        run = Run(db, waivers={"loss": "test"})
        await run.step(FENCE)
        venue.rds.order("FailoverGlobalCluster", "lost")
        venue.rds.order("DescribeGlobalClusters", "Throttling")
        with pytest.raises(EffectUnknown):
            await run.step(PROMOTE)  # the throttled look before it was made again
        later = Run(db, waivers={"loss": "test"})
        later.earlier = run.earlier
        with pytest.raises(NotYet, match="failing-over to east already"):
            await later.step(PROMOTE)
        venue.rds.held["FailoverGlobalCluster"].set()
        assert (await later.step(PROMOTE, attempts=100))["primary"] == "east"
        assert calls(venue) == ["FailoverGlobalCluster"]

    async def unknown(db):
        run = Run(db)
        await run.step(FENCE)
        with pytest.raises(UnhealthyTarget, match="how far it is cannot be told"):
            await run.step(PROMOTE)

    venue.play(unknown)
    venue.rds.lag(EAST, OTHER_REGION, 100)
    venue.play(story)


def test_the_failed_region_is_away(venue):
    venue.rds.away.add(REGION)
    venue.rds.lag(EAST, OTHER_REGION, 100)
    for way in venue.plant.ways[WEST]:
        way.open = False
        way.hang_up()

    async def story(db):
        with pytest.raises(NotFenced, match="may still take writes"):
            await Run(db).step(FENCE)
        run = Run(db, waivers={"fence": "ops: the region is dark", "loss": "ops"})
        await run.step(FENCE)
        assert (await run.step(PROMOTE))["primary"] == "east"
        assert calls(venue) == ["FailoverGlobalCluster"]

    venue.play(story)


def test_what_is_not_ours_is_never_touched(venue):
    west = venue.aws.client("rds")
    west.remove_tags_from_resource(ResourceName=venue.arns[WEST], TagKeys=["relight:system"])

    async def story(db):
        with pytest.raises(Rejected, match="not marked as ours"):
            await db.fence("west", orderly=False)
        with pytest.raises(Rejected, match="is a replica"):
            await db.fence("east", orderly=False)
        with pytest.raises(Rejected, match="is not the writer"):
            await db.follow("west", "east")

    venue.play(story)
    assert not calls(venue)


def test_the_policy_allows_exactly_the_calls_that_were_made():
    iam.check(PROVIDER_NAME)
