"""Brings Prefect's record of a run that ended up to date with its journal: what its window could not show at the time.

A wanted state, compared with what is there and made true: doing it again changes nothing. A run has one flow run, found
by its id where Prefect started it and by an idempotency key otherwise, and one task run for each step, whose id follows
from both. (Prefect 3.8: the server sets the times of a flow run's states itself, so the true times are in their
messages; task runs are recorded from events, which carry true times.)
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, FlowRunCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.events import Event, RelatedResource, Resource
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed, Running, Scheduled, to_state_create
from prefect.types._datetime import now as prefect_now

from flows import calls
from flows.engine import alive, journal, report, windowfile
from flows.engine.journal import Record, of_type
from flows.engine.state import StepState, fold
from flows.engine.windowfile import Window
from tasks.step import ended

SETTLE_S = 10.0
"""How long the server may take to record the events it was sent."""
BAD = ("failed", "unknown", "undo_failed")


def flow_run_name(head: Record) -> str:
    """What the run is called in Prefect."""
    return f"{head['runbook']}-{head['system']}"


def task_run_id(flow_run_id: str, step_id: str) -> UUID:
    """The one task run of a step in a flow run."""
    return uuid5(UUID(flow_run_id), step_id)


def artifact_key(what: str, runbook: str, system: str) -> str:
    """Prefect takes lower case, digits and dashes."""
    return f"{runbook}-{system}-{what}".replace("_", "-").lower()


def rto_artifact(result: report.Report) -> tuple[str, list[dict[str, Any]], str]:
    """Key, table and description."""
    rows = [
        {
            "component": component,
            "objective": report.seconds(o.rto_s),
            "actual": report.seconds(o.actual_s),
            "verdict": report.rto_told(o),
        }
        for component, o in result.objectives.items()
    ]
    # the cards of the UI show only the description: it has to answer by itself
    told = [f"{row['component']} {row['actual']} of {row['objective']}: {row['verdict']}" for row in rows]
    # first, since cards cut it off
    met = {"pending" if o.pending else o.met for o in result.objectives.values()} - {None}  # None: not of this run
    all_ = "Missed" if False in met else "Not yet" if "pending" in met else "All met" if met else "No objectives"
    return artifact_key("rto", result.runbook, result.system), rows, f"{all_}: " + "; ".join(told)


def report_artifact(result: report.Report) -> tuple[str, str, str]:
    """Key, Markdown and description."""
    moved = f"{result.roles.get('failed')} → {result.roles.get('target')}"
    told = f"{result.runbook} of {result.system}, {moved}: {result.verdict.replace('_', ' ')}"
    told += f". Why: {result.reason}" if result.reason else ""
    return artifact_key("report", result.runbook, result.system), report.markdown(result), told


def final_state(result: report.Report, afterwards: str = "") -> State[Any]:
    """What the flow run of a run with this report ends as."""
    message = f"{result.verdict}: {result.reason}" if result.reason else result.verdict
    if result.exit_code == 0:
        return Completed(message=message + afterwards)
    return Failed(name=result.verdict.replace("_", " ").capitalize(), message=message + afterwards)


async def flow_run_of(client: PrefectClient, folder: Path, head: Record) -> FlowRun:
    """The run's flow run: the one that is known, else the one under its key, made if need be.

    It belongs to the deployment ``failover``, where the server has that; what is made here is never taken up by a
    runner as a new run (``calls.due``, ``window.run``).
    """
    known = windowfile.flow_run_of(folder, head)
    if known:
        try:
            return await client.read_flow_run(UUID(known))
        except ObjectNotFound:
            pass  # another server, or one that lost its database
    files = head["files"]
    options = {"system": files["system"], "runbook": files["runbook"], "mode": head["mode"]}
    begun, key = (
        datetime.fromisoformat(head["at"]),
        windowfile.key(head.get("cause", {}).get("origin") or head["run_id"]),
    )
    offered = await calls.deployment(client, "failover", "failover")
    if offered is not None:
        return await calls.create(client, offered.id, calls.New(flow_run_name(head), key, begun, {"options": options}))
    answer = await client.request("POST", "/flows/", json={"name": head["runbook"]})
    asked = FlowRunCreate(
        flow_id=UUID(answer.json()["id"]),
        name=flow_run_name(head),
        parameters={"options": options},
        idempotency_key=key,
        # scheduled for when it began, so that it stands at its place in time; nothing takes it up without a deployment
        state=to_state_create(Scheduled(scheduled_time=begun)),
    )
    made = await client.request("POST", "/flow_runs/", json=asked.model_dump(mode="json", exclude_unset=True))
    return FlowRun.model_validate(made.json())


async def catch_up(client: PrefectClient, folder: Path, api: str, *, write: bool = True) -> bool:
    """Make Prefect's record of the ended run in ``folder`` complete; True when it is. Not while its window is open.

    ``write`` False: only look whether it is, and note it. Raises httpx and Prefect errors, JournalBroken.
    """
    read = journal.read(folder / "journal.jsonl")
    head = next(of_type(read.records, "run_started"), None)
    known = windowfile.load(folder)
    if head is None or alive.alive(folder) or fold(read.records).ended is None:
        return True
    if known.complete and known.records == len(read.records):
        return True
    run = await flow_run_of(client, folder, head)
    windowfile.save(folder, Window(flow_run_id=str(run.id), api=api))
    result = report.build(folder / "journal.jsonl")
    if write:
        await _flow(client, run, result)
        await _artifacts(client, run, result)
    steps = {i: s for i, s in fold(read.records).steps.items() if s.outcome is not None or s.started_at}
    complete = await _tasks(client, run, head, steps, write=write)
    run = await client.read_flow_run(run.id)
    complete = complete and run.state is not None and _shows(run.state, result)
    windowfile.save(folder, Window(flow_run_id=str(run.id), api=api, complete=complete, records=len(read.records)))
    return complete


async def _flow(client: PrefectClient, run: FlowRun, result: report.Report) -> None:
    afterwards = f" (ran {result.started_at} to {result.ended_at}, recorded here afterwards)"
    if run.state is not None and _shows(run.state, result):
        return
    wanted = final_state(result, afterwards)
    if run.start_time is None or (run.state is not None and not run.state.is_running()):
        await client.set_flow_run_state(run.id, Running(message=f"since {result.started_at}"), force=True)
    await client.set_flow_run_state(run.id, wanted, force=True)


async def _artifacts(client: PrefectClient, run: FlowRun, result: report.Report) -> None:
    there = await client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    )
    data = {a.key: a.data for a in there}
    for kind, (key, content, description) in (
        ("table", _table(result)),
        ("markdown", report_artifact(result)),
    ):
        if data.get(key) != content:
            await client.create_artifact(
                ArtifactCreate(key=key, type=kind, data=content, description=description, flow_run_id=run.id)
            )


def _table(result: report.Report) -> tuple[str, str, str]:
    key, rows, description = rto_artifact(result)
    return key, json.dumps(rows), description


async def _tasks(
    client: PrefectClient, run: FlowRun, head: Record, steps: dict[str, StepState], *, write: bool
) -> bool:
    """One task run a step, in its final state. True once all are."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    sent = not write
    while True:
        there = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), limit=200)
        states = {t.id: t.state for t in there}
        missing = {}
        for step_id, step in steps.items():
            now = states.get(task_run_id(str(run.id), step_id))
            if now is None or not _same(now, _step_state(step)):
                missing[step_id] = now
        if not missing or asyncio.get_running_loop().time() > deadline:
            return not missing
        if not sent:
            sent = True
            actions = {s["id"]: s["action"] for s in head["plan"]["steps"]}
            events = [
                event.model_dump(mode="json")
                for step_id, now in missing.items()
                for event in _events(run, step_id, actions.get(step_id, ""), steps[step_id], now)
            ]
            await client.request("POST", "/events", json=events)
        await asyncio.sleep(0.25)


def _shows(state: State[Any], result: report.Report) -> bool:
    """Also Cancelled, for a run that was stopped: somebody cancelled it in the UI."""
    return _same(state, final_state(result)) or (state.is_cancelled() and result.verdict == "interrupted")


def _same(one: State[Any], other: State[Any]) -> bool:
    return one.type == other.type and one.name == other.name


def _step_state(step: StepState) -> State[Any]:
    if step.outcome is None:
        return Failed(message="interrupted: the run stopped here; it can be resumed")
    if step.outcome in BAD:
        return Failed(message=f"{step.outcome}: {step.summary}")
    return ended(step.outcome, step.summary)


def _events(run: FlowRun, step_id: str, action: str, step: StepState, now: State[Any] | None) -> list[Event]:
    """The task run of a step as the server's recorder takes it (prefect.server.services.task_run_recorder)."""
    began = datetime.fromisoformat(step.started_at) if step.started_at else prefect_now("UTC")
    ended = datetime.fromisoformat(step.ended_at) if step.ended_at else began
    # the recorder passes over what is older than what it has
    shown_at = max(ended, now.timestamp + timedelta(microseconds=1)) if now else ended
    final = _step_state(step).model_copy(update={"timestamp": shown_at})
    task = TaskRun(
        id=task_run_id(str(run.id), step_id),
        flow_run_id=run.id,
        name=step_id,
        task_key=action or "step",
        dynamic_key=step_id,
        run_count=max(1, step.attempts),
        start_time=began,
        end_time=ended,
        expected_start_time=began,
        total_run_time=max(timedelta(0), ended - began),
    )
    states = [final] if now else [Running().model_copy(update={"timestamp": began}), final]
    return [_event(run, task, state) for state in states]


def _event(run: FlowRun, task: TaskRun, state: State[Any]) -> Event:
    unsent = {"id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"}
    unsent |= {"estimated_start_time_delta", "estimated_run_time"}
    details: dict[str, Any] = {"type": state.type.value, "name": state.name, "message": state.message}
    return Event(
        id=uuid5(task.id, f"{state.type.value} {state.timestamp}"),
        occurred=state.timestamp,
        event=f"prefect.task-run.{state.name}",
        resource=Resource.model_validate(
            {
                "prefect.resource.id": f"prefect.task-run.{task.id}",
                "prefect.resource.name": task.name,
                "prefect.run-count": str(task.run_count),
                "prefect.state-name": state.name or "",
                "prefect.state-message": state.message or "",
                "prefect.state-timestamp": state.timestamp.isoformat(),
                "prefect.state-type": state.type.value,
                "prefect.orchestration": "client",
            }
        ),
        related=[
            RelatedResource.model_validate(
                {
                    "prefect.resource.id": f"prefect.flow-run.{run.id}",
                    "prefect.resource.role": "flow-run",
                    "prefect.resource.name": run.name,
                }
            )
        ],
        payload={
            "intended": {"from": None, "to": state.type.value},
            "initial_state": None,
            "validated_state": {**details, "state_details": {}, "data": None},
            "task_run": task.model_dump(mode="json", exclude_none=True, exclude=unsent),
        },
    )
