"""The part of ``relight serve`` that needs Prefect: offers the flows, runs what is started there, catches up.

A process of its own, started and kept up by the supervisor: whatever Prefect does, the supervisor goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
from prefect import serve as prefect_serve
from prefect.client.orchestration import PrefectClient, get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectException
from prefect.types.entrypoint import EntrypointType

from flows import catchup
from flows.drill import DrillOptions, drill
from flows.engine import alive, places
from flows.failover import FailoverOptions, failover
from tasks.errors import RelightError
from tasks.secrets import redact

LOOK_S = 5.0
HEALTH_S = 2.0
RECENT = timedelta(days=7)
"""Runs that ended longer ago are not shown any more."""
AWAY = (httpx.HTTPError, PrefectException, RelightError, OSError, RuntimeError)
"""What a server that is gone, hung or confused raises through Prefect's client."""


def main() -> None:
    """Wait for the server, then offer and catch up until stopped, or until the supervisor is gone."""
    threading.Thread(target=_end_with_the_supervisor, name="relight-orphan", daemon=True).start()
    places.set_defaults()
    _until_healthy()
    threading.Thread(target=lambda: asyncio.run(_catch_up()), name="relight-catch-up", daemon=True).start()
    serve()


def serve() -> None:
    """Register failover and drill, then run until stopped. The deployments stay when this process ends."""
    offered = (
        failover.to_deployment(
            "failover",
            description="Move a system to its other site. See the runbook for the steps.",
            parameters={"options": FailoverOptions().model_dump()},
            tags=["relight"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
        drill.to_deployment(
            "drill",
            description="Break the lab on this machine under load, recover it, and count what the clients lost.",
            parameters={"options": DrillOptions().model_dump()},
            tags=["relight"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
    )
    # outside an event loop these are deployments, not coroutines (prefect's async_dispatch)
    prefect_serve(*(cast("RunnerDeployment", one) for one in offered), pause_on_shutdown=False)


def _end_with_the_supervisor() -> None:
    # Its end of our standard input closes when it dies, however it dies. The runs that we started go on: killed, a
    # runner of Prefect does not take its flow runs down, as it does when it ends in good order.
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _until_healthy() -> None:
    pause, told = threading.Event(), False
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{_api()}/health", timeout=HEALTH_S).is_success:
                return
        if not told:
            told = True
            _say(f"the Prefect server at {_api()} does not answer; runs are supervised without it")
        pause.wait(LOOK_S / 2)


async def _catch_up() -> None:
    """Again and again: every recent run that ended and is not wholly shown. Looks at a journal once a change."""
    done: dict[Path, tuple[int, int]] = {}
    while True:
        for folder, stat in _recent():
            if done.get(folder) == stat or alive.alive(folder):
                continue
            with contextlib.suppress(*AWAY):
                async with get_client() as client:
                    if await _caught_up(client, folder):
                        done[folder] = stat
        await asyncio.sleep(LOOK_S)


async def _caught_up(client: PrefectClient, folder: Path) -> bool:
    with alive.sole(folder, alive.WINDOW) as mine:  # while its window is open, what is missing may be on its way
        return mine and await catchup.catch_up(client, folder, _api())


def _recent() -> list[tuple[Path, tuple[int, int]]]:
    """Folders of runs whose journal changed of late, oldest first, each with the journal's time and size."""
    oldest = (datetime.now(UTC) - RECENT).timestamp()
    found = []
    for path in sorted((places.state_home() / "runs").glob("*/journal.jsonl")):
        with contextlib.suppress(OSError):
            stat = path.stat()
            if stat.st_mtime >= oldest:
                found.append((path.parent, (stat.st_mtime_ns, stat.st_size)))
    return found


def _api() -> str:
    return os.environ["PREFECT_API_URL"].rstrip("/")


def _say(text: str) -> None:
    sys.stderr.write(redact(text) + "\n")
    sys.stderr.flush()
