"""Keeps one helper process up beside ours: started again when it ends, later and later, and gone when we are."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LOOK_S = 0.5
FIRST_S, LONGEST_S = 1.0, 30.0
"""Between two starts, doubling; a process that lived longer than LONGEST_S counts as well."""


@dataclass
class Kept:
    """A process that is kept up. Its standard input is a pipe that closes when we end, however we end.

    Attributes:
        name: for people.
        command: its arguments.
        say: gets a line when it ended.
    """

    name: str
    command: list[str]
    say: Callable[[str], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _process: subprocess.Popen[bytes] | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = threading.Thread(target=self._keep, name=f"relight-keep-{self.name}", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        wait_s = FIRST_S
        while not self._stop.is_set():
            began = time.monotonic()
            self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, start_new_session=True)
            while self._process.poll() is None and not self._stop.wait(LOOK_S):
                pass
            if self._stop.is_set():
                return
            if time.monotonic() - began > LONGEST_S:
                wait_s = FIRST_S
            self.say(f"{self.name} ended (exit {self._process.returncode}); again in {wait_s:g} s")
            self._stop.wait(wait_s)
            wait_s = min(LONGEST_S, 2 * wait_s)

    def stop(self) -> None:
        """End it at once. What it started in sessions or processes of their own goes on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * LOOK_S)
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
                self._process.wait(LOOK_S)
