"""The four reviews of the cloud system by its shipped file: CloudWatch, Cost Explorer, and RDS that is PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest
import strict
from aws_rds import Plant
from ce_server import serving
from event_venue import RDS, REGIONS, Account
from pg_cluster import Cluster
from strict_route53 import strict_route53
from test_cost import BOX, DISK, OUT, bill, day
from test_rds import EAST, WEST

from flows.reviews import run
from tasks import aws_secrets

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
GROUPS = {"west": ("venue-west", WEST, 55.0), "east": ("venue-east", EAST, 45.0)}
"""Site -> its Auto Scaling group, its DB instance, how busy its servers are (%)."""


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        server = stack.enter_context(strict.running(tmp_path_factory.mktemp("cloud")))
        biller = stack.enter_context(serving(("127.0.0.1", 0)))
        patch.setenv("AWS_ENDPOINT_URL_COST_EXPLORER", biller.url)
        patch.setenv("RELIGHT_STATE", str(folder / "state"))
        aws_secrets.forget()
        cluster = stack.enter_context(Cluster())
        (cluster.folder / "relight").write_text("relight-secret\n")
        plant = Plant(cluster, {WEST: "west-pg1", EAST: "east-pg1"})
        stack.callback(plant.close)
        rds = stack.enter_context(RDS.database(server, plant))
        zones = stack.enter_context(strict_route53(server))
        found = Account(server, rds, zones, plant, folder, variant=RDS)
        stack.callback(found.close)
        found.build()
        found.files, found.biller = found.system(folder / "venue"), biller
        biller.pages["GetCostAndUsage"] = bill(day(2, BOX), day(1, BOX, DISK, OUT))
        with cluster.admin("west-pg1") as admin:
            admin.execute("CREATE INDEX rows_b ON rows (n)")
        yield found
    aws_secrets.forget()


def told(account, site):
    """What AWS measures of a site in the last quarter of an hour."""
    group, instance, busy = GROUPS[site]
    watch, now = account.server.client("cloudwatch", REGIONS[site]), datetime.now(UTC)
    for space, dimension, name, values in (
        ("AWS/EC2", "AutoScalingGroupName", group, {"CPUUtilization": busy}),
        ("AWS/RDS", "DBInstanceIdentifier", instance, {"DatabaseConnections": 340.0, "FreeStorageSpace": 50 * 2.0**30}),
    ):
        points = [
            {
                "MetricName": metric,
                "Dimensions": [{"Name": dimension, "Value": name}],
                "Timestamp": now - timedelta(minutes=minute),
                "Value": value,
            }
            for metric, value in values.items()
            for minute in range(1, 16)
        ]
        watch.put_metric_data(Namespace=space, MetricData=points)


def reviewed(account, kind):
    made = asyncio.run(run.make(run.Asked(kind, str(account.files))))
    assert (made.folder / "review.html").is_file()
    return made.review, {f.key: f for f in made.review.findings}


def unknown(review):
    return " ".join(f"{f.title} ({f.evidence})" for f in review.findings if f.severity == "unknown")


def test_without_data_nothing_looks_well_that_was_not_seen(account):
    account.biller.status = 500
    weekly, found = reviewed(account, "weekly")
    account.biller.status = 200
    assert found["duplicate-index public.rows_b"].severity == "warning", "RDS is asked by SQL like any other"
    assert "DROP INDEX CONCURRENTLY" in found["duplicate-index public.rows_b"].fix
    for name in ("cpu_usage at east", "error_rate at west", "connection_count at west", "daily_cost"):
        assert name in unknown(weekly)
    assert "pg_stat_statements" in found["unread statements"].evidence
    fix = found["pool pooler west"].fix
    assert "there is no runbook scaling yet" in fix, "the shipped folder has none, so the command alone would fail"
    monthly, found = reviewed(account, "monthly")
    assert found["instances-below east"].severity == "critical"
    assert not any("can carry" in f.title for f in monthly.findings)


def test_with_data_the_reviews_say_what_the_plan_asks_for(account):
    for site in REGIONS:
        told(account, site)
        account.served(site, requests=1000, errors=20)
    weekly, found = reviewed(account, "weekly")
    assert "2.0% at worst" in found["crossed scaling-errors-warning west"].title
    missing = unknown(weekly)
    assert not [n for n in ("cpu_usage", "error_rate", "connection_count", "cost") if n in missing], missing
    assert "memory_usage at west" in missing, "there is no CloudWatch agent"
    _, found = reviewed(account, "monthly")
    assert "west 55.0% + east 45.0% = 100.0%" in found["headroom cpu_usage"].evidence
    assert found["headroom cpu_usage"].severity == "critical"
    assert "8 at the least" in found["growth disk_usage west"].evidence, "one sample is no forecast"
    quarterly, found = reviewed(account, "quarterly")
    assert found["policy capacity west"].severity == "warning"
    assert "maximum-twice west" in found
    assert "replicas database" not in found, "one replica streams, one is wanted"
    assert quarterly.tables[0].rows
    annual, found = reviewed(account, "annual")
    versions = {row[0]: row[1] for row in annual.tables[1].rows}
    assert versions["postgresql (west)"] == versions["postgresql (east)"]
    assert {"unproven failover", "no-drill", "backups"} <= set(found)
    assert "aws-secret:venue/redis" in found["secrets-ageless"].evidence
    assert "west: off, east: off" in found["roles-unknowable database"].evidence
    assert "user/moto is no user and no role of this account" in found["iam-principal"].evidence


def test_a_region_that_is_dark_is_unknown_and_the_other_is_reviewed_all_the_same(account):
    account.dark("west")
    weekly, found = reviewed(account, "weekly")
    assert "west silent" in found["unread database"].evidence
    assert "error_rate at west" in unknown(weekly)
    assert "error_rate over the window" in unknown(weekly), "its record was not read for east either"
    _, found = reviewed(account, "monthly")
    assert found["instances capacity west"].severity == "unknown"
    assert found["instances-below east"].severity == "critical"
    _, found = reviewed(account, "quarterly")
    assert {found[k].severity for k in ("policy capacity west", "replicas database")} == {"unknown"}
    annual, found = reviewed(account, "annual")
    assert "(east: off)" in found["roles-unknowable database"].evidence
    assert "is no user and no role" in found["iam-principal"].evidence, "the other region's STS says who we are"
    assert found["inventory capacity instances at west"].severity == "unknown"
    assert found["inventory capacity instances at east"].severity == "warning"
    assert found["inventory database west"].severity == "warning"
    assert "postgresql (east)" in {row[0] for row in annual.tables[1].rows}
