"""Whoever wants to watch a run: the engine in a thread of its own, or the journal of one that somebody else runs.

Both hand out records in order and end with the report. Nothing that follows can delay or stop the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from flows.engine import abort, alive, eventloop, journal, launch, outlook, report, view
from flows.engine.journal import Record
from flows.engine.runner import Runner
from flows.engine.state import FINISHED, fold
from flows.engine.stepping import Ask
from tasks.errors import BadInput, RelightError

TAIL_S = 0.2


class Followed(Protocol):
    """A run that can be followed from its first record on."""

    @property
    def result(self) -> Future[report.Report]: ...

    @property
    def again(self) -> bool:
        """It begins with records of an earlier life, up to a ``run_resumed``."""
        ...

    def after(self, seen: int) -> list[Record] | None:
        """Blocks until there are more than ``seen`` records and returns the new ones; None when no more will come."""
        ...


class EngineThread:
    """One run in its own thread and event loop. Records reach any number of followers, also those that come late."""

    def __init__(self, request: launch.Request | str, ask: Ask | None = None) -> None:
        self.request, self._ask = request, ask
        self.again = isinstance(request, str)
        self.result: Future[report.Report] = Future()
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._progress: view.Progress | None = None
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[report.Report] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._main, name="relight-engine", daemon=True)

    def start(self, progress: view.Progress | None = None) -> EngineThread:
        """Begin at once; ``progress`` gets everything as it happens."""
        self._progress = progress
        self._thread.start()
        return self

    def _main(self) -> None:
        progress, quiet = self._progress, launch.Listeners()

        def started(runner: Runner, _folder: Path) -> None:
            self._runner = runner

        heard = launch.Listeners(
            record=self._heard,
            began=progress.began if progress else quiet.began,
            line=progress.line if progress else quiet.line,
            ask=self._ask,
            started=started,
        )
        going = launch.resume(self.request, heard) if isinstance(self.request, str) else launch.run(self.request, heard)
        try:
            self._settle(eventloop.run(self._settled(going)))
        finally:
            if not self.result.done():
                self.result.set_exception(RelightError("the engine's thread ended without a result; see the journal"))
            with self._changed:
                self._changed.notify_all()

    def _settle(self, over: asyncio.Task[report.Report]) -> None:
        error = RelightError(self._nothing_done()) if over.cancelled() else over.exception()
        if error is None:
            self.result.set_result(over.result())
        else:
            self.result.set_exception(error)

    def _heard(self, record: Record) -> None:
        if self._progress:
            self._progress.record(record)
        with self._changed:
            self._records.append(record)
            self._changed.notify_all()

    async def _settled(self, work: Coroutine[Any, Any, report.Report]) -> asyncio.Task[report.Report]:
        """The task, over: its error is looked at, not raised."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        if self._stopped:
            self._task.cancel()
        await asyncio.wait({self._task})
        return self._task

    def _nothing_done(self) -> str:
        if isinstance(self.request, str):
            return f"stopped before the run went on; nothing was changed. Go on with: relight resume {self.request}"
        return "stopped before the run began; nothing was changed"

    def halt(self) -> None:
        """Stop between two effects, or before the run begins. From any thread, or a signal handler of any."""
        self._stopped = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: so has the run
                self._loop.call_soon_threadsafe(self._halt)

    def _halt(self) -> None:
        if self._runner is not None:
            self._runner.halt()
        elif self._task is not None:
            self._task.cancel()

    def after(self, seen: int) -> list[Record] | None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._records) > seen or self.result.done())
            new = self._records[seen:]
            return new or None


class JournalTail:
    """A run of another process, followed by its journal until it ends or its engine dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.again = False
        self.result: Future[report.Report] = Future()
        self._wait = threading.Event()

    def after(self, seen: int) -> list[Record] | None:
        path = self.folder / "journal.jsonl"
        while True:
            lives = alive.alive(self.folder)  # asked first: what a dead engine wrote is all there then
            records = journal.read(path).records
            if len(records) > seen:
                return list(records[seen:])
            if not lives:
                if not self.result.done():
                    self.result.set_result(report.build(path))
                return None
            self._wait.wait(TAIL_S)


HEED_S = 15.0
"""An engine that lives looks for a wish every second. One that does not heed it for so long stands still."""


def aborted(folder: Path, progress: view.Progress, take_up: Callable[[], report.Report]) -> report.Report:
    """After ``abort.ask``: the report once the run has gone back, or has ended otherwise.

    ``take_up`` resumes it where no engine lives. Raises what that raises; BadInput when the run ended before,
    SafetyRefusal when it passed its point of no return before.
    """
    path, seen, until = folder / "journal.jsonl", 0, time.monotonic() + HEED_S
    pause, before = threading.Event(), len(journal.read(folder / "journal.jsonl").records)
    while True:
        lives = alive.alive(folder)
        records = journal.read(path).records
        for record in records[seen:]:
            progress.record(record)
        seen, state = len(records), fold(records)
        refused = next(journal.of_type(records[before:], "abort_refused"), None)
        if refused is not None:
            progress.close()
            abort.withdraw(folder)
            raise outlook.behind(folder.name, refused["point"])
        if state.ended in FINISHED or (state.ended is not None and state.going_back and seen > before):
            break
        if not lives or (not state.aborted and time.monotonic() > until):
            progress.close()
            return take_up()
        pause.wait(TAIL_S)
    progress.close()
    if not state.going_back:
        abort.withdraw(folder)
        raise BadInput(
            f"run {folder.name} ended ({state.ended}) before it could be told to go back; nothing was put back"
        )
    return report.build(path)


def follow(
    engine: EngineThread,
    progress: view.Progress,
    window: Callable[[EngineThread], None] | None,
    longest_s: float,
) -> tuple[report.Report, bool]:
    """For the command line: start the engine first, then ``window`` beside it in a thread of its own.

    SIGINT and SIGTERM stop it between two effects. Returns the report and whether the window came to its end within
    ``longest_s`` after the run did. Raises what the run raises.
    """
    import signal  # noqa: PLC0415 - handlers belong to this call

    def stop(_number: int, _frame: object) -> None:
        progress.line("run", "asked to stop: what is under way ends first, then nothing more is begun")
        engine.halt()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    engine.start(progress)
    beside: threading.Thread | None = None
    if window is not None:
        beside = threading.Thread(target=window, args=(engine,), name="relight-window", daemon=True)
        beside.start()
    try:
        result = engine.result.result()
    finally:
        progress.close()
        if beside is not None:
            beside.join(longest_s)
    return result, beside is None or not beside.is_alive()
