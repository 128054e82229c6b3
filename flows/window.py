"""Prefect's window on a run: the engine acts in a thread of its own, the flow follows its records.

Nothing here can delay or stop the engine. What Prefect misses is in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from rich.console import Console

from flows.engine import eventloop, launch, report, view
from flows.engine.journal import Record
from flows.engine.runner import Runner
from tasks import step as steps

SHOW_S = 10.0
"""How long the command line waits, after a run ended, for Prefect to take in the rest."""


class EngineThread:
    """One run in its own thread and event loop. Records reach any number of followers, also those that come late."""

    def __init__(self, request: launch.Request | str) -> None:
        self.request = request
        self.result: Future[report.Report] = Future()
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._also: list[Callable[[Record], None]] = []
        self._progress: view.Progress | None = None
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name="relight-engine", daemon=True)

    def start(self, progress: view.Progress | None = None) -> EngineThread:
        """Begin at once; ``progress`` gets everything as it happens."""
        self._progress = progress
        self._thread.start()
        return self

    def _main(self) -> None:
        progress = self._progress

        def started(runner: Runner, _folder: Path) -> None:
            self._runner, self._loop = runner, asyncio.get_running_loop()

        heard = launch.Listeners(
            record=self._heard,
            began=progress.began if progress else launch.Listeners().began,
            line=progress.line if progress else launch.Listeners().line,
            started=started,
        )
        try:
            going = (
                launch.resume(self.request, heard) if isinstance(self.request, str) else launch.run(self.request, heard)
            )
            self.result.set_result(eventloop.run(going))
        except BaseException as e:  # noqa: BLE001 - handed to whoever waits for the result
            self.result.set_exception(e)
        finally:
            with self._changed:
                self._changed.notify_all()

    def _heard(self, record: Record) -> None:
        if self._progress:
            self._progress.record(record)
        with self._changed:
            self._records.append(record)
            self._changed.notify_all()

    def halt(self) -> None:
        """Stop between two effects. From any thread."""
        if self._loop is not None and self._runner is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: so has the run
                self._loop.call_soon_threadsafe(self._runner.halt)

    def after(self, seen: int) -> list[Record] | None:
        """Blocks until there are more than ``seen`` records and returns the new ones; None when no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._records) > seen or self.result.done())
            new = self._records[seen:]
            return new or None


async def show(engine: EngineThread) -> report.Report:
    """Inside a flow: show each step as a task run, progress and results as artifacts. Returns the report."""
    seen = 0
    running: dict[str, asyncio.Task[Any]] = {}
    board: _Board | None = None
    while (new := await asyncio.to_thread(engine.after, seen)) is not None:
        seen += len(new)
        for record in new:
            if record["type"] == "run_started":
                board = await _Board.begin(record)
                if _attached.get():
                    Console(stderr=True, markup=False).print(
                        f"in Prefect: {flow_run.ui_url}", style="dim", soft_wrap=True
                    )
            if board and record.get("step"):
                board.follow(record, running)
            if board and record["type"] == "outcome":
                await board.ended(record)
    if board:
        board.close(running)
    await asyncio.gather(*running.values(), return_exceptions=True)
    result = await asyncio.wrap_future(engine.result)
    if board:
        steps.forget(board.run_id)
    await artifacts(result)
    return result


class _Board:
    """The artifacts of one run."""

    def __init__(self, head: Record, progress: Any) -> None:
        self.run_id, self.progress = head["run_id"], progress
        self.plan = {s["id"]: s for s in head["plan"]["steps"]}
        self.over: set[str] = set()

    @classmethod
    async def begin(cls, head: Record) -> _Board:
        title = f"{head['runbook']} of {head['system']}: {head['roles']['failed']} → {head['roles']['target']}"
        return cls(head, await acreate_progress_artifact(0.0, key=_key("progress", head), description=title))

    def follow(self, record: Record, running: dict[str, asyncio.Task[Any]]) -> None:
        step_id = record["step"]
        if step_id not in running and record["type"] != "undo_intent":
            planned = self.plan[step_id]
            shown = steps.step.with_options(
                name=planned["action"], task_run_name=step_id, retries=planned["attempts"] - 1
            )
            running[step_id] = asyncio.create_task(_swallow(shown(self.run_id, step_id)))
        steps.shown(self.run_id, step_id).records.put_nowait(record)

    async def ended(self, record: Record) -> None:
        self.over.add(record["step"])
        await aupdate_progress_artifact(self.progress, progress=100.0 * len(self.over) / len(self.plan))

    def close(self, running: dict[str, asyncio.Task[Any]]) -> None:
        """No more records will come: steps that have no outcome were interrupted."""
        for step_id in running:
            steps.shown(self.run_id, step_id).records.put_nowait({"type": "closed"})


async def artifacts(result: report.Report) -> None:
    """The RTO table and the report, as artifacts of the flow run; written again they are new versions."""
    rows = [
        {
            "component": component,
            "objective": report.seconds(o.rto_s),
            "actual": report.seconds(o.actual_s),
            "verdict": report.yes_no(o.met),
        }
        for component, o in result.objectives.items()
    ]
    where = {"runbook": result.runbook, "system": result.system}
    await acreate_table_artifact(rows, key=_key("rto", where), description="Recovery time objectives")
    await acreate_markdown_artifact(report.markdown(result), key=_key("report", where), description=result.verdict)


async def _swallow(shown: Any) -> None:
    # the engine's record decides; a task run that Prefect marks as failed is only the picture of it
    with contextlib.suppress(Exception):
        await shown


def _key(what: str, head: dict[str, Any]) -> str:
    return f"{head['runbook']}-{head['system']}-{what}".replace("_", "-").lower()


_attached: ContextVar[EngineThread | None] = ContextVar("attached", default=None)


def engine_for(request: launch.Request) -> EngineThread:
    """The engine that the command line started before it opened this window, else a new one."""
    return _attached.get() or EngineThread(request).start()


def follow(request: launch.Request | str, progress: view.Progress) -> report.Report:
    """For the command line: start the engine first, then open Prefect's window beside it.

    Prefect's exceptions, and a server that hangs, cost at most SHOW_S at the end and never the run.
    """
    import signal  # noqa: PLC0415 - handlers belong to this call

    engine = EngineThread(request)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: engine.halt())
    engine.start(progress)
    window = threading.Thread(target=_open, args=(engine,), name="relight-window", daemon=True)
    window.start()
    try:
        result = engine.result.result()
    finally:
        progress.close()
        window.join(SHOW_S)
    if window.is_alive():
        # Prefect's own exit hooks would wait minutes for a server that hangs; the journal has everything
        Console(stderr=True, markup=False).print(
            "Prefect's server did not take in the whole run in time; the journal has it"
        )
    return result


def _open(engine: EngineThread) -> None:
    from flows.failover import FailoverOptions, failover  # noqa: PLC0415 - the procedures import this module

    options, name = FailoverOptions(), "resume"
    if isinstance(engine.request, launch.Request):
        options, name = FailoverOptions.of(engine.request), Path(engine.request.runbook).stem
    _attached.set(engine)  # this thread's context only

    async def opened() -> None:
        await failover.with_options(name=name)(options, return_state=True)

    try:
        asyncio.run(opened())
        # task runs reach the server as events and lines as logs, both from queues that the process's end would drop
        EventsWorker.drain_all(timeout=SHOW_S / 2)
        APILogWorker.drain_all(timeout=SHOW_S / 2)
    except Exception as e:  # noqa: BLE001 - whatever Prefect raises must not reach the run
        Console(stderr=True, markup=False).print(
            f"Prefect's window closed early: {type(e).__name__}: {e}", style="yellow"
        )
