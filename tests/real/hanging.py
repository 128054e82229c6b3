"""A process that hangs: SIGSTOP takes effect a moment after kill(2) returned, one thread after the other."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

STOPPED_S = 60.0


def hang(pid: int) -> None:
    """Stop ``pid``, and wait until the kernel says of every thread that it is stopped (proc(5): state T)."""
    os.kill(pid, signal.SIGSTOP)
    deadline, pause = time.monotonic() + STOPPED_S, threading.Event()
    while not all(_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} did not stop"
        pause.wait(0.005)


def _state(task: Path) -> str:
    # the name before it may have spaces and brackets of its own
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"  # a thread that ended meanwhile does nothing any more
