"""RDS as it behaves: moto keeps what there is, this plays what moto does not, and real PostgreSQL holds the data.

What moto leaves out (5.2.5) and is added here, in front of it: states that take time (modifying, rebooting, creating,
renaming), refusals in a wrong state, a promoted replica that no longer names its source, events of restarts, parameters
that reach the server, security groups that cut clients off, and all of a global cluster's failover and switchover.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aws_conformance import Front, Refused, serving
from pg_cluster import NODES, PORT

PARAMETER = "default_transaction_read_only"


class Way:
    """A TCP path to a server: ``open`` passes, ``shut`` takes new connections and never answers (a security group that
    drops). What was connected before lives on until ``hang_up``, as tracked connections do.
    """

    def __init__(self, to: tuple[str, int]) -> None:
        self.to, self.open, self._pairs = to, True, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if not self.open:
                self._pairs.append((near, near))
                continue
            try:
                far = socket.create_connection(self.to, 30)
            except OSError:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                near.close()  # a reset, as the server's own host would send
                continue
            self._pairs.append((near, far))
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
        for one in (a, b):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        for pair in self._pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        self._pairs.clear()

    def close(self) -> None:
        self._server.close()
        self.hang_up()


class Plant:
    """The servers behind the instances: instance name -> node of a ``pg_cluster.Cluster``."""

    def __init__(self, cluster: Any, nodes: dict[str, str]) -> None:
        self.cluster, self.nodes = cluster, dict(nodes)
        self.ways = {i: [Way((f"127.0.8.{NODES[n][1]}", PORT)) for _ in range(2)] for i, n in nodes.items()}

        self.more: list[Way] = []
        self.read_only: set[str] = set()
        """Instances whose parameter group says so; a copy of another server uses that group as well."""

    def promote(self, name: str) -> None:
        with self.cluster.admin(self.nodes[name]) as admin:
            admin.execute("SELECT pg_promote(true)")

    def parameter(self, name: str, *, on: bool) -> None:
        (self.read_only.add if on else self.read_only.discard)(name)
        with self.cluster.admin(self.nodes[name]) as admin:
            admin.execute(f"ALTER SYSTEM SET {PARAMETER} = {'on' if on else 'off'}")
            admin.execute("SELECT pg_reload_conf()")

    def restart(self, name: str) -> None:
        for way in self.ways[name]:
            way.hang_up()
        self.cluster.command("stop", self.nodes[name])
        self.cluster.command("start", self.nodes[name])

    def admit(self, name: str, *, clients: bool) -> None:
        for way in self.ways[name]:
            way.open = clients

    def copy(self, name: str, source: str) -> None:
        slot = self.nodes[name].replace("-", "_")
        with self.cluster.admin(self.nodes[source]) as admin:
            if not admin.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchall():
                admin.execute("SELECT pg_create_physical_replication_slot(%s)", (slot,))
        self.cluster.command("kill", self.nodes[name])
        self.cluster.command("copy", self.nodes[name], self.nodes[source])
        if name in self.read_only:
            self.parameter(name, on=True)
        self.admit(name, clients=True)

    def close(self) -> None:
        for ways in (*self.ways.values(), self.more):
            for way in ways:
                way.close()


class Service(Front):
    """RDS in every region, in front of moto. ``away``: regions whose control plane does not answer."""

    def __init__(self, moto: Any, plant: Plant | None = None, takes_s: float = 0.15) -> None:
        super().__init__("rds", moto.url)
        self.moto, self.plant, self.takes_s = moto, plant, takes_s
        self.away: set[str] = set()
        self.moving: dict[tuple[str, str], str] = {}
        self.promoted: set[tuple[str, str]] = set()
        self.events: list[dict[str, Any]] = []
        self.quiet = False
        """Restarts leave no event."""
        self.most = 40
        """DB instances that the account may have in each region."""
        self.works: list[threading.Thread] = []
        self.held: dict[str, threading.Event] = {}
        """Operation -> what it begins does not end before this is set."""
        self._here = threading.local()
        self.handlers = {
            "DescribeAccountAttributes": self._quotas,
            "DescribeDBInstances": self._describe,
            "PromoteReadReplica": self._promote,
            "ModifyDBInstance": self._modify,
            "ModifyDBParameterGroup": self._parameters,
            "RebootDBInstance": self._reboot,
            "StopDBInstance": self._stop,
            "CreateDBInstanceReadReplica": self._replica,
            "DescribeEvents": self._events,
        }

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self._here.region = environ.get("HTTP_AUTHORIZATION", "").split("/")[2]
        if self._here.region in self.away:
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("500 away", [])
            return [b""]
        try:
            return super().__call__(environ, start_response)
        except Exception as e:
            self.violations.append(f"the test's own service failed: {e!r}")
            raise

    @property
    def region(self) -> str:
        return self._here.region

    def _moto(self, operation: str, region: str | None = None, **params: Any) -> dict[str, Any]:
        client = self.moto.client("rds", region or self.region)
        try:
            answer = getattr(client, operation)(**params)
        except client.exceptions.ClientError as e:
            raise Refused(e.response["Error"]["Code"], e.response["Error"]["Message"]) from e
        answer.pop("ResponseMetadata", None)
        return answer

    def _move(self, name: str, status: str, operation: str, then: Callable[[], None]) -> None:
        """``name`` is ``status`` for a while, then ``then`` happened, and it is available."""
        key = (self.region, name)

        def work() -> None:
            if operation in self.held:
                self.held[operation].wait(250)
            threading.Event().wait(self.takes_s)
            try:
                then()
            except Exception as e:
                self.violations.append(f"the test's own service failed at {operation}: {e!r}")
                raise
            finally:
                del self.moving[key]

        self.moving[key] = status
        thread = threading.Thread(target=work, daemon=True)
        self.works.append(thread)
        thread.start()

    def later(self, work: Callable[..., None], *values: Any, **named: Any) -> None:
        """Do ``work`` after a while."""
        timer = threading.Timer(self.takes_s, work, values, named)
        self.works.append(timer)
        timer.start()

    def _restart(self, name: str) -> None:
        if self.plant:
            self.plant.restart(name)

    def _shown(self, raw: dict[str, Any], region: str | None = None) -> dict[str, Any]:
        key = (region or self.region, raw["DBInstanceIdentifier"])
        raw["DBInstanceStatus"] = self.moving.get(key, raw["DBInstanceStatus"])
        if key in self.promoted:
            raw.pop("ReadReplicaSourceDBInstanceIdentifier", None)
        return raw

    def _one(self, name: str) -> dict[str, Any]:
        return self._shown(self._moto("describe_db_instances", DBInstanceIdentifier=name)["DBInstances"][0])

    def _available(self, name: str) -> dict[str, Any]:
        one = self._one(name)
        if one["DBInstanceStatus"] != "available":
            raise Refused("InvalidDBInstanceState", f"{name} is {one['DBInstanceStatus']}")
        return one

    def _describe(self, params: dict[str, Any]) -> Any:
        answer = self._moto("describe_db_instances", **params)
        answer["DBInstances"] = [self._shown(i) for i in answer["DBInstances"]]
        return answer

    def _quotas(self, _params: dict[str, Any]) -> Any:
        used = len(self._moto("describe_db_instances")["DBInstances"])
        return {"AccountQuotas": [{"AccountQuotaName": "DBInstances", "Used": used, "Max": self.most}]}

    def _promote(self, params: dict[str, Any]) -> Any:
        name, region = params["DBInstanceIdentifier"], self.region
        if not self._available(name).get("ReadReplicaSourceDBInstanceIdentifier"):
            raise Refused("InvalidDBInstanceState", f"{name} is no read replica")

        def then() -> None:
            self._moto("promote_read_replica", region, **params)
            self.promoted.add((region, name))
            if self.plant:
                self.plant.promote(name)

        self._move(name, "modifying", "PromoteReadReplica", then)
        return {"DBInstance": self._one(name)}

    def _modify(self, params: dict[str, Any]) -> Any:
        name, region = params["DBInstanceIdentifier"], self.region
        before = self._available(name)
        if not params.get("ApplyImmediately"):
            raise Refused("InvalidParameterCombination", "the test plays no maintenance window")

        def then() -> None:
            self._moto("modify_db_instance", region, **params)
            groups = params.get("VpcSecurityGroupIds")
            if groups and self.plant:
                ec2 = self.moto.client("ec2", region)
                rules = [g["IpPermissions"] for g in ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]]
                self.plant.admit(name, clients=any(rules))

        self._move(name, "renaming" if "NewDBInstanceIdentifier" in params else "modifying", "ModifyDBInstance", then)
        return {"DBInstance": {**before, "DBInstanceStatus": "modifying"}}

    def _parameters(self, params: dict[str, Any]) -> Any:
        group, region = params["DBParameterGroupName"], self.region
        if group.startswith("default."):
            raise Refused("InvalidParameterValue", "a default parameter group cannot be modified")
        users = [
            i["DBInstanceIdentifier"]
            for i in self._moto("describe_db_instances")["DBInstances"]
            if group in [g["DBParameterGroupName"] for g in i["DBParameterGroups"]]
        ]
        self._moto("modify_db_parameter_group", region, **params)
        for wanted in params["Parameters"]:
            assert (wanted["ParameterName"], wanted["ApplyMethod"]) == (PARAMETER, "immediate")
            for name in users:
                if self.plant and name in self.plant.nodes:
                    on = wanted["ParameterValue"] == "1"
                    self.later(self.plant.parameter, name, on=on)
        return {"DBParameterGroupName": group}

    def _reboot(self, params: dict[str, Any]) -> Any:
        name = params["DBInstanceIdentifier"]
        one = self._available(name)

        def then() -> None:
            self._restart(name)
            if self.quiet:
                return
            self.events.append(
                {
                    "SourceIdentifier": name,
                    "SourceType": "db-instance",
                    "Message": "DB instance restarted",
                    "EventCategories": ["availability"],
                    "Date": datetime.now(UTC),
                    "SourceArn": one["DBInstanceArn"],
                }
            )

        self._move(name, "rebooting", "RebootDBInstance", then)
        return {"DBInstance": self._one(name)}

    def _stop(self, params: dict[str, Any]) -> Any:
        one = self._available(params["DBInstanceIdentifier"])
        if one.get("ReadReplicaSourceDBInstanceIdentifier") or one.get("ReadReplicaDBInstanceIdentifiers"):
            raise Refused("InvalidDBInstanceState", "it has read replicas, or is one")
        return self._moto("stop_db_instance", **params)

    def _replica(self, params: dict[str, Any]) -> Any:
        name, source, region = params["DBInstanceIdentifier"], params["SourceDBInstanceIdentifier"], self.region
        home, _, source_name = source.rpartition(":")
        home = home.split(":")[3] if home else region
        if home != region and not params.get("PreSignedUrl"):
            raise Refused("InvalidParameterCombination", "a source in another region needs a presigned URL")
        up = self._moto("describe_db_instances", home, DBInstanceIdentifier=source_name)["DBInstances"][0]
        if not up["BackupRetentionPeriod"]:
            raise Refused("InvalidDBInstanceState", "automated backups are not enabled for the source")
        given = {k: v for k, v in params.items() if k != "PreSignedUrl"}
        answer = self._moto("create_db_instance_read_replica", **given)
        self.promoted.discard((region, name))

        def then() -> None:
            if self.plant:
                self.plant.copy(name, source_name)

        self._move(name, "creating", "CreateDBInstanceReadReplica", then)
        return {"DBInstance": {**answer["DBInstance"], "DBInstanceStatus": "creating"}}

    def _events(self, params: dict[str, Any]) -> Any:
        since = params.get("StartTime") or datetime.fromtimestamp(time.time() - 3600, UTC)
        since = since.replace(tzinfo=UTC)
        found = [e for e in self.events if e["SourceIdentifier"] == params["SourceIdentifier"] and e["Date"] >= since]
        return {"Events": found}


@contextlib.contextmanager
def service(moto: Any, plant: Plant | None = None) -> Iterator[Service]:
    """RDS over HTTP; boto3's environment points at it. Fails for what came in against botocore's model."""
    made = Service(moto, plant)
    with serving(made) as url, pytest.MonkeyPatch.context() as patch:
        made.url = url
        patch.setenv("AWS_ENDPOINT_URL_RDS", url)
        yield made
        for work in made.works:
            work.join(120)
    assert not made.violations, made.violations
