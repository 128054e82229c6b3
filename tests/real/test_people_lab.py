"""The lab's failover asks people: approved in mid-run, refused by silence, and refused when the failure was over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.engine import places

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
RELIGHT = Path(sys.executable).with_name("relight")
KEYS = {f"RELIGHT_{n.upper()}": f"the secret of {n}, long" for n in ("alice", "bob", "carol")}


class Asking:
    """A failover of the lab in a process of its own, which asks one person."""

    def __init__(self, lab: Any, folder: Path, timeout: str) -> None:
        self.lab = lab
        lab.env |= KEYS
        system = folder / "lab"
        shutil.copytree(places.data("runbooks") / "lab", system)
        book = system / "failover.yaml"
        book.write_text(book.read_text().replace("timeout: 10m", f"timeout: {timeout}"))
        before = self.journals()
        words = [RELIGHT, "run", "failover", "-s", system, "--from", "west", "--offline", "--json"]
        self.process = subprocess.Popen(
            [*words, "--var", "approvals=1"],
            env={**os.environ, **lab.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.before = before

    def journals(self) -> set[Path]:
        return set((Path(self.lab.env["RELIGHT_STATE"]) / "runs").glob("*/journal.jsonl"))

    def asked(self, until: Callable[..., Any]) -> dict[str, Any]:
        def found() -> Any:
            lines = [line for j in self.journals() - self.before for line in j.read_text().splitlines()]
            return [r for r in map(json.loads, lines) if r["type"] == "approval_wanted"]

        return until(found, 60)[0]

    def ended(self) -> tuple[int, dict[str, Any]]:
        out, err = self.process.communicate(timeout=300)
        assert out, err
        return self.process.returncode, json.loads(out)


@pytest.fixture
def asking(lab: Any, tmp_path: Path) -> Iterator[Callable[[str], Asking]]:
    started: list[Asking] = []

    def start(timeout: str) -> Asking:
        started.append(Asking(lab, tmp_path, timeout))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def step(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in report["steps"] if s["id"] == name)


def kill_primary(lab: Any) -> None:
    """Dead, unless an earlier test left it so."""
    if lab.roles()["west-pg1"] == "primary":
        lab.fault("kill-primary")


def start_primary(lab: Any, until: Callable[..., Any]) -> None:
    """As a person at its host would."""
    subprocess.run([lab.home() / "bin" / "host", "start", "west-pg1"], env={**os.environ, **lab.env}, check=True)
    until(lambda: lab.roles()["west-pg1"] == "primary")


def test_silence_refuses_and_nothing_was_cut_off(lab: Any, asking: Callable[[str], Asking]) -> None:
    kill_primary(lab)
    code, report = asking("15s").ended()
    assert (code, report["verdict"]) == (3, "refused")
    assert "not approved: 0 of 1 approved" in report["reason"]
    assert 5 < report["phases"]["approve_s"] < 15
    assert [step(report, s)["outcome"] for s in ("approve", "fence", "promote")] == ["failed", "skipped", "skipped"]
    assert lab.roles()["east-pg1"] == "replica"


def test_a_failure_that_ended_while_people_decided_is_not_failed_over(
    lab: Any, asking: Callable[[str], Asking], until: Callable[..., Any]
) -> None:
    kill_primary(lab)
    going = asking("280s")
    going.asked(until)
    start_primary(lab, until)
    assert lab.relight("approve", "last", "--as", "alice").code == 0
    code, report = going.ended()
    assert (code, report["verdict"]) == (3, "refused")
    assert "the failure is not confirmed any more" in report["reason"]
    assert step(report, "fence")["outcome"] == "skipped"
    assert lab.primary() == "west-pg1"


def test_approved_in_mid_run_it_fails_over(
    lab: Any, asking: Callable[[str], Asking], until: Callable[..., Any]
) -> None:
    start_primary(lab, until)
    with lab.load() as load:
        kill_primary(lab)
        going = asking("280s")
        figures = going.asked(until)["figures"]
        assert figures["loss"]["proven_zero"] is True
        assert figures["point_of_no_return"] == "promote"
        assert set(figures["left_s"]) == {"application", "database", "storage"}
        said = lab.relight("status", "last", "--no-observe")
        assert "loss of database" in said.out
        assert "relight approve" in said.out
        done = lab.relight("approve", "last", "--as", "bob", "--why", "seen the graphs")
        assert done.code == 0, done.err
        _, report = going.ended()
        moved = ("fence", "promote", "route-target", "dns", "verify-database", "verify-client")
        # what may go on without (a replica that follows late on a busy machine) is other tests' business
        assert {step(report, s)["outcome"] for s in moved} <= {"done", "already"}, report["reason"]
        load.more(50)
    approved = step(report, "approve")
    assert [a["by"] for a in approved["evidence"]["approved"]] == ["bob"]
    assert approved["evidence"]["failure_again"]
    assert report["phases"]["approve_s"] == pytest.approx(approved["evidence"]["waited_s"], rel=0.5, abs=3)
    assert lab.primary().startswith("east")
    assert load.counted()["lost"] == 0
