"""What to do about a run that nobody goes on with. Pure: facts and a time in, a decision out.

A run that died is resumed at once. One that dies again without having got any further is resumed after 1, 2, 4 …
seconds, and after ``MOST_DEATHS`` deaths left to people. A death counts as one without progress when the journal holds
no more outcomes of steps than at the death before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

MOST_DEATHS = 5
"""Deaths in a row without a new outcome after which the supervisor stops."""
LONGEST_WAIT_S = 60.0
STALE = timedelta(hours=24)
"""Older than this, the world of the run is another one: a person decides."""

BAD_INPUT = 2
"""Exit code of ``relight resume`` for a run that cannot be resumed as it is (its files changed)."""


@dataclass(frozen=True)
class Seen:
    """What the state folder says of a run now.

    Attributes:
        records, outcomes: how many the journal holds.
        last_at: when the last record was written.
        ended: the verdict, where there is one after the last start or resume.
        hopeless: why it cannot be resumed at all (a damaged journal); empty if it can.
        newer: a run of the same system that began later; empty if there is none.
    """

    run_id: str
    system: str = ""
    began: bool = True
    records: int = 0
    outcomes: int = 0
    started_at: datetime | None = None
    last_at: datetime | None = None
    ended: str | None = None
    hopeless: str = ""
    newer: str = ""


class Care(BaseModel):
    """What the supervisor did for a run and knows of it: ``supervisor.json`` in the run's folder. Times are UTC.

    Attributes:
        deaths: in a row, without a new outcome in between.
        outcomes, records: in the journal when the last death was counted.
        refusals: in a row: the resume could not begin (the system is held by another engine, say).
        resumed: how often this supervisor, or one before it, resumed the run.
        not_before: the next resume waits until then.
        gave_up: why it is left to people; empty while it is not.
        said: the last decision, as on stderr.
    """

    model_config = ConfigDict(extra="ignore")

    deaths: int = 0
    outcomes: int = -1
    records: int = -1
    refusals: int = 0
    resumed: int = 0
    not_before: datetime | None = None
    gave_up: str = ""
    said: str = ""


@dataclass(frozen=True)
class Decision:
    """``do``: leave it alone, resume it now, wait (for ``why``), or leave it to people for good."""

    do: Literal["leave", "resume", "wait", "give_up"]
    care: Care
    why: str = ""


def decide(seen: Seen, care: Care, paused: str, now: datetime) -> Decision:
    """What to do about a run that no process holds. ``paused``: the kill switch's reason, empty when it is off."""
    if not seen.began or seen.ended is not None:
        return Decision("leave", care)
    if care.gave_up:
        if seen.records == care.records:
            return Decision("leave", care)
        care = Care(resumed=care.resumed)  # somebody took it up by hand since: it has another chance
    why = _hopeless(seen, now)
    if why:
        return _given_up(care, seen, why)
    if seen.records != care.records:
        care = died(care, seen, now)
        if care.gave_up:
            return Decision("give_up", care, care.gave_up)
    return _now_or_later(care, paused, now)


def _now_or_later(care: Care, paused: str, now: datetime) -> Decision:
    if paused:
        return Decision("wait", care, f"relight is paused ({paused}); it is resumed after: relight unpause")
    if care.not_before is not None and now < care.not_before:
        return Decision("wait", care, f"next try at {care.not_before:%H:%M:%S} UTC")
    after = f", death {care.deaths} without progress" if care.deaths > 1 else ""
    return Decision("resume", care.model_copy(update={"resumed": care.resumed + 1}), f"its engine died{after}")


def died(care: Care, seen: Seen, now: datetime) -> Care:
    """The care after one more death."""
    progress = seen.outcomes > care.outcomes
    deaths = 1 if progress else care.deaths + 1
    gave_up = ""
    if deaths >= MOST_DEATHS:
        gave_up = (
            f"it died {deaths} times without getting any further; find out why, then: relight resume {seen.run_id}"
        )
    wait_s = 0.0 if deaths == 1 else _backoff_s(deaths - 1)
    return care.model_copy(
        update={
            "deaths": deaths,
            "outcomes": seen.outcomes,
            "records": seen.records,
            "refusals": 0,
            "not_before": now + timedelta(seconds=wait_s),
            "gave_up": gave_up,
        }
    )


def returned(seen: Seen, care: Care, code: int, last_line: str, now: datetime) -> Decision:
    """What follows from a ``relight resume`` that came back with ``code`` and left the run without an end.

    ``code`` is negative for a signal, as in ``subprocess.Popen.returncode``.
    """
    if seen.ended is not None or not seen.began:
        return Decision("leave", care)
    if code == BAD_INPUT:
        return _given_up(care, seen, last_line or "it cannot be resumed as it is (exit 2)")
    if code > 0 and seen.records == care.records:
        # it never got as far as the journal: held by another engine, or what it needs to begin does not answer
        wait_s = _backoff_s(care.refusals + 1)
        held = care.model_copy(update={"refusals": care.refusals + 1, "not_before": now + timedelta(seconds=wait_s)})
        return Decision("wait", held, f"it could not begin (exit {code}), again in {wait_s:g} s: {last_line}")
    after = died(care, seen, now)
    how = f"signal {-code}" if code < 0 else f"exit {code}"
    if after.gave_up:
        return Decision("give_up", after, f"{after.gave_up} (last: {how} {last_line})")
    return Decision("wait", after, f"died again ({how} {last_line})".rstrip())


def with_newer(runs: dict[str, Seen]) -> dict[str, Seen]:
    """Each run with the newest later one of its system: what a later run moved, an earlier one must not move back."""
    newest: dict[str, Seen] = {}
    for run in runs.values():
        other = newest.get(run.system)
        if run.started_at and (other is None or other.started_at is None or run.started_at > other.started_at):
            newest[run.system] = run
    return {
        name: replace(run, newer=newest[run.system].run_id)
        if run.system in newest and newest[run.system].run_id != run.run_id
        else run
        for name, run in runs.items()
    }


def _hopeless(seen: Seen, now: datetime) -> str:
    if seen.hopeless:
        return seen.hopeless
    if seen.newer:
        return (
            f"run {seen.newer} of the same system began after it; if it still is to go on: relight resume {seen.run_id}"
        )
    if seen.last_at is not None and now - seen.last_at > STALE:
        return (
            f"it stopped at {seen.last_at:%Y-%m-%d %H:%M} UTC, over {STALE.total_seconds() / 3600:g} h ago; if it is"
            f" still to go on: relight resume {seen.run_id}"
        )
    return ""


def _given_up(care: Care, seen: Seen, why: str) -> Decision:
    update = {"gave_up": why, "records": seen.records, "outcomes": seen.outcomes}
    return Decision("give_up", care.model_copy(update=update), why)


def _backoff_s(times: int) -> float:
    return float(min(LONGEST_WAIT_S, 2.0 ** (times - 1)))
