"""Default queries of the Prometheus provider: of the lab's exporters, and of everybody's who uses the standard names.

Each gives one value a site (label ``site``) in the unit of the catalogue. ``samples`` are the raw series it is made of:
the result of an expression always carries the time of its evaluation, so how old it is can only be told from those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.metrics.protocol import Served


class Query(BaseModel):
    """``expr``: PromQL; ``{window}`` in it is the setting ``window``. ``samples``: a selector; empty: not looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expr: str
    samples: str = ""


class Requests(BaseModel):
    """``buckets``: selector of a histogram (classic buckets, seconds) of clients' requests that has a label with the
    HTTP status; ``server``: the label whose value is the name of the server in the balancers and in ``capacity``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets: str = 'http_request_duration_seconds_bucket{job="app",route!~"/healthz|/readyz|/metrics|/vantage"}'
    server: str = "app"
    status: str = "status"

    def expr(self, site_label: str, site: str) -> str:
        """Counts by server, status and bucket."""
        within = f'{self.buckets.rstrip().removesuffix("}")},{site_label}="{site}"}}'
        return f"sum by ({self.server}, {self.status}, le) ({within})"


def tallied(vector: Iterable[Any], names: Requests) -> dict[str, Served]:
    """The result of ``Requests.expr`` by server."""
    below: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    errors: dict[str, int] = defaultdict(int)
    for one in vector:
        labels, count = one["metric"], int(float(one["value"][1]))
        server, bound = str(labels.get(names.server, "")), float(labels["le"])
        below[server][bound] += count
        if bound == float("inf") and str(labels.get(names.status, "")).startswith("5"):
            errors[server] += count
    found = {}
    for server, buckets in below.items():
        bounds = tuple(sorted(buckets))
        upto = [buckets[b] for b in bounds]
        counts = tuple(n - before for n, before in zip(upto, [0, *upto], strict=False))
        found[server] = Served(upto[-1], errors[server], bounds, counts)
    return found


def span(seconds: float) -> str:
    """A duration as Prometheus takes it: whole numbers only, ``30s`` or ``1500ms``."""
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds * 1000:.0f}ms"


APP, MACHINE, POSTGRES = '{job="app"}', '{job="machine"}', '{job="postgres"}'
_FILES = '{job="machine",fstype!~"tmpfs|ramfs|squashfs"}'
_REQUESTS = f"sum by (site) (rate(http_requests_total{APP}[{{window}}]))"


def _moved(*counters: str) -> str:
    return " + ".join(f"sum by (site) (rate({c}{MACHINE}[{{window}}]))" for c in counters)


QUERIES = {
    "cpu_usage": Query(
        expr=f"100 * max by (site) (rate(process_cpu_seconds_total{APP}[{{window}}]))",
        samples=f"process_cpu_seconds_total{APP}",
    ),
    "memory_usage": Query(
        expr=f"100 * max by (site) (1 - node_memory_MemAvailable_bytes{MACHINE} / node_memory_MemTotal_bytes{MACHINE})",
        samples=f"node_memory_MemAvailable_bytes{MACHINE}",
    ),
    "disk_io": Query(
        expr=_moved("node_disk_read_bytes_total", "node_disk_written_bytes_total"),
        samples=f"node_disk_read_bytes_total{MACHINE}",
    ),
    "network_traffic": Query(
        expr=_moved("node_network_receive_bytes_total", "node_network_transmit_bytes_total"),
        samples=f"node_network_receive_bytes_total{MACHINE}",
    ),
    "request_latency": Query(
        expr=(
            f"histogram_quantile(0.95, sum by (site, le) (rate(http_request_duration_seconds_bucket{APP}[{{window}}])))"
        ),
        samples=f"http_request_duration_seconds_count{APP}",
    ),
    "error_rate": Query(
        expr=f"100 * sum by (site) (rate(http_request_errors_total{APP}[{{window}}])) / {_REQUESTS}",
        samples=f"http_requests_total{APP}",
    ),
    "concurrent_users": Query(expr=f"sum by (site) (http_connections{APP})", samples=f"http_connections{APP}"),
    "connection_count": Query(
        expr=(
            f"100 * max by (site) (sum by (site, node) (pg_stat_activity_count{POSTGRES})"
            f" / max by (site, node) (pg_settings_max_connections{POSTGRES}))"
        ),
        samples=f"pg_settings_max_connections{POSTGRES}",
    ),
    "query_performance": Query(
        expr=(
            f"sum by (site) (rate(pg_statements_seconds{POSTGRES}[{{window}}]))"
            f" / sum by (site) (rate(pg_statements_calls{POSTGRES}[{{window}}]))"
        ),
        samples=f"pg_statements_calls{POSTGRES}",
    ),
    "replication_lag": Query(
        expr=f"max by (site) (pg_replica_lag_seconds{POSTGRES})", samples=f"pg_replica_lag_seconds{POSTGRES}"
    ),
    "disk_usage": Query(
        expr=f"100 * max by (site) (1 - node_filesystem_avail_bytes{_FILES} / node_filesystem_size_bytes{_FILES})",
        samples=f"node_filesystem_avail_bytes{_FILES}",
    ),
}
