"""The load client against a real application server, a real caching resolver and a real PostgreSQL; and its tally."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.message
import dns.query
import pytest

LAB = Path(__file__).resolve().parents[2] / "deployments" / "lab"
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(LAB))

import tally  # noqa: E402  a sibling of the lab's scripts, not of a package
from patience import until  # noqa: E402  a neighbour
from venue import APP_HOST, APP_PORT, PG_HOST, PG_PORT, need, running_app, running_database  # noqa: E402  a neighbour

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def venue_database():
    with running_database() as database:
        yield database


@pytest.fixture
def venue_app(venue_database, tmp_path):
    with running_app(venue_database, tmp_path) as process:
        yield process


RESOLVER, RESOLVER_PORT = "127.0.9.55", 6955
START = datetime(2026, 1, 1, tzinfo=UTC)


def moment(seconds):
    return START + timedelta(seconds=seconds)


def record(*attempts):
    made = tuple(tally.Attempt(n, moment(sent), moment(answered), outcome) for n, sent, answered, outcome in attempts)
    return tally.Record("t", START, made)


def test_each_kind_of_damage_is_counted_as_what_it_is():
    seen = record(
        (1, 0, 0.1, "acked"), (2, 0, 0.1, "acked"), (3, 0, 0.1, "unknown"), (4, 0, 0.1, "unknown"),
        (5, 0, 0.1, "refused"), (6, 0, 0.1, "refused"), (7, 0, 0.1, "acked"),
    )  # fmt: skip
    found = tally.compare(seen, {1: 1, 3: 1, 6: 1, 7: 2, 9: 1})
    expected = {
        "acknowledged": 3, "refused": 2, "unknown": 2, "rows": 6, "lost_numbers": [2], "duplicated_numbers": [7],
        "surfaced": 1, "refused_but_present": 1, "unrecorded": 1,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected


def test_the_outage_is_the_longest_time_without_an_acknowledgement():
    seen = record(
        (1, 0.0, 0.1, "acked"), (2, 1.0, 1.1, "acked"), (3, 1.2, 3.2, "unknown"), (4, 2.0, 2.1, "refused"),
        (5, 4.0, 4.1, "acked"), (6, 4.2, 4.3, "acked"),
    )  # fmt: skip
    found = tally.outage(seen)
    assert (found["outage_s"], found["outage_from"], found["ended"]) == (3.0, moment(1.1).isoformat(), True)
    # The write on its way when the fault came (sent at 1.0) says nothing about recovery.
    after = tally.outage(seen, moment(1.05))
    assert (after["first_ack_sent_at"], after["first_ack_after_s"]) == (moment(4.0).isoformat(), 3.05)
    assert tally.outage(seen, moment(4.15))["outage_s"] == 0.2


def test_an_outage_that_nobody_saw_end_says_so():
    found = tally.outage(record((1, 0.0, 0.1, "acked"), (2, 5.0, 5.1, "refused")))
    assert (found["outage_s"], found["ended"]) == (5.0, False)


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    acks = tmp_path / "a.jsonl"
    line = {"n": 1, "sent_at": START.isoformat(), "answered_at": START.isoformat(), "outcome": "acked"}
    head = json.dumps({"client": "t", "started_at": START.isoformat()})
    acks.write_text(f'{head}\n{json.dumps(line)}\n{{"n": 2, "sent')
    assert [a.n for a in tally.read(acks).attempts] == [1]


@pytest.fixture
def resolver(tmp_path):
    """Unbound with the public name as local data; call it with an address to change the answer (by a restart)."""
    running = []

    def point(address):
        for process in running:
            process.kill()
            process.wait()
        config = tmp_path / "unbound.conf"
        config.write_text(
            f'server:\n interface: {RESOLVER}@{RESOLVER_PORT}\n username: ""\n chroot: ""\n pidfile: ""\n'
            f' directory: "{tmp_path}"\n use-syslog: no\n num-threads: 1\n local-zone: "test." static\n'
            f' local-data: "app.venue.test. 1 IN A {address}"\nremote-control:\n control-enable: no\n'
        )
        running[:] = [subprocess.Popen([need("unbound"), "-d", "-c", config], stderr=subprocess.DEVNULL)]
        until(lambda: answers(address))

    def answers(address):
        try:
            question = dns.message.make_query("app.venue.test.", "A")
            found = dns.query.udp(question, RESOLVER, port=RESOLVER_PORT, timeout=0.2)
        except (dns.exception.DNSException, OSError):
            return False
        return address in str(found.answer)

    yield point
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def load(tmp_path):
    """Starts the load client with these words; whatever happens in the test, it is gone after it."""
    started = []

    def start(*words):
        argv = [
            *(sys.executable, LAB / "load.py", "run", "--resolver", f"{RESOLVER}:{RESOLVER_PORT}"),
            *("--port", str(APP_PORT), "--acks", tmp_path / "t.jsonl", "--timeout", "5s", *words),
        ]
        env = {**os.environ, "RELIGHT_LAB": str(tmp_path)}
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def count(tmp_path, *words):
    (tmp_path / "secrets").mkdir(exist_ok=True)
    (tmp_path / "secrets" / "app").write_text("apppass\n")
    ran = subprocess.run(
        [
            *(sys.executable, LAB / "load.py", "count", "--json", "--acks", tmp_path / "t.jsonl"),
            *("--node", f"west-pg1={PG_HOST}:{PG_PORT}", *words),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "RELIGHT_LAB": str(tmp_path)},
    )
    return json.loads(ran.stdout)


def acked(tmp_path):
    path = tmp_path / "t.jsonl"
    return path.read_text().count('"acked"') if path.exists() else 0


def test_every_write_is_recorded_and_a_lost_row_is_found(venue_app, venue_database, resolver, load, tmp_path):
    resolver(APP_HOST)
    running = load("--rate", "100/s", "--for", "5s")
    summary = json.loads(running.communicate(timeout=120)[0])
    assert running.returncode == 0
    assert summary == json.loads((tmp_path / "t.summary.json").read_text())
    assert 20 <= summary["acknowledged"] <= 505
    assert summary["written"] == summary["acknowledged"]
    found = count(tmp_path)
    assert (found["lost"], found["duplicated"], found["unrecorded"]) == (0, 0, 0)
    with venue_database.admin() as admin:
        admin.execute("DELETE FROM events WHERE n = 5")
        admin.execute("INSERT INTO events (n, client) VALUES (6, 't')")
    found = count(tmp_path, "--since", START.isoformat())
    assert (found["lost_numbers"], found["duplicated_numbers"]) == ([5], [6])


def test_a_database_that_dies_costs_refusals_and_an_outage_but_no_acknowledged_write(
    venue_app, venue_database, resolver, load, tmp_path
):
    resolver(APP_HOST)
    running = load("--rate", "200/s")
    until(lambda: acked(tmp_path) > 50)
    died_at = datetime.now(UTC)
    venue_database.kill()
    until(lambda: '"refused"' in (tmp_path / "t.jsonl").read_text())
    venue_database.start()
    before = acked(tmp_path)
    until(lambda: acked(tmp_path) > before + 50)
    running.send_signal(signal.SIGTERM)
    summary = json.loads(running.communicate(timeout=120)[0])
    found = count(tmp_path, "--since", died_at.isoformat())
    assert (found["lost"], found["duplicated"], found["refused_but_present"], found["unrecorded"]) == (0, 0, 0, 0)
    assert summary["refused"] > 0
    assert found["first_ack_after_s"] > 0
    assert found["outage_s"] > 0
    assert count(tmp_path)["outage_s"] >= summary["outage_s"] - 0.5


def test_after_the_ttl_half_move_and_the_others_stay_until_their_connection_breaks(
    venue_app, venue_database, resolver, load, tmp_path
):
    resolver(APP_HOST)
    running = load("--rate", "100/s", "--workers", "4")
    until(lambda: acked(tmp_path) > 30)
    resolver("127.0.9.77")  # nobody listens there

    def lines():
        return [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()[1:]]

    until(lambda: sum(line["outcome"] == "refused" for line in lines()) > 20)
    until(lambda: {line["outcome"] for line in lines()[-20:]} == {"acked", "refused"})
    venue_app.kill()
    until(lambda: {line["outcome"] for line in lines()[-20:]} == {"refused"})
    running.terminate()
    running.communicate(timeout=120)
    found = count(tmp_path)
    assert (found["lost"], found["duplicated"], found["unrecorded"]) == (0, 0, 0)
