"""What the inbox holds, for whoever decides and for people. Changes nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.intake.event import Event
from flows.intake.inbox import connect
from tasks.errors import BadInput


@dataclass(frozen=True)
class Entry:
    """An event in the inbox. ``fresh``: the first of its kind in its episode. ``decision``: None while it is open."""

    id: int
    delivery: int
    event: Event
    fresh: bool
    decision: dict[str, Any] | None
    outcome: str
    run_id: str


class History:
    """Reads an inbox that another thread, or another process, may be writing."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def open(self, now: datetime) -> list[Entry]:
        """Events that nothing was decided about, or whose time to be looked at again has come; oldest first."""
        with self.reading() as db:
            rows = db.execute(
                f"{_SELECT} WHERE decision IS NULL OR (outcome = 'hold' AND again_at <= ?) ORDER BY id",
                (now.isoformat(),),
            )
            return [_entry(row) for row in rows]

    def proposed(self) -> list[Entry]:
        """Events that a run was to be started for, and of whose start nothing is known."""
        with self.reading() as db:
            return [_entry(r) for r in db.execute(f"{_SELECT} WHERE outcome = 'start' AND run_id IS NULL ORDER BY id")]

    def of_episode(self, episode: str) -> list[Entry]:
        """Every event of an episode, oldest first."""
        with self.reading() as db:
            return [_entry(row) for row in db.execute(f"{_SELECT} WHERE episode = ? ORDER BY id", (episode,))]

    def notes(self, kind: str) -> list[dict[str, Any]]:
        """What was kept for good, oldest first."""
        with self.reading() as db:
            rows = db.execute("SELECT at, body FROM notes WHERE kind = ? ORDER BY id", (kind,))
            return [{"at": at, **json.loads(body)} for at, body in rows]

    def counts(self) -> dict[str, int]:
        """Outcome -> how many events came to it; ``open`` for those that nothing was decided about."""
        with self.reading() as db:
            rows = db.execute("SELECT coalesce(outcome, 'open'), count(*) FROM events GROUP BY 1")
            return {str(name): int(count) for name, count in rows}

    def entries(self, most: int = 50) -> list[Entry]:
        """The newest events, newest first."""
        with self.reading() as db:
            return [_entry(row) for row in db.execute(f"{_SELECT} ORDER BY id DESC LIMIT ?", (most,))]

    def entry(self, event_id: int) -> Entry:
        """Raises BadInput."""
        with self.reading() as db:
            # as text: SQLite takes no integer of more than 64 bits
            for row in db.execute(f"{_SELECT} WHERE id = CAST(? AS INTEGER)", (str(event_id),)):
                return _entry(row)
        raise BadInput(f"no event {event_id} in the inbox; see: relight inbox list")

    def fired_after(self, number: int) -> list[tuple[int, Event]]:
        """(id, event) of each event above ``number`` that began to fire an episode, oldest first.

        From the start (0), only the newest thousand.
        """
        with self.reading() as db:
            rows = db.execute(
                "SELECT id, event FROM (SELECT id, event FROM events WHERE fresh = 1 AND id > ?"
                " ORDER BY id DESC LIMIT ?) ORDER BY id",
                (number, 1000 if number == 0 else -1),
            ).fetchall()
        found = [(int(i), Event.model_validate_json(text)) for i, text in rows]
        return [(i, e) for i, e in found if e.kind == "firing"]

    def begun(self, event: Event, since: datetime) -> tuple[datetime, ...]:
        """When episodes of the same alert of the same sender began to fire, oldest first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT fired_at FROM episodes WHERE endpoint = ? AND fingerprint = ? AND fired_at >= ?"
                " ORDER BY fired_at",
                (event.endpoint, event.fingerprint, since.isoformat()),
            )
            return tuple(datetime.fromisoformat(at) for (at,) in rows)

    def firing(self, episode: str) -> bool:
        """The episode has begun and not ended."""
        with self.reading() as db:
            row = db.execute("SELECT fired_at, closed_at FROM episodes WHERE key = ?", (episode,)).fetchone()
        return row is not None and row[0] is not None and row[1] is None

    def last_seen(self, endpoint: str, alertname: str) -> datetime | None:
        """When an alert with that ``alertname`` label came last."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT e.event, p.last_seen FROM events e JOIN episodes p ON p.key = e.episode"
                " WHERE p.endpoint = ? ORDER BY p.last_seen DESC LIMIT 500",
                (endpoint,),
            )
            for event, seen in rows:
                if json.loads(event)["labels"].get("alertname") == alertname:
                    return datetime.fromisoformat(seen)
        return None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read by, closed afterwards. Raises sqlite3.Error."""
        with contextlib.closing(connect(self.file)) as db:
            yield db


_SELECT = "SELECT id, delivery, event, fresh, decision, outcome, run_id FROM events"


def _entry(row: tuple[Any, ...]) -> Entry:
    decision = json.loads(row[4]) if row[4] else None
    return Entry(row[0], row[1], Event.model_validate_json(row[2]), bool(row[3]), decision, row[5] or "", row[6] or "")


def stored(file: Path, delivery_id: int) -> tuple[str, dict[str, str], bytes, datetime]:
    """Endpoint, headers, redacted body and time of a kept delivery, for a replay. Raises BadInput."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        row = db.execute(
            "SELECT endpoint, headers, body, received_at FROM deliveries WHERE id = ?", (delivery_id,)
        ).fetchone()
    if row is None:
        raise BadInput(f"no delivery {delivery_id} in the inbox")
    return row[0], json.loads(row[1]), bytes(row[2]), datetime.fromisoformat(row[3])
