"""The calls of Prefect's client with which relight makes, claims and ends flow runs, and nothing else does.

What they rely on is tested against the installed Prefect (tests/real/test_prefect_calls.py). Read in Prefect 3.8.8:
``client.orchestration``, ``utilities.engine.propose_state``, ``runner._state_proposer``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import Abort, ObjectNotFound, PrefectException
from prefect.states import Cancelled, Crashed, Pending, Scheduled
from prefect.utilities.engine import propose_state

from flows.engine import flowruns, windowfile

AWAY = (httpx.HTTPError, PrefectException, OSError, RuntimeError)
"""What a server that is gone, hung or confused raises through Prefect's client."""
CANCEL_LOOK_S = 1.0


async def deployment(client: PrefectClient, flow: str, name: str) -> DeploymentResponse | None:
    """The deployment, None where there is none."""
    with contextlib.suppress(ObjectNotFound):
        return await client.read_deployment_by_name(f"{flow}/{name}")
    return None


@dataclass(frozen=True)
class New:
    """A flow run to make. ``key``: asked twice, there is one. ``at``: when it was to begin, aware."""

    name: str
    key: str
    at: datetime
    parameters: dict[str, Any]


async def create(client: PrefectClient, of: UUID, new: New) -> FlowRun:
    """The flow run of the deployment ``of`` under the key of ``new``: made in Scheduled, or the one made before."""
    return await client.create_flow_run_from_deployment(
        of,
        parameters=new.parameters,
        name=new.name,
        idempotency_key=new.key,
        state=Scheduled(scheduled_time=new.at),
    )


async def claim(client: PrefectClient, flow_run_id: UUID) -> bool:
    """Take a scheduled flow run for this process; False where another one was faster.

    One transaction of the server: Pending to Pending is aborted (``PreventPendingTransitions``).
    """
    try:
        state = await propose_state(client, Pending(), flow_run_id=flow_run_id)
    except (Abort, ObjectNotFound):
        return False
    return state.is_pending()


async def due(client: PrefectClient, deployments: list[UUID]) -> list[FlowRun]:
    """Flow runs of these deployments that are to begin now, oldest first: from the UI, a schedule, a retry.

    Without those that relight made for a run of its own, which somebody is about to claim.
    """
    found = await client.get_scheduled_flow_runs_for_deployments(deployments, datetime.now(UTC))
    return [run for run in found if not _spoken_for(run)]


def _spoken_for(run: FlowRun) -> bool:
    first = run.run_count == 0 and run.state is not None and run.state.name in ("Scheduled", "Late")
    return first and windowfile.run_of_key(run.idempotency_key or "") is not None


async def running(client: PrefectClient, flow_run_id: UUID) -> FlowRun | None:
    """The flow run, None where it was deleted."""
    with contextlib.suppress(ObjectNotFound):
        return await client.read_flow_run(flow_run_id)
    return None


async def desert(client: PrefectClient, flow_run_id: UUID) -> bool:
    """Nobody has this flow run any more: Cancelled where that was asked, else Crashed. True: it has yet to begin."""
    run = await running(client, flow_run_id)
    if run is None or run.state is None or run.state.is_final() or run.state.is_scheduled():
        return False
    if run.state.is_pending() and run.run_count == 0:
        return True
    if run.state.type == StateType.CANCELLING:
        await client.set_flow_run_state(flow_run_id, Cancelled(message="its runner is gone"), force=True)
        return False
    gone: State[Any] = Crashed(
        message="its runner is gone: killed, out of memory, or crashed; see docs/serve.md for Retry"
    )
    with contextlib.suppress(Abort):
        await propose_state(client, gone, flow_run_id=flow_run_id)
    return False


async def cancelled(client: PrefectClient, flow_run_id: UUID) -> None:
    """Set Cancelled: it came to a stop because somebody asked."""
    state: State[Any] = Cancelled(message="stopped between two effects, as asked; see the journal for what was done")
    await client.set_flow_run_state(flow_run_id, state, force=True)


@contextlib.asynccontextmanager
async def held(flow_run_id: UUID, halt: Callable[[], None]) -> AsyncIterator[Callable[[], bool]]:
    """Have this flow run for the length of the block. ``halt`` is called once when it is cancelled in the UI.

    Gives a function: was it?
    """
    asked = False

    async def look() -> None:
        nonlocal asked
        async with get_client() as client:
            while not asked:
                await asyncio.sleep(CANCEL_LOOK_S)
                with contextlib.suppress(*AWAY):
                    run = await running(client, flow_run_id)
                    if run is not None and run.state is not None and run.state.type == StateType.CANCELLING:
                        asked = True
                        halt()

    with flowruns.hold(str(flow_run_id)):
        watching = asyncio.create_task(look())
        try:
            yield lambda: asked
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, *AWAY):
                await watching
