"""Runs one flow run that was started in Prefect and is claimed, in the process that waited for it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow_async
from prefect.logging.handlers import APILogWorker

from flows import calls, offers
from flows.offers import Offer
from tasks.errors import BadInput
from tasks.secrets import redact

DRAIN_S = 5.0
ENGINE = "relight-engine"


def warm_up() -> None:
    """What the first run would otherwise wait for."""
    import prefect.task_engine  # noqa: F401, PLC0415


def run(flow_run_id: str, key: str) -> int:
    """Run it to its end; the exit code. Cancelled in the UI, or by SIGTERM, its engine stops between two effects."""
    found = next((o for o in offers.offered() if o.key == key), None)
    if found is None:
        raise BadInput(f"no flow of this relight is offered as {key}")
    try:
        return asyncio.run(_run(UUID(flow_run_id), found))
    except calls.AWAY as e:
        sys.stderr.write(redact(f"flow run {flow_run_id}: {type(e).__name__}: {e}") + "\n")
        return 1


async def _run(flow_run_id: UUID, offer: Offer) -> int:
    async with get_client() as client:
        asked = await calls.running(client, flow_run_id)
    if asked is None:
        return 1
    work = asyncio.create_task(_flow(offer, asked))

    def halt() -> None:
        work.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, halt)
    state: State[Any] | None = None
    async with calls.held(flow_run_id, halt) as was_cancelled:
        with contextlib.suppress(asyncio.CancelledError):
            state = await work
        # an effect may take longer than a flow waits for it: ending this process now would be a crash in its middle
        for engine in [t for t in threading.enumerate() if t.name == ENGINE]:
            await asyncio.to_thread(engine.join)
        if was_cancelled():
            async with get_client() as client:
                await calls.cancelled(client, flow_run_id)
        await asyncio.to_thread(EventsWorker.drain_all, timeout=DRAIN_S)
        await asyncio.to_thread(APILogWorker.drain_all, timeout=DRAIN_S)
    return 0 if state is not None and state.is_completed() else 1


async def _flow(offer: Offer, asked: FlowRun) -> State[Any]:
    found: State[Any] = await run_flow_async(  # type: ignore[assignment]
        offer.flow, flow_run=asked, parameters=asked.parameters, return_type="state"
    )
    return found
