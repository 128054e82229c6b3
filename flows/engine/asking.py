"""Which approvals of a run are open, and what people are shown before they decide. From its journal alone; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flows.engine.journal import Record
from tasks.quantities import show_duration


@dataclass(frozen=True)
class Asking:
    """An approval that is wanted.

    Attributes:
        who: names of those who may answer; ``at_least`` of them must say yes.
        ui: a name without a signature counts, where the Prefect UI took it.
        asked_at, until: ISO 8601.
        figures: as the step measured them when it asked.
        yes: who said yes so far.
        refused: what was said and does not count, newest last: ``by`` and ``against``.
    """

    step: str
    at_least: int
    who: tuple[str, ...]
    ui: bool
    asked_at: str
    until: str
    figures: dict[str, Any]
    yes: tuple[str, ...] = ()
    refused: tuple[dict[str, str], ...] = ()


def open_now(records: Iterable[Record]) -> tuple[Asking, ...]:
    """Steps that wait for people. A run that died while it asked still asks; one that ended does not."""
    found: dict[str, Record] = {}
    said: dict[str, list[Record]] = {}
    for record in records:
        kind = record["type"]
        if kind == "approval_wanted":
            found[record["step"]] = record
        elif kind == "approval":
            said.setdefault(record["step"], []).append(record)
        elif kind == "outcome":
            found.pop(record["step"], None)
        elif kind == "run_ended":
            found.clear()
    return tuple(_asking(r, said.get(step, [])) for step, r in found.items())


def _asking(record: Record, said: list[Record]) -> Asking:
    return Asking(
        step=record["step"],
        at_least=record["at_least"],
        who=tuple(record["who"]),
        ui=record["ui"],
        asked_at=record["at"],
        until=record["until"],
        figures=record["figures"],
        yes=tuple(dict.fromkeys(s["by"] for s in said if s["counted"] and s["decision"] == "approve")),
        refused=tuple({"by": s["by"], "against": s["against"]} for s in said if not s["counted"]),
    )


def judged(records: Iterable[Record], step: str, digest: str) -> Record | None:
    """What the engine made of an answer, last; None while it has not."""
    found = [r for r in records if r["type"] == "approval" and (r["step"], r["digest"]) == (step, digest)]
    return found[-1] if found else None


def lines(asking: Asking, now: datetime | None) -> list[str]:
    """The figures that matter, in words, at ``now``; None: by the clock, for what is read later than it is written."""
    figures, asked_at = asking.figures, datetime.fromisoformat(asking.asked_at)
    said = f"; {', '.join(asking.yes)} said yes" if asking.yes else ""
    late = _time_to(datetime.fromisoformat(asking.until), now)
    out = [f"{asking.at_least} of {', '.join(asking.who)} must say yes{said}; {late}, then it is refused"]
    loss = figures.get("loss")
    if loss:
        out.append(f"loss of {loss['component']} (at {asked_at:%H:%M:%S} UTC): {loss['text']}")
    for component, left_s in figures.get("left_s", {}).items():
        out.append(f"objective of {component}: {_left(asked_at + timedelta(seconds=left_s), now)}")
    back = ", ".join(figures.get("would_undo", ())) or "nothing, since nothing was changed yet"
    stays = figures.get("would_stay", ())
    out.append(f"an abort would put back: {back}" + (f"; would stay: {', '.join(stays)}" if stays else ""))
    if figures.get("point_of_no_return"):
        out.append(f"ahead: {figures['point_of_no_return']}, the point of no return")
    if asking.refused:
        last = asking.refused[-1]
        out.append(f"the last answer does not count ({last['by']}): {last['against']}")
    return out


def _time_to(until: datetime, now: datetime | None) -> str:
    if now is None:
        return f"open until {until:%H:%M:%S} UTC"
    open_s = (until - now).total_seconds()
    return f"{show_duration(open_s)} left to answer" if open_s > 0 else "the time to answer is over"


def _left(deadline: datetime, now: datetime | None) -> str:
    if now is None:
        return f"to be met by {deadline:%H:%M:%S} UTC"
    rest_s = (deadline - now).total_seconds()
    return f"{show_duration(rest_s)} left" if rest_s >= 0 else f"missed {show_duration(-rest_s)} ago"
