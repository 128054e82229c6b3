"""What Prometheus cannot ask by itself: the machine (node exporter) and each PostgreSQL node (postgres exporter)."""

from __future__ import annotations

import json
from functools import partial

import binaries
import probes
import registry
from layout import DATABASE, NODES, PG_PORT, Part, account, fresh, node_host, secret, site_of, write

MACHINE = "127.0.3.91:9100"
"""Both sites are on one machine, so its figures are those of both."""
PG_EXPORTER_PORT = 9187

# What the exporter does not have. The lag is 0 only while the receiver is heard and everything it heard of is
# replayed: the age of the last replayed transaction alone grows on a primary that nobody writes to, and the
# difference of two positions of a replica that was cut off stays 0 for ever.
QUERIES: dict[str, dict[str, object]] = {
    "pg_stat_activity": {
        "query": "SELECT coalesce(state, 'none') AS state, count(*) AS count FROM pg_stat_activity"
        " WHERE backend_type IN ('client backend', 'walsender') GROUP BY 1",
        "metrics": [
            {"state": {"usage": "LABEL", "description": "What it does."}},
            {"count": {"usage": "GAUGE", "description": "Connections in this state."}},
        ],
    },
    "pg_replica": {
        "query": (
            "SELECT CASE WHEN w.status = 'streaming' AND clock_timestamp() - w.last_msg_receipt_time < '5 s'"
            " AND pg_last_wal_replay_lsn() >= w.latest_end_lsn THEN 0"
            " ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END AS lag_seconds"
            " FROM (SELECT 1) one LEFT JOIN pg_stat_wal_receiver w ON true WHERE pg_is_in_recovery()"
        ),
        "metrics": [{"lag_seconds": {"usage": "GAUGE", "description": "Seconds behind the primary."}}],
    },
    "pg_statements": {
        "query": (
            "SELECT coalesce(sum(calls), 0) AS calls, coalesce(sum(total_exec_time), 0) / 1000 AS seconds"
            " FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = 'app'"
        ),
        "metrics": [
            {"calls": {"usage": "COUNTER", "description": "Statements of the application that ended."}},
            {"seconds": {"usage": "COUNTER", "description": "Time they took in the server."}},
        ],
    },
}


def pg_address(node: str) -> str:
    """Where the exporter of a PostgreSQL node listens: beside it."""
    return f"{node_host(node)}:{PG_EXPORTER_PORT}"


def parts() -> list[Part]:
    """One exporter of the machine, one of each PostgreSQL node: a node that hangs silences its own only."""
    return [_machine(), *(_postgres(node) for node in NODES)]


def _machine() -> Part:
    collectors = [f"--collector.{name}" for name in ("cpu", "meminfo", "diskstats", "netdev", "filesystem", "loadavg")]
    return Part(
        name="node-exporter",
        site="ops",
        argv=(
            binaries.find("prometheus-node-exporter"),
            f"--web.listen-address={MACHINE}",
            "--collector.disable-defaults",
            *collectors,
            "--collector.netdev.device-exclude=^$",  # not lo, as by default: it is all the network that there is
            "--log.level=warn",
        ),
        listens=(MACHINE,),
        ready=partial(probes.listening, MACHINE),
        env={"GOMAXPROCS": "1"},
        user=account(),
    )


def _postgres(node: str) -> Part:
    site, place = site_of(node), fresh(site_of(node), f"{node}-exporter")
    queries = write(place / "queries.yaml", json.dumps(QUERIES, indent=1))
    password = write(place / "password", secret("exporter"), 0o600, handed=True)
    return Part(
        name=f"{node}-exporter",
        site=site,
        argv=(
            binaries.find("prometheus-postgres-exporter"),
            f"--web.listen-address={pg_address(node)}",
            f"--extend.query-path={queries}",
            "--disable-default-metrics",  # some of them fail on a replica, in every scrape
            "--no-collector.database",
            "--no-collector.bgwriter",
            "--log.level=error",
        ),
        listens=(pg_address(node),),
        ready=partial(probes.listening, pg_address(node)),
        env={
            "DATA_SOURCE_URI": f"{node_host(node)}:{PG_PORT}/{DATABASE}?sslmode=disable&connect_timeout=1",
            "DATA_SOURCE_USER": "exporter",
            "DATA_SOURCE_PASS_FILE": str(password),
            "GOMAXPROCS": "1",
        },
        user=account(),
        cwd=registry.home(),
    )


def scrape_configs() -> list[dict[str, object]]:
    """What Prometheus reads of them; every 5 s, because each look costs a node four queries."""
    nodes = [{"targets": [pg_address(n)], "labels": {"site": site_of(n), "node": n}} for n in NODES]
    machine = [{"targets": [MACHINE], "labels": {"site": site}} for site in ("west", "east")]
    slow = {"scrape_interval": "5s", "scrape_timeout": "2s"}
    return [
        {"job_name": "postgres", **slow, "static_configs": nodes},
        {"job_name": "machine", **slow, "static_configs": machine},
    ]
