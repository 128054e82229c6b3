"""Which lease a system has, and holding it for as long as a run takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flows.engine import lease as leases
from flows.engine import places, safety
from flows.engine.journal import FileJournal, of_type, read
from flows.engine.lease import FileLease, Holder, Lease
from flows.engine.providers import Components
from flows.engine.state import fold
from flows.engine.storelease import StoreLease
from tasks.clock import Clock
from tasks.errors import LeaseHeld, RelightError
from tasks.leases.protocol import Held, LastRun, LeaseStore
from tasks.zones.protocol import Zone


@dataclass(frozen=True)
class Asked:
    """Who asks for the lease of which system.

    Attributes:
        floor: the newest epoch that this run had before, if it is resumed.
        elapsed: as ``lease.elapsed``; say: hears what is waited for; took: sees each lease that was taken.
        may: as ``Holder.may``.
    """

    system: str
    run_id: str
    clock: Clock
    policy: safety.Safety
    automatic: bool = False
    floor: int = 0
    elapsed: Callable[[], float] = leases.elapsed
    say: Callable[[str], None] = lambda _text: None
    took: Callable[[Lease], Lease] = lambda lease: lease
    may: Callable[[Held | None], None] = lambda _held: None


@dataclass
class Turn:
    """This run's turn at its system. ``journal`` is set once it has one: its end goes into the lease's record."""

    lease: Lease
    asked: Asked
    journal: FileJournal | None = field(default=None)

    def ended(self) -> str:
        """The verdict; empty when the run came to none."""
        return fold(self.journal.records).ended or "" if self.journal else ""

    def last(self, now: datetime) -> LastRun | None:
        """How the run ended; None when it changed nothing."""
        records = self.journal.records if self.journal else ()
        if not any(of_type(records, "intent")):
            return None
        return LastRun(
            self.asked.run_id,
            fold(records).ended or "stopped",
            now.isoformat(timespec="seconds"),
            automatic=self.asked.automatic,
        )


@contextlib.asynccontextmanager
async def turn(asked: Asked, components: Components) -> AsyncIterator[Turn]:
    """The system's lease: taken, renewed all the while, given up at the end, whatever it is.

    Raises LeaseHeld when another run has it, and, in place of any LeaseHeld from within, one that names who took over.
    """
    store = store_of(components)
    folder = places.state_home() / "systems" / asked.system
    newest = max(await newest_epoch(components), asked.floor)
    if store is not None:  # the epoch must not fall behind where the lease was kept before
        newest = max(newest, _epoch(folder))
    holder = Holder(
        asked.run_id,
        asked.clock.utc(),
        newest,
        ttl_s=asked.policy.lease_ttl,
        automatic=asked.automatic,
        elapsed=asked.elapsed,
        doing=doing,
        changed=changed,
        say=asked.say,
        may=asked.may,
    )
    lease: Lease
    if store is None:
        lease = FileLease.acquire(folder, holder)
    else:
        lease = await StoreLease.acquire(asked.system, store, holder, asked.clock)
    lease = asked.took(lease)
    keeping = asyncio.create_task(lease.keep(asked.clock))
    current = Turn(lease, asked)
    try:
        yield current
    except LeaseHeld as e:
        newer = await lease.why() if isinstance(lease, StoreLease) else None
        if newer is None or newer is e:
            raise
        raise newer from e
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await lease.end(current.last(asked.clock.utc()), current.ended())


def store_of(components: Components) -> LeaseStore | None:
    """The component that holds the system's lease; None: the state folder does."""
    found: list[tuple[str, LeaseStore]] = components.of(LeaseStore)
    return found[0][1] if found else None


async def newest_epoch(components: Components) -> int:
    """The newest epoch that any zone has seen: a fresh state folder must not start behind it."""
    newest = 0
    for _, zone in components.of(Zone):
        for name, rdtype in zone.names():
            try:
                newest = max(newest, (await zone.read(name, rdtype)).epoch or 0)
            except RelightError:
                continue  # a zone that cannot be read now is checked by its own steps
    return newest


def doing(run_id: str) -> str:
    """Which steps of a run of this machine are under way, as its journal says; empty where that cannot be read."""
    try:
        state = fold(read(places.run_folder(run_id) / "journal.jsonl").records)
    except RelightError:
        return ""
    flying = [name for name, step in state.steps.items() if step.in_flight]
    return (
        f"at step {', '.join(flying)}" if flying else f"after step {state.order[-1]}" if state.order else "at its start"
    )


def changed(run_id: str) -> bool:
    """False only when the journal of a run is here and shows that it intended no effect."""
    try:
        records = read(places.run_folder(run_id) / "journal.jsonl").records
    except RelightError:
        return True
    return any(of_type(records, "intent"))


def _epoch(folder: Path) -> int:
    held = leases.read(folder)
    return held.epoch if held else 0
