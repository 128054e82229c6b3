"""Failback: a planned move back, when people ask for it. Never by itself."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows import catchup, window
from flows.engine import failback as engine
from flows.engine import handover, launch, report
from flows.offers import Offer
from tasks.errors import SafetyRefusal

AUTOMATIC = frozenset({"SCHEDULE", "AUTOMATION"})
"""Who may not start one (Prefect's ``created_by.type``)."""


class FailbackOptions(BaseModel):
    """Which system to move back, and how."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    act: Literal["execute", "plan"] = Field(
        "execute", description="plan: observe every step of both runbooks and show what would be done; changes nothing."
    )
    to: str = Field("", description="The site to move to. Empty: the one that is not active.")
    rejoin: str = Field("rejoin", description="The runbook that makes the other site a standby again.")
    failover: str = Field("failover", description="The runbook that moves the system; it is run as graceful.")


@flow(name="failback", flow_run_name="failback-{options.system}", persist_result=False)
async def failback(options: FailbackOptions) -> State[Any]:
    """Move a system back, planned, losing nothing.

    1. `rejoin`: the other site becomes a standby that keeps up.
    2. `failover`, **graceful**, with the roles swapped.

    Each is a run of its own with its own journal, shown below this one. It stops after the first that does not succeed.
    Where to is settled when it begins: tried again, it goes on there and never moves forth. It is refused when a
    schedule or an automation starts it.
    """
    _by_people()
    key = str(flow_run.id or "")
    asked = engine.Failback(options.system, options.to, options.rejoin, options.failover, trigger="prefect", key=key)
    if options.act == "plan":
        return await _plan(asked)
    loop = asyncio.get_running_loop()

    def run(request: launch.Request) -> report.Report:
        shown: Future[report.Report] = asyncio.run_coroutine_threadsafe(_run(request), loop)
        return shown.result()

    done = await asyncio.to_thread(engine.failback, asked, run)
    return catchup.final_state(done[-1])


def _by_people() -> None:
    context = FlowRunContext.get()
    asked = context.flow_run if context else None
    by = asked.created_by.type if asked is not None and asked.created_by is not None else None
    if asked is not None and (asked.auto_scheduled or by in AUTOMATIC):
        raise SafetyRefusal(
            "a failback is never automatic, and this one was started by a schedule or an automation; a person starts"
            " it, with Run in the UI"
        )


async def _run(request: launch.Request) -> report.Report:
    found: list[report.Report] = []
    _reports[request.runbook] = found
    try:
        shown = part.with_options(flow_run_name=f"{request.runbook}-{request.system}".replace("{", "").replace("}", ""))
        state = await shown(handover.pack(request), return_state=True)
    finally:
        del _reports[request.runbook]
    if found:
        return found[0]
    raise SafetyRefusal(
        f"{request.runbook} of {request.system} came to no end, so nothing more was begun: {state.message}"
    )


_reports: dict[str, list[report.Report]] = {}


@flow(name="failback-part", persist_result=False)
async def part(request: str) -> State[Any]:
    """One of the two runs of a failback."""
    asked = handover.unpack(request)
    result = await window.run(replace(asked, prefect_flow_run_id=str(flow_run.id or "")))
    _reports[asked.runbook].append(result)
    return catchup.final_state(result)


async def _plan(asked: engine.Failback) -> State[Any]:
    found = await asyncio.to_thread(engine.plan, asked)
    lines = [f"# Plan of a failback of {asked.system}"]
    for book, previews in found.items():
        lines += [f"\n## {book}\n"]
        lines += [
            f"- **{p.step.id}** ({p.step.action.name}): {p.seen.summary if p.seen else p.error}" for p in previews
        ]
    lines.append("\nNothing was changed.")
    key = catchup.artifact_key("plan", "failback", asked.system.rstrip("/").rpartition("/")[2])
    await acreate_markdown_artifact("\n".join(lines), key=key)
    return Completed(message="planned; nothing was changed")


OFFERED = (Offer(failback, FailbackOptions),)
