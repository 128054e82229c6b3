"""One run per system. A lease carries an epoch that only grows; the newest epoch is the only one that may write."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tasks.clock import Clock
from tasks.errors import LeaseHeld, RelightError


class Lease(Protocol):
    """A held lease."""

    @property
    def epoch(self) -> int: ...

    def check(self) -> None:
        """Raises LeaseHeld when this lease is no longer the newest. Called right before every mutating call."""
        ...

    def release(self) -> None: ...


TTL_S = 10.0
"""A holder that did not renew for so long stands still (SIGSTOP, a suspended machine) and may be taken over."""


def elapsed() -> float:
    """Seconds since boot, suspended time included (clock_gettime(2), CLOCK_BOOTTIME): the same for every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Holder:
    """Who wants the lease, and how it knows the time.

    Attributes:
        floor: the newest epoch that a provider saw; the new one is above it.
        elapsed: seconds that every engine of this machine counts alike, standing still included.
        doing: a run id -> what that run does now, for the message to whoever is refused.
    """

    run_id: str
    now: datetime
    floor: int = 0
    ttl_s: float = TTL_S
    elapsed: Callable[[], float] = elapsed
    doing: Callable[[str], str] = lambda _run_id: ""


@dataclass
class FileLease:
    """A lease for engines on one machine: a lock that dies with its process, and an epoch in a file beside it.

    The kernel drops the lock when the process dies (flock(2)), so a resumed run never waits for a lease to run out. A
    holder that lives and stands still keeps its lock; when it has not renewed for ``ttl_s`` it is taken over all the
    same, and wakes up behind the newest epoch: ``check`` refuses it.
    """

    folder: Path
    epoch: int
    holder: Holder
    _lock: int
    _renewed: float

    @classmethod
    def acquire(cls, folder: Path, holder: Holder) -> FileLease:
        """Take the lease with an epoch above every earlier one and above ``holder.floor``.

        Raises LeaseHeld naming the run that has it, its process, host, since when and at which step; RelightError when
        the folder cannot be written or the epoch in it cannot be read.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            turn = os.open(folder / "acquire.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise RelightError(f"cannot write {folder}: {e.strerror}; without a lease no run may start") from e
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)  # one at a time, for as long as it takes to look and write
            return cls._acquired(folder, holder)
        finally:
            os.close(turn)

    @classmethod
    def _acquired(cls, folder: Path, holder: Holder) -> FileLease:
        lock = _locked(folder)
        if lock is None and _stands_still(folder, holder.elapsed()):
            (folder / "lease.lock").unlink(missing_ok=True)  # its lock is on a file that nobody looks at any more
            lock = _locked(folder)
        if lock is None:
            raise _refusal(folder, holder)
        who = {"run_id": holder.run_id, "pid": os.getpid(), "host": socket.gethostname(), "ttl_s": holder.ttl_s}
        try:
            before = _epoch(folder)
            epoch = max(before, holder.floor) + 1
            _write(folder, {"epoch": epoch, **who, "since": holder.now.isoformat(timespec="seconds")})
            (folder / f"renewed-{before}").unlink(missing_ok=True)
            lease = cls(folder, epoch, holder, lock, holder.elapsed())
            lease.renew()
        except RelightError:
            os.close(lock)
            raise
        return lease

    def check(self) -> None:
        newest = _epoch(self.folder)
        if newest != self.epoch:
            by = _read(self.folder).get("run_id", "unknown")
            raise LeaseHeld(
                f"this run has epoch {self.epoch}, and system {self.folder.name} is at epoch {newest}: {by} took over"
                " while this engine stood still. This one changes nothing more.",
                epoch=self.epoch,
                newest=newest,
            )
        if self._lock < 0:
            raise LeaseHeld(f"this run gave its lease of system {self.folder.name} up; it changes nothing more")
        if self.holder.elapsed() - self._renewed > self.holder.ttl_s / 2:
            self.renew()

    def renew(self) -> None:
        """Say that this engine does not stand still. Not durable: after a power failure there is no holder."""
        self._renewed = self.holder.elapsed()
        with contextlib.suppress(OSError):  # a full disk: at worst it is taken over, and refused by the epoch
            (self.folder / f"renewed-{self.epoch}").write_text(f"{self._renewed:.3f}\n", encoding="ascii")

    async def keep(self, clock: Clock) -> None:
        """Renew for ever, until cancelled or taken over."""
        while self._lock >= 0 and _holder(self.folder).get("epoch", self.epoch) == self.epoch:
            self.renew()
            await clock.sleep(self.holder.ttl_s / 5)

    def release(self) -> None:
        """Give the lease up; the epoch stays. Safe to repeat."""
        if self._lock >= 0:
            (self.folder / f"renewed-{self.epoch}").unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """What the kernel does when the process dies: the lock is gone, nothing is written."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(folder: Path) -> int | None:
    lock = os.open(folder / "lease.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _stands_still(folder: Path, now_s: float) -> bool:
    """The holder lives (it has the lock) and has not renewed for its own ttl. What cannot be read proves nothing."""
    try:
        held = _read(folder)
        at = float((folder / f"renewed-{held['epoch']}").read_text(encoding="ascii"))
        return now_s - at > float(held["ttl_s"])
    except (RelightError, OSError, ValueError, KeyError):
        return False


def _refusal(folder: Path, holder: Holder) -> LeaseHeld:
    held = _holder(folder)
    run = held.get("run_id", "unknown")
    where = f"process {held.get('pid', '?')} on {held.get('host', '?')}, since {held.get('since', '?')}"
    doing = holder.doing(run)
    return LeaseHeld(
        f"system {folder.name} already has a run: {run} ({where}{', ' + doing if doing else ''})."
        f" Look at it: relight status {run}",
        holder=held,
        doing=doing,
    )


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
