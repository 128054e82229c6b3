"""A global database as it behaves: moto keeps the clusters, this plays failover and switchover, PostgreSQL the data.

moto (5.2.5) has no FailoverGlobalCluster and no SwitchoverGlobalCluster, shows a global cluster in one region only, and
its members neither a state nor whether they are connected.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aws import REGION
from aws_conformance import Refused, serving
from aws_rds import PARAMETER, Plant, Service


class AuroraService(Service):
    """``writer``: ARN of the primary cluster, once it is another than moto has."""

    def __init__(self, moto: Any, plant: Plant | None = None) -> None:
        super().__init__(moto, plant)
        self.writer = ""
        self.known: list[dict[str, Any]] = []
        self.failing: dict[str, Any] = {}
        self.connected: dict[str, str] = {}
        self.handlers |= {
            "DescribeGlobalClusters": self._global,
            "FailoverGlobalCluster": self._failover,
            "SwitchoverGlobalCluster": self._switchover,
            "DescribeDBClusters": self._clusters,
            "ModifyDBCluster": self._modify_cluster,
            "ModifyDBClusterParameterGroup": self._cluster_parameters,
        }

    def _global(self, params: dict[str, Any]) -> Any:
        if REGION not in self.away or not self.known:  # moto has it in one region only; the service has it in each
            self.known = self._moto("describe_global_clusters", REGION)["GlobalClusters"]
        found = copy.deepcopy(self.known)
        found = [g for g in found if g["GlobalClusterIdentifier"] == params["GlobalClusterIdentifier"]]
        if not found:
            raise Refused("GlobalClusterNotFoundFault", "no such global cluster")
        for member in found[0]["GlobalClusterMembers"]:
            arn = member["DBClusterArn"]
            if self.writer:
                member["IsWriter"] = arn == self.writer
            member["SynchronizationStatus"] = self.connected.get(arn, "connected")
        found[0]["FailoverState"] = self.failing
        found[0]["Status"] = "failing-over" if self.failing else "available"
        return {"GlobalClusters": found}

    def _failover(self, params: dict[str, Any]) -> Any:
        if not params.get("AllowDataLoss"):
            raise Refused("InvalidGlobalClusterStateFault", "use SwitchoverGlobalCluster for a switchover")
        return self._go(params, lossy=True)

    def _switchover(self, params: dict[str, Any]) -> Any:
        return self._go(params, lossy=False)

    def _go(self, params: dict[str, Any], *, lossy: bool) -> Any:
        target = params["TargetDbClusterIdentifier"]
        now = self._global(params)["GlobalClusters"][0]
        members = {m["DBClusterArn"]: m for m in now["GlobalClusterMembers"]}
        if target not in members:
            raise Refused("DBClusterNotFoundFault", f"{target} is no member")
        if members[target]["IsWriter"] or self.failing:
            raise Refused("InvalidGlobalClusterStateFault", f"{now['Status']}; writer: {members[target]['IsWriter']}")
        old = next(a for a, m in members.items() if m["IsWriter"])
        if not lossy and (old.split(":")[3] in self.away or "pending-resync" in self.connected.values()):
            raise Refused("InvalidGlobalClusterStateFault", "a switchover needs a healthy global database")
        name, old_name = target.rpartition(":")[2], old.rpartition(":")[2]
        self.failing = {
            "Status": "failing-over" if lossy else "switching-over",
            "FromDbClusterArn": old,
            "ToDbClusterArn": target,
            "IsDataLossAllowed": lossy,
        }

        def then() -> None:
            if self.plant:
                self.plant.promote(name)
                self.plant.admit(name, clients=True)  # its writer endpoint is active from now on
            self.writer, self.failing = target, {}
            self.connected |= {target: "connected", old: "pending-resync"}
            if not lossy:
                self.back(old_name, old, name)

        self._move(name, "modifying", "FailoverGlobalCluster", then)
        return {"GlobalCluster": {**now, "FailoverState": self.failing}}

    def back(self, name: str, arn: str, source: str) -> None:
        """The service makes the old primary a secondary again, whose writer endpoint takes no connections."""
        if self.plant:
            self.plant.copy(name, source)
            self.plant.admit(name, clients=False)
        self.connected[arn] = "connected"

    def cut_off(self, region: str) -> None:
        """Nothing of ``region`` reaches the members in the others."""
        for member in self._global({"GlobalClusterIdentifier": "venue"})["GlobalClusters"][0]["GlobalClusterMembers"]:
            if member["DBClusterArn"].split(":")[3] != region:
                self.connected[member["DBClusterArn"]] = "pending-resync"

    def _clusters(self, params: dict[str, Any]) -> Any:
        answer = self._moto("describe_db_clusters", **params)
        for one in answer["DBClusters"]:
            one["Status"] = self.moving.get((self.region, one["DBClusterIdentifier"]), one["Status"])
        return answer

    def _modify_cluster(self, params: dict[str, Any]) -> Any:
        name, region = params["DBClusterIdentifier"], self.region
        before = self._clusters({"DBClusterIdentifier": name})["DBClusters"][0]
        if before["Status"] != "available":
            raise Refused("InvalidDBClusterStateFault", f"{name} is {before['Status']}")

        def then() -> None:
            self._moto("modify_db_cluster", region, **params)
            ec2, groups = self.moto.client("ec2", region), params["VpcSecurityGroupIds"]
            rules = [g["IpPermissions"] for g in ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]]
            if self.plant:
                self.plant.admit(name, clients=any(rules))

        self._move(name, "modifying", "ModifyDBCluster", then)
        return {"DBCluster": before}

    def _cluster_parameters(self, params: dict[str, Any]) -> Any:
        group = params["DBClusterParameterGroupName"]
        self._moto("modify_db_cluster_parameter_group", **params)
        for one in self._moto("describe_db_clusters")["DBClusters"]:
            name = one["DBClusterIdentifier"]
            if one["DBClusterParameterGroup"] == group and self.plant and name in self.plant.nodes:
                (wanted,) = params["Parameters"]
                assert wanted["ParameterName"] == PARAMETER
                self.later(self.plant.parameter, name, on=wanted["ParameterValue"] == "1")
        return {"DBClusterParameterGroupName": group}

    def _restart(self, name: str) -> None:
        """An instance of a cluster: its server is the cluster's."""
        super()._restart(name.rpartition("-")[0])

    def lag(self, cluster: str, region: str, milliseconds: float, ahead_s: float = 0.0) -> None:
        """CloudWatch hears how far behind ``cluster`` is now; ``ahead_s``: by a clock that is so much ahead."""
        self.moto.client("cloudwatch", region).put_metric_data(
            Namespace="AWS/RDS",
            MetricData=[
                {
                    "MetricName": "AuroraGlobalDBRPOLag",
                    "Dimensions": [{"Name": "DBClusterIdentifier", "Value": cluster}],
                    "Timestamp": datetime.now(UTC) + timedelta(seconds=ahead_s),
                    "Value": milliseconds,
                    "Unit": "Milliseconds",
                }
            ],
        )


@contextlib.contextmanager
def aurora(moto: Any, plant: Plant | None = None) -> Iterator[AuroraService]:
    """Aurora over HTTP; boto3's environment points at it. Fails for what came in against botocore's model."""
    made = AuroraService(moto, plant)
    with serving(made) as url, pytest.MonkeyPatch.context() as patch:
        made.url = url
        patch.setenv("AWS_ENDPOINT_URL_RDS", url)
        yield made
        for work in made.works:
            work.join(120)
    assert not made.violations, made.violations
