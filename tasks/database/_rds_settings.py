"""What the system file says of databases that AWS runs: instances, regions, the way of SQL, time-outs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.aws import Account
from tasks.database._nodes import Address, NodeSettings, PostgresSettings
from tasks.quantities import Duration
from tasks.secrets import SecretRef


class SqlAccess(Account):
    """How the data is reached over SQL. ``user`` needs pg_monitor, pg_signal_backend and a table relight_probe."""

    database: str
    user: str
    password: SecretRef | None = None
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "require"
    connect_timeout: Duration = 2.0
    query_timeout: Duration = 3.0
    stale_after: Duration = 65.0
    """A replica that heard nothing for so long has lost its primary (RDS sets wal_receiver_timeout to 30 s or more)."""
    poll: Duration = Field(default=2.0, gt=0)
    """Between two looks at what the service is doing; its calls are limited by rate."""
    promote_timeout: Duration = 900.0
    """Of a promotion; RDS restarts the instance, which takes minutes."""
    change_timeout: Duration = 120.0
    """Of a change of a parameter or of security groups, and of a reboot."""
    build_timeout: Duration = 7200.0
    """Of a replica that is made anew; the step's own time-out is usually shorter."""


class DataNode(BaseModel):
    """Where one node's SQL is. ``from``: site -> address that leads to it from there; another path of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    region: str
    address: Address
    """Its endpoint, ``host:port``. Written down, so that nothing is asked of a region that may be away."""
    ways: dict[str, Address] = Field(default_factory=dict, alias="from")
    quarantine: str | None = None
    """A security group of its VPC that admits nobody: the fence that no client can undo."""


class ReplicaShape(BaseModel):
    """How a replica is made anew. What is not said is taken from the instance that it replaces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_class: str | None = None
    subnet_group: str | None = None
    security_groups: tuple[str, ...] = ()
    parameter_group: str | None = None
    kms_key: str | None = None


class RdsNode(DataNode):
    """One DB instance."""

    instance: str
    """Its DB instance identifier."""
    replica: ReplicaShape = ReplicaShape()


class RdsSettings(SqlAccess):
    """As in ``docs/aws.md``, *RDS*."""

    engine_version: str | None = None
    """``16`` or ``16.4``: nothing is promoted that runs another one."""
    nodes: dict[str, RdsNode] = Field(min_length=1)


def for_sql(access: SqlAccess, nodes: dict[str, DataNode]) -> PostgresSettings:
    """The same as the settings of a PostgreSQL cluster: how its data is read."""
    return PostgresSettings(
        database=access.database,
        user=access.user,
        password=access.password,
        sslmode=access.sslmode,
        connect_timeout=access.connect_timeout,
        query_timeout=access.query_timeout,
        stale_after=access.stale_after,
        nodes={
            name: NodeSettings.model_validate({"site": n.site, "address": n.address, "from": n.ways})
            for name, n in nodes.items()
        },
    )
