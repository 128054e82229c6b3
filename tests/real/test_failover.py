"""The lab's failover, there and back, for every fault that calls for one: RTO, RPO, one writer, and what clients saw.

``RELIGHT_ROUNDS`` says how often each goes there and back (1 in CI).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
ROUNDS = int(os.environ.get("RELIGHT_ROUNDS", "1"))
REPORT_KEYS = {
    "run_id", "runbook", "system", "mode", "verdict", "started_at", "ended_at",
    "objectives", "rpo", "phases", "steps", "journal",
}  # fmt: skip


def failover(lab: Any, fault: str) -> dict[str, Any]:
    """One fault under load and its recovery; returns the report. Nothing acknowledged may be lost."""
    old = lab.primary()
    with lab.load() as load:
        load.since = lab.fault(fault)["at"]
        done = lab.run("failover", "--incident-started", load.since)
        assert done.code == 0, done.err + done.out
        load.more(50)
    counted = load.counted()
    assert (counted["lost"], counted["duplicated"]) == (0, 0), counted
    new = lab.primary()
    assert new.split("-")[0] != old.split("-")[0]
    return done.json


def rejoin(lab: Any) -> None:
    lab.heal()
    done = lab.run("rejoin")
    assert done.code == 0, done.err + done.out
    until(lambda: sorted(lab.roles().values()) == ["primary", "replica", "replica", "replica"], what="all follow one")


@pytest.mark.parametrize("fault", ["kill-primary", "hang-primary", "site-gone"])
def test_there_and_back(lab: Any, fault: str) -> None:
    for _ in range(ROUNDS):
        for _direction in ("west to east", "east to west"):
            report = failover(lab, fault)
            assert report.keys() >= REPORT_KEYS
            assert report["verdict"] == "succeeded"
            assert {c: o["met"] for c, o in report["objectives"].items()} == dict.fromkeys(
                ("application", "database", "storage"), True
            )
            assert report["rpo"]["database"]["met"] is True
            assert {s["outcome"] for s in report["steps"]} <= {"done", "already"}
            rejoin(lab)


CLIENTS_WAIT_S = 4.0
"""Less than the lab's applications wait for an answer (TIMEOUT_MS): writes that are held for longer are refused."""
SLOW_S = 12.0
"""A move holds them for about 2 s."""


def test_a_planned_switchover_refuses_and_loses_nothing(lab: Any) -> None:
    held = []
    for _ in range(3):
        old = lab.primary()
        with lab.load() as load:
            done = lab.run("failover", "--mode", "graceful")
            assert done.code == 0, done.err + done.out
            load.more(50)
        counted = load.counted()
        assert (counted["lost"], counted["duplicated"]) == (0, 0), counted
        assert done.json["mode"] == "graceful"
        assert lab.primary().split("-")[0] != old.split("-")[0]
        rejoin(lab)
        release = next(s for s in done.json["steps"] if s["id"] == "release-writes")
        held.append(release["evidence"]["held_s"])
        if held[-1] < CLIENTS_WAIT_S:
            assert counted["refused"] == 0, counted
            return
    assert min(held) < SLOW_S, f"each holds the writes for too long, also for a machine that is busy: {held}"


def test_the_journal_of_a_run_proves_itself_and_shows_tampering(lab: Any) -> None:
    assert lab.relight("journal", "verify", "last").code == 0
    path = lab.relight("journal", "verify", "last", "--json").json["path"]
    with open(path, "r+b") as f:  # noqa: PTH123 - a byte in the middle is changed in place
        text = f.read()
        f.seek(text.index(b'"outcome":"done"'))
        f.write(b'"outcome":"DONE"')
    broken = lab.relight("journal", "verify", "last")
    assert broken.code == 2
    assert "record" in broken.err
