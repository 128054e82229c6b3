"""Which flow runs of Prefect a process of this machine has: a lock for each, which the kernel drops with the process.

``<state>/flow-runs/<id>``: there while somebody began it, held while somebody has it. There and not held: it crashed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from flows.engine import places

FOLDER = "flow-runs"


def folder() -> Path:
    """Where the locks are; made where need be. Raises OSError."""
    found = places.state_home() / FOLDER
    found.mkdir(parents=True, exist_ok=True, mode=0o700)
    return found


def log_file(flow_run_id: str) -> Path:
    """What the runner of a flow run says."""
    return folder() / f"{flow_run_id}.log"


def mark(flow_run_id: str) -> None:
    """Somebody is about to begin it. Raises OSError."""
    (folder() / flow_run_id).touch(mode=0o600)


@contextlib.contextmanager
def hold(flow_run_id: str) -> Iterator[None]:
    """Have it, to the end of the block or of the process. Several may: a run that is resumed, and one that follows."""
    lock = _held(folder() / flow_run_id, fcntl.LOCK_SH)
    try:
        yield
    finally:
        _let_go(folder() / flow_run_id, lock)


def _held(path: Path, how: int) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            os.close(lock)
            raise
        # who let go may have removed it between our two calls: a lock on a file without a name says nothing
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)


def _let_go(path: Path, lock: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while another one has it too
        path.unlink(missing_ok=True)
    os.close(lock)


@contextlib.contextmanager
def deserted(flow_run_id: str) -> Iterator[bool]:
    """True inside the block where it was begun and nobody has it; nobody can take it meanwhile.

    Left in good order, it is forgotten.
    """
    path = folder() / flow_run_id
    lock = None
    with contextlib.suppress(BlockingIOError):
        lock = _held(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        yield False
        return
    try:
        yield True
        path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def begun() -> list[str]:
    """Every flow run that was begun here and is not known to have ended."""
    return sorted(p.name for p in folder().iterdir() if p.suffix != ".log")
