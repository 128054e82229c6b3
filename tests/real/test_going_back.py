"""Stopped by a signal, and told to go back: on the real lab under load, by the command line, as status said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
GATE = "127.0.5.45"
CRASHING = Path(__file__).with_name("crash_engine.py")
RELIGHT = Path(sys.executable).with_name("relight")


@pytest.fixture
def gate() -> Iterator[socket.socket]:
    """An address that refuses until somebody listens."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((GATE, 0))
        yield one


@pytest.fixture
def book(gate: socket.socket, tmp_path: Path) -> Path:
    """Holds the writes, then waits for the gate, then lets them go on."""
    file = tmp_path / "hold.yaml"
    file.write_text(
        "runbook: hold\nsteps:\n"
        "  - {id: hold, action: database.pause, with: {site: failed}}\n"
        f"  - {{id: gate, action: health.tcp, with: {{address: '{GATE}:{gate.getsockname()[1]}'}}, timeout: 600s}}\n"
        "  - {id: go-on, action: database.resume, with: {site: failed}}\n"
    )
    return file


class Going:
    """A run of ``book`` in a process of its own."""

    def __init__(self, lab: Any, book: Path) -> None:
        self.runs = Path(lab.env["RELIGHT_STATE"]) / "runs"
        before = set(self.runs.glob("*"))
        words = [RELIGHT, "run", str(book), "--system", "lab", "--from", "west", "--offline", "--json"]
        self.process = subprocess.Popen(
            words, env={**os.environ, **lab.env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        (self.folder,) = until(lambda: set(self.runs.glob("*/journal.jsonl")) - {b / "journal.jsonl" for b in before})
        self.folder = self.folder.parent
        until(lambda: '"step":"hold"' in self.journal() and '"outcome":"done"' in self.journal())

    def journal(self) -> str:
        return (self.folder / "journal.jsonl").read_text()

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=180)
        return self.process.returncode, out, err


def seen(lab: Any, going: Going) -> dict[str, bool | None]:
    """What ``status`` finds of each step now; None where it could not tell in time."""
    return {s["id"]: s["holds"] for s in lab.relight("status", going.folder.name, "--json").json["now"]}


@pytest.fixture
def going(lab: Any, book: Path) -> Iterator[Going]:
    one = Going(lab, book)
    yield one
    if one.process.poll() is None:
        one.process.kill()
    if one.process.stdout and not one.process.stdout.closed:
        one.process.communicate()
    # whatever a failed test left held
    lab.relight("abort", one.folder.name, "--yes", "--offline")


def test_a_living_run_is_told_and_puts_back_what_status_said(lab: Any, going: Going) -> None:
    said = lab.relight("status", going.folder.name, "--json").json
    assert said["engine_alive"] is True
    assert said["outlook"]["would_undo"] == ["hold"]
    until(lambda: seen(lab, going) == {"hold": True, "gate": False, "go-on": False}, what="each step is looked at")
    refused = lab.relight("abort", going.folder.name)
    assert refused.code == 2
    assert "say --yes" in refused.err
    assert '"abort_requested"' not in going.journal()
    shown = lab.relight("abort", going.folder.name, "--dry-run", "--json").json
    assert shown["would_undo"] == ["hold"]
    done = lab.relight("abort", going.folder.name, "--yes", "--why", "a test", "--json")
    assert done.code == 0, done.err
    with lab.load() as load:
        load.more(10)  # clients write again
    report = done.json
    assert report["verdict"] == "undone"
    assert "a test" in report["reason"]
    assert {s["id"]: s["outcome"] for s in report["steps"]} == {"hold": "undone", "gate": "skipped", "go-on": "skipped"}
    code, out, _ = going.ended()
    assert code == 1
    assert '"undone"' in out
    again = lab.relight("abort", going.folder.name, "--yes")
    assert again.code == 2
    assert "has ended (undone)" in again.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_effects_keeps_what_is_held_and_says_how_to_go_on(
    lab: Any, going: Going, gate: socket.socket, number: signal.Signals
) -> None:
    going.process.send_signal(number)
    code, out, err = going.ended()
    assert code == 1
    assert '"interrupted"' in out
    assert "asked to stop" in err
    run = going.folder.name
    assert f"go on: relight resume {run}, or go back: relight abort {run}" in out
    said = lab.relight("status", run, "--json").json
    assert said["engine_alive"] is False
    until(lambda: seen(lab, going)["hold"] is True, what="nothing was let go")
    gate.listen()
    done = lab.relight("resume", run, "--offline", "--json")
    assert done.code == 0, done.err
    assert done.json["run_id"] == run
    with lab.load() as load:
        load.more(10)


def test_a_dead_planned_move_goes_back_as_said(lab: Any) -> None:
    runs = Path(lab.env["RELIGHT_STATE"]) / "runs"
    before = set(runs.glob("*"))
    with lab.load() as load:
        killed = subprocess.run(
            [sys.executable, CRASHING, "8", "failover", "graceful"],
            env={**os.environ, **lab.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert killed.returncode == -9, killed.stderr
        (run,) = {p.name for p in set(runs.glob("*")) - before}
        said = lab.relight("status", run, "--json").json
        undo = said["outlook"]["would_undo"]
        assert "hold-writes" in undo
        assert said["outlook"]["passed"] is False
        assert said["engine_alive"] is False
        done = lab.relight("abort", run, "--yes", "--why", "a test", "--offline", "--json")
        assert done.code == 0, done.err + done.out
        load.more(50)
    report = done.json
    assert report["run_id"] == run
    assert [s["id"] for s in report["steps"] if s["outcome"] == "undone"] == sorted(
        undo, key=[s["id"] for s in report["steps"]].index
    )
    counted = load.counted()
    assert (counted["lost"], counted["duplicated"]) == (0, 0), counted
    assert lab.primary().startswith("west")


def test_behind_the_point_of_no_return_an_abort_is_refused_and_the_run_can_go_on(lab: Any) -> None:
    runs = Path(lab.env["RELIGHT_STATE"]) / "runs"
    before = set(runs.glob("*"))
    lab.fault("kill-primary")
    words = [sys.executable, CRASHING, "16", "failover", "forced"]
    killed = subprocess.run(words, env={**os.environ, **lab.env}, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    (run,) = {p.name for p in set(runs.glob("*")) - before}
    said = lab.relight("status", run, "--json").json["outlook"]
    assert (said["passed"], said["would_undo"], said["point_of_no_return"]) == (True, [], "promote")
    for words in (("--dry-run",), ("--yes",)):
        refused = lab.relight("abort", run, *words)
        assert refused.code == 3, refused.err
        assert f"relight resume {run}" in refused.err
    done = lab.relight("resume", run, "--offline", "--json")
    assert done.code == 0, done.err
    assert lab.primary().startswith("east")
