"""Up to when a bucket is a whole copy of another, by S3's own metric.

``ReplicationLatency`` of namespace AWS/S3 is the most seconds by which the destination is behind, a figure a minute and
rule, published in the Region of the destination (*Using S3 Replication metrics*): so it can be asked for while the
source's Region is dark. It is delivered on a best-effort basis; no figure proves nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.aws import Aws

NAMESPACE, LATENCY, PERIOD_S = "AWS/S3", "ReplicationLatency", 60
BACK = timedelta(hours=3)
"""S3 writes a figure while it copies; one that is older than this bounds nothing that anybody would accept."""


async def copied_until(aws: Aws, region: str, source: str, to: str, now: datetime) -> tuple[str | None, float | None]:
    """(all that bucket ``source`` held then is in ``to``, the delay in seconds); None where there is no such figure.

    Several rules may copy to one bucket, each a part: the one that is furthest behind counts.
    """
    client = await aws.client("cloudwatch", region)
    pair = [{"Name": "SourceBucket", "Value": source}, {"Name": "DestinationBucket", "Value": to}]

    def read() -> list[tuple[datetime, float]]:
        known = client.list_metrics(Namespace=NAMESPACE, MetricName=LATENCY, Dimensions=pair)["Metrics"]
        found = []
        for metric in known:
            points = client.get_metric_statistics(
                Namespace=NAMESPACE,
                MetricName=LATENCY,
                Dimensions=metric["Dimensions"],
                StartTime=now - BACK,
                EndTime=now + timedelta(seconds=PERIOD_S),
                Period=PERIOD_S,
                Statistics=["Maximum"],
            )["Datapoints"]
            if not points:
                return []
            found.append(_newest(points))
        return found

    rules = await aws.call(f"{LATENCY} of {source} to {to}", read)
    if not rules:
        return None, None
    return min(at - timedelta(seconds=s) for at, s in rules).astimezone(UTC).isoformat(), max(s for _, s in rules)


def _newest(points: list[dict[str, Any]]) -> tuple[datetime, float]:
    """(start of the minute, delay): its start, since nothing says when in that minute the delay was so large."""
    last = max(points, key=lambda p: p["Timestamp"])
    return last["Timestamp"], float(last["Maximum"])
