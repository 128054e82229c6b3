"""A drill that nobody starts by hand: the lab's own Prometheus sees the fault, and the receiver does the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx

from flows.engine import alive, journal, launch, places, report, safety, view
from flows.engine import lease as leases
from flows.intake.history import Entry, History
from flows.intake.inbox import FILE
from tasks.errors import RelightError

LISTEN = "127.0.3.42:8420"
"""Where the lab's Alertmanager posts to."""
READY_S, ALERT_S, RUN_S = 90.0, 180.0, 600.0
TICK_S = 0.1


class NoRun(RelightError):
    """The alert came to nothing; the message says what was decided, and why."""


@contextlib.contextmanager
def receiving(say: Callable[[str], None]) -> Iterator[None]:
    """A ``relight serve`` that takes the lab's alerts, ours where there is none; and the last run acknowledged."""
    _acknowledge(say)
    if _healthy():
        yield
        return
    say(f"starting relight serve --listen {LISTEN}")
    words = [sys.executable, "-P", "-c", "from flows.cli import main; main()", "serve", "--listen", LISTEN, "-s", "lab"]
    if not os.environ.get("PREFECT_API_URL"):
        words.append("--no-prefect")  # a server of its own would only take the drill's processors
    log = places.state_home() / "drill-serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        serve = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            _until(_healthy, READY_S, f"relight serve did not come up, or no watchdog alert came; see {log}")
            yield
        finally:
            serve.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                serve.wait(10)


def followed(progress: view.Progress) -> Callable[[launch.Request], report.Report]:
    """For ``gameday.drill``: waits for the run that the alert starts, and follows it to its end."""

    def follow(request: launch.Request) -> report.Report:
        since = request.incident_started_at or datetime.now(UTC)
        folder = _until(lambda: _run_since(since), ALERT_S, "no alert started a run")
        path, seen, pause = folder / "journal.jsonl", 0, threading.Event()
        until = time.monotonic() + RUN_S
        while time.monotonic() < until:
            lives = alive.alive(folder)
            records = journal.read(path).records
            for record in records[seen:]:
                progress.record(record)
            seen = len(records)
            if records and records[-1]["type"] == "run_ended" and not lives:
                progress.close()
                return report.build(path)
            pause.wait(TICK_S)
        raise NoRun(f"run {folder.name} did not end within {RUN_S:g} s; see relight status {folder.name}")

    return follow


def _run_since(since: datetime) -> Path | None:
    """The folder of the run that an alert began after ``since``. Raises NoRun where it was decided otherwise."""
    file = places.state_home() / FILE
    if not file.exists():
        return None
    for entry in History(file).entries(20):
        if entry.event.received_at < since or entry.event.kind != "firing":
            continue
        if entry.run_id:
            return places.state_home() / "runs" / entry.run_id
        if entry.outcome in ("refused", "ask", "not started"):
            raise NoRun(f"{entry.event.subject()} started no run: {entry.outcome} ({_why(entry)})")
    return None


def _why(entry: Entry) -> str:
    decision = entry.decision or {}
    said = [f"{g['gate']}: {g['why']}" for g in decision.get("gates", []) if g["answer"] != "pass"]
    return str(decision.get("why") or "; ".join(said))


def _acknowledge(say: Callable[[str], None]) -> None:
    """A person who starts a drill has looked at the last one."""
    folder = places.state_home() / "systems" / "lab"
    held = leases.read(folder) if folder.is_dir() else None
    if held is None or held.last is None or held.last.acknowledged_by:
        return
    who = os.environ.get("USER") or "drill"
    leases.acknowledged(folder, safety.acknowledge(held.last.run_id, who, datetime.now(UTC)))
    say(f"{held.last.run_id} is acknowledged by {who}, who starts this drill")


def _healthy() -> bool:
    with contextlib.suppress(httpx.HTTPError, ValueError):
        found = httpx.get(f"http://{LISTEN}/healthz", timeout=1.0).json()
        return bool(found["ok"] and found["decided_at"] and not found["blind"])
    return False


def _until(look: Callable[[], Path | bool | None], seconds: float, failed: str) -> Path:
    until, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < until:
        found = look()
        if found:
            return found  # type: ignore[return-value]
        pause.wait(TICK_S)
    raise NoRun(f"{failed} within {seconds:g} s")
