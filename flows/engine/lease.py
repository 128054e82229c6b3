"""One run per system. A lease carries an epoch that only grows; the newest epoch is the only one that may write.

Here is the lease of one machine, in its state folder. Where engines on several machines may run one system, a component
of the domain ``leases`` holds it instead (``storelease``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from flows.engine import processes, turns
from tasks.clock import Clock
from tasks.errors import LeaseHeld, RelightError
from tasks.leases.protocol import Engine, Held, LastRun, Mandate

TTL_S = 10.0
"""A holder that did not renew for so long stands still (SIGSTOP, a suspended machine) and may be taken over."""


class Lease(Protocol):
    """A held lease."""

    @property
    def epoch(self) -> int: ...

    @property
    def last(self) -> LastRun | None:
        """The system's last run before this one that changed something."""
        ...

    def check(self) -> None:
        """Raises LeaseHeld when this lease is no longer the newest. Called right before every mutating call."""
        ...

    async def keep(self, clock: Clock) -> None:
        """Renew until cancelled, or taken over."""
        ...

    async def charge(self, mandate: Mandate) -> None:
        """Note what this run was asked to do, where another machine would need it. Raises nothing: at worst people go
        on with the run in place of a machine.
        """
        ...

    async def end(self, last: LastRun | None, ended: str = "") -> None:
        """Give the lease up. ``last``: how this run ended, None if it changed nothing. Safe to repeat.

        ``ended``: the verdict; empty when the run came to none, and somebody is still to go on with it.
        """
        ...

    def drop(self) -> None:
        """What the kernel does when the process dies: locks are gone, nothing is written."""
        ...


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
        changed: a run id -> False if it is certain that the run changed nothing.
        say: hears what is waited for.
        gone: an engine -> True if it is certain that its process does not live any more.
        may: raises where the record, as it is replaced, says that this run may not begin or go on.
    """

    run_id: str
    now: datetime
    floor: int = 0
    ttl_s: float = TTL_S
    automatic: bool = False
    elapsed: Callable[[], float] = elapsed
    doing: Callable[[str], str] = lambda _run_id: ""
    changed: Callable[[str], bool] = lambda _run_id: True
    say: Callable[[str], None] = lambda _text: None
    gone: Callable[[Engine], bool] = processes.gone
    may: Callable[[Held | None], None] = lambda _held: None

    def next(self, old: Held | None) -> Held:
        """The record with which this engine takes over from ``old``."""
        return Held(
            epoch=max(old.epoch if old else 0, self.floor) + 1,
            run_id=self.run_id,
            holder=processes.me(),
            since=self.now.isoformat(timespec="seconds"),
            token=secrets.token_hex(8),
            step=self.doing(self.run_id),
            ttl_s=self.ttl_s,
            automatic=self.automatic,
            released=False,
            last=self.last(old),
            mandate=old.mandate if old else None,
            paused=old.paused if old else "",
        )

    def last(self, old: Held | None) -> LastRun | None:
        """The last run that changed something, as ``old`` has it. One that never gave its lease up has died."""
        if old is None:
            return None
        if old.released or old.run_id == self.run_id or not self.changed(old.run_id):
            return old.last
        return LastRun(old.run_id, "died", self.now.isoformat(timespec="seconds"), old.automatic)


@dataclass
class FileLease:
    """A lease for engines on one machine: a lock that dies with its process, and an epoch in a file beside it.

    The kernel drops the lock when the process dies (flock(2)), so a resumed run never waits for a lease to run out. A
    holder that lives and stands still keeps its lock; when it has not renewed for ``ttl_s`` it is taken over all the
    same, and wakes up behind the newest epoch: ``check`` refuses it.
    """

    folder: Path
    held: Held
    holder: Holder
    _lock: int
    _renewed: float = field(init=False, default=0.0)

    @classmethod
    def acquire(cls, folder: Path, holder: Holder) -> FileLease:
        """Take the lease with an epoch above every earlier one and above ``holder.floor``.

        Raises LeaseHeld naming the run that has it, its process, host, since when and at which step; RelightError when
        the folder cannot be written or the epoch in it cannot be read; what ``holder.may`` raises.
        """
        with _turn(folder):
            lock = _locked(folder)
            if lock is None and _stands_still(folder, holder.elapsed()):
                (folder / "lease.lock").unlink(missing_ok=True)  # its lock is on a file that nobody looks at any more
                lock = _locked(folder)
            if lock is None:
                raise _refusal(folder, holder)
            try:
                old = read(folder)
                holder.may(replace(old, last=holder.last(old)) if old is not None else None)
                lease = cls(folder, holder.next(old), holder, lock)
                _write(folder, lease.held)
                if old is not None:
                    (folder / f"renewed-{old.epoch}").unlink(missing_ok=True)
                lease.renew()
            except RelightError:
                os.close(lock)
                raise
        return lease

    @property
    def epoch(self) -> int:
        return self.held.epoch

    @property
    def last(self) -> LastRun | None:
        return self.held.last

    def check(self) -> None:
        self._must_be_newest()
        if self._lock < 0:
            raise LeaseHeld(f"this run gave its lease of system {self.folder.name} up; it changes nothing more")
        if self.holder.elapsed() - self._renewed > self.holder.ttl_s / 2:
            # Late. Somebody may be taking over at this very moment, between our look and our renewal: not in our turn.
            with _turn(self.folder):
                self._must_be_newest()
                self.renew()

    def _must_be_newest(self) -> None:
        now = read(self.folder)
        if now is None or now.epoch != self.epoch or now.token != self.held.token:
            raise taken_over(self.folder.name, self.held, now)

    def renew(self) -> None:
        """Say that this engine does not stand still. Not durable: after a power failure there is no holder."""
        self._renewed = self.holder.elapsed()
        with contextlib.suppress(OSError):  # a full disk: at worst it is taken over, and refused by the epoch
            (self.folder / f"renewed-{self.epoch}").write_text(f"{self._renewed:.3f}\n", encoding="ascii")

    async def keep(self, clock: Clock) -> None:
        while self._lock >= 0 and _epoch_or(self.folder, self.epoch) == self.epoch:
            self.renew()
            await clock.sleep(self.holder.ttl_s / 5)

    async def charge(self, mandate: Mandate) -> None:
        """Its journal is on this machine, and so is whoever would go on with it."""

    async def end(self, last: LastRun | None, ended: str = "") -> None:
        self.release(last)

    def release(self, last: LastRun | None = None) -> None:
        """As ``end``. Where the end cannot be written, the next run finds a holder that died, and is more careful."""
        if self._lock < 0:
            return
        try:
            with contextlib.suppress(RelightError), _turn(self.folder):
                now = read(self.folder)
                if now is not None and now.token == self.held.token:
                    _write(self.folder, replace(now, released=True, last=last or now.last))
                    (self.folder / f"renewed-{self.epoch}").unlink(missing_ok=True)
        finally:
            self.drop()

    def drop(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def taken_over(system: str, mine: Held, newer: Held | None) -> LeaseHeld:
    """The error of an engine that lost its lease."""
    by = f"{newer.run_id} ({newer.holder}, since {newer.since})" if newer else "something that left no record"
    epoch = newer.epoch if newer else 0
    again = " goes on with it" if newer and newer.run_id == mine.run_id else " took over"
    return LeaseHeld(
        f"this run has epoch {mine.epoch}, and system {system} is at epoch {epoch}: {by}{again} while this engine stood"
        f" still. This one stops and changes nothing more. Look at it: relight status {newer.run_id if newer else ''}",
        epoch=mine.epoch,
        newest=epoch,
    )


def refused(system: str, held: Held, doing: str, more: str = "") -> LeaseHeld:
    """The error of an engine that found the lease held."""
    where = ", ".join(filter(None, (str(held.holder), f"since {held.since or '?'}", doing, more)))
    run = held.run_id or "unknown"
    return LeaseHeld(
        f"system {system} already has a run: {run} ({where}). One runs at a time: wait for it (relight status {run}),"
        " or stop it first.",
        run_id=run,
        host=held.holder.host,
        pid=held.holder.pid,
        since=held.since,
        doing=doing,
    )


def acknowledged(folder: Path, change: Callable[[Held, bool], Held]) -> Held:
    """Change what the file says of the last run, be the lease held or not; the new record.

    Raises what ``change`` raises, given the record and whether nobody holds the lease; RelightError.
    """
    with _turn(folder):
        lock = _locked(folder)
        try:
            new = change(read(folder) or Held(0, ""), lock is not None)
            _write(folder, new)
        finally:
            if lock is not None:
                os.close(lock)
    return new


def _turn(folder: Path) -> contextlib.AbstractContextManager[None]:
    return turns.turn(folder / "acquire.lock")


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
        held = read(folder)
        if held is None or held.ttl_s <= 0 or not processes.same_boot(held.holder):
            return False  # seconds since another boot are no measure here
        at = float((folder / f"renewed-{held.epoch}").read_text(encoding="ascii"))
        return now_s - at > held.ttl_s
    except (RelightError, OSError, ValueError):
        return False


def _refusal(folder: Path, holder: Holder) -> LeaseHeld:
    try:
        held = read(folder) or Held(0, "")
    except RelightError:
        held = Held(0, "")
    return refused(folder.name, held, holder.doing(held.run_id))


def read(folder: Path) -> Held | None:
    """What ``lease.json`` says; None when there was never a lease. Raises RelightError for anything but a lease."""
    file = folder / "lease.json"
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise RelightError(f"cannot read {file}: {e}. It holds the newest epoch; restore it.") from e
    try:
        return Held.from_dict(found)
    except ValueError as e:
        raise RelightError(f"{file} holds no epoch ({e}). It must hold the newest one; restore it.") from e


def _epoch_or(folder: Path, default: int) -> int:
    try:
        held = read(folder)
    except RelightError:
        return default
    return held.epoch if held else default


def _write(folder: Path, held: Held) -> None:
    turns.write(folder / "lease.json", held.encode() + "\n")
