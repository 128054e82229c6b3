"""The lab itself: every process of it answers for real, and nothing of it is left behind.

Uses the lab folder that RELIGHT_LAB names, or the default one, and takes down a lab that is up there.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import dns.message
import dns.query
import dns.rcode
import dns.update
import httpx
import psycopg
import pytest
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

LAB = Path(__file__).resolve().parents[2] / "deployments" / "lab"
sys.path.insert(0, str(LAB))

import binaries  # noqa: E402
import bringup  # noqa: E402
import layout  # noqa: E402
import registry  # noqa: E402

WEST, EAST = "http://127.0.1.10:8080", "http://127.0.2.10:8080"


def lab(*words, status=0):
    ran = subprocess.run([sys.executable, LAB / "lab.py", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == status, f"lab.py {' '.join(words)}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
    return ran


def host(*words, status=0):
    ran = subprocess.run([registry.home() / "bin" / "host", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == status, f"host {' '.join(words)}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def answered():
    """What ``status`` says, once every server answers: it gives each of them a moment only."""
    said = json.loads(lab("status", "--json").stdout)
    roles = {**said["database"], **said["staging"]}.values()
    return said if set(roles) <= {"primary", "replica", "of staging alone"} else None


def rows(address, query, user="postgres"):
    with psycopg.connect(
        host=address, dbname="venue", user=user, password=layout.secret(user), autocommit=True, connect_timeout=30
    ) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def traces():
    """What a lab that is down must not have: live members of any process, marked processes, listening addresses."""
    members = [pid for process in registry.all() for pid in registry.members(process)]
    return members, registry.strays()


@pytest.fixture(scope="module", autouse=True)
def programs():
    if lines := binaries.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(lines))
    lab("down")
    yield
    lab("down")


@pytest.fixture
def up():
    document = json.loads(lab("up", "--json").stdout)
    assert document["home"] == str(registry.home())
    return document


def test_every_process_runs_and_a_second_up_changes_nothing(up):
    names = {p["name"] for p in up["processes"]}
    assert {*layout.NODES, "links", "ns1", "ns2", "unbound", "prometheus", "alertmanager"} <= names
    assert {f"{s}-{p}" for s in layout.SITES for p in ("haproxy", "pgbouncer", "supervisord", "s3", "copier")} <= names
    assert {"staging-pg1", "staging-haproxy", "staging-supervisord"} <= names
    assert all(p["alive"] for p in up["processes"])

    again = json.loads(lab("up", "--json").stdout)
    assert again["started"] is False
    assert again["processes"] == up["processes"]
    said = until(answered)
    assert said["database"] == {**dict.fromkeys(layout.NODES, "replica"), "west-pg1": "primary"}
    assert said["staging"] == {"staging-pg1": "of staging alone"}


def test_staging_has_a_database_of_its_own_that_no_password_of_production_opens(up):
    event = {"n": 1, "client": "test-staging", "payload": None}
    answer = httpx.post("http://127.0.4.10:8080/events", json=event, timeout=30)
    assert (answer.status_code, answer.json()["node"], answer.json()["site"]) == (201, "staging-pg1", "staging")
    assert httpx.get(f"{WEST}/events/test-staging/1", timeout=30).status_code == 404
    for user, host, of in (("app", "127.0.4.31", "app"), ("app", "127.0.1.31", "staging_app")):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(host=host, dbname="venue", user=user, password=layout.secret(of), connect_timeout=30)
    with psycopg.connect(
        host="127.0.4.31", dbname="venue", user="postgres", password=layout.secret("staging_postgres")
    ) as own:
        one = "SELECT system_identifier FROM pg_control_system()"
        assert own.execute(one).fetchall() != rows("127.0.1.31", one)
        assert own.execute("SHOW max_wal_senders").fetchall() == [("0",)]
        roles = own.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1").fetchall()
        assert roles == [("app",), ("postgres",)]
    rows("127.0.1.31", "ALTER TABLE events ADD COLUMN source text DEFAULT 'web'", "app")
    assert "those of west-pg1" in lab("schema").stdout
    with psycopg.connect(
        host="127.0.4.31", dbname="venue", user="app", password=layout.secret("staging_app"), autocommit=True
    ) as own:
        assert own.execute("SELECT source FROM events").fetchall() == []  # the column, and no row of production
    assert httpx.post("http://127.0.4.10:8080/events", json=event, timeout=30).status_code == 201
    rows("127.0.1.31", "ALTER TABLE events DROP COLUMN source", "app")


def test_a_write_passes_balancer_application_pooler_and_database(up):
    for url, site in ((WEST, "west"), (EAST, "east")):
        event = {"n": 1, "client": f"test-{site}", "payload": {"a": 1}}
        answer = httpx.post(f"{url}/events", json=event, timeout=30)
        assert answer.status_code == 201, answer.text
        assert answer.json()["node"] == "west-pg1"
        assert answer.json()["site"] == site
    assert httpx.get(f"{EAST}/events/test-west/1", timeout=30).json()["rows"] == 1
    # Acknowledged means that the synchronous standby of the other site has flushed it; it replays it at once.
    until(lambda: rows("127.0.2.31", "SELECT 1 FROM events WHERE client = 'test-west'"))


def test_standbys_stream_each_through_its_slot(up):
    query = (
        "SELECT application_name, sync_state, slot_name FROM pg_stat_replication JOIN pg_replication_slots "
        "ON active_pid = pid WHERE state = 'streaming' ORDER BY 1"
    )
    wanted = [
        ("east-pg1", "sync", "east_pg1"),
        ("east-pg2", "async", "east_pg2"),
        ("west-pg2", "async", "west_pg2"),
    ]
    until(lambda: rows("127.0.1.31", query) == wanted)
    for node in layout.NODES:
        slots = rows(layout.node_host(node), "SELECT slot_name FROM pg_replication_slots ORDER BY 1")
        assert [name for (name,) in slots] == sorted(layout.slot(n) for n in layout.NODES if n != node)


def test_nobody_enters_the_database_without_a_password(up):
    for address in ("127.0.1.31", str(registry.home() / "west" / "west-pg1")):
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host=address, dbname="venue", user="postgres")


def test_no_process_argument_holds_a_secret(up):
    secrets = [layout.secret(name) for name in layout.SECRETS]
    for process in registry.all():
        for pid in registry.members(process):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue  # a backend that ended meanwhile
            assert not any(secret in command for secret in secrets), process.name


def test_the_name_resolves_at_both_servers_and_through_the_resolver(up):
    for port, address in ((5331, "127.0.0.1"), (5332, "127.0.0.1"), (5300, "127.0.3.55")):
        for name, rdtype, want in (
            ("app.venue.test.", "A", "127.0.1.10"),
            ("_relight.app.venue.test.", "TXT", '"epoch=0 owner=relight"'),
        ):
            answer = dns.query.udp(dns.message.make_query(name, rdtype), address, port=port, timeout=30)
            assert [r.to_text() for r in answer.answer[0]] == [want]
            assert answer.answer[0].ttl <= 5


def test_an_update_without_the_key_is_refused(up):
    update = dns.update.UpdateMessage("venue.test.")
    update.replace("app", 5, "A", "127.0.2.10")
    assert dns.query.udp(update, "127.0.0.1", port=5331, timeout=30).rcode() == dns.rcode.REFUSED


def test_prometheus_sees_both_sites_and_its_rules_are_sound(up):
    def healthy():
        data = httpx.get("http://127.0.3.90:9090/api/v1/targets", timeout=30).json()["data"]
        return {t["labels"].get("app", t["labels"]["job"]) for t in data["activeTargets"] if t["health"] == "up"} >= {
            *("west-app1", "west-app2", "east-app1", "east-app2", "haproxy", "prometheus")
        }

    until(healthy)
    assert "SUCCESS" in lab("check").stdout

    def evaluated():
        groups = httpx.get("http://127.0.3.90:9090/api/v1/rules", timeout=30).json()["data"]["groups"]
        return groups and all(rule["health"] == "ok" for rule in groups[0]["rules"])

    until(evaluated)
    jobs = httpx.get("http://127.0.3.90:9090/api/v1/targets", timeout=30).text
    assert "127.0.4." not in jobs  # a server of staging that is up, or can write, would answer for production

    def firing():
        alerts = httpx.get("http://127.0.3.90:9090/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    until(lambda: firing() == {"watchdog"})  # which always fires
    ready = httpx.get("http://127.0.3.93:9093/api/v2/status", timeout=30).json()
    assert ready["config"]["original"].count("127.0.3.42:8420") == 1


def s3(site):
    return boto3.client(
        "s3",
        endpoint_url=f"http://{layout.net(site)}.80:9000",
        region_name="us-east-1",
        aws_access_key_id=layout.secret("s3_access"),
        aws_secret_access_key=layout.secret("s3_secret"),
    )


def test_objects_are_copied_to_the_other_site(up):
    def keys(site):
        return {o["Key"] for o in s3(site).list_objects_v2(Bucket=f"venue-{site}").get("Contents", [])}

    s3("east").put_object(Bucket="venue-east", Key="own", Body=b"x")
    s3("west").put_object(Bucket="venue-west", Key="a/b", Body=b"seat map")
    until(lambda: "a/b" in keys("east"))
    assert s3("east").get_object(Bucket="venue-east", Key="a/b")["Body"].read() == b"seat map"
    assert "own" not in keys("west")


def test_what_a_balancer_was_told_survives_a_reload(up):
    def tell(command):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(registry.home() / "east" / "haproxy" / "admin.sock"))
            sock.sendall(command.encode() + b"\n")
            with sock.makefile() as lines:
                return lines.read()

    def disabled_now():
        return {
            line.split(",")[1] for line in tell("show stat").splitlines() if line.startswith("db,") and ",MAINT" in line
        }

    assert disabled_now() == {"west-pg2", "east-pg1", "east-pg2"}
    tell("set server db/east-pg1 state ready")
    tell("set server db/west-pg1 state maint")
    (registry.home() / "east" / "haproxy" / "state").write_text(tell("show servers state"))
    before = registry.find("east-haproxy")
    lab("reload", "east")
    assert registry.find("east-haproxy").pid != before.pid
    until(lambda: not registry.alive(before))
    assert disabled_now() == {"west-pg1", "west-pg2", "east-pg2"}


def test_a_killed_primary_comes_back_as_a_standby(up):
    lab("down")  # the reload above moved the balancer's database
    lab("up")
    assert json.loads(host("status", "west-pg1"))["running"] is True
    host("rewind", "west-pg1", "east-pg1", status=1)  # it runs: refused
    registry.kill(registry.find("west-pg1"), signal.SIGSTOP)
    host("kill", "west-pg1")
    assert json.loads(host("status", "west-pg1")) == {"running": False, "pid": None, "in_recovery_signal": False}
    host("rewind", "west-pg1", "east-pg1", status=1)  # no primary yet: refused
    assert rows("127.0.2.31", "SELECT pg_promote(true)", user="relight") == [(True,)]
    rows("127.0.2.31", "ALTER SYSTEM SET synchronous_standby_names = ''", user="relight")
    rows("127.0.2.31", "SELECT pg_reload_conf()", user="relight")
    rows("127.0.2.31", "INSERT INTO events (n, client) VALUES (7, 'after')", user="postgres")
    host("rewind", "west-pg1", "east-pg1")
    until(lambda: rows("127.0.1.31", "SELECT 1 FROM events WHERE client = 'after' AND pg_is_in_recovery()"))
    host("stop", "west-pg2")
    host("copy", "west-pg2", "east-pg1")
    until(lambda: rows("127.0.1.32", "SELECT 1 FROM events WHERE client = 'after' AND pg_is_in_recovery()"))
    active = "SELECT slot_name FROM pg_replication_slots WHERE active"
    until(lambda: {("west_pg1",), ("west_pg2",)} <= set(rows("127.0.2.31", active)))
    for node in ("west-pg1", "west-pg2"):  # neither pg_rewind nor pg_basebackup brings slots along
        slots = rows(layout.node_host(node), "SELECT slot_name FROM pg_replication_slots ORDER BY 1")
        assert [name for (name,) in slots] == sorted(layout.slot(n) for n in layout.NODES if n != node)
    marker = registry.home() / "west" / "unreachable"
    marker.touch()
    host("kill", "west-pg1", status=255)
    marker.unlink()


def test_down_leaves_nothing(up):
    pids = {pid for process in registry.all() for pid in registry.members(process)}
    assert len(pids) > 40  # not only the daemons: their children too
    registry.kill(registry.find("west-pg1"), signal.SIGSTOP)  # also one that hangs
    lab("down")
    assert traces() == ([], ())
    assert registry.all() == ()
    assert "not up" in lab("down").stdout
    lab("status", status=1)


def test_what_a_killed_starter_left_is_cleaned(up):
    lab("down")
    starter = subprocess.Popen([sys.executable, LAB / "lab.py", "up"], stdout=subprocess.DEVNULL)
    until(lambda: len(registry.all()) >= 5)
    starter.kill()
    starter.wait()
    left = [p for p in registry.all() if registry.alive(p)]
    assert left
    again = json.loads(lab("up", "--json").stdout)
    assert again["started"] is True
    assert not any(registry.alive(p) for p in left)
    assert httpx.get(f"{WEST}/readyz", timeout=30).status_code == 200
    lab("down")
    assert traces() == ([], ())


def test_up_starts_afresh_where_a_process_hangs_or_is_gone(up):
    for hurt in (lambda: registry.kill(registry.find("west-pg2"), signal.SIGSTOP), lambda: host("kill", "east-pg2")):
        hurt()
        again = json.loads(lab("up", "--json").stdout)
        assert again["started"] is True
        assert all(p["alive"] for p in again["processes"])


def test_a_taken_address_is_named_before_anything_starts():
    lab("down")
    with socket.create_server(("127.0.1.15", 6432)):
        ran = lab("up", status=1)
    assert "127.0.1.15:6432 for west-pgbouncer" in ran.stderr
    assert f"process {os.getpid()} (" in ran.stderr
    assert traces() == ([], ())


def test_a_process_that_does_not_come_up_is_named_with_its_log():
    async def never():
        raise OSError("refused")

    part = layout.Part("broken", "ops", ("sh", "-c", "echo the disk is full; exit 3"), (), never)
    with pytest.raises(registry.LabError) as caught:
        asyncio.run(bringup._one(part, time.monotonic(), lambda *_: None))
    registry.forget(registry.find("broken"))
    assert "process broken ended: refused" in str(caught.value)
    assert "broken.log" in str(caught.value)
    assert "the disk is full" in str(caught.value)


def test_a_process_is_known_by_more_than_its_id():
    started = registry.start("sleeper", "ops", ["sh", "-c", "setsid sleep 60 & exec sleep 60"], env={})
    until(lambda: len(registry.members(started)) == 2)
    impostor = registry.Process(**{**vars(started), "name": "impostor", "started_ticks": started.started_ticks + 1})
    assert not registry.alive(impostor)
    assert not registry.kill(impostor, signal.SIGKILL, group=False)
    registry.kill(started, signal.SIGSTOP)
    assert registry.alive(started)
    registry.stop(started, 2)
    until(lambda: registry.members(started) == ())
    registry.forget(started)
