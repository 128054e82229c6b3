"""CloudWatch readings and alarms against moto's server (strict: composite alarms, topics), over HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import iam
import pytest
import strict
from ruamel.yaml import YAML

from flows.intake import reconcile
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo, Surroundings
from tasks.errors import BadInput, NotYet, Rejected, SafetyRefusal
from tasks.metrics import readiness
from tasks.metrics._alarming import CloudWatchSettings
from tasks.metrics._alarms import Alarm, Composite, every, fires
from tasks.metrics.actions import Within
from tasks.metrics.cloudwatch import CloudWatch
from tasks.metrics.protocol import Counts
from tasks.network import Sockets
from tasks.readiness import Asked, Part

pytestmark = pytest.mark.real
PROVIDER_NAME = "metrics.cloudwatch"

BALANCER = {"LoadBalancer": "app/shop/1"}
GROUP = {"AutoScalingGroupName": "shop-north"}
SITES = {
    "north": {
        "region": "us-east-1",
        "auto_scaling_group": "shop-north",
        "load_balancer": "app/shop/1",
        "database": "shop-db",
        "replica": "shop-db-2",
        "max_connections": 200,
    },
    "south": {"region": "eu-west-1", "auto_scaling_group": "shop-south"},
}
RELIGHT = Path(sys.executable).with_name("relight")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("cloudwatch")) as running:
        yield running


@pytest.fixture
def aws(server):
    server.reset()
    return {r: server.client("cloudwatch", r) for r in ("us-east-1", "eu-west-1")}


def put(client, namespace, name, dimensions, values):
    """``values``: minutes ago -> value."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    dims = [{"Name": k, "Value": v} for k, v in dimensions.items()]
    data = [
        {"MetricName": name, "Dimensions": dims, "Timestamp": now - timedelta(minutes=m), "Value": v}
        for m, v in values.items()
    ]
    client.put_metric_data(Namespace=namespace, MetricData=data)


def ask(work, **settings):
    async def main():
        around = Surroundings("shop", "metrics", ("north", "south"), LoopClock(), lambda name: name)
        found = CloudWatch(CloudWatchSettings.model_validate({"sites": SITES, "timeout": "30s", **settings}), around)
        try:
            return await work(found)
        finally:
            await found.aclose()

    return asyncio.run(main())


def now(metric, **settings):
    return {r.site: r for r in ask(lambda source: source.now(metric), **settings)}


def test_each_site_is_read_in_its_own_region(aws):
    put(aws["us-east-1"], "AWS/EC2", "CPUUtilization", GROUP, {3: 40.0, 2: 55.0})
    put(aws["eu-west-1"], "AWS/EC2", "CPUUtilization", {"AutoScalingGroupName": "shop-south"}, {2: 7.0})
    found = now("cpu_usage")
    assert (found["north"].state, found["north"].value) == ("ok", 55.0)
    assert (found["south"].state, found["south"].value) == ("ok", 7.0)
    assert 0 <= found["north"].age_s < 240
    assert found["north"].at.tzinfo is not None


def test_errors_are_a_share_and_no_error_is_not_no_data(aws):
    put(aws["us-east-1"], "AWS/ApplicationELB", "RequestCount", BALANCER, {2: 200.0})
    assert now("error_rate")["north"].value == 0.0, "5xx counts are only reported when there are any"
    put(aws["us-east-1"], "AWS/ApplicationELB", "HTTPCode_Target_5XX_Count", BALANCER, {2: 4.0})
    assert now("error_rate")["north"].value == 2.0
    put(aws["us-east-1"], "AWS/RDS", "DatabaseConnections", {"DBInstanceIdentifier": "shop-db"}, {2: 190.0})
    assert now("connection_count")["north"].value == 95.0


def test_a_load_balancer_without_requests_is_unknown_and_says_so(aws):
    for metric, counted in (("error_rate", "RequestCount"), ("request_latency", "TargetResponseTime")):
        silent = now(metric)["north"]
        assert (silent.state, silent.value) == ("no-data", None)
        assert silent.why.startswith("no requests in the last 22m")
        assert f"CloudWatch have {counted}, and it has none" in silent.why
    assert "no requests" not in now("concurrent_users")["north"].why, "idle connections count too"


def test_no_data_old_data_and_no_measure_are_unknown(aws):
    nothing = now("cpu_usage")["north"]
    assert (nothing.state, nothing.value) == ("no-data", None)
    put(aws["us-east-1"], "AWS/EC2", "CPUUtilization", GROUP, {8: 40.0})
    old = now("cpu_usage", stale_after="300s")["north"]
    assert (old.state, old.value) == ("stale", None)
    assert now("request_latency")["south"].state == "not-measured"
    assert now("query_performance")["north"].state == "not-measured"


def test_a_part_that_is_missing_is_no_data_and_not_a_smaller_sum(aws):
    put(aws["us-east-1"], "AWS/EC2", "NetworkIn", GROUP, {2: 6000.0})
    assert now("network_traffic")["north"].state == "no-data"
    put(aws["us-east-1"], "AWS/EC2", "NetworkOut", GROUP, {2: 6000.0})
    assert now("network_traffic")["north"].value == 200.0


def test_a_check_looks_back_only_as_far_as_it_says_and_no_shorter_than_the_period_allows(aws):
    put(aws["us-east-1"], "AWS/EC2", "CPUUtilization", GROUP, {4: 40.0})
    assert ask(lambda source: source.now("cpu_usage", 600))[0].value == 40.0
    before = ask(lambda source: source.now("cpu_usage", 180))[0]
    assert (before.state, before.value) == ("no-data", None)
    with pytest.raises(BadInput, match="its period is 60 s"):
        ask(lambda source: source.now("cpu_usage", 90))


OF_GROUPS = {
    "north": {
        "region": "us-east-1",
        "load_balancer": "app/shop/1",
        "target_group": "targetgroup/shop-canary/2",
        "beside": "targetgroup/shop-app/3",
    }
}


def test_a_canarys_target_group_is_read_by_itself_and_counted_beside_the_other(aws):
    groups = [{**BALANCER, "TargetGroup": OF_GROUPS["north"][k]} for k in ("target_group", "beside")]
    for of, requests, errors in zip(groups, (100.0, 900.0), (5.0, None), strict=True):
        put(aws["us-east-1"], "AWS/ApplicationELB", "RequestCount", of, {9: requests, 3: requests, 2: requests})
        if errors:
            put(aws["us-east-1"], "AWS/ApplicationELB", "HTTPCode_Target_5XX_Count", of, {9: errors, 3: errors})
            put(aws["us-east-1"], "AWS/ApplicationELB", "TargetConnectionErrorCount", of, {2: 8.0})
    put(aws["us-east-1"], "AWS/ApplicationELB", "RequestCount", BALANCER, {2: 1000.0})
    assert now("error_rate", sites=OF_GROUPS)["north"].value == 8.0, "of the newest minute, and of no other group"
    since = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=6)
    counts = ask(lambda source: source.counted("north", since), sites=OF_GROUPS)
    assert counts == (Counts(200, 13), Counts(1800, 0))
    with pytest.raises(BadInput, match="needs load_balancer, target_group"):
        ask(lambda source: source.counted("north", since))


def test_a_canary_without_data_is_not_within(aws):
    async def watch(source):
        step = Within.model_validate(
            {"metric": "error_rate", "below": "5%", "site": "north", "for": "1s", "every": "1s"}
        )
        clock = LoopClock()
        run = RunInfo("r", "shop", "canary", "graceful", 1, clock.utc().isoformat())
        ctx = Context(run, clock, {"north": "north"}, lambda _n: source, clock.monotonic() + 3)
        with pytest.raises(NotYet, match="error_rate of north is unknown"):
            await step.apply(ctx, await step.observe(ctx))

    ask(watch, sites=OF_GROUPS)


def test_an_aurora_cluster_is_read_by_its_own_measures(aws):
    of = {"DBClusterIdentifier": "shop"}
    site = {"region": "us-east-1", "cluster": "shop", "max_connections": 200, "storage_gib": 1000}
    for name, value in (
        ("AuroraGlobalDBReplicationLag", 1500.0),
        ("DatabaseConnections", 50.0),
        ("VolumeBytesUsed", 2.0**30),
    ):
        put(aws["us-east-1"], "AWS/RDS", name, of, {2: value})

    async def read(source):
        return [(await source.now(name))[0].value for name in ("replication_lag", "connection_count", "disk_usage")]

    assert ask(read, sites={"north": site}) == [1.5, 25.0, pytest.approx(0.1)]


def test_a_window_is_read_over_every_page(aws):
    # moto pages by 500 values, in descending order
    put(aws["us-east-1"], "AWS/EC2", "CPUUtilization", GROUP, {m: float(m % 7) for m in range(2, 902)})
    series = ask(lambda source: source.series("cpu_usage", 900 * 60.0, 60.0))
    north = next(s for s in series if s.site == "north")
    assert len(north.samples) >= 895
    assert [at for at, _ in north.samples] == sorted(at for at, _ in north.samples)


def test_a_cloudwatch_that_hangs_is_unknown(aws, server):
    server.hang()
    try:
        found = now("cpu_usage", timeout="500ms")
    finally:
        server.go_on()
    assert {(r.state, r.value) for r in found.values()} == {("no-answer", None)}


def alarm(threshold=85.0):
    return Alarm(
        "relight-shop-high-cpu-north", "cpu_usage", "north", ">", threshold, "about", 120.0, {"relight:system": "shop"}
    )


def test_an_alarm_is_created_once_changed_when_it_differs_and_tagged(aws):
    assert ask(lambda source: source.put(alarm())) == "created"
    assert ask(lambda source: source.put(alarm())) == "same"
    assert ask(lambda source: source.put(alarm(90.0))) == "updated"
    (have,) = aws["us-east-1"].describe_alarms()["MetricAlarms"]
    assert (have["Threshold"], have["ComparisonOperator"]) == (90.0, "GreaterThanThreshold")
    assert (have["EvaluationPeriods"], have["TreatMissingData"]) == (2, "missing")
    tags = aws["us-east-1"].list_tags_for_resource(ResourceARN=have["AlarmArn"])["Tags"]
    assert {t["Key"]: t["Value"] for t in tags} == {"relight:owner": "relight", "relight:system": "shop"}
    assert aws["eu-west-1"].describe_alarms()["MetricAlarms"] == []


def test_somebody_elses_alarm_of_the_same_name_is_left_alone(aws):
    theirs = {"AlarmName": alarm().name, "MetricName": "x", "Namespace": "y", "Statistic": "Sum", "Period": 60}
    more = {"EvaluationPeriods": 1, "Threshold": 1.0, "ComparisonOperator": "LessThanThreshold"}
    aws["us-east-1"].put_metric_alarm(**theirs, **more)
    with pytest.raises(SafetyRefusal, match="not relight's"):
        ask(lambda source: source.put(alarm()))
    assert aws["us-east-1"].describe_alarms()["MetricAlarms"][0]["MetricName"] == "x"


def test_the_conditions_of_a_file_become_alarms_by_the_command(aws, tmp_path):
    document = {
        "system": "shop",
        "sites": {"north": {}, "south": {}},
        "components": {"metrics": {"provider": "metrics.cloudwatch", "sites": SITES, "timeout": "30s"}},
        "scaling": {
            "cpu": {"warning": "70%", "critical": "85%"},
            "latency": {"warning": "500ms", "critical": "1s"},
            "errors": {"warning": "1%", "critical": "5%"},
        },
        "database_monitoring": {
            "alerts": [{"name": "replication-lag", "condition": "lag > 60s", "severity": "warning"}]
        },
    }
    with (tmp_path / "system.yaml").open("w") as out:
        YAML().dump(document, out)
    words = [RELIGHT, "rules", "export", "--system", str(tmp_path), "--format", "cloudwatch", "--apply", "--for", "3m"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    applied = json.loads(ran.stdout)["applied"]
    assert applied == dict.fromkeys(
        (
            "relight-shop-scaling-cpu-warning-north",
            "relight-shop-scaling-cpu-warning-south",
            "relight-shop-scaling-cpu-critical-north",
            "relight-shop-scaling-cpu-critical-south",
            "relight-shop-scaling-latency-warning-north",
            "relight-shop-scaling-latency-critical-north",
            "relight-shop-scaling-errors-warning-north",
            "relight-shop-scaling-errors-critical-north",
            "relight-shop-site-fails-north",
            "relight-shop-replication-lag-north",
        ),
        "created",
    )
    assert "left out scaling-latency-warning at south" in ran.stderr
    (composite,) = aws["us-east-1"].describe_alarms(AlarmTypes=["CompositeAlarm"])["CompositeAlarms"]
    slow = 'ALARM("{0}") OR INSUFFICIENT_DATA("{0}")'.format("relight-shop-scaling-latency-critical-north")
    assert composite["AlarmRule"] == f'ALARM("relight-shop-scaling-errors-critical-north") AND ({slow})'
    names = {a["AlarmName"] for c in aws.values() for a in c.describe_alarms()["MetricAlarms"]}
    assert names | {composite["AlarmName"]} == set(applied)
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert set(json.loads(again.stdout)["applied"].values()) == {"same"}


RULE = fires("relight-shop-high-cpu-north")


def fails(rule=RULE):
    return Composite("relight-shop-site-fails-north", "north", rule, "about", {"relight:system": "shop"})


SUPPRESSOR = {"alarm": "maintenance", "wait": "30s", "extension": "1m"}


def theirs(client, name="maintenance"):
    more = {"EvaluationPeriods": 1, "Threshold": 1.0, "ComparisonOperator": "LessThanThreshold"}
    client.put_metric_alarm(AlarmName=name, MetricName="x", Namespace="y", Statistic="Sum", Period=60, **more)


def composites(client):
    return client.describe_alarms(AlarmTypes=["CompositeAlarm"])["CompositeAlarms"]


def test_a_composite_alarm_is_created_once_and_is_quiet_in_maintenance(aws):
    with pytest.raises(Rejected, match="do not exist"):
        ask(lambda source: source.put_composite(fails()))
    ask(lambda source: source.put(alarm()))
    assert ask(lambda source: source.put_composite(fails())) == "created"
    assert ask(lambda source: source.put_composite(fails())) == "same"
    with pytest.raises(BadInput, match="its suppressor maintenance does not exist in us-east-1"):
        ask(lambda source: source.put_composite(fails()), suppressor=SUPPRESSOR)
    theirs(aws["us-east-1"])
    assert ask(lambda source: source.put_composite(fails()), suppressor=SUPPRESSOR) == "updated"
    assert ask(lambda source: source.put_composite(fails()), suppressor=SUPPRESSOR) == "same"
    (have,) = composites(aws["us-east-1"])
    assert have["ActionsSuppressor"] == "maintenance"
    assert (have["ActionsSuppressorWaitPeriod"], have["ActionsSuppressorExtensionPeriod"]) == (30, 60)
    assert ask(lambda source: source.put_composite(fails())) == "updated"
    (have,) = composites(aws["us-east-1"])
    assert have.get("ActionsSuppressor") is None
    tags = aws["us-east-1"].list_tags_for_resource(ResourceARN=have["AlarmArn"])["Tags"]
    assert {t["Key"]: t["Value"] for t in tags} == {"relight:owner": "relight", "relight:system": "shop"}


def test_a_composite_alarm_that_is_not_ours_or_of_another_system_is_left_alone(aws):
    ask(lambda source: source.put(alarm()))
    us, one = aws["us-east-1"], fails()
    us.put_composite_alarm(AlarmName=one.name, AlarmRule=one.rule)
    with pytest.raises(SafetyRefusal, match="not relight's"):
        ask(lambda source: source.put_composite(fails(every(one.rule, one.rule))))
    arn = composites(us)[0]["AlarmArn"]
    marks = {"relight:owner": "relight", "relight:system": "other"}
    us.tag_resource(ResourceARN=arn, Tags=[{"Key": k, "Value": v} for k, v in marks.items()])
    with pytest.raises(SafetyRefusal, match="of system other, not of shop"):
        ask(lambda source: source.put_composite(fails(every(one.rule, one.rule))))
    us.tag_resource(ResourceARN=arn, Tags=[{"Key": "relight:system", "Value": "shop"}])
    with pytest.raises(SafetyRefusal, match="one of the other kind"):
        ask(lambda source: source.put(replace(alarm(), name=one.name)))
    assert composites(us)[0]["AlarmRule"] == one.rule


RECEIVER = "https://relight.example/hooks/cloudwatch"


def found_by(check, arns, **settings):
    async def look(source):
        part = Part("metrics", source, CloudWatchSettings(sites=SITES))
        return await check(Asked("north", "south", LoopClock(), Sockets()), part)

    findings = ask(look, alarm_actions=arns, **settings)
    return {f.site: (f.level, f.says) for f in findings}


def test_a_topic_that_would_swallow_an_alarm_is_found(aws, server):
    assert found_by(readiness.told, ()) == {}
    sns = server.client("sns", "us-east-1")
    there = "arn:aws:sns:us-east-1:123456789012:relight"

    def at_north(**settings):
        found = found_by(readiness.told, (there,), **settings)
        assert found["south"] == (
            "warning",
            "no alarm of south is told to anybody: there is no topic of its region in alarm_actions",
        )
        return found["north"]

    level, says = at_north()
    assert (level, "there is no such topic" in says) == ("failing", True)
    assert sns.create_topic(Name="relight")["TopicArn"] == there
    level, says = at_north()
    assert (level, "(0 others are)" in says) == ("failing", True)
    server.set(pending=[RECEIVER])
    sns.subscribe(TopicArn=there, Protocol="https", Endpoint=RECEIVER)
    level, says = at_north()
    assert (level, f"never confirmed: {RECEIVER}" in says) == ("failing", True)
    server.set(pending=[])
    assert at_north()[0] == at_north(receiver=RECEIVER)[0] == "ok"
    level, says = at_north(receiver="https://other.example/hooks/cloudwatch")
    assert (level, "(1 others are)" in says) == ("failing", True)
    sns.set_topic_attributes(TopicArn=there, AttributeName="Policy", AttributeValue='{"Statement": []}')
    level, says = at_north()
    assert (level, "lets cloudwatch.amazonaws.com publish" in says) == ("failing", True)


def test_an_alarm_is_told_in_its_own_region_only(aws, server):
    arns = [server.client("sns", r).create_topic(Name="relight")["TopicArn"] for r in aws]
    ask(lambda source: source.put(alarm()), alarm_actions=arns)
    (have,) = aws["us-east-1"].describe_alarms()["MetricAlarms"]
    assert have["AlarmActions"] == have["OKActions"] == [arns[0]]


def test_a_composite_alarm_whose_message_was_lost_is_found(aws, server):
    there = server.client("sns", "us-east-1").create_topic(Name="relight")["TopicArn"]
    ask(lambda source: source.put(alarm()))
    ask(lambda source: source.put_composite(fails()), alarm_actions=(there,))
    source = SimpleNamespace(settings=SimpleNamespace(source="sns", topics=(there,)))
    assert asyncio.run(reconcile.cloudwatch(source)) == []
    aws["us-east-1"].set_alarm_state(AlarmName=fails().name, StateValue="ALARM", StateReason="it fails")
    (found,) = asyncio.run(reconcile.cloudwatch(source))
    assert (found["TopicArn"], json.loads(found["Message"])["AlarmName"]) == (there, fails().name)


def test_what_keeps_alarms_back_is_told(aws):
    assert found_by(readiness.muted, ()) == {}
    theirs(aws["us-east-1"])
    found = found_by(readiness.muted, (), suppressor=SUPPRESSOR)
    assert (found["north"][0], found["south"][0]) == ("ok", "warning")
    aws["us-east-1"].set_alarm_state(AlarmName="maintenance", StateValue="ALARM", StateReason="a window")
    found = found_by(readiness.muted, (), suppressor=SUPPRESSOR)
    assert found["north"] == ("warning", "alarm maintenance is in ALARM: composite alarms of north are told to nobody")


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
