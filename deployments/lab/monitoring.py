"""Prometheus and Alertmanager, watching both sites by the thresholds of the scaling plan."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from typing import Any

import binaries
import exporters
import probes
import registry
from layout import APPS, SITES, Part, fresh, net, write

PROMETHEUS = "127.0.3.90:9090"
ALERTMANAGER = "127.0.3.93:9093"
RECEIVER = "http://127.0.3.42:8420/alerts/alertmanager"
"""Where relight's own receiver listens, when it runs."""

P95 = 'histogram_quantile(0.95, sum by (site, le) (rate(http_request_duration_seconds_bucket{job="app"}[30s])))'

# name: (expression, for, severity, component, summary). `site` is the site that fails.
ALERTS = {
    "watchdog": ("vector(1)", "0s", "none", "monitoring", "always fires: when it does not come, nobody watches"),
    "database-primary-down": (
        # Every application server that still reports, in whatever site, says that its writes do not arrive; the
        # site is that of the node which the balancers send writes to.
        (
            'max by (site) (label_replace(haproxy_server_status{proxy="db",state="MAINT"} == 0, '
            '"site", "$1", "server", "(.+)-pg.*")) and on() (max(venue_database_writable) == 0)'
        ),
        "2s",
        "critical",
        "database",
        "no application server can write to the database",
    ),
    "site-down": (
        'max by (site) (up{job=~"app|haproxy"}) == 0',
        "2s",
        "critical",
        "application",
        "neither the balancer nor any application server of {{ $labels.site }} answers",
    ),
    "application-server-down": (
        '(up{job="app"} == 0) and (max_over_time(up{job="app"}[5m]) == 1)',
        "2s",
        "warning",
        "application",
        "{{ $labels.app }} stopped answering",
    ),
    "high-cpu": (
        'max by (site, app) (rate(process_cpu_seconds_total{job="app"}[30s])) > 0.85',
        "30s",
        "critical",
        "application",
        "{{ $labels.app }} uses more than 85 % of a processor",
    ),
    "elevated-cpu": (
        'max by (site, app) (rate(process_cpu_seconds_total{job="app"}[30s])) > 0.70',
        "30s",
        "warning",
        "application",
        "{{ $labels.app }} uses more than 70 % of a processor",
    ),
    "high-latency": (
        f"{P95} > 1",
        "10s",
        "critical",
        "application",
        "one in twenty requests in {{ $labels.site }} takes more than 1000 ms",
    ),
    "elevated-latency": (
        f"{P95} > 0.5",
        "10s",
        "warning",
        "application",
        "one in twenty requests in {{ $labels.site }} takes more than 500 ms",
    ),
    "high-errors": (
        "sum by (site) (rate(http_request_errors_total[30s])) / sum by (site) (rate(http_requests_total[30s])) > 0.05",
        "5s",
        "critical",
        "application",
        "more than 5 % of the answers in {{ $labels.site }} are errors",
    ),
    "elevated-errors": (
        "sum by (site) (rate(http_request_errors_total[30s])) / sum by (site) (rate(http_requests_total[30s])) > 0.01",
        "5s",
        "warning",
        "application",
        "more than 1 % of the answers in {{ $labels.site }} are errors",
    ),
    "high-connections": (
        (
            'sum by (site) (venue_pg_pool_connections{state="total"}) '
            '/ sum by (site) (venue_pg_pool_connections{state="max"}) > 0.9'
        ),
        "10s",
        "critical",
        "database",
        "more than 90 % of the database connections of {{ $labels.site }} are in use",
    ),
}


def parts() -> list[Part]:
    """Prometheus and Alertmanager, and the exporters that Prometheus reads."""
    return [_prometheus(), _alertmanager(), *exporters.parts()]


def _prometheus() -> Part:
    place = fresh("ops", "prometheus")
    apps = [
        {"targets": [f"{net(site)}.{20 + n}:3000"], "labels": {"site": site, "app": f"{site}-app{n}"}}
        for site in SITES
        for n in APPS
    ]
    balancers = [{"targets": [f"{net(site)}.10:8404"], "labels": {"site": site}} for site in SITES]
    config: dict[str, Any] = {
        "global": {
            "scrape_interval": "1s",
            "scrape_timeout": "900ms",
            "evaluation_interval": "1s",
            "external_labels": {"system": "lab"},
        },
        "rule_files": [str(place / "rules.yaml"), str(place / "exported*.yaml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [ALERTMANAGER]}]}]},
        "scrape_configs": [
            {"job_name": "app", "honor_labels": True, "static_configs": apps},
            {"job_name": "haproxy", "static_configs": balancers},
            {"job_name": "prometheus", "static_configs": [{"targets": [PROMETHEUS]}]},
            *exporters.scrape_configs(),
        ],
    }
    rules = [
        {
            "alert": name,
            "expr": expression,
            "for": hold,
            "labels": {"severity": severity, "component": component},
            "annotations": {"summary": summary},
        }
        for name, (expression, hold, severity, component, summary) in ALERTS.items()
    ]
    # JSON is YAML, and needs no quoting rules of our own.
    write(place / "prometheus.yaml", json.dumps(config, indent=1))
    write(place / "rules.yaml", json.dumps({"groups": [{"name": "lab", "interval": "1s", "rules": rules}]}, indent=1))
    return Part(
        name="prometheus",
        site="ops",
        argv=(
            binaries.find("prometheus"),
            f"--config.file={place}/prometheus.yaml",
            f"--web.listen-address={PROMETHEUS}",
            f"--storage.tsdb.path={place}/data",
            "--storage.tsdb.retention.time=6h",
            "--storage.tsdb.retention.size=256MB",
            # what fires before its Alertmanager is discovered is lost until it is sent again: not after a minute
            "--rules.alert.resend-delay=2s",
            "--log.level=warn",
        ),
        listens=(PROMETHEUS,),
        ready=partial(probes.http_ok, PROMETHEUS, "/-/ready"),
        cwd=place,
    )


def _alertmanager() -> Part:
    place = fresh("ops", "alertmanager")
    bearer = {"type": "Bearer", "credentials_file": str(registry.home() / "secrets" / "alerts")}
    webhook = {"url": RECEIVER, "send_resolved": True, "max_alerts": 0, "http_config": {"authorization": bearer}}
    config = {
        "route": {
            "receiver": "relight",
            "group_by": ["alertname", "site"],
            "group_wait": "0s",
            "group_interval": "5s",
            "repeat_interval": "5m",
            "routes": [{"matchers": ['alertname="watchdog"'], "repeat_interval": "30s"}],
        },
        "receivers": [{"name": "relight", "webhook_configs": [webhook]}],
    }
    write(place / "alertmanager.yaml", json.dumps(config, indent=1))
    return Part(
        name="alertmanager",
        site="ops",
        argv=(
            binaries.find("prometheus-alertmanager"),
            f"--config.file={place}/alertmanager.yaml",
            f"--web.listen-address={ALERTMANAGER}",
            "--cluster.listen-address=",
            f"--storage.path={place}/data",
            "--log.level=warn",
        ),
        listens=(ALERTMANAGER,),
        ready=partial(probes.http_ok, ALERTMANAGER, "/-/ready"),
        cwd=place,
    )


async def scrapes() -> None:
    """Prometheus scrapes two application servers a site, both balancers and itself; the first time 5 s after its start,
    because its discovery manager hands targets on that often. `up` does not wait for it: the system serves before.
    """
    await probes.targets(PROMETHEUS, {"app": 4, "haproxy": 2, "prometheus": 1})


def check() -> str:
    """Output of promtool and amtool on the written files. Raises LabError when one finds a fault."""
    ops = registry.home() / "ops"
    said = []
    for argv in (
        [binaries.find("promtool"), "check", "config", str(ops / "prometheus" / "prometheus.yaml")],
        [binaries.find("amtool"), "check-config", str(ops / "alertmanager" / "alertmanager.yaml")],
    ):
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise registry.LabError(f"{argv[0]} finds a fault: {ran.stdout}{ran.stderr}")
        said.append(ran.stdout)
    return "".join(said)
