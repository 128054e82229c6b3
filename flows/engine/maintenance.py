"""Maintenance windows of a system, and the hold on its own triggers while relight works on it.

A hold makes every automatic run of the system ask a person first (gate ``window``): an alert that the work itself
caused must not move the site. It stops nothing that a person starts, and it is lifted by whoever took it: by its end,
by its process ending in any way (the kernel drops the lock), or by its time being up.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from flows.engine import alive, killswitch, lease, places
from flows.engine.thresholds import Strict
from tasks.errors import SafetyRefusal
from tasks.quantities import Duration


class Window(Strict):
    """Opens at each time of ``cron`` (five fields, in ``timezone``) and stays open for ``duration``."""

    cron: str
    duration: Duration = Field(gt=0, le=86400)
    timezone: str = "UTC"

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        try:
            CronSim(value, datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")))
        except CronSimError as e:
            raise ValueError(f"no cron of five fields, such as `0 3 * * 0`: {e}") from e
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as e:
            raise ValueError("no time zone, such as Europe/Berlin") from e
        return value

    def open_until(self, now: datetime) -> datetime | None:
        """Its end, where it is open at ``now`` (aware)."""
        local, span = now.astimezone(ZoneInfo(self.timezone)), timedelta(seconds=self.duration)
        begun = next(CronSim(self.cron, local, reverse=True), None)
        # reverse gives times before now only; at the very minute it opens it is open
        opens = next(CronSim(self.cron, local - timedelta(minutes=1)), None)
        starts = [s for s in (begun, opens) if s is not None and s <= local]
        return max((s + span for s in starts if s + span > local), default=None)

    def opens(self, now: datetime) -> datetime | None:
        """When it opens next."""
        return next(CronSim(self.cron, now.astimezone(ZoneInfo(self.timezone))), None)


class Maintenance(Strict):
    """``maintenance``: when relight may do what is safe, and how patient it is.

    Attributes:
        lock_timeout: no lock is waited for longer, so nobody queues behind it.
        table_timeout: the longest that one table may take.
    """

    windows: tuple[Window, ...] = ()
    lock_timeout: Duration = Field(1.0, gt=0, le=10)
    table_timeout: Duration = Field(300.0, gt=0)

    def open_until(self, now: datetime) -> datetime | None:
        """The latest end of the windows that are open."""
        return max((e for w in self.windows if (e := w.open_until(now)) is not None), default=None)

    def must_be_open(self, system: str, now: datetime) -> datetime:
        """The end of the open window. Raises SafetyRefusal, saying when the next one opens."""
        until = self.open_until(now)
        if until is not None:
            return until
        if not self.windows:
            raise SafetyRefusal(
                f"system {system} has no maintenance window, so nothing is applied; give it one in system.yaml:"
                ' maintenance: {windows: [{cron: "0 3 * * 0", duration: 2h, timezone: Europe/Berlin}]}'
            )
        opens = min((o for w in self.windows if (o := w.opens(now)) is not None), default=None)
        when = opens.isoformat(timespec="minutes") if opens else "never"
        raise SafetyRefusal(f"no maintenance window of system {system} is open; the next opens {when}")


@dataclass(frozen=True)
class Held:
    """``why``: what goes on. ``until``: at the latest, aware."""

    why: str
    by: str
    until: datetime


def folder(system: str) -> Path:
    """Where a system's hold is kept."""
    return places.state_home() / "systems" / system / "maintenance"


@contextlib.contextmanager
def hold(system: str, why: str, by: str, until: datetime) -> Iterator[None]:
    """Automatic runs of ``system`` ask a person for the length of the block. Raises SafetyRefusal: another holds it."""
    place = folder(system)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with alive.sole(place, alive.ENGINE) as alone:
        if not alone:
            other = held(system, datetime.now(until.tzinfo))
            raise SafetyRefusal(f"system {system} is being worked on{f': {other.why}' if other else ''}; wait for it")
        file = place / "hold.json"
        half = file.with_suffix(".new")
        half.write_text(json.dumps({"why": why, "by": by, "until": until.isoformat(), "pid": os.getpid()}))
        half.replace(file)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def held(system: str, now: datetime) -> Held | None:
    """The hold that counts at ``now``; None for one whose process is gone, or whose time is up."""
    place = folder(system)
    if not alive.alive(place):
        return None
    try:
        found = json.loads((place / "hold.json").read_text(encoding="utf-8"))
        one = Held(str(found["why"]), str(found["by"]), datetime.fromisoformat(found["until"]))
    except (OSError, ValueError, KeyError):
        return None  # taken this very moment, or lifted
    return one if now < one.until else None


def guard(system: str, now: datetime, until: datetime) -> None:
    """Right before each change. Raises SafetyRefusal: the window closed, relight is paused, or a run goes on."""
    if now >= until:
        raise SafetyRefusal(
            f"the maintenance window of system {system} closed at {until.isoformat(timespec='minutes')}"
        )
    killswitch.check(system)
    record = lease.read(places.state_home() / "systems" / system)
    if record and record.run_id and alive.alive(places.state_home() / "runs" / record.run_id):
        raise SafetyRefusal(f"run {record.run_id} of system {system} goes on; maintenance makes way for it")
