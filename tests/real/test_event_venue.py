"""The cloud system end to end, by the shipped runbooks: failover in both modes, and back, while AWS misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import strict
from aws_rds import Plant
from event_venue import AURORA, RDS, REGIONS, Account, Clients, Project
from patience import until
from pg_cluster import Cluster
from strict_route53 import strict_route53
from supabase_server import TOKEN, supabase
from test_export import shown
from test_rds import EAST, WEST

from flows.engine import export, launch
from tasks import aws_secrets
from tasks.aws import HEARD

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
VARS = {
    "approvals": "0",
    "scheme": "http",
    "port": "8080",
    "probe": "http:8080/readyz",
    "wait_out_ttl": "false",
}


IDLE = {"loss": "the test: nobody writes here, and the bound counts from the last commit"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with strict.running(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture(params=[RDS, AURORA], ids=["rds", "aurora"])
def account(request, server, tmp_path, monkeypatch):
    server.reset()
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "state"))
    aws_secrets.forget()
    with Cluster() as cluster, contextlib.ExitStack() as stack:
        (cluster.folder / "relight").write_text("relight-secret\n")
        plant = Plant(cluster, {WEST: "west-pg1", EAST: "east-pg1"})
        stack.callback(plant.close)
        rds = stack.enter_context(request.param.database(server, plant))
        zones = stack.enter_context(strict_route53(server))
        found = Account(server, rds, zones, plant, tmp_path, variant=request.param)
        stack.callback(found.close)
        found.build()
        found.files = found.system(tmp_path / "venue")
        yield found
    aws_secrets.forget()


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    server.reset()
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SUPABASE_TOKEN", TOKEN)
    with Cluster() as cluster, supabase() as api, strict_route53(server) as zones, contextlib.ExitStack() as stack:
        (cluster.folder / "relight").write_text("relight-secret\n")
        found = Project(server, api, zones, cluster, tmp_path)
        stack.callback(found.close)
        found.build()
        found.files = found.system(tmp_path / "venue")
        yield found


class Ran:
    """One run, as ``relight run --offline`` makes it; in this context, so that every call to AWS is heard."""

    def __init__(self, account, book, mode="forced", waivers=None, given=None):
        self.calls = []
        resolver = {"resolver": account.zones.servers[1]}
        request = launch.Request(
            str(account.files),
            book,
            mode,
            waivers=waivers or {},
            vars={**VARS, **resolver} if given is None else given,
        )

        async def main():
            token = HEARD.set(self.calls.append)
            try:
                return await launch.run(request, None)
            finally:
                HEARD.reset(token)

        self.report = asyncio.run(main())
        self.code = self.report.exit_code
        self.outcomes = {s.id: s.outcome for s in self.report.steps}

    def said(self):
        return self.report.reason, self.outcomes


def misbehaves(account):
    """Throttling, 503, lost and late answers, at each service."""
    rds, zones, server = account.rds, account.zones, account.server
    for operation, faults in account.variant.faults.items():
        rds.order(operation, *faults)
    zones.front.order("ListResourceRecordSets", "pass", "Throttling", "503")
    zones.front.order("ChangeResourceRecordSets", "Throttling", "lost")
    zones.per_s, zones.busy_s = 5.0, 0.3
    for operation, kind in (
        ("DescribeTargetHealth", "throttle"),
        ("DescribeAutoScalingGroups", "throttle"),
        ("SetDesiredCapacity", "lose"),
        ("UpdateDistribution", "lose"),
        ("CreateInvalidation", "throttle"),
        ("GetDistributionConfig", "fail"),
    ):
        server.fault(operation, kind)


def stands(account, site, other):
    """One writer, and everything that serves is at ``site``."""
    assert account.writers() == {site}
    assert account.answers() == {site}
    assert account.origin() == site
    assert account.desired(site) >= 2
    assert account.source(site) is None
    assert account.cache(site).get("page:home") is None
    assert account.cluster.query({"west": "west-pg1", "east": "east-pg1"}[site], "SELECT count(*) FROM events")[0][0]


def met(ran, *components):
    for component in components:
        assert ran.report.objectives[component].met, ran.report.objectives


def test_the_active_region_is_dark(account):
    account.dark("west")
    refused = Ran(account, "failover")
    assert refused.code == 3, refused.said()
    assert refused.outcomes["fence"] == "failed", refused.said()
    assert account.answers() == {"west"}, "nothing was pointed at a site whose database is not ours"
    misbehaves(account)
    ran = Ran(account, "failover", waivers={"fence": "J. Doe: the region is dark, AWS says so", **IDLE})
    assert ran.code == 0, ran.said()
    stands(account, "east", "west")
    met(ran, "application", "database", "storage")
    asked = {c.operation for c in ran.calls if c.region == REGIONS["west"]}
    assert asked <= {*account.variant.asked, "DescribeAutoScalingGroups", "ListObjectsV2"}, asked
    assert ran.report.waivers["fence"].startswith("J. Doe")


def test_a_planned_move_and_the_way_back(account):
    misbehaves(account)
    ran = Ran(account, "failover", "graceful")
    assert ran.code == 0, ran.said()
    stands(account, "east", "west")
    met(ran, "application", "database", "storage")
    back = Ran(account, "rejoin", given={})
    assert back.code == 0, back.said()
    assert account.writers() == {"east"}
    assert account.source("west") == "east"
    account.copied("east", "west")
    again = Ran(account, "failover", "graceful")
    assert again.code == 0, again.said()
    stands(account, "west", "east")


def test_a_primary_that_is_gone_is_fenced_before_the_replica_is_promoted(account):
    account.gone("west")
    ran = Ran(account, "failover", waivers=IDLE)
    assert ran.code == 0, ran.said()
    stands(account, "east", "west")
    assert ran.outcomes["fence"] == "done"
    order = [c.operation for c in ran.calls if c.operation in account.variant.order]
    assert order == [*account.variant.order]


UPDATE = {"scheme": "http", "port": "8080", "watch": "2s", "version": "2"}


@pytest.mark.parametrize("account", [RDS], ids=["rds"], indirect=True)
def test_an_update_goes_back_by_itself_on_errors_and_stays_without(account):
    given = UPDATE | {"resolver": account.zones.servers[1]}
    account.server.fault("DescribeInstanceRefreshes", "throttle")
    account.server.fault("StartInstanceRefresh", "lose")
    book = account.files / "update.yaml"
    book.write_text(book.read_text().replace("timeout: 8m", "timeout: 10s"))  # how long a breach is given to end
    account.served("west", requests=100, errors=20)
    bad = Ran(account, "update", "graceful", given=given | {"version": "3"})
    assert bad.code == 1, bad.said()
    assert bad.outcomes["active-errors"] == "failed", bad.said()
    assert {bad.outcomes["active"], bad.outcomes["standby"]} == {"undone"}, bad.said()
    assert account.versions("west") == account.versions("east") == {"1"}
    assert account.answers() == account.writers() == {"west"}
    account.served("west", requests=10_000, errors=0)
    good = Ran(account, "update", "graceful", given=given)
    assert good.code == 0, good.said()
    assert account.versions("west") == account.versions("east") == {"2"}


CANARY = {"watch": "2s", "glance": "2s", "patience": "90s", "minimum": "60"}
ALL_BACK = {"app": 100, "canary": 0}


@pytest.mark.parametrize("account", [RDS], ids=["rds"], indirect=True)
def test_a_canary_gets_a_share_and_gives_it_back_and_at_once_where_it_fails(account):
    book = account.files / "canary.yaml"
    book.write_text(book.read_text().replace("every: 10s", "every: 1s").replace("every: 5s", "every: 1s"))
    none = Ran(account, "canary", "graceful", given=CANARY)
    assert (none.code, none.outcomes["canary"]) == (1, "undone"), none.said()
    assert "venue-west-canary has 0 healthy targets" in none.report.reason
    assert "ModifyListener" not in {c.operation for c in none.calls}, "nothing was changed"
    account.canary("west", "10.0.0.30")
    account.server.fault("ModifyListener", "throttle")
    account.server.fault("DescribeTargetHealth", "throttle")
    with Clients(account.server, errors=0):
        good = Ran(account, "canary", "graceful", given=CANARY)
    assert good.code == 0, good.said()
    assert set(good.outcomes.values()) == {"done"}, good.said()
    assert [c.operation for c in good.calls].count("ModifyListener") == 3, "throttled, the share, and back"
    assert account.weights("west") == ALL_BACK
    with Clients(account.server, errors=20):
        bad = Ran(account, "canary", "graceful", given=CANARY)
    assert bad.code == 1, bad.said()
    assert (bad.outcomes["canary-compared"], bad.outcomes["canary"]) == ("failed", "undone"), bad.said()
    assert "the canary answers more errors: canary n=" in bad.report.reason
    assert [c.operation for c in bad.calls].count("ModifyListener") == 2, "it had its share"
    assert account.weights("west") == ALL_BACK


TYPED = ("aws ", "for ", "PGCONNECT_TIMEOUT=")


@pytest.mark.parametrize(
    ("account", "mode"), [(RDS, "graceful"), (AURORA, "forced")], ids=["rds", "aurora"], indirect=["account"]
)
def test_the_commands_for_when_relight_is_gone_move_what_aws_keeps(account, mode):
    """Every line of the AWS CLI and of psql in the exported runbook, typed in order, with the effect it promises."""
    aws = shutil.which("aws", path=str(Path(sys.executable).parent))
    if aws is None:
        reason = "the AWS CLI is not installed (pip install awscli)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    given = VARS | {"resolver": account.zones.servers[1]}
    request = launch.Request(str(account.files), "failover", mode, vars=given)
    text = export.markdown(asyncio.run(export.export(request)))
    assert "relight-secret" not in text
    commands = [(c, e) for c, e in export.commands_of(text) if c.startswith(TYPED)]
    told = [c.split() for c, _ in commands if c.startswith("aws ")]
    used = {words[3] if words[1] == "--region" else words[1] for words in told}
    assert used >= {"autoscaling", "elbv2", "cloudfront", "s3api", "route53", "rds"}, text
    env = {**os.environ, "PATH": f"{Path(aws).parent}:{os.environ['PATH']}"}
    for command, expected in commands:
        ran = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stderr}"
        assert shown(expected, ran.stdout), f"{command}\nexpected {expected}\n{ran.stdout}"
    assert account.desired("east") == 2
    assert account.origin() == "east"
    assert account.answers() == {"east"}
    assert account.source("east") is None
    assert account.writers() == {"east"}
    assert [o for o in account.rds.operations() if o in account.variant.typed] == [*account.variant.typed]
    if mode == "forced":  # relight, when it is back, takes what was typed as proof

        async def proof(db):
            told = await db.ask_host("west")
            assert told.outcome == "gone", told.detail

        account.venue.play(proof)


BOOK = """
runbook: failover
steps:
  - {id: fence, action: database.fence, with: {site: failed}, timeout: 20s, attempts: 2, on_failure: undo}
  - {id: promote, action: database.promote, with: {site: target}, timeout: 20s, irreversible: true, on_failure: undo}
"""


def test_what_supabase_cannot_do_is_said_and_a_restore_goes_back_to_a_moment(project):
    """The bad write is gone, the good one is there, clients are served; a call was throttled, an answer lost."""
    (project.files / "failover.yaml").write_text(BOOK)
    mode, cluster = {"given": {}}, project.cluster
    refused = Ran(project, "failover", **mode)
    assert refused.code != 0
    assert "lets nobody promote a read replica" in refused.report.reason
    cluster.query("west-pg1", "INSERT INTO rows VALUES (1) RETURNING n")
    project.api.latest = int(time.time()) + 1
    until(lambda: time.time() > project.api.latest + 0.1)
    cluster.query("west-pg1", "INSERT INTO rows VALUES (2) RETURNING n")
    project.api.faults.extend(["", "429", "", "", "", "lost"])
    given = {k: VARS[k] for k in ("approvals", "scheme", "port")} | {"resolver": project.zones.servers[1]}
    ran = Ran(project, "restore", waivers={"loss": "J. Doe: what came later is wrong"}, given=given)
    assert ran.code == 0, ran.said()
    assert cluster.query("west-pg1", "SELECT n FROM rows") == [(1,)]
    assert [p for _, p, _ in project.api.heard].count("/database/backups/restore-pitr") == 1
    assert cluster.query("west-pg1", "SHOW default_transaction_read_only") == [("off",)]
