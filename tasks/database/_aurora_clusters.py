"""Aurora clusters of one global database, as the control plane has them.

``DescribeGlobalClusters`` answers in every region of the global database, so who the writer is, and a failover, is
asked for in the region that is recovered (API Reference 2014-10-31, ``FailoverGlobalCluster``: the target is named by
its ARN). What concerns one cluster alone (groups, parameters, restart) goes to that cluster's own region.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from tasks.aws import Aws
from tasks.contract import Surroundings
from tasks.database._managed import READ_ONLY, Regional, Unit, must_be_ours, read_only_parameter
from tasks.database._nodes import Address
from tasks.database._rds_settings import DataNode, SqlAccess
from tasks.errors import Rejected
from tasks.quantities import Duration

LAG = "AuroraGlobalDBRPOLag"
"""Milliseconds that commits of the primary take to be stored in the secondary's region (Aurora User Guide, metrics)."""


class AuroraNode(DataNode):
    """One cluster of the global database, one a region. ``address``: its writer endpoint, where SQL is asked."""

    cluster: str
    """Its DB cluster identifier."""
    reader: Address | None = None
    """Its reader endpoint, ``host:port``: the writer endpoint of a secondary takes no connections."""


class AuroraSettings(SqlAccess):
    """As in ``docs/aws.md``, *Aurora global database*."""

    global_cluster: str
    engine_version: str | None = None
    lag_within: Duration = 600.0
    """How old the newest measurement of the lag may be; older ones say nothing."""
    nodes: dict[str, AuroraNode] = Field(min_length=1)


@dataclass(frozen=True)
class Membership:
    """The global database at one moment, asked in one region.

    ``writer``: node name, ``?`` for a cluster that is none of ours. ``connected``: node -> it receives what is written.
    ``moving``: the failover or switchover that is going on, in words; empty for none.
    """

    status: str
    engine: str
    version: str
    writer: str | None
    connected: dict[str, bool | None]
    moving: str
    arns: dict[str, str]


class Clusters(Regional):
    """The control plane of a global database and of its clusters."""

    def __init__(self, settings: AuroraSettings, around: Surroundings) -> None:
        super().__init__(Aws(settings, around.component))
        self._settings, self._system = settings, around.system

    async def membership(self, region: str) -> Membership:
        """Who is in the global database. Raises Unreachable, NotYet, Rejected where there is none of that name."""
        rds, name = await self._aws.client("rds", region), self._settings.global_cluster
        found = await self._aws.call(
            f"describing {name} in {region}",
            lambda: rds.describe_global_clusters(GlobalClusterIdentifier=name)["GlobalClusters"],
        )
        raw = next((g for g in found if g["GlobalClusterIdentifier"] == name), None)
        if raw is None:
            raise Rejected(f"{region} knows no global database {name}; look at the system file")
        members = {self._named(m["DBClusterArn"]): m for m in raw.get("GlobalClusterMembers", [])}
        state = raw.get("FailoverState") or {}
        moving = ""
        if state.get("Status"):
            to = self._named(state.get("ToDbClusterArn", ""))
            moving = f"{state['Status']} to {to}"
        return Membership(
            status=raw["Status"],
            engine=raw["Engine"],
            version=raw["EngineVersion"],
            writer=next((n for n, m in members.items() if m.get("IsWriter")), None),
            connected={n: _connected(m) for n, m in members.items()},
            moving=moving,
            arns={n: m["DBClusterArn"] for n, m in members.items()},
        )

    async def find(self, node: str) -> Unit | None:
        at = self._settings.nodes[node]
        rds = await self._aws.client("rds", at.region)
        try:
            found = await self._aws.call(
                f"describing {at.cluster} in {at.region}",
                lambda: rds.describe_db_clusters(DBClusterIdentifier=at.cluster)["DBClusters"],
            )
        except Rejected as e:
            if e.facts.get("code") == "DBClusterNotFoundFault":
                return None
            raise
        raw, member = found[0], await self.membership(at.region)
        groups = raw.get("VpcSecurityGroups", [])
        writer = next((m["DBInstanceIdentifier"] for m in raw.get("DBClusterMembers", []) if m["IsClusterWriter"]), "")
        return Unit(
            node=node,
            region=at.region,
            name=raw["DBClusterIdentifier"],
            arn=raw["DBClusterArn"],
            status=raw["Status"],
            engine=raw["Engine"],
            version=raw["EngineVersion"],
            source=None if member.writer == node else (member.writer or "?"),
            security_groups=tuple(g["VpcSecurityGroupId"] for g in groups),
            settled=all(g["Status"] == "active" for g in groups),
            parameter_group=raw.get("DBClusterParameterGroup", "default."),
            writer=writer,
            tags={t["Key"]: t["Value"] for t in raw.get("TagList", [])},
        )

    async def mine(self, node: str) -> Unit:
        """See ``ControlPlane``."""
        unit = await self.find(node)
        if unit is None:
            at = self._settings.nodes[node]
            raise Rejected(f"{node}: {at.region} has no DB cluster {at.cluster}; look at the system file")
        return must_be_ours(unit, self._system, "aurora-postgresql", self._settings.engine_version)

    async def set_read_only(self, unit: Unit, *, on: bool) -> None:
        """In the cluster's own parameter group. Raises Rejected for a default one, which cannot be changed."""
        rds, value = await self._aws.client("rds", unit.region), read_only_parameter(unit, on=on)
        await self._aws.call(
            f"{READ_ONLY} = {value['ParameterValue']} in {unit.parameter_group}",
            lambda: rds.modify_db_cluster_parameter_group(
                DBClusterParameterGroupName=unit.parameter_group, Parameters=[value]
            ),
            changes=True,
        )

    async def change_groups(self, unit: Unit, groups: Iterable[str]) -> None:
        rds, wanted = await self._aws.client("rds", unit.region), list(groups)
        await self._aws.call(
            f"security groups of {unit.name}",
            lambda: rds.modify_db_cluster(
                DBClusterIdentifier=unit.name, VpcSecurityGroupIds=wanted, ApplyImmediately=True
            ),
            changes=True,
        )

    async def complete_until(self, node: str, now: datetime) -> datetime | None:
        """The moment up to which ``node`` has every commit: when its lag was last measured, less that lag. None where
        no measurement is young enough. CloudWatch of the node's own region.
        """
        at = self._settings.nodes[node]
        watch = await self._aws.client("cloudwatch", at.region)

        def ask() -> list[dict[str, Any]]:
            named = [{"Name": "DBClusterIdentifier", "Value": at.cluster}]
            known = watch.list_metrics(Namespace="AWS/RDS", MetricName=LAG, Dimensions=named)["Metrics"]
            return [
                point
                for dimensions in ([m["Dimensions"] for m in known] or [named])
                for point in watch.get_metric_statistics(
                    Namespace="AWS/RDS",
                    MetricName=LAG,
                    Dimensions=dimensions,
                    StartTime=now - timedelta(seconds=self._settings.lag_within),
                    EndTime=now + timedelta(seconds=60),
                    Period=60,
                    Statistics=["Maximum"],
                )["Datapoints"]
            ]

        points = await self._aws.call(f"{LAG} of {at.cluster}", ask)
        if not points:
            return None
        newest = max(points, key=lambda p: p["Timestamp"])
        measured: datetime = newest["Timestamp"].astimezone(UTC)
        return measured - timedelta(milliseconds=newest["Maximum"])

    async def switch(self, region: str, arn: str, *, lossy: bool) -> None:
        """Make the cluster ``arn`` the writer: by a failover that may lose commits, or by a switchover that cannot."""
        rds, name = await self._aws.client("rds", region), self._settings.global_cluster
        where = {"GlobalClusterIdentifier": name, "TargetDbClusterIdentifier": arn}

        def tell() -> None:
            if lossy:
                rds.failover_global_cluster(**where, AllowDataLoss=True)
            else:
                rds.switchover_global_cluster(**where)

        verb = "failing over" if lossy else "switching over"
        await self._aws.call(f"{verb} {name} to {arn}", tell, changes=True)

    def _named(self, arn: str) -> str:
        """The node of a cluster's ARN, ``?`` and the ARN for one that is none of ours."""
        parts = arn.split(":")
        region, name = (parts[3], parts[-1]) if parts[0] == "arn" else ("", arn)
        nodes = self._settings.nodes.items()
        return next((n for n, at in nodes if (at.region, at.cluster) == (region, name)), f"? {arn}")


def _connected(member: dict[str, Any]) -> bool | None:
    status = member.get("SynchronizationStatus")
    return None if status is None else bool(status == "connected")
