"""The process that tells people: it follows a run's journal and sends what they want to hear, through apprise.

It belongs to nobody: it outlives the engine, says so when that dies, and is followed by nobody. A receiver that hangs
costs one thread here, and delays neither the others nor the run. URLs are secrets: they are resolved here, never shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

import apprise

from flows.engine import alive, journal, news, notify, places, system
from flows.engine.journal import Record, of_type
from flows.engine.news import News
from flows.engine.providers import Components
from flows.engine.state import fold
from tasks.clock import LoopClock
from tasks.errors import RelightError
from tasks.people.protocol import Directory, Subscription
from tasks.secrets import resolve

LOCK = "notify.lock"
TAIL_S = 0.25
TAKEN_S = 15.0
"""How long one that dies may hold its place, and how long an engine may be gone before people are told."""
DRAIN_S = 60.0
"""How long the last words may take."""


def main() -> None:
    """``notifier RUN_FOLDER``, or one alert as JSON on standard input."""
    places.set_defaults()
    logging.disable()  # apprise logs parts of URLs
    try:
        if len(sys.argv) > 1:
            _follow(Path(sys.argv[1]))
        else:
            _alert(json.loads(sys.stdin.read()))
    except (RelightError, OSError, ValueError, KeyError):
        os._exit(1)
    os._exit(0)  # not waiting for threads that hang


def _follow(folder: Path) -> None:
    pause, until = threading.Event(), time.monotonic() + TAKEN_S
    while True:
        with alive.sole(folder, LOCK) as mine:
            if mine:
                _told(folder)
                return
        if time.monotonic() > until:
            return  # another one tells
        pause.wait(TAIL_S)


def _told(folder: Path) -> None:
    """From the first record to the end of the run, or until its engine was gone for TAKEN_S."""
    path, pause = folder / "journal.jsonl", threading.Event()
    records: tuple[Record, ...] = ()
    desk: Desk | None = None
    size, gone_s, over = -1, 0.0, False
    while True:
        lives = alive.alive(folder)  # asked first: what a dead engine wrote is all there then
        if path.stat().st_size != size:
            size, seen = path.stat().st_size, len(records)
            records = journal.read(path).records
            desk, over = desk or Desk.of(records, folder), fold(records).ended is not None
            for index in range(seen, len(records)):
                if desk:
                    desk.take(news.of(records, index))
        if not lives and (over or gone_s >= TAKEN_S):
            break
        gone_s = 0.0 if lives else gone_s + TAIL_S
        pause.wait(TAIL_S)
    if desk and not over:
        desk.take(news.died(records))
    if desk:
        desk.close()


def _alert(said: dict[str, str]) -> None:
    desk = Desk(places.state_home(), _subscriptions(places.system_file(said["system"])))
    desk.take(News(0, "alert", said["title"], said["text"]))
    desk.close()


def _subscriptions(file: Path) -> tuple[Subscription, ...]:
    async def read() -> tuple[Subscription, ...]:
        components = Components(system.load(file), LoopClock())
        try:
            return tuple(s for _, d in components.of(Directory) for s in d.subscriptions())
        finally:
            await components.aclose()

    return asyncio.run(read())


@dataclass
class Desk:
    """Hands news to one worker for each subscription, in order, and keeps what came of it in ``folder``."""

    folder: Path
    subscriptions: tuple[Subscription, ...]
    _workers: list[tuple[Subscription, SimpleQueue[News | None], threading.Thread]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, records: tuple[Record, ...], folder: Path) -> Desk | None:
        """For the run with these records."""
        head = next(of_type(records, "run_started"), None)
        return None if head is None else cls(folder, _subscriptions(Path(head["files"]["system"])))

    def __post_init__(self) -> None:
        before = {(s["seq"], s["to"]) for s in notify.sent(self.folder) if s["seq"]}
        for one in self.subscriptions:
            queue: SimpleQueue[News | None] = SimpleQueue()
            thread = threading.Thread(target=self._work, args=(one, queue, before), daemon=True)
            thread.start()
            self._workers.append((one, queue, thread))

    def take(self, item: News | None) -> None:
        """Have ``item`` sent to all who want it."""
        for one, queue, _ in self._workers:
            if item is not None and item.event in one.events:
                queue.put(item)

    def close(self) -> None:
        """No more comes; wait for what is under way, not for ever."""
        until = time.monotonic() + DRAIN_S
        for _, queue, _ in self._workers:
            queue.put(None)
        for _, _, thread in self._workers:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self, one: Subscription, queue: SimpleQueue[News | None], before: set[tuple[int, str]]) -> None:
        while (item := queue.get()) is not None:
            if (item.seq, one.reference) not in before:
                self._keep(one, item, _sent(one, item))

    def _keep(self, one: Subscription, item: News, why: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "seq": item.seq, "event": item.event, "to": one.reference, "ok": not why, "why": why}
        with self._lock, suppress(OSError), (self.folder / notify.FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _sent(one: Subscription, item: News) -> str:
    """Why it could not be delivered; empty where it was. In a thread of its own, given up after its time-out."""
    said: list[str] = []

    def deliver() -> None:
        said.append(_deliver(one, item))

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(one.timeout_s)
    if thread.is_alive():
        return f"no answer within {one.timeout_s:g} s"
    return said[0] if said else "sending it failed"  # a plugin of apprise raised


def _deliver(one: Subscription, item: News) -> str:
    try:
        url = resolve(one.reference).get_secret_value()
    except RelightError as e:
        return str(e)
    receiver = apprise.Apprise()
    if not receiver.add(url):
        return "what the reference holds is no URL that apprise knows"
    kind = {"start": "info", "objective": "warning", "approval": "warning", "alert": "warning"}.get(item.event, "info")
    return "" if receiver.notify(body=item.text, title=item.title, notify_type=kind) else "the receiver did not take it"
