"""Migrations of a PostgreSQL database. Fulfils ``tasks.migrations.protocol.Migrations``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import psycopg
from psycopg import errors
from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import ComponentParam, Facts, Surroundings
from tasks.database._reading import one
from tasks.database._session import Connection, Row, Server, ask, said
from tasks.database.postgresql import PostgreSql
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, Unreachable
from tasks.migrations import _copy, _files, _running
from tasks.migrations._risks import Suspicion, suspicions
from tasks.migrations.protocol import Applied, File, Limits, Risk, Target
from tasks.variables import expand

READ = "SELECT number, phase, title, sha256, state, run, at::text FROM public.relight_migrations ORDER BY number, phase"
SIZES = """
SELECT (SELECT sum(pg_database_size(oid)) FROM pg_database)::bigint AS bytes,
       current_setting('server_version_num')::int AS version_num,
       current_setting('shared_preload_libraries') AS libraries
"""
EXISTING = """
SELECT c.oid::int AS oid, c.oid::regclass::text AS name, pg_relation_filenode(c.oid)::bigint AS file,
       pg_total_relation_size(c.oid) AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg_toast%%' AND c.relname <> 'relight_migrations'
"""
HELD = """
SELECT relation::int AS oid, mode FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation::int = ANY(%s)
"""
STOPS_WRITES = ("ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
"""Modes that conflict with ROW EXCLUSIVE, the lock of a write (manual, table 13.2)."""


class MigrationSettings(BaseModel):
    """``folder``: beside the system file where it is relative. ``role``: who owns what is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = "migrations"
    database: Annotated[str, ComponentParam("database")] = "database"
    role: str = ""
    rehearsal: _copy.CopySettings = Field(default_factory=_copy.CopySettings)


class PostgresMigrations:
    """Files beside the system, a record in the database."""

    Settings: ClassVar[type[BaseModel]] = MigrationSettings

    def __init__(self, settings: MigrationSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    def database(self) -> str:
        return self._settings.database

    def files(self) -> tuple[File, ...]:
        folder = Path(expand(self._settings.folder))
        if not folder.is_absolute():
            if self._around.folder is None:
                raise BadInput(f"{self._around.component}: folder {folder} is relative, and there is no system file")
            folder = self._around.folder / folder
        return _files.read(folder)

    async def applied(self, node: str) -> tuple[Applied, ...]:
        async def work(connection: Connection) -> list[Row]:
            try:
                return await (await connection.execute(READ)).fetchall()
            except errors.UndefinedTable:
                return []

        return tuple(Applied(**row) for row in await self._read(node, work))

    async def risks(self, node: str, files: tuple[File, ...], big_bytes: int) -> tuple[Risk, ...]:
        async def work(connection: Connection) -> tuple[Risk, ...]:
            found = []
            for file in files:
                for suspicion in (s for text in file.statements for s in suspicions(text)):
                    size = await _size(connection, suspicion.table)
                    if size is None or size < big_bytes or suspicion.rule.name in file.accepted:
                        continue
                    if await _settled(connection, suspicion):
                        continue
                    rule = suspicion.rule
                    found.append(Risk(rule.name, file.name, suspicion.table, size, rule.what, rule.source))
            return tuple(found)

        found: tuple[Risk, ...] = await self._read(node, work)
        return found

    async def apply(self, to: Target, file: File, limits: Limits, *, back: bool = False) -> None:
        role = self._settings.role
        await _running.run(
            _running.Job(self._postgres().server(to.node), to.node, to.identity, role, file, limits, to.run, back=back)
        )

    async def rehearse(
        self, source: str, files: tuple[File, ...], limits: Limits, said: Callable[[str], None]
    ) -> Facts:
        database = self._postgres()
        sizes = await self._read(source, lambda c: one(c, SIZES))
        original = _copy.Original(
            database.server(source),
            database.replication(),
            sizes["version_num"],
            sizes["bytes"],
            sizes["libraries"],
        )
        said(f"copying {source}, {sizes['bytes'] / 2**20:.0f} MiB")
        async with _copy.copied(self._settings.rehearsal, original) as copy:
            measured = []
            for file in files:
                said(f"{file.name} on {copy.server.label}")
                try:
                    measured.append(await self._measured(copy.server, file, limits))
                    said(_in_words(measured[-1]))
                except (NotYet, EffectUnknown) as e:
                    raise Rejected(f"the rehearsal failed: {e.message}", **e.facts) from e
        return {
            "source": source,
            "copy_s": copy.seconds,
            "copy_bytes": copy.bytes,
            "rehearsed": {f.name: f.sha256 for f in files},
            "measured": measured,
        }

    def left_behind(self) -> tuple[str, ...]:
        return _copy.left_behind(self._settings.rehearsal)

    async def _measured(self, server: Server, file: File, limits: Limits) -> Facts:
        """Seconds of each statement; the locks that stop writes of what was there, and how long; rewrites."""
        before = {r["oid"]: r for r in await ask(server, _existing)}
        began = last = time.monotonic()
        locks: dict[str, tuple[str, float]] = {}
        seconds: list[float] = []

        async def after(connection: Connection, _index: int) -> None:
            nonlocal last
            rows = await (await connection.execute(HELD, (list(before),))).fetchall()
            for row in rows:
                name = before[row["oid"]]["name"]
                stronger = STOPS_WRITES.index(locks[name][0]) if name in locks else -1
                if row["mode"] in STOPS_WRITES and STOPS_WRITES.index(row["mode"]) > stronger:
                    locks[name] = (row["mode"], locks.get(name, ("", last))[1])
            now = time.monotonic()
            seconds.append(round(now - last, 3))
            last = now

        role = self._settings.role
        job = _running.Job(server, server.label, "", role, file, limits, "rehearsal", after=after)
        await _running.run(job)
        end = time.monotonic()
        later = {r["oid"]: r for r in await ask(server, _existing)}
        rewritten = {
            r["name"]: r["bytes"] for oid, r in before.items() if oid in later and later[oid]["file"] != r["file"]
        }
        return {
            "file": file.name,
            "seconds": round(end - began, 3),
            "statements": [
                {"sql": _files.bare(s)[:120], "s": t} for s, t in zip(file.statements, seconds, strict=False)
            ],
            "locks": {n: {"mode": m, "held_s": round(end - since, 3)} for n, (m, since) in locks.items()},
            "rewritten": rewritten,
        }

    def _postgres(self) -> PostgreSql:
        found = self._around.components(self._settings.database)
        if not isinstance(found, PostgreSql):
            raise BadInput(
                f"{self._around.component}: {self._settings.database!r} is a {type(found).__name__}; migrations are for"
                " database.postgresql"
            )
        return found

    async def _read(self, node: str, work: Callable[[Connection], Any]) -> Any:
        try:
            return await ask(self._postgres().server(node), work)
        except EffectUnknown as e:
            raise Unreachable(e.message) from e
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; grant it to the account of {self._settings.database}") from e
        except psycopg.Error as e:
            raise Unreachable(f"{node}: {said(e)}") from e


def _in_words(m: Facts) -> str:
    locks = [f"{lock['mode']} on {table} for {lock['held_s']:.3f} s" for table, lock in m["locks"].items()]
    written = [f"{table} written again" for table in m["rewritten"]]
    return f"{m['file']} took {m['seconds']:.3f} s: " + ("; ".join((*locks, *written)) or "no write had to wait")


async def _existing(connection: Connection) -> list[Row]:
    return await (await connection.execute(EXISTING.replace("%%", "%"))).fetchall()


async def _size(connection: Connection, table: str) -> int | None:
    """Bytes of a table with its indexes; None where it is not there yet: then nobody uses it."""
    row = await one(connection, "SELECT pg_total_relation_size(to_regclass(%s)) AS bytes", table)
    return None if row["bytes"] is None else int(row["bytes"])


async def _settled(connection: Connection, suspicion: Suspicion) -> bool:
    """Does the server know that the suspicion is none?"""
    if suspicion.rule.name == "volatile-default":
        row = await one(
            connection,
            "SELECT coalesce(bool_or(provolatile = 'v'), false) AS volatile FROM pg_proc WHERE proname = ANY(%s)",
            [f.lower() for f in suspicion.functions],
        )
        return not row["volatile"]
    if suspicion.rule.name == "set-not-null":
        row = await one(
            connection,
            "SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid"
            " AND a.attnum = ANY(k.conkey) WHERE k.conrelid = to_regclass(%s) AND k.contype = 'c' AND k.convalidated"
            " AND a.attname = %s AND pg_get_constraintdef(k.oid) ~* 'CHECK \\(\\([^()]+ IS NOT NULL\\)\\)') AS proven",
            suspicion.table,
            suspicion.column,
        )
        return bool(row["proven"])
    return False


PROVIDER = PostgresMigrations
