"""Gates before a run that nobody asked for: the cool-down of its system, and a cap over all systems.

Both are for runs that an alert or a schedule starts. What a person starts passes: a person has looked.
(Compare orchestrator's RecoveryPeriodBlockSeconds and its acknowledgement: a failover that did not help, repeated by a
machine, makes an outage worse.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from flows.engine import places, turns
from flows.engine.thresholds import Strict
from tasks.errors import BadInput, RelightError, SafetyRefusal
from tasks.leases.protocol import Held, LastRun
from tasks.quantities import Duration, show_duration

WAIVER = "cool-down"
_KEPT = 1000


class Velocity(Strict):
    """At most ``runs`` automatic runs in ``per``, over all systems of a state folder."""

    runs: int = Field(2, ge=0)
    per: Duration = Field(3600.0, gt=0)


class ReadyGate(Strict):
    """``readiness``: what a run does that the newest ``relight ready`` spoke against.

    Attributes:
        unready: ``warn``: it says so and goes on; ``refuse``: it needs ``--waive readiness='who and why'``.
        max_age: an older answer, or none, counts as no answer, which is not ready either.
    """

    unready: Literal["warn", "refuse"] = "warn"
    max_age: Duration = Field(7200.0, gt=0)


class Safety(Strict):
    """``safety``: what runs that nobody asked for by hand may do, and how long an engine may stand still.

    Attributes:
        cool_down: after the end of a run that changed something, no automatic run until a person acknowledges.
        velocity: cap on automatic runs.
        lease_ttl: of the lease in the state folder: an engine that stands still for longer may be taken over.
        readiness: what a run does that readiness spoke against.
    """

    cool_down: Duration = 3600.0
    velocity: Velocity = Velocity()
    lease_ttl: Duration = Field(10.0, ge=1.0)
    readiness: ReadyGate = ReadyGate()


def cool_down(safety: Safety, system: str, last: LastRun | None, waivers: Mapping[str, str], now: datetime) -> None:
    """Raises SafetyRefusal for an automatic run too soon after ``last``; a clock that was set back is too soon."""
    if last is None or last.acknowledged_by or WAIVER in waivers:
        return
    since_s = (now - datetime.fromisoformat(last.ended_at)).total_seconds()
    if since_s >= safety.cool_down:
        return
    ended = f"died and was found so at {last.ended_at}" if last.verdict == "died" else f"ended {last.verdict}"
    ago, left = show_duration(max(0.0, since_s)), show_duration(safety.cool_down - max(0.0, since_s))
    raise SafetyRefusal(
        f"no automatic run of system {system} now: {last.run_id} {ended} {ago} ago, and the cool-down is"
        f" {show_duration(safety.cool_down)} ({left} left). A person looks first (relight status {last.run_id}), then:"
        f" relight acknowledge {last.run_id}. Or override by name: --waive {WAIVER}='who and why'",
        last_run=last.run_id,
        ended_at=last.ended_at,
        cool_down_s=safety.cool_down,
    )


def velocity(cap: Velocity, system: str, run_id: str, now: datetime) -> None:
    """Count an automatic run that is about to start. Raises SafetyRefusal at the cap, RelightError.

    The count is one file under a lock, so that two that start at the same moment cannot both be the last one.
    """
    file = places.state_home() / "automatic.json"
    with turns.turn(file.with_suffix(".lock")):
        started = _started(file)
        since = now - timedelta(seconds=cap.per)
        recent = [run for run, at in started if at > since]
        if len(recent) >= cap.runs:
            runs = ", ".join(recent[-5:])
            raise SafetyRefusal(
                f"no automatic run of system {system} now: {len(recent)} automatic runs were started on this machine in"
                f" the last {show_duration(cap.per)}, and the cap is {cap.runs} ({runs}). Something is wrong that more"
                " of them will not repair: a person may start this one by hand.",
                started=len(recent),
                cap=cap.runs,
            )
        counted = [(run, at.isoformat(timespec="seconds")) for run, at in [*started[-_KEPT:], (run_id, now)]]
        turns.write(file, json.dumps(counted) + "\n")


def started_since(since: datetime) -> int:
    """How many automatic runs were started on this machine. Raises RelightError."""
    return sum(at > since for _, at in _started(places.state_home() / "automatic.json"))


def acknowledge(run_id: str, who: str, now: datetime) -> Callable[[Held, bool], Held]:
    """What an acknowledgement makes of a lease's record, given too whether its holder is certainly gone.

    It raises BadInput when ``run_id`` goes on, or is not the last run that changed something.
    """

    def change(held: Held, gone: bool) -> Held:
        at = now.isoformat(timespec="seconds")
        if held.run_id == run_id and not held.released:
            if not gone:
                raise BadInput(
                    f"run {run_id} has not ended, as far as can be told here: {held.holder} has its lease since"
                    f" {held.since}. Wait for its end, resume it, or acknowledge it on that machine."
                )
            held = replace(held, released=True, last=LastRun(run_id, "died", at, held.automatic))
        last = held.last
        if last is None or last.run_id != run_id:
            known = f"the last one is {last.run_id}" if last else "there is none yet"
            raise BadInput(f"run {run_id} is not the last run that changed something on its system; {known}")
        return replace(held, last=replace(last, acknowledged_by=who, acknowledged_at=at))

    return change


def _started(file: Path) -> list[tuple[str, datetime]]:
    """(run id, time) of automatic runs, oldest first."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        pairs = [(str(run), datetime.fromisoformat(at)) for run, at in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as e:
        raise RelightError(f"cannot read {file}: {e}. It counts automatic runs; remove it to begin again.") from e
    return pairs
