"""CloudWatch readings and alarms against moto's server, a process of its own, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import httpx
import iam
import pytest
from hanging import hang
from ruamel.yaml import YAML

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.errors import BadInput, SafetyRefusal
from tasks.metrics._alarms import Alarm
from tasks.metrics.cloudwatch import CloudWatch, CloudWatchSettings

pytestmark = pytest.mark.real
PROVIDER_NAME = "metrics.cloudwatch"

ADDRESS, PORT = "127.0.6.90", 5001
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
    binary = shutil.which("moto_server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if binary is None:
        reason = "moto_server is not installed (pip install 'moto[server]')"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    process = subprocess.Popen([binary, "-H", ADDRESS, "-p", str(PORT)], stdout=log, stderr=log)
    deadline, pause = time.monotonic() + 60, threading.Event()
    while True:
        with socket.socket() as s:
            if s.connect_ex((ADDRESS, PORT)) == 0:
                break
        assert process.poll() is None
        assert time.monotonic() < deadline
        pause.wait(0.05)
    yield process
    process.kill()
    process.wait()
    log.close()


@pytest.fixture
def aws(server, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{ADDRESS}:{PORT}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(name, value)
    clients = {r: boto3.client("cloudwatch", region_name=r) for r in ("us-east-1", "eu-west-1")}
    httpx.post(f"http://{ADDRESS}:{PORT}/moto-api/reset", timeout=10)
    return clients


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
        found = CloudWatch(CloudWatchSettings.model_validate({"sites": SITES, "timeout": "5s", **settings}), around)
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
    assert 0 <= found["north"].age_s < 180
    assert found["north"].at.tzinfo is not None


def test_errors_are_a_share_and_no_error_is_not_no_data(aws):
    put(aws["us-east-1"], "AWS/ApplicationELB", "RequestCount", BALANCER, {2: 200.0})
    assert now("error_rate")["north"].value == 0.0, "5xx counts are only reported when there are any"
    put(aws["us-east-1"], "AWS/ApplicationELB", "HTTPCode_Target_5XX_Count", BALANCER, {2: 4.0})
    assert now("error_rate")["north"].value == 2.0
    put(aws["us-east-1"], "AWS/RDS", "DatabaseConnections", {"DBInstanceIdentifier": "shop-db"}, {2: 190.0})
    assert now("connection_count")["north"].value == 95.0


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


def test_a_window_is_read_over_every_page(aws):
    # moto pages by 500 values, in descending order
    put(aws["us-east-1"], "AWS/EC2", "CPUUtilization", GROUP, {m: float(m % 7) for m in range(2, 902)})
    series = ask(lambda source: source.series("cpu_usage", 900 * 60.0, 60.0))
    north = next(s for s in series if s.site == "north")
    assert len(north.samples) >= 895
    assert [at for at, _ in north.samples] == sorted(at for at, _ in north.samples)


def test_a_cloudwatch_that_hangs_is_unknown(aws, server):
    hang(server.pid)
    try:
        found = now("cpu_usage", timeout="500ms")
    finally:
        os.kill(server.pid, signal.SIGCONT)
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
        "components": {"metrics": {"provider": "metrics.cloudwatch", "sites": SITES, "timeout": "5s"}},
        "scaling": {"cpu": {"warning": "70%", "critical": "85%"}, "latency": {"warning": "500ms", "critical": "1s"}},
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
            "relight-shop-replication-lag-north",
        ),
        "created",
    )
    assert "left out scaling-latency-warning at south" in ran.stderr
    names = {a["AlarmName"] for c in aws.values() for a in c.describe_alarms()["MetricAlarms"]}
    assert names == set(applied)
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert set(json.loads(again.stdout)["applied"].values()) == {"same"}


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
