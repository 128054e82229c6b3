"""The part of ``relight serve`` that needs Prefect: offers the flows, runs what is started there, catches up.

A process of its own, started and kept up by the supervisor: whatever Prefect does, the supervisor goes on. Each flow
run gets a process of its own that waited for it (``flows.warm``), so none takes another one down, nor us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client

from flows import alert, calls, catchup, deployments
from flows.engine import alive, flowruns, places
from flows.intake.warm import Warm
from tasks.errors import RelightError
from tasks.secrets import redact

POLL_S = 0.25
"""How often the server is asked for what is to begin."""
WATCH_S = 0.5
"""How often runners are looked for that are gone."""
REGISTER_S = 300.0
POLLER = "poller.lock"
LOOK_S = 5.0
HEALTH_S = 2.0
RECENT = timedelta(days=7)
"""Runs that ended longer ago are not shown any more."""
AWAY = (*calls.AWAY, RelightError)


def main(began: float | None = None, systems: tuple[str, ...] = ()) -> None:
    """Wait for the server, then offer, run and catch up until stopped, or until the supervisor is gone.

    ``began``: when ``relight serve`` was started (``time.time``), for the line that says how long that took.
    """
    threading.Thread(target=_end_with_the_supervisor, name="relight-orphan", daemon=True).start()
    places.set_defaults()
    _until_healthy()
    threading.Thread(target=lambda: asyncio.run(_catch_up()), name="relight-catch-up", daemon=True).start()
    asyncio.run(Poller(systems, began).go())


@dataclass
class Poller:
    """Registers the deployments, and hands each of their flow runs that is due to a runner."""

    systems: tuple[str, ...]
    began: float | None = None
    warm: Warm = field(default_factory=lambda: Warm(_say))
    asker: alert.Asker = field(default_factory=alert.Asker)
    _keys: dict[UUID, str] = field(default_factory=dict)
    _handing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _register_at: float = 0.0
    _watch_at: float = 0.0
    _told: str = ""

    async def go(self) -> None:
        """Without end. A server that goes away is waited for. One process of this state folder does it."""
        while True:
            with alive.sole(places.state_home(), POLLER) as mine:
                if mine:
                    await self._poll()
            await asyncio.sleep(LOOK_S / 5)

    async def _poll(self) -> None:
        while True:
            try:
                async with get_client() as client:
                    while True:
                        await self._look(client)
                        await asyncio.sleep(POLL_S)
            except AWAY as e:
                told = f"the Prefect server at {_api()}: {type(e).__name__}: {e}; trying again"
                if told != self._told:
                    self._told = told
                    _say(told)
                await asyncio.sleep(LOOK_S / 2)

    async def _look(self, client: PrefectClient) -> None:
        now = time.monotonic()
        if now >= self._register_at:
            await self._register(client)
            self._register_at = now + REGISTER_S
        self.warm.prepare()
        if self._keys:
            for run in await calls.due(client, list(self._keys)):
                if run.deployment_id in self._keys and str(run.id) not in self._handing:
                    await self._begin(client, run.id, self._keys[run.deployment_id])
        if now >= self._watch_at:
            self._watch_at = now + WATCH_S
            await self._watch(client)
            for deployment in [one for one, key in self._keys.items() if key == alert.DEPLOYMENT]:
                await self.asker.look(client, deployment)
        self._told = ""

    async def _register(self, client: PrefectClient) -> None:
        changes = await deployments.apply(client, self.systems)
        self._keys = {UUID(c.id): c.key for c in changes if not c.pool}
        for change in changes:
            if change.did == "changed":
                _say(f"deployment {change.key}: {', '.join(change.changed)} brought up to date")
            if change.pool:
                _say(f"deployment {change.key} is in work pool {change.pool}: its runs are for the workers there")
        if self.began is not None:
            _say(
                f"Prefect UI: {_api().removesuffix('/api')} ({len(changes)} deployments;"
                f" ready {time.time() - self.began:.1f} s after the start)"
            )
            self.began = None

    async def _begin(self, client: PrefectClient, flow_run_id: UUID, key: str) -> None:
        flowruns.mark(str(flow_run_id))  # first, so that it is not forgotten if we end between the claim and its runner
        if await calls.claim(client, flow_run_id):
            self._hand(str(flow_run_id), key)
        else:
            with flowruns.deserted(str(flow_run_id)):
                pass  # another one's

    def _hand(self, flow_run_id: str, key: str) -> None:
        asked = json.dumps({"flow_run_id": flow_run_id, "key": key})
        self._handing[flow_run_id] = asyncio.create_task(self._handed(flow_run_id, asked))

    async def _handed(self, flow_run_id: str, asked: str) -> None:
        try:
            await self.warm.hand(asked)
        except RelightError as e:
            _say(f"flow run {flow_run_id}: {e}")
        finally:
            del self._handing[flow_run_id]

    async def _watch(self, client: PrefectClient) -> None:
        """Flow runs whose runner is gone."""
        for flow_run_id in flowruns.begun():
            if flow_run_id in self._handing:
                continue
            with flowruns.deserted(flow_run_id) as gone:
                if not gone or not await calls.desert(client, UUID(flow_run_id)):
                    continue
            run = await calls.running(client, UUID(flow_run_id))
            key = self._keys.get(run.deployment_id) if run is not None and run.deployment_id else None
            if key is not None:
                flowruns.mark(flow_run_id)
                self._hand(flow_run_id, key)


def _end_with_the_supervisor() -> None:
    # Its end of our standard input closes when it dies, however it dies. The runs that we started go on: they are
    # processes and sessions of their own.
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _until_healthy() -> None:
    pause, told, began = threading.Event(), False, time.monotonic()
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{_api()}/health", timeout=HEALTH_S).is_success:
                return
        if not told and time.monotonic() - began > LOOK_S * 3:
            told = True
            _say(f"the Prefect server at {_api()} does not answer; runs are supervised without it")
        pause.wait(POLL_S)


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
