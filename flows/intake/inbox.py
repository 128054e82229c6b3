"""The durable inbox: what was answered with 2xx is on disk, once, whatever happens next.

SQLite in WAL mode with ``synchronous=FULL``: a commit is fsynced before it returns (sqlite.org/pragma.html). One thread
writes; deliveries that arrive together share a commit. What is read of it is in ``history``.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.intake.event import Delivery, Event, Unavailable
from flows.intake.redaction import without_secrets

FILE = "inbox.sqlite3"
KEPT_HEADERS = ("content-type", "user-agent", "x-webhook-id", "sentry-hook-resource", "x-amz-sns-message-type")
MOST_TOGETHER = 200
SAME_START_S = 0.5
"""Two starts of one fingerprint this near are one: no sender ends and begins an alert so fast."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, transport_id TEXT NOT NULL, received_at TEXT NOT NULL,
    headers TEXT NOT NULL, body BLOB NOT NULL, seen INTEGER NOT NULL DEFAULT 1, UNIQUE (endpoint, transport_id));
CREATE TABLE IF NOT EXISTS episodes (
    key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, fingerprint TEXT NOT NULL, first_seen TEXT NOT NULL,
    last_seen TEXT NOT NULL, fired_at TEXT, closed_at TEXT, times INTEGER NOT NULL DEFAULT 1, started_at TEXT);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, delivery INTEGER NOT NULL REFERENCES deliveries (id), episode TEXT NOT NULL,
    event TEXT NOT NULL, fresh INTEGER NOT NULL, decision TEXT, outcome TEXT, run_id TEXT, again_at TEXT);
CREATE INDEX IF NOT EXISTS undecided ON events (id) WHERE decision IS NULL;
CREATE INDEX IF NOT EXISTS by_episode ON events (episode);
CREATE INDEX IF NOT EXISTS by_fingerprint ON episodes (endpoint, fingerprint);
CREATE TABLE IF NOT EXISTS marks (
    event INTEGER PRIMARY KEY REFERENCES events (id), verdict TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
    at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Kept:
    """What became of a delivery. ``new``: it was not here before; ``fresh``: events that begin or end an episode."""

    delivery: int
    new: bool
    events: tuple[int, ...] = ()
    fresh: int = 0


class Inbox:
    """One file, one writer. Readers may be other processes."""

    def __init__(self, file: Path) -> None:
        """Opens it, making it where it is missing. Raises Unavailable."""
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.closing(connect(file)) as made:
                made.executescript(_SCHEMA)
            file.chmod(0o600)
        except (OSError, sqlite3.Error) as e:
            raise Unavailable(f"the inbox {file} cannot be opened: {e}") from e
        self._work: queue.Queue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, name="relight-inbox", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After everything that was asked for is written."""
        self._work.put(None)
        self._thread.join()

    def keep(self, delivery: Delivery, transport_id: str, events: tuple[Event, ...]) -> Future[Kept]:
        """Keep a delivery with its events, all or nothing; the result comes once it is on disk. Raises Unavailable."""
        return self._ask(lambda db: _keep(db, delivery, transport_id, events))

    def decide(self, event_id: int, decision: dict[str, Any], outcome: str) -> Future[None]:
        """Note what was decided. Raises Unavailable."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE events SET decision = ?, outcome = ?, again_at = NULL WHERE id = ?",
                (json.dumps(decision), outcome, event_id),
            )

        return self._ask(work)

    def hold(self, event_id: int, decision: dict[str, Any], again_at: datetime) -> Future[None]:
        """Look at it again later. Raises Unavailable."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE events SET decision = ?, outcome = 'hold', again_at = ? WHERE id = ?",
                (json.dumps(decision), again_at.isoformat(), event_id),
            )

        return self._ask(work)

    def started(self, event_id: int, run_id: str) -> Future[None]:
        """Note the run that an event began. Raises Unavailable."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE events SET run_id = ?, outcome = 'run' WHERE id = ?", (run_id, event_id))

        return self._ask(work)

    def mark(self, event_id: int, verdict: str, who: str, why: str, now: datetime) -> Future[None]:
        """What a person says of a decision afterwards; the last word counts. Raises Unavailable."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO marks (event, verdict, who, why, at) VALUES (?, ?, ?, ?, ?)",
                (event_id, verdict, who, why, now.isoformat()),
            )

        return self._ask(work)

    def note(self, kind: str, body: dict[str, Any], now: datetime) -> Future[None]:
        """Keep for good that something was done that people answer for. Raises Unavailable."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO notes (at, kind, body) VALUES (?, ?, ?)", (now.isoformat(), kind, json.dumps(body)))

        return self._ask(work)

    # ---- the border to SQLite ----

    def _ask(self, work: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        asked: Future[Any] = Future()
        self._work.put((work, asked))
        return asked

    def _write(self) -> None:
        db: sqlite3.Connection | None = None
        while True:
            together = self._next()
            if not together:
                if db is not None:
                    db.close()
                return
            try:
                db = db or connect(self.file)
                done = _commit(db, [work for work, _ in together])
            except (sqlite3.Error, OSError) as e:
                if db is not None:
                    with contextlib.suppress(sqlite3.Error):
                        db.rollback()
                    db.close()
                db = None
                error = Unavailable(f"the inbox {self.file} cannot be written: {e}", retry_s=5)
                for _, asked in together:
                    asked.set_exception(error)
                continue
            for (_, asked), result in zip(together, done, strict=True):
                asked.set_result(result)

    def _next(self) -> list[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]]:
        first = self._work.get()
        if first is None:
            return []
        together = [first]
        while len(together) < MOST_TOGETHER:
            try:
                more = self._work.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._work.put(None)  # after these
                break
            together.append(more)
        return together


def connect(file: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error."""
    db = sqlite3.connect(file, timeout=5.0, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _commit(db: sqlite3.Connection, works: list[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
    """All in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    done = [work(db) for work in works]
    db.execute("COMMIT")
    return done


def _keep(db: sqlite3.Connection, delivery: Delivery, transport_id: str, events: tuple[Event, ...]) -> Kept:
    now = delivery.received_at.isoformat()
    known = db.execute(
        "UPDATE deliveries SET seen = seen + 1 WHERE endpoint = ? AND transport_id = ? RETURNING id",
        (delivery.endpoint, transport_id),
    ).fetchone()
    for event in events:
        if known:
            key = of_its_episode(db, event).episode_key
            db.execute("UPDATE episodes SET last_seen = ?, times = times + 1 WHERE key = ?", (now, key))
    if known:
        return Kept(known[0], new=False)
    headers = {k: v for k, v in delivery.headers.items() if k in KEPT_HEADERS or k.startswith("ce-")}
    body = without_secrets(delivery.body.decode("utf-8", "replace")).encode()
    made = db.execute(
        "INSERT INTO deliveries (endpoint, transport_id, received_at, headers, body) VALUES (?, ?, ?, ?, ?)",
        (delivery.endpoint, transport_id, now, json.dumps(headers), body),
    ).lastrowid
    assert made is not None  # noqa: S101 - an INSERT that did not raise has a row id
    ids, fresh = [], 0
    for one in events:
        event = of_its_episode(db, one)
        first = _episode(db, event, now)
        fresh += first
        row = db.execute(
            "INSERT INTO events (delivery, episode, event, fresh) VALUES (?, ?, ?, ?)",
            (made, event.episode_key, without_secrets(event.model_dump_json()), int(first)),
        ).lastrowid
        ids.append(int(row or 0))
    return Kept(made, new=True, events=tuple(ids), fresh=fresh)


def of_its_episode(db: sqlite3.Connection, event: Event) -> Event:
    """``event``, under the key of the episode that is known already where another way of telling wrote its start in
    other words: a sender's webhook in nanoseconds, its API in milliseconds.
    """
    if event.kind == "resolved" and event.closes == "fingerprint":
        row = db.execute(  # its sender does not say which one ended: the newest, and every earlier one
            "SELECT key FROM episodes WHERE endpoint = ? AND fingerprint = ? AND closed_at IS NULL"
            " AND fired_at IS NOT NULL ORDER BY fired_at DESC LIMIT 1",
            (event.endpoint, event.fingerprint),
        ).fetchone()
        return event.model_copy(update={"episode_key": row[0]}) if row else event
    if event.started_at_basis == "received":
        return event
    if db.execute("SELECT 1 FROM episodes WHERE key = ?", (event.episode_key,)).fetchone():
        return event
    rows = db.execute(
        "SELECT key, started_at FROM episodes WHERE endpoint = ? AND fingerprint = ? ORDER BY last_seen DESC LIMIT 20",
        (event.endpoint, event.fingerprint),
    )
    for key, started in rows.fetchall():
        if abs((datetime.fromisoformat(started) - event.started_at).total_seconds()) <= SAME_START_S:
            return event.model_copy(update={"episode_key": key})
    return event


def _episode(db: sqlite3.Connection, event: Event, now: str) -> bool:
    """Note the episode; True where this event begins or ends it. One that has ended never begins again."""
    row = db.execute("SELECT fired_at, closed_at FROM episodes WHERE key = ?", (event.episode_key,)).fetchone()
    fired, closed = row or (None, None)
    fires = event.kind == "firing" and fired is None and closed is None
    closes = event.kind == "resolved" and closed is None
    if event.kind == "resolved" and event.closes == "fingerprint":
        db.execute(
            "UPDATE episodes SET closed_at = ? WHERE endpoint = ? AND fingerprint = ? AND key != ?"
            " AND closed_at IS NULL",
            (now, event.endpoint, event.fingerprint, event.episode_key),
        )
    if row is None:
        db.execute(
            "INSERT INTO episodes (key, endpoint, fingerprint, first_seen, last_seen, fired_at, closed_at, started_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (event.episode_key, event.endpoint, event.fingerprint, now, now, now if fires else None,
             now if closes else None, event.started_at.isoformat(timespec="microseconds")),
        )  # fmt: skip
        return True
    db.execute(
        "UPDATE episodes SET last_seen = ?, times = times + 1, fired_at = coalesce(fired_at, ?),"
        " closed_at = coalesce(closed_at, ?) WHERE key = ?",
        (now, now if fires else None, now if closes else None, event.episode_key),
    )
    return fires or closes
