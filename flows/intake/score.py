"""How right the rules would have been: what each would have done, and how it turned out.

A proposal counts as right when a person marked it so, or ran the same runbook within a while; as wrong when a person
marked it so, or the alert ended by itself within that while and nobody had to do anything. Everything else is open:
nobody can tell.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flows.engine import places
from flows.intake.history import History

WITHIN = timedelta(minutes=15)


@dataclass(frozen=True)
class Shadow:
    """What a rule would have done about an episode. ``mark``: what a person said of it afterwards; ``run_id``: the run
    that it did start.
    """

    event: int
    rule: str
    would: str
    received_at: datetime
    closed_at: datetime | None
    mark: str
    run_id: str = ""


@dataclass(frozen=True)
class Done:
    """A run that a person started."""

    run_id: str
    system: str
    runbook: str
    at: datetime


def turned_out(one: Shadow, system: str, runbook: str, runs: Iterable[Done], within: timedelta = WITHIN) -> str:
    """``right``, ``wrong`` or ``open``. Pure."""
    if one.mark:
        return one.mark
    until = one.received_at + within
    if any((r.system, r.runbook) == (system, runbook) and one.received_at <= r.at <= until for r in runs):
        return "right"
    if one.closed_at is not None and one.closed_at <= until and not one.run_id:  # else its own run may have ended it
        return "wrong"
    return "open"


def table(
    shadows: Iterable[Shadow], rules: Mapping[str, tuple[str, str]], runs: list[Done], within: timedelta = WITHIN
) -> list[dict[str, Any]]:
    """For each rule and month: how often it would have started, asked, refused, and how its starts turned out.

    Args:
        rules: rule -> (system, runbook).
        runs: those that people started.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in shadows:
        if one.rule not in rules:
            continue
        key = (one.rule, f"{one.received_at:%Y-%m}")
        empty = {"start": 0, "ask": 0, "refuse": 0, "right": 0, "wrong": 0, "open": 0}
        row = found.setdefault(key, {"rule": one.rule, "month": key[1], **empty})
        if one.would in ("start", "ask", "refuse"):
            row[one.would] += 1
        if one.would == "start":
            row[turned_out(one, *rules[one.rule], runs, within)] += 1
    for row in found.values():
        told = row["right"] + row["wrong"]
        row["precision"] = round(row["right"] / told, 3) if told else None
    return [found[key] for key in sorted(found)]


def by_people() -> list[Done]:
    """Runs of this machine that people started, no drills."""
    found = []
    for file in sorted((places.state_home() / "runs").glob("*/journal.jsonl")):
        with contextlib.suppress(OSError, ValueError, KeyError), file.open(encoding="utf-8") as lines:
            head = json.loads(lines.readline())
            if head["type"] == "run_started" and not head["automatic"] and not head["trigger"].startswith("drill"):
                at = datetime.fromisoformat(head["requested_at"])
                found.append(Done(head["run_id"], head["system"], head["runbook"], at))
    return found


def shadows(history: History) -> list[Shadow]:
    """Every decision about the beginning of an episode, oldest first."""
    with history.reading() as db:
        rows = db.execute(
            "SELECT e.id, json_extract(e.decision, '$.rule'), json_extract(e.decision, '$.would'),"
            " json_extract(e.event, '$.received_at'), p.closed_at, m.verdict, e.run_id FROM events e"
            " JOIN episodes p ON p.key = e.episode LEFT JOIN marks m ON m.event = e.id"
            " WHERE e.decision IS NOT NULL AND json_extract(e.decision, '$.rule') IS NOT NULL"
            " AND e.outcome != 'hold' ORDER BY e.id"
        )
        return [
            Shadow(
                i,
                rule,
                would or "",
                datetime.fromisoformat(at),
                datetime.fromisoformat(closed) if closed else None,
                mark or "",
                run_id or "",
            )
            for i, rule, would, at, closed, mark, run_id in rows
        ]
