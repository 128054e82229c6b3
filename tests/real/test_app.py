"""The application server, as a real Node.js process against a real PostgreSQL of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from venue import APP, APP_HOST, APP_PORT, NEVER_ANSWERS, URL, need, running_app, running_database

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def venue_database():
    with running_database() as database:
        yield database


@pytest.fixture
def venue_app(venue_database, tmp_path):
    # The backlog of a server that never accepts: as a stopped process, it connects and does not answer.
    with socket.create_server(NEVER_ANSWERS), running_app(venue_database, tmp_path) as process:
        yield process
        assert process.poll() is not None or httpx.get(f"{URL}/healthz", timeout=30).status_code == 200


def post(n, client="t", **more):
    return httpx.post(f"{URL}/events", json={"n": n, "client": client, "payload": {"a": [n]}, **more}, timeout=30)


def test_a_write_is_acknowledged_after_its_commit_and_read_back(venue_app, venue_database):
    answer = post(7)
    assert (answer.status_code, answer.json()) == (
        201,
        {"n": 7, "node": "west-pg1", "site": "west", "app": "west-app1"},
    )
    with venue_database.admin() as admin:
        assert admin.execute("SELECT n, client, payload FROM events").fetchall() == [(7, "t", {"a": [7]})]
    read = httpx.get(f"{URL}/events/t/7", timeout=30).json()
    assert (read["n"], read["payload"], read["rows"]) == (7, {"a": [7]}, 1)
    post(7)
    assert httpx.get(f"{URL}/events/count?client=t", timeout=30).json()["rows"] == 2
    assert httpx.get(f"{URL}/events/count?client=other", timeout=30).json()["rows"] == 0
    assert httpx.get(f"{URL}/events/t/8", timeout=30).status_code == 404


@pytest.mark.parametrize(
    "body", ["no json", "[]", '{"n": -1, "client": "t"}', '{"n": 1.5, "client": "t"}', '{"n": 1, "client": "a b"}']
)
def test_a_bad_body_is_refused_and_not_written(venue_app, venue_database, body):
    assert httpx.post(f"{URL}/events", content=body, timeout=30).status_code == 400
    with venue_database.admin() as admin:
        assert admin.execute("SELECT count(*) FROM events").fetchone() == (0,)


def test_strange_requests_do_not_end_it(venue_app):
    assert httpx.delete(f"{URL}/events", timeout=30).status_code == 405
    assert httpx.get(f"{URL}/nothing", timeout=30).status_code == 404
    assert httpx.post(f"{URL}/events", content=b"x" * 100_000, timeout=30).status_code == 400
    with socket.create_connection((APP_HOST, APP_PORT), timeout=30) as sock:
        sock.sendall(b"GET // HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 404")
    with socket.create_connection((APP_HOST, APP_PORT), timeout=30) as sock:
        sock.sendall(b'POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"n"')


def test_a_read_only_database_refuses_writes_but_the_server_stays_ready(venue_app, venue_database):
    until(
        lambda: 'venue_database_writable{site="west",app="west-app1"} 1' in httpx.get(f"{URL}/metrics", timeout=30).text
    )
    with venue_database.admin() as admin:
        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
    try:
        until(
            lambda: (
                'venue_database_writable{site="west",app="west-app1"} 0' in httpx.get(f"{URL}/metrics", timeout=30).text
            )
        )
        answer = post(1)
        assert (answer.status_code, answer.json()["state"]) == (503, "refused")
        assert "read-only transaction" in answer.json()["reason"]
        until(lambda: httpx.get(f"{URL}/readyz", timeout=30).status_code == 200)
    finally:
        with venue_database.admin() as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            admin.execute("SELECT pg_reload_conf()")


def test_the_loss_of_the_database_is_survived_and_answered_in_time(venue_app, venue_database):
    assert post(1).status_code == 201
    venue_database.kill()
    assert post(2).status_code == 503
    until(lambda: httpx.get(f"{URL}/readyz", timeout=30).status_code == 503)
    assert httpx.get(f"{URL}/healthz", timeout=30).status_code == 200
    venue_database.start()
    until(lambda: post(3).status_code == 201)


def test_a_hung_database_leaves_the_write_unknown(venue_app, venue_database):
    assert post(1).status_code == 201
    venue_database.signal(signal.SIGSTOP)
    try:
        answer = post(2)
        assert (answer.status_code, answer.json()["state"]) == (503, "unknown")
        until(lambda: httpx.get(f"{URL}/readyz", timeout=30).status_code == 503)
    finally:
        venue_database.signal(signal.SIGCONT)
    until(lambda: post(3).status_code == 201)


def test_a_commit_whose_standby_wait_was_cancelled_is_not_acknowledged(venue_app, venue_database):
    with venue_database.admin() as admin:
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        admin.execute("SELECT pg_reload_conf()")
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        request = subprocess.Popen(
            ["curl", "-s", "-d", '{"n": 5, "client": "t"}', f"{URL}/events"], stdout=subprocess.PIPE
        )
        try:
            until(lambda: admin.execute(waiting).fetchone() is not None)
            admin.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            body = json.loads(request.communicate(timeout=60)[0])
        finally:
            request.kill()
            admin.execute("SET synchronous_commit = local")
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
        assert (body["state"], "synchronous replication" in body["reason"]) == ("unknown", True)
        assert admin.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_vantage_tells_answers_from_refused_and_silent(venue_app, venue_database):
    def looked():
        found = httpx.get(f"{URL}/vantage", timeout=30).json()
        return (
            found if [found["nodes"][n]["reach"] for n in ("west-pg1", "west-pg2")] == ["answers", "refused"] else None
        )

    view = until(looked)  # each look has 400 ms
    with venue_database.admin() as admin:
        (identifier,) = admin.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    assert view["site"] == "west"
    assert view["nodes"]["west-pg1"] == {
        "reach": "answers",
        "in_recovery": False,
        "system_identifier": identifier,
        "timeline": 1,
        "detail": "",
    }
    assert view["nodes"]["west-pg2"]["reach"] == "refused"
    assert view["nodes"]["east-pg1"]["reach"] == "silent"
    assert "in_recovery" not in view["nodes"]["east-pg1"]


def test_metrics_count_requests_by_route_and_status(venue_app):
    post(1)
    httpx.get(f"{URL}/events/t/1", timeout=30)
    text = httpx.get(f"{URL}/metrics", timeout=30).text
    me = 'site="west",app="west-app1"'
    assert f'http_requests_total{{{me},method="POST",route="/events",status="201"}} 1' in text
    assert (
        f'http_request_duration_seconds_bucket{{{me},method="GET",route="/events/:client/:n",status="200",le="+Inf"}} 1'
        in text
    )
    for name in ("venue_pg_pool_connections", "process_cpu_seconds_total", "process_resident_memory_bytes"):
        assert f"\n{name}{{{me}" in text
    check = shutil.which("promtool")
    if check:
        subprocess.run([check, "check", "metrics"], input=text, text=True, capture_output=True, check=True)


def test_sigterm_answers_what_it_has_and_waits_for_no_kept_connection(venue_app, venue_database):
    assert post(1).status_code == 201
    with httpx.Client() as kept:  # a kept-alive connection must not hold it up
        kept.get(f"{URL}/healthz")
        began = time.monotonic()
        venue_app.send_signal(signal.SIGTERM)
        assert venue_app.wait(60) == 0
    assert time.monotonic() - began < 10, "it keeps a connection for 15 s"


def test_a_missing_setting_is_one_line(tmp_path):
    ended = subprocess.run(
        [need("node"), str(APP / "server.js")],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (2, "environment variable PGPASSWORD_FILE is not set\n")


def test_the_lock_file_names_no_registry():
    lock = json.loads((APP / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all("integrity" in package for path, package in lock["packages"].items() if path)
