"""A disaster in bad weather: each gets its own clear error and exit code, and leaves the system no worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture
def calm(lab: Any) -> Iterator[Any]:
    """A lab as after its first start, and nothing left broken for the next test."""
    lab.fresh()
    yield lab
    lab.heal()


def test_two_primaries_stop_everything(calm: Any) -> None:
    calm.fault("kill-primary")
    assert calm.run("failover").code == 0
    calm.fault("return-old-primary")
    done = calm.run("failover")
    assert done.code == 3, done.out + done.err
    assert "more than one node claims to be primary" in done.err
    assert "west-pg1" in done.err
    # a person who names the site gets the old one fenced and re-joined, and nothing else touched
    assert calm.run("rejoin", "--to", "west").code == 0
    assert calm.primary() == "east-pg1"


def test_no_standby_to_promote(calm: Any) -> None:
    calm.fault("stop-standby", "--node", "east-pg1")
    calm.fault("stop-standby", "--node", "east-pg2")
    calm.fault("kill-primary")
    done = calm.run("failover")
    assert done.code in (1, 3), done.out
    assert done.failed_step["id"] in ("detect", "promote")
    assert "primary" not in calm.roles().values()


def test_a_replica_too_far_behind_needs_a_named_waiver(calm: Any, until: Any) -> None:
    calm.fresh("--async")
    calm.fault("replication-lag")
    with calm.load() as load:
        load.more(300)
        load.since = calm.fault("kill-primary")["at"]
        refused = calm.run("failover", "--incident-started", load.since)
        assert refused.code == 3, refused.out
        assert refused.failed_step["id"] == "promote"
        assert "primary" not in calm.roles().values()
        waived = calm.run(
            "failover", "--incident-started", load.since, "--from", "west", "--waive", "loss=J. Doe, test"
        )
        assert waived.json["waivers"]["loss"] == "J. Doe, test"
        load.more(20)
    counted = load.counted()
    assert counted["lost"] > 0, "the lagging standby had everything: the fault did nothing"
    assert waived.json["rpo"]["database"]["met"] is not True
    assert waived.code == 1


def test_the_balancers_socket_is_gone_then_resumed(calm: Any) -> None:
    calm.fault("balancer-socket-gone", "--site", "east")
    calm.fault("kill-primary")
    done = calm.run("failover")
    assert done.code == 1, done.out
    assert "admin.sock" in json.dumps(done.failed_step)
    calm.heal()
    again = calm.relight("resume", done.json["run_id"], "--offline", "--json")
    assert again.code == 0, again.out + again.err
    assert again.json["run_id"] == done.json["run_id"]


def test_a_wrong_tsig_key_is_rejected_then_resumed(calm: Any) -> None:
    secret = calm.home() / "secrets" / "tsig"
    kept = secret.read_text()
    calm.fault("kill-primary")
    secret.write_text("d3JvbmcgaGVyZSwgYW5kIGxvbmcgZW5vdWdo\n")
    try:
        done = calm.run("failover")
        assert done.code == 1, done.out
        assert done.failed_step["id"] == "dns"
        assert "TSIG" in done.failed_step["summary"]
    finally:
        secret.write_text(kept)
    assert calm.relight("resume", "last", "--offline", "--json").code == 0


def test_the_name_server_is_down_then_resumed(calm: Any) -> None:
    calm.fault("dns-refuse")
    calm.fault("kill-primary")
    done = calm.run("failover")
    assert done.code == 1, done.out
    assert done.failed_step["id"] in ("dns", "verify-target")
    calm.heal()
    assert calm.relight("resume", "last", "--offline", "--json").code == 0
