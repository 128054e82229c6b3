"""One run per system. A lease carries an epoch that only grows; the newest epoch is the only one that may write."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tasks.errors import LeaseHeld, RelightError


class Lease(Protocol):
    """A held lease."""

    @property
    def epoch(self) -> int: ...

    def check(self) -> None:
        """Raises LeaseHeld when this lease is no longer the newest. Called right before every mutating call."""
        ...

    def release(self) -> None: ...


@dataclass
class FileLease:
    """A lease for engines on one machine: a lock that dies with its process, and an epoch in a file beside it.

    The kernel drops the lock when the process dies (flock(2)), so a resumed run never waits for a lease to run out.
    """

    folder: Path
    epoch: int
    _lock: int

    @classmethod
    def acquire(cls, folder: Path, run_id: str, now: datetime, floor: int = 0) -> FileLease:
        """Take the lease with an epoch above every earlier one and above ``floor`` (the newest that providers saw).

        Raises LeaseHeld naming the run that has it, its process, host, and since when; RelightError when the folder
        cannot be written or the epoch in it cannot be read.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(folder / "lease.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise RelightError(f"cannot write {folder}: {e.strerror}; without a lease no run may start") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            held = _holder(folder)
            run = held.get("run_id", "unknown")
            where = f"process {held.get('pid', '?')} on {held.get('host', '?')}, since {held.get('since', '?')}"
            raise LeaseHeld(
                f"system {folder.name} already has a run: {run} ({where}). Look at it: relight status {run}",
                holder=held,
            ) from None
        who = {"run_id": run_id, "pid": os.getpid(), "host": socket.gethostname()}
        try:
            epoch = max(_epoch(folder), floor) + 1
            _write(folder, {"epoch": epoch, **who, "since": now.isoformat(timespec="seconds")})
        except RelightError:
            os.close(lock)
            raise
        return cls(folder, epoch, lock)

    def check(self) -> None:
        newest = _epoch(self.folder)
        if self._lock < 0:
            raise LeaseHeld(f"this run gave its lease of system {self.folder.name} up; it changes nothing more")
        if newest != self.epoch:
            raise LeaseHeld(
                f"this run has epoch {self.epoch}, and system {self.folder.name} is at epoch {newest}: a newer run took"
                " over. This one changes nothing more.",
                epoch=self.epoch,
                newest=newest,
            )

    def release(self) -> None:
        """Give the lease up; the epoch stays. Safe to repeat."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _read(folder: Path) -> dict[str, Any]:
    """What ``lease.json`` says; empty when there was never a lease. Raises RelightError for anything but a lease."""
    file = folder / "lease.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise RelightError(f"cannot read {file}: {e}. It holds the newest epoch; restore it.") from e
    if not isinstance(found, dict) or type(found.get("epoch")) is not int:
        raise RelightError(f"{file} holds no epoch. It must hold the newest one; restore it.")
    return found


def _epoch(folder: Path) -> int:
    return int(_read(folder).get("epoch", 0))


def _holder(folder: Path) -> dict[str, Any]:
    """For a message only: who holds the lease, as far as the file says."""
    try:
        return _read(folder)
    except RelightError:
        return {}


def _write(folder: Path, content: dict[str, Any]) -> None:
    """Durable before it returns, its name included: the epoch must not go back when the power fails."""
    new = folder / "lease.json.new"
    try:
        with new.open("w", encoding="utf-8") as f:
            json.dump(content, f)
            f.flush()
            os.fsync(f.fileno())
        new.replace(folder / "lease.json")
        directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as e:
        raise RelightError(f"cannot write {folder / 'lease.json'}: {e.strerror}; without it no run may start") from e
