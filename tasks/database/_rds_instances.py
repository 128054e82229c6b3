"""DB instances as the control plane of their own region has them: looked at, and changed one call at a time.

Every change is preceded by a look that checks the instance's identity: it exists in that region, runs PostgreSQL, and
carries the tag ``relight:system`` with this system's name. What is not marked so is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.aws import Aws
from tasks.contract import Surroundings
from tasks.database._managed import OWNER, READ_ONLY, Regional, Unit, must_be_ours, read_only_parameter
from tasks.database._rds_settings import RdsNode, RdsSettings
from tasks.errors import Rejected
from tasks.quotas import Allowance

RETIRED = "relight:retired"
"""The node that an instance was, before it was replaced."""


class Instances(Regional):
    """The control plane. Every call goes to the region of the instance that it is about."""

    def __init__(self, settings: RdsSettings, around: Surroundings) -> None:
        super().__init__(Aws(settings, around.component))
        self._settings, self._system = settings, around.system

    async def find(self, node: str) -> Unit | None:
        """The instance of ``node``; None where its region has none of that name. Raises Unreachable, Rejected."""
        at = self._settings.nodes[node]
        rds = await self._aws.client("rds", at.region)
        try:
            found = await self._aws.call(
                f"describing {at.instance} in {at.region}",
                lambda: rds.describe_db_instances(DBInstanceIdentifier=at.instance)["DBInstances"],
            )
        except Rejected as e:
            if e.facts.get("code") in ("DBInstanceNotFound", "DBInstanceNotFoundFault"):
                return None
            raise
        return self._read(node, at, found[0])

    async def mine(self, node: str) -> Unit:
        """The instance of ``node``, checked for what it must be before it is changed. Raises Rejected if it is not."""
        unit = await self.find(node)
        if unit is None:
            at = self._settings.nodes[node]
            raise Rejected(f"{node}: {at.region} has no DB instance {at.instance}; look at the system file")
        return must_be_ours(unit, self._system, "postgres", self._settings.engine_version)

    async def allowances(self, site: str) -> tuple[Allowance, ...]:
        """DB instances (DescribeAccountAttributes), one more for each node of ``site``. Raises as calls do."""
        found, regions = [], [n.region for n in self._settings.nodes.values() if n.site == site]
        for region in dict.fromkeys(regions):
            rds = await self._aws.client("rds", region)
            answer = await self._aws.call(f"DescribeAccountAttributes in {region}", rds.describe_account_attributes)
            quota = next((q for q in answer["AccountQuotas"] if q["AccountQuotaName"] == "DBInstances"), None)
            if quota is None:
                raise Rejected(f"RDS tells no quota DBInstances in {region}")
            limit, used, more = float(quota["Max"]), float(quota["Used"]), float(regions.count(region))
            found.append(Allowance(f"DB instances in {region}", limit, used, more, "rds L-7B6409FD", site))
        return tuple(found)

    async def set_read_only(self, unit: Unit, *, on: bool) -> None:
        """In the instance's own parameter group. Raises Rejected for a default one, which cannot be changed."""
        rds, value = await self._aws.client("rds", unit.region), read_only_parameter(unit, on=on)
        await self._aws.call(
            f"{READ_ONLY} = {value['ParameterValue']} in {unit.parameter_group}",
            lambda: rds.modify_db_parameter_group(DBParameterGroupName=unit.parameter_group, Parameters=[value]),
            changes=True,
        )

    async def change_groups(self, unit: Unit, groups: Iterable[str]) -> None:
        """Security groups, at once. Connections that are open may live on: a reboot ends them."""
        rds = await self._aws.client("rds", unit.region)
        wanted = list(groups)
        await self._aws.call(
            f"security groups of {unit.name}",
            lambda: rds.modify_db_instance(
                DBInstanceIdentifier=unit.name, VpcSecurityGroupIds=wanted, ApplyImmediately=True
            ),
            changes=True,
        )

    async def promote(self, unit: Unit) -> None:
        rds = await self._aws.client("rds", unit.region)
        await self._aws.call(
            f"promoting {unit.name} in {unit.region}",
            lambda: rds.promote_read_replica(DBInstanceIdentifier=unit.name),
            changes=True,
        )

    async def rename(self, unit: Unit, name: str) -> None:
        rds = await self._aws.client("rds", unit.region)
        await self._aws.call(
            f"renaming {unit.name} to {name}",
            lambda: rds.modify_db_instance(
                DBInstanceIdentifier=unit.name, NewDBInstanceIdentifier=name, ApplyImmediately=True
            ),
            changes=True,
        )

    async def retired(self, node: str) -> Unit | None:
        """The instance that ``node`` was before, the newest of several; None where there is none."""
        at = self._settings.nodes[node]
        rds = await self._aws.client("rds", at.region)
        found = await self._aws.call(
            f"looking for the old {node} in {at.region}",
            lambda: [i for p in rds.get_paginator("describe_db_instances").paginate() for i in p["DBInstances"]],
        )
        old = [self._read(node, at, i) for i in found]
        ours = [o for o in old if o.tags.get(RETIRED) == node and o.tags.get(OWNER) == self._system]
        return max(ours, key=lambda o: o.name, default=None)

    async def replicate(self, node: str, source: Unit, like: Unit | None) -> None:
        """Make the instance of ``node`` anew as a replica of ``source``, across regions where they differ."""
        at = self._settings.nodes[node]
        rds = await self._aws.client("rds", at.region)
        given = at.replica
        shape: dict[str, Any] = dict(like.shape) if like else {}
        groups = given.security_groups or (like.groups_before_fence() if like else ())
        shape |= {
            key: value
            for key, value in {
                "DBInstanceClass": given.instance_class,
                "DBSubnetGroupName": given.subnet_group,
                "DBParameterGroupName": given.parameter_group or (like.parameter_group if like else None),
                "VpcSecurityGroupIds": list(groups) or None,
                "KmsKeyId": given.kms_key,
            }.items()
            if value is not None
        }
        if "DBInstanceClass" not in shape:
            raise Rejected(f"{node}: nothing says how its replica is to be made; set replica.instance_class and others")
        away = source.region != at.region
        if away:
            shape["SourceRegion"] = source.region
        await self._aws.call(
            f"making {at.instance} a replica of {source.name}",
            lambda: rds.create_db_instance_read_replica(
                DBInstanceIdentifier=at.instance,
                SourceDBInstanceIdentifier=source.arn if away else source.name,
                Tags=[{"Key": OWNER, "Value": self._system}],
                **shape,
            ),
            changes=True,
        )

    def _read(self, node: str, at: RdsNode, raw: dict[str, Any]) -> Unit:
        groups = raw.get("VpcSecurityGroups", [])
        subnets = raw.get("DBSubnetGroup", {}).get("DBSubnetGroupName")
        shape = {
            "DBInstanceClass": raw["DBInstanceClass"],
            "DBSubnetGroupName": subnets,
            "KmsKeyId": raw.get("KmsKeyId"),
        }
        return Unit(
            node=node,
            region=at.region,
            name=raw["DBInstanceIdentifier"],
            arn=raw["DBInstanceArn"],
            status=raw["DBInstanceStatus"],
            engine=raw["Engine"],
            version=raw["EngineVersion"],
            source=self._named(at.region, raw.get("ReadReplicaSourceDBInstanceIdentifier")),
            security_groups=tuple(g["VpcSecurityGroupId"] for g in groups),
            settled=all(g["Status"] == "active" for g in groups),
            writer=raw["DBInstanceIdentifier"],
            parameter_group=next((g["DBParameterGroupName"] for g in raw.get("DBParameterGroups", [])), "default."),
            backup_days=raw.get("BackupRetentionPeriod", 0),
            multi_az=bool(raw.get("MultiAZ")),
            tags={t["Key"]: t["Value"] for t in raw.get("TagList", [])},
            shape={k: v for k, v in shape.items() if v},
        )

    def _named(self, region: str, source: str | None) -> str | None:
        """The node behind the identifier of a replica's source: a name in the same region, an ARN across regions."""
        if not source:
            return None
        if source.startswith("arn:"):
            region, source = source.split(":")[3], source.split(":")[-1]
        nodes = self._settings.nodes.items()
        return next((name for name, n in nodes if (n.region, n.instance) == (region, source)), "?")
