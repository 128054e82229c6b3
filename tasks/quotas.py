"""What an account may have, as far as a move to another site needs more of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from tasks.aws import Aws  # boto3 takes its time, and a check is loaded where there is no AWS

PERIOD_S = 300
"""AWS/Usage has a sample every five minutes (Service Quotas user guide, *CloudWatch usage metrics*)."""
LOOK_BACK_S = 3600.0


@dataclass(frozen=True)
class Allowance:
    """One quota.

    Attributes:
        name: what it counts, and where.
        limit: of the account, or of the one thing that ``name`` names.
        used: now, by everything that counts; None: not told.
        needs: what a move to the target takes beside that, at all of the active site's load.
        code: how it is asked for.
        way_back: the site that was active, where only the way back there needs it.
    """

    name: str
    limit: float
    used: float | None
    needs: float
    code: str
    way_back: str = ""


@runtime_checkable
class Quoted(Protocol):
    """A provider in an account that has quotas."""

    async def allowances(self, active: str, target: str) -> tuple[Allowance, ...]:
        """Each quota that a move from ``active`` to ``target`` comes near. Raises Unreachable, NotYet, Rejected."""
        ...


async def service_quota(aws: Aws, region: str, service: str, code: str) -> tuple[float, dict[str, str]]:
    """A quota as it is applied to the account (GetServiceQuota), and the metric of its use: namespace, name,
    statistic, and each dimension; empty where there is none.
    """
    client = await aws.client("service-quotas", region)
    answer = await aws.call(
        f"GetServiceQuota {code}", lambda: client.get_service_quota(ServiceCode=service, QuotaCode=code)
    )
    quota = answer["Quota"]
    use = quota.get("UsageMetric") or {}
    if not use.get("MetricName"):
        return float(quota["Value"]), {}
    metric = {
        "namespace": use["MetricNamespace"],
        "name": use["MetricName"],
        "statistic": use.get("MetricStatisticRecommendation") or "Maximum",
    }
    return float(quota["Value"]), metric | {f"={k}": v for k, v in use.get("MetricDimensions", {}).items()}


async def in_use(aws: Aws, region: str, metric: dict[str, str], now: datetime) -> float | None:
    """The newest sample of the last hour of what ``service_quota`` told; None for none."""
    if not metric:
        return None
    client = await aws.client("cloudwatch", region)
    answer = await aws.call(
        f"GetMetricStatistics {metric['name']}",
        lambda: client.get_metric_statistics(
            Namespace=metric["namespace"],
            MetricName=metric["name"],
            Dimensions=[{"Name": k[1:], "Value": v} for k, v in metric.items() if k.startswith("=")],
            StartTime=now - timedelta(seconds=LOOK_BACK_S),
            EndTime=now,
            Period=PERIOD_S,
            Statistics=[metric["statistic"]],
        ),
    )
    points = sorted(answer["Datapoints"], key=lambda p: p["Timestamp"])
    return float(points[-1][metric["statistic"]]) if points else None
