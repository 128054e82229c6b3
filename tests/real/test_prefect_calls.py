"""What ``flows.calls`` relies on, asked of the installed Prefect: its real client against its real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelling, Completed, Running

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from served import free_port

from flows import calls
from flows.calls import New
from flows.engine import prefectserver

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """relight's own server, without the rest of ``relight serve``: nobody takes runs."""
    port = free_port("127.0.0.1")
    env = {**os.environ, "RELIGHT_STATE": str(tmp_path_factory.mktemp("state"))}
    process = subprocess.Popen(prefectserver.command(port), env=env, stdin=subprocess.PIPE, start_new_session=True)
    try:
        until(lambda: httpx.get(f"{prefectserver.url_of(port)}/health", timeout=30).is_success, 120)
        yield prefectserver.url_of(port)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # as when the supervisor is gone
        process.wait(60)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))


def ask(api: str, work: Callable[[PrefectClient, UUID], Awaitable[Any]]) -> Any:
    """``work`` with a client and a deployment of its own."""

    async def go() -> Any:
        async with get_client() as client:
            flow = await client.create_flow_from_name("toy")
            return await work(client, await client.create_deployment(flow, secrets.token_hex(4)))

    with temporary_settings({PREFECT_API_URL: api}):
        return asyncio.run(asyncio.wait_for(go(), 200))


def new(key: str = "", at: datetime | None = None) -> New:
    return New("toy", key or secrets.token_hex(8), at or datetime.now(UTC), {"options": {"system": "lab"}})


async def state_of(client: PrefectClient, run: FlowRun) -> str:
    found = await client.read_flow_run(run.id)
    assert found.state is not None
    return found.state.type.value


def test_asked_twice_under_one_key_there_is_one_flow_run_of_the_deployment(api: str) -> None:
    async def work(client: PrefectClient, of: UUID) -> None:
        asked = new()
        made = await calls.create(client, of, asked)
        assert (await calls.create(client, of, asked)).id == made.id
        assert (made.deployment_id, made.idempotency_key, made.state_name) == (of, asked.key, "Scheduled")
        assert made.parameters == {"options": {"system": "lab"}}

    ask(api, work)


def test_a_claim_is_won_once(api: str) -> None:
    async def work(client: PrefectClient, of: UUID) -> None:
        run = await calls.create(client, of, new())
        won = await asyncio.gather(*(calls.claim(client, run.id) for _ in range(5)))
        assert sorted(won) == [False] * 4 + [True]
        assert await state_of(client, run) == "PENDING"
        assert not await calls.claim(client, uuid4())

    ask(api, work)


def test_due_is_what_is_to_begin_now_and_is_nobodys(api: str) -> None:
    async def work(client: PrefectClient, of: UUID) -> None:
        now = await calls.create(client, of, new())
        await calls.create(client, of, new(at=datetime.now(UTC) + timedelta(hours=1)))
        claimed = await calls.create(client, of, new())
        assert await calls.claim(client, claimed.id)
        ours = await calls.create(client, of, new("relight-20261126T000000Z-failover-lab-0000"))
        assert [r.id for r in await calls.due(client, [of])] == [now.id]
        # tried again in the UI after a crash, also ours is for whoever asks
        await client.set_flow_run_state(ours.id, Running(), force=True)
        await client.set_flow_run_state(ours.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True)
        assert {r.id for r in await calls.due(client, [of])} == {now.id, ours.id}

    ask(api, work)


def test_one_that_nobody_has_any_more(api: str) -> None:
    async def work(client: PrefectClient, of: UUID) -> None:
        run = await calls.create(client, of, new())
        assert not await calls.desert(client, run.id)
        assert await state_of(client, run) == "SCHEDULED"
        await calls.claim(client, run.id)
        assert await calls.desert(client, run.id), "claimed and not begun: it can be handed to another runner"
        await client.set_flow_run_state(run.id, Running())
        assert not await calls.desert(client, run.id)
        assert await state_of(client, run) == "CRASHED"
        over = await calls.create(client, of, new())
        await client.set_flow_run_state(over.id, Completed(), force=True)
        assert not await calls.desert(client, over.id)
        assert await state_of(client, over) == "COMPLETED"
        assert not await calls.desert(client, uuid4())

    ask(api, work)


def test_one_that_is_cancelled_while_somebody_has_it_halts_him_once(api: str) -> None:
    async def work(client: PrefectClient, of: UUID) -> None:
        run = await calls.create(client, of, new())
        await calls.claim(client, run.id)
        await client.set_flow_run_state(run.id, Running())
        halted: list[float] = []
        stop = asyncio.Event()

        def halt() -> None:
            halted.append(time.monotonic())
            stop.set()

        async with calls.held(run.id, halt) as was_cancelled:
            assert not was_cancelled()
            await client.set_flow_run_state(run.id, Cancelling())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 90)
            assert was_cancelled()
        assert len(halted) == 1
        await calls.cancelled(client, run.id)
        assert await state_of(client, run) == "CANCELLED"
        gone = await calls.create(client, of, new())
        await client.set_flow_run_state(gone.id, Running(), force=True)
        await client.set_flow_run_state(gone.id, Cancelling(), force=True)
        await calls.desert(client, gone.id)
        assert await state_of(client, gone) == "CANCELLED"

    ask(api, work)


def test_a_deployment_that_is_not_there_is_none(api: str) -> None:
    async def work(client: PrefectClient, of: UUID) -> None:
        assert await calls.deployment(client, "toy", "nowhere") is None
        there = await client.read_deployment(of)
        found = await calls.deployment(client, "toy", there.name)
        assert found is not None
        assert found.id == of

    ask(api, work)


@pytest.mark.timeout(600)
def test_the_shipped_schema_is_what_prefects_own_migrations_make(api: str, tmp_path: Path) -> None:
    """The database that ``serve`` began with, after Prefect's start, against one that Prefect made from nothing."""
    prefectserver.prepare(tmp_path)
    env = {**os.environ, **prefectserver.settings(tmp_path, 1)}
    fresh = tmp_path / "fresh.db"
    code = (
        "import asyncio; from prefect.server.database import provide_database_interface as db;"
        " asyncio.run(db().create_db())"
    )

    def migrated(database: Path) -> dict[str, Any]:
        url = f"sqlite+aiosqlite:///{database}"
        urls = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url, "PREFECT_API_DATABASE_CONNECTION_URL": url}
        subprocess.run([sys.executable, "-c", code], env={**env, **urls}, check=True, timeout=280)
        with contextlib.closing(sqlite3.connect(database)) as opened:
            head = opened.execute("select version_num from alembic_version").fetchall()
            # Prefect's migrations write the constraints of a table in no certain order
            tables = opened.execute("select name, sql from sqlite_master where sql is not null")
            return {"head": head, **{name: sorted(re.split(r"[\s,]+", sql)) for name, sql in tables}}

    assert migrated(tmp_path / "prefect.db") == migrated(fresh)
