"""Bad input and bad weather: each gets its own clear error and exit code, and leaves the system no worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def failed_step(report: dict[str, Any]) -> dict[str, Any]:
    return next(s for s in report["steps"] if s["outcome"] in ("failed", "unknown"))


@pytest.fixture
def calm(lab: Any) -> Iterator[Any]:
    """A lab as after its first start, and nothing left broken for the next test."""
    lab.fresh()
    yield lab
    lab.heal()


@pytest.fixture
def steady(lab: Any) -> Iterator[Any]:
    """For tests that change nothing: west is active before and after, whoever ran before."""
    if lab.roles().get("west-pg1") != "primary" or set(lab.roles().values()) != {"primary", "replica"}:
        lab.fresh()
    before = lab.roles()
    yield lab
    assert lab.roles() == before


def test_a_plan_changes_nothing(steady: Any) -> None:
    with steady.load() as load:
        for mode in ("forced", "graceful"):
            done = steady.relight("plan", "failover", "--system", "lab", "--mode", mode, "--json")
            assert done.code == 0, done.err
            plan = done.json
            assert plan["roles"]["active"] == "west"
            assert plan["roles"]["target"] == "east"
            assert plan["point_of_no_return"] == "promote"
            assert not [s["id"] for s in plan["steps"] if s["error"]], plan
        load.more(20)
    assert load.counted()["refused"] == 0
    assert not (steady.env["RELIGHT_STATE"] and list(_runs(steady)))


def _runs(lab: Any) -> Iterator[Any]:
    from pathlib import Path  # noqa: PLC0415

    return Path(lab.env["RELIGHT_STATE"]).glob("runs/*")


def test_a_healthy_primary_is_not_failed_over(steady: Any) -> None:
    done = steady.run("failover")
    assert done.code == 3, done.out
    assert done.json["verdict"] == "refused"
    assert "healthy" in failed_step(done.json)["summary"]


def test_a_primary_that_is_only_slow_is_not_failed_over(steady: Any) -> None:
    steady.fault("slow-primary")
    try:
        done = steady.run("failover")
    finally:
        steady.heal()
    assert done.code == 3, done.out
    assert failed_step(done.json)["id"] == "detect"


@pytest.mark.parametrize("fault", ["network-cut", "network-deaf"])
def test_a_cut_between_the_sites_is_no_failure_of_the_primary(steady: Any, fault: str, until: Any) -> None:
    steady.fault(fault)
    try:
        done = steady.run("failover")
    finally:
        steady.heal()
        until(lambda: set(steady.roles().values()) == {"primary", "replica"})
    assert done.code == 3, done.out
    assert failed_step(done.json)["id"] == "detect"


def test_a_missing_secret_is_bad_input_before_anything_starts(steady: Any) -> None:
    secret = steady.home() / "secrets" / "relight"
    kept = secret.read_text()
    secret.unlink()
    try:
        done = steady.run("failover")
    finally:
        secret.write_text(kept)
        secret.chmod(0o600)
    assert done.code == 2
    assert "secrets/relight" in done.err
    assert kept.strip() not in done.err + done.out


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
    assert failed_step(done.json)["id"] in ("detect", "promote")
    assert "primary" not in calm.roles().values()


def test_a_replica_too_far_behind_needs_a_named_waiver(calm: Any, until: Any) -> None:
    calm.fresh("--async")
    calm.fault("replication-lag")
    with calm.load() as load:
        load.more(300)
        load.since = calm.fault("kill-primary")["at"]
        refused = calm.run("failover", "--incident-started", load.since)
        assert refused.code == 3, refused.out
        assert failed_step(refused.json)["id"] == "promote"
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
    assert "admin.sock" in json.dumps(failed_step(done.json))
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
        assert failed_step(done.json)["id"] == "dns"
        assert "TSIG" in failed_step(done.json)["summary"]
    finally:
        secret.write_text(kept)
    assert calm.relight("resume", "last", "--offline", "--json").code == 0


def test_the_name_server_is_down_then_resumed(calm: Any) -> None:
    calm.fault("dns-refuse")
    calm.fault("kill-primary")
    done = calm.run("failover")
    assert done.code == 1, done.out
    assert failed_step(done.json)["id"] in ("dns", "verify-target")
    calm.heal()
    assert calm.relight("resume", "last", "--offline", "--json").code == 0
