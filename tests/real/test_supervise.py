"""``relight serve`` resumes a run whose engine was killed, under its own id, and leaves alone what it must."""

from __future__ import annotations

import json
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
ADDRESS = "127.0.5.44"
RELIGHT = Path(sys.executable).with_name("relight")


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


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Path]:
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen([RELIGHT, "serve"], env=dict(os.environ), stdout=out, stderr=out)
        try:
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def killed_run(toy: Path, until: Callable[..., Any], before_the_kill: Callable[[], Any] = lambda: None) -> Path:
    """A run that waits, its engine killed; its journal."""
    words = [RELIGHT, "run", "wait", "--system", str(toy), "--from", "west", "--offline"]
    engine = subprocess.Popen(words, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = Path(os.environ["RELIGHT_STATE"]) / "runs"
    (journal,) = until(lambda: [j for j in runs.glob("*/journal.jsonl") if b"run_started" in j.read_bytes()], 30)
    before_the_kill()
    engine.kill()
    engine.wait()
    return journal


def types(journal: Path) -> list[str]:
    return [json.loads(line)["type"] for line in journal.read_bytes().splitlines()]


def test_a_killed_engine_is_started_again_under_the_same_run(
    toy: Path, door: socket.socket, serving: Path, until: Callable[..., Any]
) -> None:
    journal = killed_run(toy, until)
    until(lambda: "run_resumed" in types(journal), 20)
    door.listen()
    until(lambda: types(journal)[-1] == "run_ended", 30)
    assert json.loads(journal.read_bytes().splitlines()[-1])["verdict"] == "succeeded"
    assert [p.parent for p in journal.parent.parent.glob("*/journal.jsonl")] == [journal.parent]
    until(lambda: "ended: succeeded" in serving.read_text(), 10)


def test_a_paused_relight_resumes_nothing_until_it_is_unpaused(
    toy: Path, door: socket.socket, serving: Path, until: Callable[..., Any]
) -> None:
    subprocess.run([RELIGHT, "pause", "maintenance, J. Doe"], env=dict(os.environ), check=True, capture_output=True)
    pause = Path(os.environ["RELIGHT_STATE"]) / "paused"
    held = pause.read_text()
    pause.unlink()  # a run has to begin first
    journal = killed_run(toy, until, lambda: pause.write_text(held))
    until(lambda: "paused (maintenance, J. Doe)" in serving.read_text(), 20)
    assert "run_resumed" not in types(journal)
    pause.unlink()
    until(lambda: "run_resumed" in types(journal), 20)
    door.listen()
    until(lambda: types(journal)[-1] == "run_ended", 30)
