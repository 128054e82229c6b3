"""The engine killed at every journal record of a real failover, and resumed each time: the same end, nothing lost.

One failover is killed at every one of its records in turn. ``RELIGHT_CRASH=all`` (``make crash``) kills at each
record in a failover of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(3000), pytest.mark.usefixtures("system")]
BOOKS = Path(__file__).parents[2] / "runbooks" / "lab"
ENGINE = Path(__file__).with_name("crash_engine.py")
EVERY = os.environ.get("RELIGHT_CRASH") == "all"


@pytest.fixture(scope="module")
def system(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab, with hours to recover in: a run takes as long as all the engines that it needs take to start."""
    copy = tmp_path_factory.mktemp("books") / "lab"
    shutil.copytree(BOOKS, copy)
    text = (copy / "system.yaml").read_text()
    assert "application: {rto: 5m}" in text
    for minutes in ("5m", "15m", "30m"):
        text = text.replace(f"{{rto: {minutes}", "{rto: 5h")
    (copy / "system.yaml").write_text(text)
    lab.env["CRASH_SYSTEM"] = str(copy)
    return copy


class Crashing:
    """Engines that die at a record."""

    def __init__(self, lab: Any, book: str, mode: str) -> None:
        self.lab, self.book, self.mode = lab, book, mode
        self.runs = Path(lab.env["RELIGHT_STATE"]) / "runs"
        self.before = self.known()
        self.deaths = 0

    def known(self) -> set[str]:
        return {p.parent.name for p in self.runs.glob("*/journal.jsonl")}

    @property
    def run_id(self) -> str | None:
        new = self.known() - self.before
        assert len(new) <= 1, new
        return next(iter(new), None)

    def records(self) -> list[dict[str, Any]]:
        if self.run_id is None:
            return []
        lines = (self.runs / self.run_id / "journal.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]

    def to_the_end(self) -> None:
        """Die at each new record in turn; where a life finished no further step, the next one gets a record more.

        An outcome recorded again (an entry check that a resumed engine asks anew) is not a further step.
        """
        more, finished = 0, set[str]()
        for _ in range(120):
            before = self.records()
            if before and before[-1]["type"] == "run_ended":  # it died right behind its last record
                return
            # a resumed engine writes run_resumed first
            if self.go(len(before) + 2 + more if before else 1):
                return
            now = {r["step"] for r in self.records() if r["type"] == "outcome"}
            more, finished = (0, now) if now > finished else (more + 1, finished)
        raise AssertionError("it never ends")

    def go(self, last: int) -> bool:
        """Run or resume, to die at record ``last``; True when it ended instead."""
        words = [sys.executable, str(ENGINE), str(last), self.book, self.mode, *([self.run_id] if self.run_id else [])]
        done = subprocess.run(
            words, env={**os.environ, **self.lab.env}, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode == -9:
            self.deaths += 1
            return False
        assert done.returncode == 0, done.stderr
        return True


def check_end(lab: Any, crashing: Crashing, target: str, counted: dict[str, Any], timeline: int) -> None:
    """One writer in the target, every acknowledged write there, names and traffic at the target, one run."""
    assert (counted["lost"], counted["duplicated"]) == (0, 0), counted
    assert lab.primary().startswith(target)
    status = lab.relight("report", str(crashing.run_id), "--json").json
    assert status["verdict"] == "succeeded", status["reason"]
    assert status["run_id"] == crashing.run_id
    assert {s["outcome"] for s in status["steps"]} <= {"done", "already"}
    assert lab.relight("journal", "verify", str(crashing.run_id)).code == 0
    steps = {s["id"]: s for s in status["steps"]}
    assert steps["promote"]["evidence"]["timeline"] == timeline  # promoted once
    assert steps["verify-client"]["evidence"]["site"] == target
    intents = [r for r in crashing.records() if r["type"] == "intent" and r["step"] == "promote"]
    assert len({r["before"]["chosen"] for r in intents}) == 1
    epochs = [r["epoch"] for r in crashing.records() if "epoch" in r]
    assert epochs == sorted(set(epochs)), "each engine has an epoch of its own, and it only grows"


def back(lab: Any) -> None:
    lab.heal()
    done = lab.run("rejoin")
    assert done.code == 0, done.err + done.out


def test_killed_at_every_record_of_one_failover(lab: Any) -> None:
    crashing = Crashing(lab, "failover", "forced")
    with lab.load() as load:
        load.since = lab.fault("kill-primary")["at"]
        crashing.to_the_end()
        load.more(50)
    check_end(lab, crashing, "east", load.counted(), 2)
    assert crashing.deaths >= 25  # how many records there are varies: branches run side by side
    print(f"crash points passed: {crashing.deaths}")  # noqa: T201 - the figure


def test_a_planned_move_killed_at_every_record_leaves_nothing_held(lab: Any) -> None:
    back(lab)
    crashing = Crashing(lab, "failover", "graceful")
    with lab.load() as load:
        crashing.to_the_end()
        load.more(50)
    check_end(lab, crashing, "west", load.counted(), 3)
    print(f"crash points passed: {crashing.deaths}")  # noqa: T201 - the figure


@pytest.mark.parametrize("record", range(1, 40) if EVERY else [4])
def test_killed_once(lab: Any, record: int) -> None:
    """At one record only, each in a failover of its own."""
    back(lab)
    crashing = Crashing(lab, "failover", "forced")
    old = lab.primary()
    with lab.load() as load:
        load.since = lab.fault("kill-primary")["at"]
        if not crashing.go(record):
            assert crashing.go(10_000)
        load.more(50)
    counted = load.counted()
    assert (counted["lost"], counted["duplicated"]) == (0, 0), counted
    assert lab.primary().split("-")[0] != old.split("-")[0]
    report = lab.relight("report", str(crashing.run_id), "--json").json
    assert report["verdict"] == "succeeded", report["reason"]
