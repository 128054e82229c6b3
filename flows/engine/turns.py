"""Files that several processes of one machine change: one at a time, each change whole and durable."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import LeaseHeld, RelightError

TURN_S = 2.0
"""How long to wait for a turn. One takes milliseconds, unless its process was stopped in it."""


@contextlib.contextmanager
def turn(lock: Path) -> Iterator[None]:
    """One process (and one caller in it) at a time, for as long as it takes to look and write.

    Raises LeaseHeld when whoever has the turn does not end it, RelightError when the folder cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise RelightError(f"cannot write {lock.parent}: {e.strerror}; without a lease no run may start") from e
    try:
        _wait(file, lock)
        yield
    finally:
        os.close(file)


def _wait(file: int, lock: Path) -> None:
    until, pause = time.monotonic() + TURN_S, threading.Event()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise LeaseHeld(
                    f"another process has held {lock} for {TURN_S:g} s, which takes milliseconds: it stands still in"
                    " the middle of it. Find it (fuser) and let it go on, or end it."
                ) from None
            pause.wait(0.005)


def write(file: Path, text: str) -> None:
    """Durable before it returns, its name included: what was written must not go back when the power fails.

    Raises RelightError.
    """
    new = file.with_name(f"{file.name}.new")
    try:
        with new.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        new.replace(file)
        directory = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as e:
        raise RelightError(f"cannot write {file}: {e.strerror}; without it no run may start") from e
