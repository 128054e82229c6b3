"""One run per system, with real processes: two at the same moment, and one that is stopped past its lease."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
ADDRESS = "127.0.5.43"


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """An address that refuses until somebody listens."""
    with socket.socket() as one:
        one.bind((ADDRESS, 0))
        yield one


@pytest.fixture
def toy(tmp_path: Path, door: socket.socket) -> Path:
    address = f"{ADDRESS}:{door.getsockname()[1]}"
    (tmp_path / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    step = "  - {id: wait, action: health.tcp, with: {address: '%s'}, timeout: 100s}\n"
    (tmp_path / "wait.yaml").write_text("runbook: wait\nsteps:\n" + step % address)
    return tmp_path


def start(toy: Path, *words: str) -> subprocess.Popen[str]:
    relight = Path(sys.executable).with_name("relight")
    words = words or ("run", "wait", "--system", str(toy), "--from", "west")
    return subprocess.Popen(
        [relight, *words, "--offline"], env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(*processes: subprocess.Popen[str]) -> None:
    for one in processes:
        one.kill()
        one.communicate()


def test_of_two_at_the_same_moment_one_runs_and_the_other_is_told(
    toy: Path, door: socket.socket, until: Callable[..., Any]
) -> None:
    both = [start(toy), start(toy)]
    try:
        until(lambda: any(p.poll() is not None for p in both), 30)
        (refused,) = [p for p in both if p.poll() is not None]
        (running,) = [p for p in both if p.poll() is None]
        said = refused.communicate()[1]
        assert refused.returncode == 3, said
        assert "system toy already has a run" in said
        assert f"process {running.pid}" in said
        door.listen()
        assert running.wait(30) == 0
    finally:
        end(*both)


def test_one_that_was_stopped_past_its_lease_wakes_up_fenced(
    toy: Path, door: socket.socket, until: Callable[..., Any]
) -> None:
    runs = Path(os.environ["RELIGHT_STATE"]) / "runs"
    first = start(toy)
    second = None
    try:
        (run,) = until(lambda: list(runs.glob("*/journal.jsonl")), 30)
        until(lambda: b"run_started" in run.read_bytes(), 10)
        first.send_signal(signal.SIGSTOP)

        def taken() -> bool:
            nonlocal second
            if second is not None and second.poll() is not None:
                second.communicate()  # refused: the lease has not run out yet
                second = None
            if second is None:
                second = start(toy, "resume", run.parent.name)
            return b"run_resumed" in run.read_bytes()

        until(taken, 60)  # refused until the lease ran out
        before = run.read_bytes()
        first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=30)[1]
        assert first.returncode == 3, said
        assert "took over while this engine stood still" in said or "another one goes on with the run" in said
        assert run.read_bytes() == before, "a stale engine wrote to the journal"
        door.listen()
        assert second is not None
        assert second.wait(30) == 0
    finally:
        end(first, *([second] if second else []))
