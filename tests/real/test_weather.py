"""Bad input and weather that is no disaster: each gets its own clear error and exit code, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture
def steady(lab: Any) -> Iterator[Any]:
    """For tests that change nothing: west is active before and after, whoever ran before."""
    if lab.roles().get("west-pg1") != "primary" or set(lab.roles().values()) != {"primary", "replica"}:
        lab.fresh()
    before = lab.roles()
    yield lab
    until(lambda: lab.roles() == before)


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
    assert "healthy" in done.failed_step["summary"]


def test_a_primary_that_is_only_slow_is_not_failed_over(steady: Any) -> None:
    steady.fault("slow-primary")
    try:
        done = steady.run("failover")
    finally:
        steady.heal()
    assert done.code == 3, done.out
    assert done.failed_step["id"] == "detect"


@pytest.mark.parametrize("fault", ["network-cut", "network-deaf"])
def test_a_cut_between_the_sites_is_no_failure_of_the_primary(steady: Any, fault: str, until: Any) -> None:
    steady.fault(fault)
    try:
        done = steady.run("failover")
    finally:
        steady.heal()
        until(lambda: set(steady.roles().values()) == {"primary", "replica"})
    assert done.code == 3, done.out
    assert done.failed_step["id"] == "detect"


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
