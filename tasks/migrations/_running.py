"""One migration file on one server: wholly or not at all, and nobody queues behind it for longer than its limits.

Relied on (PostgreSQL 15 manual): DDL is transactional, so file and record commit together; ``lock_timeout`` ends the
wait for a lock (20.11.1), and who waits holds up everybody who comes later with a conflicting request (13.3.1);
``CREATE INDEX CONCURRENTLY`` cannot run in a transaction and leaves an INVALID index behind when it fails (CREATE
INDEX, *Building Indexes Concurrently*); ``pg_blocking_pids`` tells who blocks (9.26).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from tasks.database._reading import one
from tasks.database._session import Broken, Connection, Row, Server, ask, said
from tasks.errors import EffectUnknown, NotYet, Rejected, RelightError, SafetyRefusal
from tasks.migrations._files import bare
from tasks.migrations._risks import IDENT
from tasks.migrations.protocol import File, Limits
from tasks.secrets import redact

LEDGER = """
CREATE TABLE IF NOT EXISTS public.relight_migrations (
    number int NOT NULL, phase text NOT NULL, title text NOT NULL, sha256 text NOT NULL, state text NOT NULL,
    run text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (number, phase))
"""
RECORD = """
INSERT INTO public.relight_migrations (number, phase, title, sha256, state, run) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (number, phase) DO UPDATE SET state = excluded.state, run = excluded.run, sha256 = excluded.sha256,
    at = clock_timestamp()
"""
KEPT = "SELECT state, sha256 FROM public.relight_migrations WHERE number = %s AND phase = %s"
ALONE = "LOCK TABLE public.relight_migrations IN SHARE ROW EXCLUSIVE MODE"
"""Conflicts with itself and with no reader (manual, table 13.2): the second of two engines waits, then sees it."""
FORGET = "DELETE FROM public.relight_migrations WHERE number = %s AND phase = %s"
BLOCKERS = """
SELECT a.pid, a.usename AS "user", a.application_name AS application, host(a.client_addr) AS address, a.state,
       left(a.query, 200) AS query, a.xact_start AS since, a.wait_event_type
FROM pg_stat_activity a WHERE a.pid = ANY(pg_blocking_pids(%s)) ORDER BY a.xact_start
"""
INVALID = """
SELECT i.indrelid::regclass::text AS "table" FROM pg_index i
WHERE i.indexrelid = to_regclass(%s) AND NOT i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
"""
INDEX = re.compile(
    rf"^(?P<verb>CREATE|DROP) (?:UNIQUE )?INDEX CONCURRENTLY (?:IF (?:NOT )?EXISTS )?(?P<name>{IDENT})"
    rf"(?: ON (?:ONLY )?(?P<table>{IDENT}))?",
    re.IGNORECASE,
)

After = Callable[[Connection, int], Awaitable[None]]


async def _nothing(_connection: Connection, _index: int) -> None:
    """Nothing is measured."""


@dataclass(frozen=True)
class Job:
    """What is to be done where. ``identity``: the system identifier that counts; empty for a copy, which has the same.

    ``role``: what the statements run as; empty: the account itself. ``after``: called behind each statement.
    """

    server: Server
    node: str
    identity: str
    role: str
    file: File
    limits: Limits
    run: str
    back: bool = False
    after: After = _nothing

    @property
    def statements(self) -> tuple[str, ...]:
        return (self.file.down or ()) if self.back else self.file.statements


async def run(job: Job) -> None:
    """See ``protocol.Migrations.apply``."""
    concurrent = any(INDEX.match(bare(s)) for s in job.statements)
    if concurrent and len(job.statements) > 1:
        raise Rejected(f"{job.file.name}: its down file mixes what runs CONCURRENTLY with other statements")
    each_s = job.limits.build_s if concurrent else job.limits.statement_s + job.limits.lock_s
    seen: list[Row] = []
    ended = asyncio.Event()
    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    watcher = asyncio.ensure_future(_watch(job, pid, ended, seen))
    work = _concurrently if concurrent else _in_one_transaction
    try:
        await ask(job.server, lambda c: work(job, c, pid), timeout_s=len(job.statements) * each_s + 5.0)
    except errors.LockNotAvailable as e:
        raise NotYet(
            f"{job.node}: {job.file.name} did not get its lock within {job.limits.lock_s:g} s and gave up; nothing of"
            f" it was applied. {_told(seen)}",
            holders=[_plain(r) for r in seen],
            file=job.file.name,
        ) from e
    except errors.DeadlockDetected as e:
        raise NotYet(f"{job.node}: {job.file.name} met a deadlock, so nothing of it was applied: {said(e)}") from e
    except errors.QueryCanceled as e:
        limit_s = job.limits.build_s if concurrent else job.limits.statement_s
        left = (
            "an INVALID index that it leaves is dropped by the next try" if concurrent else "nothing of it was applied"
        )
        why = f"{job.node}: {job.file.name} did not end within {limit_s:g} s; {left}. {_told(seen)}"
        raise (NotYet if concurrent else Rejected)(why, holders=[_plain(r) for r in seen]) from e
    except errors.InsufficientPrivilege as e:
        raise Rejected(
            f"{job.node}: {job.file.name}: {said(e)}; {job.role or job.server.user} needs it. Nothing was applied."
        ) from e
    except Broken as e:
        raise EffectUnknown(f"{job.file.name}: {e.message}; its record in the database tells") from e
    except psycopg.Error as e:
        raise Rejected(
            f"{job.node}: {job.file.name}: {said(e)}. Nothing of it was applied.", sqlstate=e.sqlstate
        ) from e
    finally:
        ended.set()
        pid.cancel()
        with contextlib.suppress(RelightError, psycopg.Error, asyncio.CancelledError):
            await watcher


async def _in_one_transaction(job: Job, connection: Connection, pid: asyncio.Future[int]) -> None:
    async with connection.transaction():
        await _prepared(job, connection, pid, local=True)
        await connection.execute(LEDGER)
        await connection.execute(ALONE)
        if await _over(job, connection):
            return
        for index, statement in enumerate(job.statements):
            # binary makes it the extended protocol, in which the server itself refuses a second statement in the text
            await connection.execute(_text(statement), binary=True)
            await job.after(connection, index)
        await _record(job, connection, "applied")
        await connection.execute(
            "SET LOCAL statement_timeout = 0"
        )  # a commit that waits for its standby is no statement


async def _concurrently(job: Job, connection: Connection, pid: asyncio.Future[int]) -> None:
    """Begun, done, recorded: three steps, each of which a later try finds and goes on from."""
    parts = INDEX.match(bare(job.statements[0]))
    assert parts is not None  # noqa: S101 - the caller has matched it
    await _prepared(job, connection, pid, local=False)
    await connection.execute(LEDGER)
    if await _over(job, connection):
        return
    if not job.back:
        await _record(job, connection, "begun")
    building = parts["verb"].upper() == "CREATE"
    if building:
        await drop_invalid(connection, parts["name"])
    there = (await one(connection, "SELECT to_regclass(%s) IS NOT NULL AS yes", parts["name"]))["yes"]
    if there != building:
        try:
            await connection.execute(_text(job.statements[0]), binary=True)
        except psycopg.Error:
            if building and not connection.closed:
                # The drop waits for old transactions as the build did: where one is in the way, the next try drops it.
                with contextlib.suppress(errors.QueryCanceled):
                    await drop_invalid(connection, parts["name"])
            raise
        await job.after(connection, 0)
    if building and not (await _valid(connection, parts["name"])):
        raise Rejected(f"{job.node}: {parts['name']} is not valid, or of another table; look at it with \\d")
    await _record(job, connection, "applied")


async def _prepared(job: Job, connection: Connection, pid: asyncio.Future[int], *, local: bool) -> None:
    """Identity and role on the very connection that changes things; then the limits, and who it is done as."""
    row = await one(
        connection,
        "SELECT pg_is_in_recovery() AS standby, current_setting('default_transaction_read_only')::boolean AS fenced,"
        " (SELECT system_identifier::text FROM pg_control_system()) AS identity, pg_backend_pid() AS pid",
    )
    if row["standby"]:
        raise SafetyRefusal(f"{job.node} is a standby now; migrations are applied to the primary. Nothing was applied.")
    if row["fenced"] and job.identity:
        raise SafetyRefusal(f"{job.node} is fenced (read only); it is not the primary to change. Nothing was applied.")
    if job.identity and row["identity"] != job.identity:
        raise SafetyRefusal(
            f"{job.node} has system identifier {row['identity']}, expected {job.identity}: it is another database."
            " Check its address in the system file. Nothing was applied."
        )
    pid.set_result(int(row["pid"]))
    scope = "LOCAL " if local else ""
    # What runs CONCURRENTLY waits for old transactions too, and holds up no read and no write while it does.
    limits = (job.limits.lock_s, job.limits.statement_s) if local else (0.0, job.limits.build_s)
    for name, seconds in zip(("lock_timeout", "statement_timeout"), limits, strict=True):
        value = sql.Literal(f"{round(1000 * seconds)}ms")
        await connection.execute(_text(f"SET {scope}{name} = ") + value)
    if job.role:
        await connection.execute(sql.SQL("SET {}ROLE {}").format(_text(scope), sql.Identifier(job.role)))


async def _over(job: Job, connection: Connection) -> bool:
    """Another engine was first: one that stood still, or that died while its server went on. Raises Rejected."""
    row = await (await connection.execute(KEPT, (job.file.number, job.file.phase))).fetchone()
    if row is None or row["state"] != "applied":
        return job.back and row is None
    if row["sha256"] != job.file.sha256:
        raise Rejected(f"{job.node}: {job.file.name} was applied with another text meanwhile. Nothing was changed.")
    return not job.back


async def _record(job: Job, connection: Connection, state: str) -> None:
    f = job.file
    if job.back:
        await connection.execute(FORGET, (f.number, f.phase))
    else:
        await connection.execute(RECORD, (f.number, f.phase, f.title, f.sha256, state, job.run))


async def drop_invalid(connection: Connection, name: str) -> bool:
    """Drop index ``name`` where it is INVALID and nobody builds it: it costs every write and serves no query."""
    row = await (await connection.execute(INVALID, (name,))).fetchone()
    if row is not None:
        await connection.execute(_text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
    return row is not None


async def _valid(connection: Connection, name: str) -> bool:
    found = await connection.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (name,))
    row = await found.fetchone()
    return bool(row and row["indisvalid"])


async def _watch(job: Job, pid: asyncio.Future[int], ended: asyncio.Event, seen: list[Row]) -> None:
    """By a second connection: who stands in the way, as long as somebody does."""
    number = await pid
    pause_s = max(0.02, min(0.25, job.limits.lock_s / 8))

    async def work(connection: Connection) -> None:
        while not ended.is_set():
            rows = await (await connection.execute(BLOCKERS, (number,))).fetchall()
            if rows:
                seen[:] = rows
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), pause_s)

    limit_s = len(job.statements) * max(job.limits.build_s, job.limits.statement_s + job.limits.lock_s) + 5.0
    await ask(job.server, work, timeout_s=limit_s)


def _told(seen: list[Row]) -> str:
    if not seen:
        return "Who holds it could not be told"
    return "It is held by " + "; ".join(
        f"pid {r['pid']} ({r['user']}, {r['application'] or 'no application name'}, {r['state']}) since"
        f" {r['since']:%Y-%m-%d %H:%M:%S} UTC: {redact(' '.join(str(r['query']).split()))}"
        for r in seen
    )


def _plain(row: Row) -> dict[str, Any]:
    found = {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in row.items()}
    return {**found, "query": redact(str(row["query"]))}


def _text(text: str) -> sql.SQL:
    return sql.SQL(text)
