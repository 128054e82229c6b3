"""The conditions of a system file: units, names, what is crossed, what is unknown; as rules; and the cost report."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

import pytest

from flows.engine import alertrules, conditions, costs, evaluation, system, yamlfile
from flows.engine.findings import InvalidFiles
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.cost._usage import kind
from tasks.cost.protocol import Advice, Anomaly, Spend
from tasks.database._inifile import with_settings
from tasks.errors import Rejected
from tasks.metrics._cloudwatch import Formula, Site, Stat, formulas
from tasks.metrics._promql import QUERIES, span
from tasks.metrics.prometheus import Prometheus, PrometheusSettings
from tasks.metrics.protocol import CATALOGUE, Reading, metric

PLAN = {
    "system": "shop",
    "sites": {"north": {}, "south": {}},
    "objectives": {"application": {"rto": "5m"}, "database": {"rto": "15m"}},
    "scaling": {
        "cpu": {"warning": "70%", "critical": "85%"},
        "latency": {"warning": "500ms", "critical": "1000ms"},
    },
    "auto_scaling": {
        "min_instances": 2,
        "max_instances": 10,
        "target_cpu_utilization": "70%",
        "cooldown_period": 300,
        "scale_up": {"adjustment": "+2", "cooldown": 300},
        "scale_down": {"adjustment": "-1", "cooldown": 600},
    },
    "monitoring": {
        "metrics": ["cpu_usage", "active_users"],
        "alerts": [{"name": "high-latency", "condition": "request_latency > 1000ms", "severity": "warning"}],
    },
    "database_monitoring": {
        "metrics": ["replication_lag"],
        "alerts": [{"name": "replication-lag", "condition": "lag > 60s", "severity": "warning"}],
    },
    "cost_monitoring": {
        "metrics": ["instance_cost"],
        "alerts": [{"name": "cost-increase", "condition": "daily_cost > threshold", "severity": "warning"}],
    },
}


def loaded(**change):
    return system.check(yamlfile.Document("system.yaml", {**PLAN, **change})).system


def judged(name, value, state="ok", **change):
    found = loaded(**change)
    of = metric(name)
    rules = tuple(r for r in conditions.rules_of(found) if r.metric is of)
    return evaluation.judge(of, Reading(name, "north", state, value), rules)


@pytest.mark.parametrize(
    ("name", "value", "outcome", "crossed"),
    [
        ("cpu_usage", 69.9, "ok", []),
        ("cpu_usage", 70.0, "ok", []),
        ("cpu_usage", 70.1, "warning", ["scaling-cpu-warning"]),
        ("cpu_usage", 85.1, "critical", ["scaling-cpu-warning", "scaling-cpu-critical"]),
        ("request_latency", 0.5, "ok", []),
        ("request_latency", 0.501, "warning", ["scaling-latency-warning"]),
        (
            "request_latency",
            1.001,
            "critical",
            ["scaling-latency-warning", "scaling-latency-critical", "high-latency"],
        ),
        ("lag", 60.0, "ok", []),
        ("lag", 60.5, "warning", ["replication-lag"]),
        ("concurrent_users", 1e6, "ok", []),
    ],
)
def test_conditions_are_compared_in_the_unit_of_the_metric(name, value, outcome, crossed):
    found = judged(name, value)
    assert (found.outcome, [r.name for r in found.crossed]) == (outcome, crossed)


@pytest.mark.parametrize("state", ["no-data", "stale", "not-a-number", "no-answer", "not-measured"])
def test_what_is_not_known_is_never_ok_whatever_value_comes_with_it(state):
    assert judged("cpu_usage", None, state).outcome == "unknown"
    assert judged("cpu_usage", 0.0, state).outcome == "unknown"


def test_a_threshold_that_only_has_a_name_is_unknown_until_the_file_gives_it_a_value():
    nameless = judged("daily_cost", 50.0)
    assert nameless.outcome == "unknown"
    assert "add `thresholds: {threshold: …}` to cost_monitoring" in nameless.why
    named = {"cost_monitoring": {**PLAN["cost_monitoring"], "thresholds": {"threshold": 40}}}
    assert judged("daily_cost", 50.0, **named).outcome == "warning"
    assert judged("daily_cost", 40.0, **named).outcome == "ok"


def test_a_site_with_nothing_to_measure_is_left_out_only_where_another_one_has_it():
    lag, users = metric("lag"), metric("active_users")
    has, not_here = Reading("x", "south", "ok", 1.0), Reading("x", "north", "no-data")
    down = Reading("x", "north", "no-answer")
    assert evaluation._meant(lag, (not_here, has)) == (has,)
    assert evaluation._meant(lag, (not_here, not_here)) == (not_here, not_here)
    assert evaluation._meant(lag, (down, has)) == (down, has)
    assert evaluation._meant(users, (not_here, has)) == (not_here, has)


def test_the_worst_of_all_puts_unknown_above_a_warning_and_below_critical():
    assert evaluation.worst(()) == "ok"
    ok, warning = judged("cpu_usage", 1.0), judged("cpu_usage", 71.0)
    unknown, critical = judged("cpu_usage", None, "stale"), judged("cpu_usage", 99.0)
    assert evaluation.worst((ok, warning)) == "warning"
    assert evaluation.worst((warning, unknown)) == "unknown"
    assert evaluation.worst((unknown, critical, ok)) == "critical"


@pytest.mark.parametrize(
    ("change", "code", "near"),
    [
        ({"monitoring": {"metrics": ["cpu_usgae"]}}, "unknown-metric", "cpu_usage"),
        (
            {"monitoring": {"alerts": [{"name": "a", "condition": "lga > 60s", "severity": "info"}]}},
            "unknown-metric",
            "lag",
        ),
        ({"monitoring": {"alerts": [{"name": "a", "condition": "lag > 60%", "severity": "info"}]}}, "wrong-unit", ""),
        (
            {"monitoring": {"alerts": [{"name": "a", "condition": "cpu_usage > 85", "severity": "info"}]}},
            "wrong-unit",
            "",
        ),
        ({"scaling": {"cpu": {"warning": "500ms", "critical": "1s"}}}, "wrong-unit", ""),
        (
            {"cost_monitoring": {**PLAN["cost_monitoring"], "thresholds": {"threshold": "5m"}}},
            "wrong-unit",
            "",
        ),
    ],
)
def test_a_condition_that_cannot_be_meant_is_a_finding(change, code, near):
    with pytest.raises(InvalidFiles) as caught:
        loaded(**change)
    found = caught.value.findings[0]
    assert found.code == code
    assert found.nearest == near


class Source:
    site_label = "site"

    def metrics(self):
        return tuple(QUERIES)

    def expression(self, name):
        return QUERIES[metric(name).name].expr.replace("{window}", "30s")

    def selector(self, name):
        return QUERIES[metric(name).name].samples


def test_rules_for_prometheus_carry_what_a_trigger_matches_and_leave_nothing_out_in_silence():
    made = alertrules.prometheus(loaded(), Source(), 90.0, 1.5)
    group = made.document["groups"][0]
    assert group["interval"] == "1500ms"
    rules = {r["alert"]: r for r in group["rules"]}
    lag = rules["replication-lag"]
    assert lag["expr"].endswith("> 60")
    assert lag["for"] == "90s"
    assert lag["labels"] == {
        "system": "shop",
        "severity": "warning",
        "component": "database",
        "metric": "replication_lag",
        "section": "database_monitoring",
        "owner": "relight",
    }
    assert rules["high-latency"]["expr"].endswith("> 1"), "1000ms in seconds"
    silent = {r["expr"] for r in group["rules"] if r["alert"] == "metric-unknown"}
    assert 'absent(http_connections{job="app",site="south"})' in silent
    assert 'absent(pg_replica_lag_seconds{job="postgres"})' in silent, "a site without a replica has no lag"
    assert set(made.left_out) == {"cost-increase"}
    assert [span(s) for s in (30, 0.3, 1.5)] == ["30s", "300ms", "1500ms"]


def test_every_metric_of_the_plan_is_in_the_catalogue_and_prometheus_has_all_but_the_cost():
    assert {n for n, m in CATALOGUE.items() if m.domain != "cost"} == set(QUERIES)
    assert metric("lag") is CATALOGUE["replication_lag"]
    assert metric("active_users") is CATALOGUE["concurrent_users"]


def test_default_queries_are_by_the_label_that_names_the_site_here():
    async def expression():
        around = Surroundings("shop", "metrics", ("north",), LoopClock(), lambda name: name)
        found = Prometheus(PrometheusSettings(url="http://x", site_label="region", window="90s"), around)
        try:
            return found.expression("error_rate"), found.expression("connection_count")
        finally:
            await found.aclose()

    errors, connections = asyncio.run(expression())
    assert errors.count("by (region)") == 2
    assert "[90s]" in errors
    assert "by (region, node)" in connections
    assert "site" not in errors + connections


def test_formulas_of_cloudwatch_say_the_same_here_and_there():
    errors = formulas(Site(region="r", load_balancer="app/x/1"))["error_rate"]
    assert errors.value([3.0, 1.0], 200.0, 60) == 2.0
    assert errors.value([0.0, 0.0], 0.0, 60) is None, "no request: nothing it could be computed from"
    assert errors.expression() == "100*(FILL(a0,0)+FILL(a1,0))/o"
    disk = formulas(Site(region="r", database="d", storage_gib=100))["disk_usage"]
    assert disk.value([25 * 2.0**30], None, 60) == pytest.approx(75.0)
    one = Stat(namespace="n", name="m")
    assert Formula(add=(one, one), per_second=True).value([60.0, 60.0], None, 60) == 2.0
    assert "memory_usage" not in formulas(Site(region="r", load_balancer="app/x/1")), (
        "what has no dimension is not guessed"
    )


# ---- PgBouncer's file ----


def test_only_the_asked_lines_of_the_pooler_file_change():
    text = (
        "[databases]\nmin_pool_size = host=x\n\n[pgbouncer]\nlisten_port = 6432\nmin_pool_size = 5 ; few\n\n[users]\n"
    )
    changed = with_settings(text, {"min_pool_size": 20, "max_db_connections": 100})
    assert changed == (
        "[databases]\nmin_pool_size = host=x\n\n[pgbouncer]\nlisten_port = 6432\nmin_pool_size = 20\n"
        "max_db_connections = 100\n\n[users]\n"
    )
    assert with_settings(changed, {"min_pool_size": 20, "max_db_connections": 100}) == changed
    with pytest.raises(Rejected):
        with_settings("[databases]\n", {"min_pool_size": 1})


# ---- cost ----

DAY = date(2026, 11, 25)


def spend(site="north", component="application", usage="BoxUsage:m5.large", usd=10.0, *, hours=48.0, day=DAY, **more):
    return Spend(
        day,
        site,
        component,
        kind(usage),
        usage,
        usd,
        hours,
        **{"spot": "Spot" in usage, "estimated": False, **more},
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("BoxUsage:t3.large", "instance"),
        ("EUC1-SpotUsage:m5.large", "instance"),
        ("InstanceUsage:db.r6g.large", "instance"),
        ("EBS:VolumeUsage.gp3", "storage"),
        ("USW2-TimedStorage-ByteHrs", "storage"),
        ("RDS:ChargedBackupUsage", "storage"),
        ("DataTransfer-Out-Bytes", "bandwidth"),
        ("NatGateway-Bytes", "bandwidth"),
        ("NatGateway-Hours", "instance"),
        ("Requests-Tier1", "other"),
    ],
)
def test_kinds_of_cost(usage, expected):
    assert kind(usage) == expected


def severities(report):
    return {f.title: f.severity for f in report.findings}


def test_the_standbys_minimum_and_what_holds_state_are_never_on_spot():
    spent = (
        spend("south", usage="SpotUsage:m5.large", hours=48.0),
        spend("south", hours=24.0),
        spend("south", component="database", usage="SpotUsage:r5.large", hours=24.0),
        spend("north", hours=96.0, usd=40.0),
    )
    found = severities(costs.judge(loaded(), "south", spent, (), ()))
    assert found["the minimum of 2 instances at south is not on demand"] == "critical"
    assert found["database at south runs on spot"] == "critical"
    assert found["2.0 instances at north above its minimum could be spot"] == "info"
    good = costs.judge(loaded(), "south", (spend("south"), spend("north")), (), ())
    assert "critical" not in severities(good).values()


def test_the_cost_of_the_standby_for_each_minute_it_saves():
    without = {"cost_monitoring": {**PLAN["cost_monitoring"], "recovery_without_standby": "8h15m"}}
    made = costs.judge(loaded(**without), "south", (spend("south", usd=48.0), spend("north")), (), ())
    line = next(f for f in made.findings if f.title.startswith("the standby"))
    assert "480 minutes, 0.1000 USD a day for each, 3.00 USD a month" in line.evidence
    unsaid = costs.judge(loaded(), "south", (spend("south"),), (), ())
    assert severities(unsaid)["the standby south costs 10.00 USD a day"] == "unknown"


def test_no_bill_is_unknown_and_not_free():
    made = costs.judge(loaded(), "south", (), (), ())
    assert made.usd is None
    assert [f.severity for f in made.findings] == ["unknown"]


def test_days_anomalies_and_advice_are_in_the_report():
    spent = (
        *(spend(day=DAY - timedelta(days=n), usd=10.0) for n in (1, 2)),
        spend(usd=16.0),
        spend(component="", usd=1.0),
    )
    anomaly = Anomaly("a-1", "AmazonEC2, us-east-1", "2026-11-24", None, 30.0, 10.0)
    advice = Advice("i-1", "north", "application", "m5.xlarge", "m5.large", 140.0, 70.0, "CPU_OVER_PROVISIONED")
    made = costs.judge(loaded(), "south", spent, (anomaly,), (advice,))
    assert (made.rows[0].usd, made.rows[0].mean_usd) == (16.0, 10.0)
    assert made.usd == 17.0
    titles = severities(made)
    assert titles["anomaly of 30.00 USD: AmazonEC2, us-east-1"] == "warning"
    assert titles["1.00 USD a day belong to no component"] == "warning"
    assert titles["i-1 (m5.xlarge, application at north) could save 70.00 USD a month"] == "info"
