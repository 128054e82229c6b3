"""Default metrics of an application on AWS: Application Load Balancer, Auto Scaling group, RDS or Aurora.

Sources: the user guides' lists of metrics (ELB *CloudWatch metrics for your Application Load Balancer*, EC2 *List the
available CloudWatch metrics*, RDS *Amazon CloudWatch metrics for Amazon RDS*). RDS has no metric of the mean time of a
statement, and only a machine with CloudWatch's agent has one of memory: what is not there is not guessed.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Stat(BaseModel):
    """One statistic of one CloudWatch metric. ``absent_is_zero``: it is only reported when it is not 0 (5xx counts)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str
    name: str
    dimensions: dict[str, str] = Field(default_factory=dict)
    statistic: str = "Average"
    absent_is_zero: bool = False


class Formula(BaseModel):
    """``offset + scale * (sum of add) / over``, and per second where that is said. CloudWatch's own metric math for
    alarms; computed here for readings, so that a part that is missing is seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    add: tuple[Stat, ...] = Field(min_length=1)
    over: Stat | None = None
    scale: float = 1.0
    offset: float = 0.0
    per_second: bool = False

    def value(self, added: list[float], over: float | None, period_s: int) -> float | None:
        """None where it would be divided by 0: nothing happened that it could be computed from."""
        if self.over is not None and not over:
            return None
        total = self.scale * sum(added) / (over or 1.0)
        return self.offset + (total / period_s if self.per_second else total)

    def of_requests(self) -> str:
        """The metric of a load balancer that it needs and that is only published while there are requests; or empty."""
        needed = [s for s in self.add if not s.absent_is_zero] + ([self.over] if self.over else [])
        balancer = (s.name for s in needed if s.namespace == "AWS/ApplicationELB")
        return next((n for n in balancer if n in ("RequestCount", "TargetResponseTime")), "")

    def expression(self) -> str:
        """Metric math over ids ``a0``, ``a1`` … and ``o``."""
        terms = [f"FILL(a{i},0)" if s.absent_is_zero else f"a{i}" for i, s in enumerate(self.add)]
        text = f"{self.scale:g}*({'+'.join(terms)})" + ("/o" if self.over else "")
        text += "/PERIOD(a0)" if self.per_second else ""
        return f"{self.offset:g}+{text}" if self.offset else text


class Site(BaseModel):
    """What a site's metrics are dimensioned by; a metric whose dimension is not given has no default.

    Attributes:
        load_balancer: the end of its ARN, ``app/NAME/ID``.
        target_group: the end of its ARN, ``targetgroup/NAME/ID``: errors and latency are of its targets only.
        beside: of the target group that it is compared with.
        database: DBInstanceIdentifier of the site's instance; ``replica``: of the one whose lag counts.
        cluster: DBClusterIdentifier of the site's Aurora cluster, in place of both.
        max_connections: of the database; ``storage_gib``: allocated, or what an Aurora volume may grow to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    auto_scaling_group: str | None = None
    load_balancer: str | None = None
    target_group: str | None = None
    beside: str | None = None
    database: str | None = None
    replica: str | None = None
    cluster: str | None = None
    max_connections: int | None = Field(default=None, ge=1)
    storage_gib: float | None = Field(default=None, gt=0)


def formulas(site: Site) -> dict[str, Formula]:
    """Metric -> formula, as far as the site's settings allow."""
    found: dict[str, Formula] = {}
    if site.auto_scaling_group:
        found |= _group({"AutoScalingGroupName": site.auto_scaling_group})
    if site.load_balancer and site.target_group:
        found |= _targets(site.load_balancer, site.target_group)
    elif site.load_balancer:
        found |= _balancer({"LoadBalancer": site.load_balancer})
    if site.database:
        found |= _database(site, {"DBInstanceIdentifier": site.database})
    if site.cluster:
        found |= _cluster(site, {"DBClusterIdentifier": site.cluster})
    if site.replica:
        lag = Stat(
            namespace="AWS/RDS",
            name="ReplicaLag",
            dimensions={"DBInstanceIdentifier": site.replica},
            statistic="Maximum",
        )
        found["replication_lag"] = Formula(add=(lag,))
    return found


def _group(of: dict[str, str]) -> dict[str, Formula]:
    def ec2(*names: str) -> tuple[Stat, ...]:
        return tuple(Stat(namespace="AWS/EC2", name=n, dimensions=of, statistic="Sum") for n in names)

    cpu = Stat(namespace="AWS/EC2", name="CPUUtilization", dimensions=of)
    memory = Stat(namespace="CWAgent", name="mem_used_percent", dimensions=of)
    return {
        "cpu_usage": Formula(add=(cpu,)),
        "memory_usage": Formula(add=(memory,)),
        "disk_io": Formula(add=ec2("EBSReadBytes", "EBSWriteBytes"), per_second=True),
        "network_traffic": Formula(add=ec2("NetworkIn", "NetworkOut"), per_second=True),
    }


def _elb(of: dict[str, str], name: str, statistic: str = "Sum", *, absent_is_zero: bool = False) -> Stat:
    return Stat(
        namespace="AWS/ApplicationELB", name=name, dimensions=of, statistic=statistic, absent_is_zero=absent_is_zero
    )


def _served(of: dict[str, str], *errors: str) -> dict[str, Formula]:
    failed = tuple(_elb(of, name, absent_is_zero=True) for name in errors)
    return {
        "request_latency": Formula(add=(_elb(of, "TargetResponseTime", "p95"),)),
        "error_rate": Formula(add=failed, over=_elb(of, "RequestCount"), scale=100.0),
    }


def _balancer(of: dict[str, str]) -> dict[str, Formula]:
    found = _served(of, "HTTPCode_Target_5XX_Count", "HTTPCode_ELB_5XX_Count")
    return found | {"concurrent_users": Formula(add=(_elb(of, "ActiveConnectionCount"),))}


def _targets(balancer: str, group: str) -> dict[str, Formula]:
    """The balancer's own 5XX are counted for no target group: a target that takes no connection makes most of them."""
    of = {"LoadBalancer": balancer, "TargetGroup": group}
    return _served(of, "HTTPCode_Target_5XX_Count", "TargetConnectionErrorCount")


def tallies(site: Site) -> tuple[Formula, Formula] | None:
    """Error rates of the target group and of the one beside it, to count with; None where they are not both named."""
    if not (site.load_balancer and site.target_group and site.beside):
        return None
    ours, theirs = (_targets(site.load_balancer, g)["error_rate"] for g in (site.target_group, site.beside))
    return ours, theirs


def _connections(site: Site, of: dict[str, str]) -> dict[str, Formula]:
    if not site.max_connections:
        return {}
    used = Stat(namespace="AWS/RDS", name="DatabaseConnections", dimensions=of, statistic="Maximum")
    return {"connection_count": Formula(add=(used,), scale=100.0 / site.max_connections)}


def _cluster(site: Site, of: dict[str, str]) -> dict[str, Formula]:
    """Of Aurora: connections of the busiest instance, the lag of a secondary cluster (in ms, and told in its region
    only), and what the shared volume has of all that it may grow to (Aurora User Guide, *CloudWatch metrics*).
    """
    lag = Stat(namespace="AWS/RDS", name="AuroraGlobalDBReplicationLag", dimensions=of, statistic="Maximum")
    found = {**_connections(site, of), "replication_lag": Formula(add=(lag,), scale=0.001)}
    if site.storage_gib:
        used = Stat(namespace="AWS/RDS", name="VolumeBytesUsed", dimensions=of, statistic="Maximum")
        found["disk_usage"] = Formula(add=(used,), scale=100.0 / (site.storage_gib * 2**30))
    return found


def _database(site: Site, of: dict[str, str]) -> dict[str, Formula]:
    found = _connections(site, of)
    if site.storage_gib:
        free = Stat(namespace="AWS/RDS", name="FreeStorageSpace", dimensions=of, statistic="Minimum")
        found["disk_usage"] = Formula(add=(free,), offset=100.0, scale=-100.0 / (site.storage_gib * 2**30))
    return found
