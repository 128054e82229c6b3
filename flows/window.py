"""Prefect's window on a run: the engine acts in a thread of its own, the flow follows its records.

Nothing here can delay or stop the engine. What Prefect misses is in the journal, and ``catchup`` shows it later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow_async
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Pending
from prefect.task_engine import run_task_async
from rich.console import Console

from flows import calls, catchup
from flows.approval import Forms
from flows.engine import alive, journal, launch, places, report, standby, windowfile
from flows.engine.following import EngineThread, Followed, JournalTail
from flows.engine.journal import Record
from flows.engine.state import FINISHED, fold
from flows.engine.windowfile import Window
from tasks import step as steps
from tasks.errors import BadInput, LeaseHeld

SHOW_S = 10.0
"""How long the command line waits, after a run ended, for Prefect to take in the rest."""
HALT_S = 25.0
"""How long a flow that is cancelled waits for its engine to come to a stop between two effects."""
AGAIN_S = 0.5


def _outlive_the_reader(console: Console) -> None:
    """Whoever reads what is printed may die: a worker of Prefect's reads what its flow runs say. rich then ends the
    process (``Console.on_broken_pipe``), from within any line that is logged, and would stop the run with it.
    """
    console.quiet = True


Console.on_broken_pipe = _outlive_the_reader  # type: ignore[assignment]

_shown_here = contextlib.ExitStack()
_mine: dict[Path, bool] = {}


def claim(folder: Path) -> bool:
    """This process is the one that shows the run of ``folder``, until it ends. False where another one does."""
    if folder not in _mine:
        _mine[folder] = _shown_here.enter_context(alive.sole(folder, alive.WINDOW))
    return _mine[folder]


async def show(engine: Followed) -> report.Report:
    """Inside a flow: show each step as a task run, progress and results as artifacts. Returns the report.

    Whatever Prefect does meanwhile, this ends when the run does. Cancelled, it makes the engine stop, and waits for it.
    """
    try:
        try:
            await _show(engine)
        except Exception as e:  # noqa: BLE001 - whatever Prefect raises must not reach the run
            _say(f"Prefect's window closed early: {type(e).__name__}: {e}")
        return await asyncio.wrap_future(engine.result)
    except BaseException:
        if isinstance(engine, EngineThread) and not engine.result.done():
            engine.halt()
            with contextlib.suppress(Exception):
                engine.result.result(HALT_S)
        raise


async def _show(engine: Followed) -> None:
    seen = 0
    running: dict[str, asyncio.Task[Any]] = {}
    board: _Board | None = None
    passing = engine.again
    """What an earlier life of the run did was shown by it, or is caught up with at the end."""
    while (new := await asyncio.to_thread(engine.after, seen)) is not None:
        seen += len(new)
        for record in new:
            if board is None:
                board = await _Board.begin(record)
                if board is None:
                    return  # another process shows this run
            passing = passing and record["type"] != "run_resumed"
            if record.get("step") and not passing:
                board.follow(record, running)
            if record["type"] == "approval_wanted":
                board.forms.open(record["step"])
            if record["type"] == "outcome":
                await board.ended(record)
    if board:
        await board.forms.close_all()
        board.close(running)
        await asyncio.gather(*running.values(), return_exceptions=True)
        steps.forget(board.run_id)
    await artifacts(await asyncio.wrap_future(engine.result))


class _Board:
    """The artifacts of one run."""

    def __init__(self, head: Record, progress: Any) -> None:
        self.run_id, self.progress = head["run_id"], progress
        self.plan = {s["id"]: s for s in head["plan"]["steps"]}
        self.over: set[str] = set()
        self.forms = Forms(places.state_home() / "runs" / self.run_id)

    @classmethod
    async def begin(cls, head: Record) -> _Board | None:
        """From a run's first record. None where another process shows this run."""
        folder = places.state_home() / "runs" / head["run_id"]
        if not claim(folder):
            return None
        windowfile.save(folder, Window(flow_run_id=str(flow_run.id), api=api()))
        if _attached.get():
            _say(f"in Prefect: {flow_run.ui_url}")
        title = f"{head['runbook']} of {head['system']}: {head['roles']['failed']} → {head['roles']['target']}"
        key = catchup.artifact_key("progress", head["runbook"], head["system"])
        return cls(head, await acreate_progress_artifact(0.0, key=key, description=title))

    def follow(self, record: Record, running: dict[str, asyncio.Task[Any]]) -> None:
        step_id = record["step"]
        if step_id not in running and record["type"] != "undo_intent":
            planned = self.plan[step_id]
            shown = steps.step.with_options(
                name=planned["action"], task_run_name=step_id, retries=planned["attempts"] - 1
            )
            # an id of its own for each step of a flow run: shown again, it is the same task run
            work = run_task_async(
                shown,
                task_run_id=catchup.task_run_id(str(flow_run.id), step_id),
                parameters={"run_id": self.run_id, "step_id": step_id},
                return_type="state",
            )
            running[step_id] = asyncio.create_task(_swallow(work))
        steps.shown(self.run_id, step_id).records.put_nowait(record)

    async def ended(self, record: Record) -> None:
        await self.forms.close(record["step"])
        self.over.add(record["step"])
        await aupdate_progress_artifact(self.progress, progress=100.0 * len(self.over) / len(self.plan))

    def close(self, running: dict[str, asyncio.Task[Any]]) -> None:
        """No more records will come: steps that have no outcome were interrupted."""
        for step_id in running:
            steps.shown(self.run_id, step_id).records.put_nowait({"type": "closed"})


async def artifacts(result: report.Report) -> None:
    """The RTO table and the report, as artifacts of the flow run; written again they are new versions."""
    key, rows, description = catchup.rto_artifact(result)
    await acreate_table_artifact(rows, key=key, description=description)
    key, text, description = catchup.report_artifact(result)
    await acreate_markdown_artifact(text, key=key, description=description)


async def _swallow(shown: Any) -> None:
    # the engine's record decides; a task run that Prefect marks as failed is only the picture of it
    with contextlib.suppress(Exception):
        await shown


def api() -> str:
    """The server that is shown to."""
    return os.environ.get("PREFECT_API_URL", "")


def _say(text: str) -> None:
    # the process that listened may be gone (a runner that was restarted); that must not reach the run either
    with contextlib.suppress(OSError):
        Console(stderr=True, markup=False).print(text, style="dim", soft_wrap=True)


_attached: ContextVar[EngineThread | None] = ContextVar("attached", default=None)


async def run(request: launch.Request) -> report.Report:
    """Inside a flow: the run that this flow run stands for.

    The one that the command line started before it opened this window; or, where this flow run is tried again, the run
    that it had started (``_again``); else a new one.
    """
    attached = _attached.get()
    if attached is not None:
        return await show(attached)
    folder = windowfile.run_of(places.state_home(), str(flow_run.id)) or _keyed()
    if folder is not None:
        return await _again(folder)
    try:
        return await show(EngineThread(await _taken_over(request) or request).start())
    except (LeaseHeld, BadInput):
        # the watch of ``relight serve`` may have taken it over at the same moment
        folder = windowfile.run_of(places.state_home(), str(flow_run.id))
        if folder is None:
            raise
    return await _again(folder)


async def _taken_over(request: launch.Request) -> launch.Request | None:
    """A flow run that is tried again on another machine than its run's: that run, taken over. None where it had none.

    Raises BadInput where that run has ended, or another one of the system began since: a new one would conclude roles
    in the middle of a move, or move back what was moved since.
    """
    context = FlowRunContext.get()
    asked = context.flow_run if context is not None else None
    if asked is None:
        return None
    file = places.system_file(request.system)
    if not standby.watched((str(file),)):
        return None
    _, held, _ = await standby.record(file)
    return standby.for_flow_run(request.system, held, str(asked.id), asked.start_time)


def _keyed() -> Path | None:
    """The run that this flow run was made for (``catchup.flow_run_of``); None where a person or a schedule made it.

    Raises BadInput where that run is another machine's: it must not be begun here a second time.
    """
    context = FlowRunContext.get()
    asked = context.flow_run if context is not None else None
    run_id = windowfile.run_of_key((asked.idempotency_key if asked is not None else "") or "")
    if run_id is None:
        return None
    folder = places.state_home() / "runs" / run_id
    if not (folder / "journal.jsonl").exists():
        raise BadInput(
            f"this flow run shows run {run_id}, which is not of this machine; nothing was begun."
            " If its machine is lost: relight take-over SYSTEM"
        )
    return folder


async def _again(folder: Path) -> report.Report:
    """A flow run that is tried again: its run is followed where it lives, resumed where it died, else its end shown.

    A run that ended without success is resumed only where Prefect had shown that end: otherwise whoever tries again has
    seen a crash, not the end that the run came to meanwhile. Raises what a resume raises.
    """
    shown_before = windowfile.load(folder).complete
    while True:
        if alive.alive(folder):
            result = await show(JournalTail(folder))
            if result.ended_at:
                return result
            continue
        ended = fold(journal.read(folder / "journal.jsonl").records).ended
        if ended is not None and (not shown_before or ended in FINISHED):
            return report.build(folder / "journal.jsonl")
        try:
            return await show(EngineThread(folder.name).start())
        except (LeaseHeld, BadInput):
            # somebody else took it up at the same moment, or even ended it
            if not alive.alive(folder) and fold(journal.read(folder / "journal.jsonl").records).ended == ended:
                raise
        shown_before = False
        await asyncio.sleep(AGAIN_S)


def open_beside(engine: EngineThread) -> None:
    """For the command line: show, in this thread, a run that has begun already. Never raises."""
    _attached.set(engine)  # this thread's context only
    try:
        asyncio.run(_opened(engine))
    except Exception as e:  # noqa: BLE001 - whatever Prefect raises must not reach the run
        _say(f"Prefect's window closed early: {type(e).__name__}: {e}")


async def _opened(engine: EngineThread) -> None:
    from flows.failover import FailoverOptions, failover  # noqa: PLC0415 - the procedures import this module

    first = await asyncio.to_thread(engine.after, 0)
    if not first:
        return  # it never began, so there is nothing to show
    head = first[0]
    folder = places.state_home() / "runs" / head["run_id"]
    if not claim(folder):
        return
    if not windowfile.load(folder).api:
        windowfile.save(folder, Window(api=api()))
    options = FailoverOptions.of_head(head)
    async with get_client() as client:
        found = await catchup.flow_run_of(client, folder, head)
        claimed = found.state_type == StateType.SCHEDULED and await calls.claim(client, found.id)
        if not claimed and found.state_type != StateType.PENDING:
            # taken up again after a crash: it is ours by the run's lease
            await client.set_flow_run_state(found.id, Pending(), force=True)
        found = await client.read_flow_run(found.id)
    flow = failover if found.deployment_id else failover.with_options(name=head["runbook"])
    flow = flow.with_options(flow_run_name=catchup.flow_run_name(head))
    async with calls.held(found.id, engine.halt) as was_cancelled:
        await run_flow_async(flow, flow_run=found, parameters={"options": options}, return_type="state")
        if was_cancelled():
            async with get_client() as client:
                await calls.cancelled(client, found.id)
    # task runs reach the server as events and lines as logs, both from queues that the process's end would drop
    await asyncio.to_thread(EventsWorker.drain_all, timeout=SHOW_S / 2)
    await asyncio.to_thread(APILogWorker.drain_all, timeout=SHOW_S / 2)
    async with get_client() as client:
        await catchup.catch_up(client, folder, api(), write=False)
