"""Cost Explorer's provider and ``relight cost`` over HTTP, against a server that validates by botocore's own model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import iam
import pytest
from ruamel.yaml import YAML

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.cost.cost_explorer import CostExplorer, CostExplorerSettings
from tasks.errors import Rejected, Unreachable

sys.path.insert(0, str(Path(__file__).parent))

from ce_server import serving

pytestmark = pytest.mark.real
PROVIDER_NAME = "cost.cost_explorer"

TODAY = datetime.now(UTC).date()
RELIGHT = Path(sys.executable).with_name("relight")


@pytest.fixture
def biller(monkeypatch):
    with serving(("127.0.0.1", 0)) as server:
        for name, value in {
            "AWS_ENDPOINT_URL_COST_EXPLORER": server.url,
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
        }.items():
            monkeypatch.setenv(name, value)
        server.pages["GetAnomalies"] = [{"Anomalies": []}]
        yield server


def day(ago, *groups, unit="USD"):
    start = TODAY - timedelta(days=ago)
    return {
        "TimePeriod": {"Start": str(start), "End": str(start + timedelta(days=1))},
        "Total": {},
        "Groups": [
            {
                "Keys": [f"relight:component${component}", usage],
                "Metrics": {
                    "UnblendedCost": {"Amount": str(usd), "Unit": unit},
                    "UsageQuantity": {"Amount": str(hours), "Unit": "N/A"},
                },
            }
            for component, usage, usd, hours in groups
        ],
        "Estimated": ago == 1,
    }


BOX = ("application", "USE1-BoxUsage:m5.large", 9.6, 48)
DISK = ("database", "USE1-EBS:VolumeUsage.gp3", 1.2, 12)
OUT = ("application", "USE1-DataTransfer-Out-Bytes", 0.7, 8)


def bill(*results):
    return [{"ResultsByTime": [r]} for r in results]


def ask(work, **settings):
    async def main():
        around = Surroundings("shop", "cost", ("north", "south"), LoopClock(), lambda name: name)
        found = CostExplorer(CostExplorerSettings.model_validate({"timeout": "20s", **settings}), around)
        try:
            return await work(found)
        finally:
            await found.aclose()

    return asyncio.run(main())


def test_daily_cost_by_site_component_and_kind_over_all_pages(biller):
    biller.pages["GetCostAndUsage"] = bill(day(2, BOX), day(1, BOX, DISK, OUT))
    spent = ask(lambda source: source.spend(7))
    assert len(spent) == 8, "two pages of each of two sites"
    assert {(s.component, s.kind) for s in spent} == {
        ("application", "instance"),
        ("database", "storage"),
        ("application", "bandwidth"),
    }
    asked = biller.asked["GetCostAndUsage"][0]
    assert asked["Granularity"] == "DAILY"
    assert asked["TimePeriod"] == {"Start": str(TODAY - timedelta(days=7)), "End": str(TODAY)}
    tags = [f["Tags"] for f in asked["Filter"]["And"]]
    assert {"Key": "relight:system", "Values": ["shop"]} in tags


async def _all_four(source):
    return [(await source.now(m))[0] for m in source.metrics()]


def test_the_cost_metrics_are_those_of_the_last_whole_day_and_asked_for_once(biller):
    biller.pages["GetCostAndUsage"] = bill(day(2, BOX), day(1, BOX, DISK, OUT))
    found = {r.metric: r for r in ask(_all_four)}
    assert {n: r.value for n, r in found.items()} == {
        "instance_cost": 19.2,
        "storage_cost": 2.4,
        "bandwidth_cost": 1.4,
        "daily_cost": 23.0,
    }
    assert found["daily_cost"].subject.endswith("estimated")
    assert len(biller.asked["GetCostAndUsage"]) == 4, "two sites of two pages each, and not four times that"


def test_no_bill_an_old_bill_and_a_biller_that_fails_are_unknown(biller):
    biller.pages["GetCostAndUsage"] = bill(day(1))
    assert {(r.state, r.value) for r in ask(_all_four)} == {("no-data", None)}
    biller.pages["GetCostAndUsage"] = bill(day(4, BOX))
    assert {(r.state, r.value) for r in ask(_all_four)} == {("stale", None)}
    biller.status = 500
    assert {(r.state, r.value) for r in ask(_all_four)} == {("no-answer", None)}
    with pytest.raises(Unreachable):
        ask(lambda source: source.spend(7))


def test_another_currency_is_refused_and_not_added_up(biller):
    biller.pages["GetCostAndUsage"] = bill(day(1, BOX, unit="EUR"))
    with pytest.raises(Rejected, match="EUR"):
        ask(lambda source: source.spend(7))


ANOMALY = {
    "AnomalyId": "a-1",
    "AnomalyStartDate": "2026-11-20",
    "RootCauses": [{"Service": "AmazonEC2", "Region": "us-east-1"}],
    "AnomalyScore": {"MaxScore": 0.9, "CurrentScore": 0.8},
    "Impact": {"MaxImpact": 12.0, "TotalImpact": 30.0, "TotalExpectedSpend": 10.0},
    "MonitorArn": "arn:aws:ce::1:anomalymonitor/x",
}
ADVICE = {
    "AccountId": "1",
    "CurrentInstance": {
        "ResourceId": "i-1",
        "Tags": [{"Key": "relight:site", "Values": ["north"]}],
        "ResourceDetails": {"EC2ResourceDetails": {"InstanceType": "m5.xlarge"}},
        "MonthlyCost": "140",
        "CurrencyCode": "USD",
    },
    "RightsizingType": "MODIFY",
    "ModifyRecommendationDetail": {
        "TargetInstances": [
            {
                "EstimatedMonthlySavings": "70",
                "ResourceDetails": {"EC2ResourceDetails": {"InstanceType": "m5.large"}},
            }
        ]
    },
    "FindingReasonCodes": ["CPU_OVER_PROVISIONED"],
}


def test_anomalies_and_right_sizing(biller):
    biller.pages["GetAnomalies"] = [{"Anomalies": [ANOMALY]}, {"Anomalies": [{**ANOMALY, "AnomalyId": "a-2"}]}]
    biller.pages["GetRightsizingRecommendation"] = [{"RightsizingRecommendations": [ADVICE]}]
    found = ask(lambda source: source.anomalies(28))
    assert [(a.id, a.usd, a.expected_usd, a.ended) for a in found] == [
        ("a-1", 30.0, 10.0, None),
        ("a-2", 30.0, 10.0, None),
    ]
    (advice,) = ask(lambda source: source.advice())
    assert (advice.resource, advice.site, advice.now, advice.to) == ("i-1", "north", "m5.xlarge", "m5.large")
    assert advice.saves_usd_a_month == 70.0


def shop(folder, **cost):
    document = {
        "system": "shop",
        "sites": {"north": {}, "south": {}},
        "objectives": {"application": {"rto": "5m"}},
        "components": {"cost": {"provider": "cost.cost_explorer", "timeout": "20s"}},
        "auto_scaling": {
            "min_instances": 2,
            "max_instances": 10,
            "target_cpu_utilization": "70%",
            "cooldown_period": 300,
            "scale_up": {"adjustment": "+2", "cooldown": 300},
            "scale_down": {"adjustment": "-1", "cooldown": 600},
        },
        "cost_monitoring": {
            "metrics": ["instance_cost"],
            "alerts": [{"name": "cost-increase", "condition": "daily_cost > threshold", "severity": "warning"}],
            **cost,
        },
    }
    with (folder / "system.yaml").open("w") as out:
        YAML().dump(document, out)
    return str(folder)


def relight(*words):
    return subprocess.run([RELIGHT, *words, "--json"], capture_output=True, text=True, check=False)


def test_the_report_and_the_threshold_by_the_command_line(biller, tmp_path):
    spot = ("application", "USE1-SpotUsage:m5.large", 3.0, 24)
    half = ("application", "USE1-BoxUsage:m5.large", 4.8, 24)

    def pages(body):
        south = any(f["Tags"]["Values"] == ["south"] for f in body["Filter"]["And"])
        return bill(day(2, BOX), day(1, half, spot)) if south else bill(day(2, BOX), day(1, BOX, DISK))

    biller.pages["GetCostAndUsage"] = pages
    name = shop(tmp_path, thresholds={"threshold": 15}, recovery_without_standby="4h5m")
    ran = relight("cost", "--system", name, "--standby", "south")
    assert ran.returncode == 1, ran.stderr
    made = json.loads(ran.stdout)
    titles = {f["title"]: f for f in made["findings"]}
    assert titles["the minimum of 2 instances at south is not on demand"]["severity"] == "critical"
    assert "240 minutes" in titles["the standby south costs 7.80 USD a day"]["evidence"]
    assert made["usd"] == pytest.approx(18.6)

    told = json.loads(relight("metrics", "--system", name).stdout)
    found = {m["metric"]: m for m in told["metrics"]}
    assert (found["daily_cost"]["outcome"], found["daily_cost"]["crossed"]) == ("warning", ["cost-increase"])


def test_the_policy_allows_exactly_these_calls():
    iam.check(PROVIDER_NAME)
