"""Whether anybody is going on with a run: a lock in the run's folder that its process holds and the kernel drops.

Unlike a process number in a file, a lock cannot outlive its process (flock(2)), also not when it is killed. It says who
lives, not who may act: several may hold it (one of them stopped, say), and the lease alone decides between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from flows.engine.journal import JournalUnwritable

ENGINE = "engine.lock"
WINDOW = "window.lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be alive in the run of ``folder``, to the end of the block or of the process. Raises JournalUnwritable."""
    try:
        lock = os.open(folder / ENGINE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise JournalUnwritable(f"cannot make {folder / ENGINE}: {e.strerror}; the run could not be watched") from e
    try:
        # shared, so this waits only for somebody who is looking right now, which is over at once
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def alive(folder: Path, name: str = ENGINE) -> bool:
    """Somebody holds the lock ``name`` of the run of ``folder``. False where there never was one."""
    lock = _taken(folder, name, create=False)
    if lock is None:
        return (folder / name).exists()
    os.close(lock)
    return False


@contextlib.contextmanager
def sole(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock ``name`` alone for the length of the block; False inside it where somebody else has it."""
    lock = _taken(folder, name, create=True)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _taken(folder: Path, name: str, *, create: bool) -> int | None:
    try:
        lock = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
