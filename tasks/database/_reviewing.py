"""What PostgreSQL says of its work. Fulfils ``tasks.database._workload.Reviewed`` and ``_accounts.Accounted``.

Relied on (PostgreSQL manual): ``EXPLAIN`` without ``ANALYZE`` executes nothing; a prepared statement under
``plan_cache_mode = force_generic_plan`` shows the plan that does not look at parameters (also before 16, whose
``GENERIC_PLAN`` does the same); ``VACUUM`` takes SHARE UPDATE EXCLUSIVE, which holds up no read and no write, and only
its truncation at the end takes ACCESS EXCLUSIVE: hence ``TRUNCATE false``. ``vacuum_cost_delay`` makes it gentle.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors, sql

from tasks.database import _accounts
from tasks.database import _workload_sql as queries
from tasks.database._reading import Reading, one
from tasks.database._session import Broken, Connection, Row, ask, said
from tasks.database._workload import IndexUse, Statement, TableUse, Workload
from tasks.errors import EffectUnknown, NotYet, Rejected

MEASURED = 10
"""The largest indexes are measured for waste, which reads them whole …"""
MEASURED_BYTES = 256 * 2**20
"""… up to this size each."""


class Reviewing(Reading):
    """The half that reviews."""

    async def workload(self, node: str) -> Workload:
        missing: dict[str, str] = {}

        async def work(connection: Connection) -> Workload:
            await connection.execute("SET default_transaction_read_only = on")
            await connection.execute(_timeout("statement_timeout", self._settings.query_timeout))
            server = await one(connection, queries.SERVER)
            since = server["since"]
            statements = await _rows(connection, queries.STATEMENTS, "statements", missing)
            for row in await _rows(connection, queries.STATEMENTS_SINCE, "statements", missing):
                since = row["since"]
            tables = await _rows(connection, queries.TABLES, "tables", missing)
            indexes = await _rows(connection, queries.INDEXES, "indexes", missing)
            await _measure(connection, indexes, missing)
            return _workload(node, server, since, (statements, tables, indexes), missing)

        return await self._ask(node, work, timeout_s=10 * self._settings.query_timeout)

    async def accounts(self, node: str) -> _accounts.Accounts:
        async def work(connection: Connection) -> _accounts.Accounts:
            await connection.execute(_timeout("statement_timeout", self._settings.query_timeout))
            return await _accounts.read(connection, node)

        return await self._ask(node, work, timeout_s=3 * self._settings.query_timeout)

    async def plan(self, node: str, statement: str) -> dict[str, Any]:
        async def work(connection: Connection) -> dict[str, Any]:
            await connection.execute(_timeout("statement_timeout", self._settings.query_timeout))
            await connection.execute(_timeout("lock_timeout", 1.0))
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            await connection.execute("SET default_transaction_read_only = on")
            # binary makes it the extended protocol, in which the server itself refuses a second statement in the text
            await connection.execute(_trusted("PREPARE relight_review AS " + statement), binary=True)
            row = await one(
                connection,
                "SELECT coalesce(cardinality(parameter_types), 0) AS n FROM pg_prepared_statements WHERE name = %s",
                "relight_review",
            )
            nulls = "(" + ", ".join(["NULL"] * row["n"]) + ")" if row["n"] else ""
            found = await one(connection, "EXPLAIN (FORMAT JSON) EXECUTE relight_review" + nulls)
            plan: dict[str, Any] = found["QUERY PLAN"][0]["Plan"]
            return plan

        try:
            return await ask(self._server(node), work, timeout_s=3 * self._settings.query_timeout)
        except psycopg.Error as e:
            raise Rejected(f"{node} gives no plan for it: {said(e)}") from e

    async def vacuum(self, node: str, table: str, *, lock_timeout_s: float, timeout_s: float) -> None:
        async def work(connection: Connection) -> datetime:
            role = await one(
                connection, "SELECT now(), pg_is_in_recovery() AS replica, to_regclass(%s)::text AS there", table
            )
            if role["replica"]:
                raise Rejected(f"{node} is a replica; it is vacuumed by what its primary does")
            if role["there"] is None:
                raise Rejected(f"{node} has no table {table}; it was dropped or renamed meanwhile")
            await connection.execute(_timeout("lock_timeout", lock_timeout_s))
            await connection.execute(_timeout("statement_timeout", timeout_s))
            await connection.execute("SET vacuum_cost_delay = '2ms'")
            name = _trusted(table)  # quoted by the server (format %I), and found there just now
            await connection.execute(sql.SQL("VACUUM (ANALYZE, TRUNCATE false) {}").format(name))
            begun: datetime = role["now"]
            return begun

        async def read_back(connection: Connection) -> Row:
            return await one(
                connection, "SELECT last_vacuum AS at FROM pg_stat_user_tables WHERE relid = to_regclass(%s)", table
            )

        try:
            begun = await ask(self._server(node), work, timeout_s=timeout_s + lock_timeout_s + 1.0)
        except errors.LockNotAvailable as e:
            raise NotYet(f"{node}: {table} is locked, so nothing was done: {said(e)}", table=table) from e
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; {self._settings.user} must own {table}, or be of its owner") from e
        except Broken:
            raise
        except psycopg.Error as e:
            raise EffectUnknown(f"VACUUM of {table} on {node} was cut off: {said(e)}") from e
        last = (await self._ask(node, read_back))["at"]
        if last is None or last < begun:
            raise EffectUnknown(f"{node} does not say that {table} was vacuumed; it says {last or 'never'}")


def _timeout(name: str, seconds: float) -> sql.Composed:
    return sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(f"{max(1, round(1000 * seconds))}ms"))


def _trusted(text: str) -> sql.SQL:
    return sql.SQL(text)


async def _rows(connection: Connection, query: str, what: str, missing: dict[str, str]) -> list[Row]:
    """What cannot be read (no extension, no grant, no time) is told, and the rest goes on."""
    try:
        return await (await connection.execute(_trusted(query))).fetchall()
    except (errors.UndefinedTable, errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState) as e:
        missing[what] = said(e)
    except (errors.UndefinedColumn, errors.UndefinedFunction, errors.QueryCanceled) as e:
        missing[what] = said(e)
    return []


async def _measure(connection: Connection, indexes: list[Row], missing: dict[str, str]) -> None:
    measured = [i for i in indexes if " USING btree " in i["definition"] and i["bytes"] <= MEASURED_BYTES][:MEASURED]
    for row in measured:
        try:
            found = await (await connection.execute(queries.WASTED, [row["index"]])).fetchone()
        except (errors.UndefinedFunction, errors.InsufficientPrivilege, errors.QueryCanceled) as e:
            missing["bloat"] = said(e)
            return
        row["wasted"] = found["wasted"] if found else None


def _workload(
    node: str,
    server: Row,
    since: datetime | None,
    found: tuple[list[Row], list[Row], list[Row]],
    missing: dict[str, str],
) -> Workload:
    statements, tables, indexes = found
    blocks = server["hit"] + server["read"]
    return Workload(
        node=node,
        at=server["at"],
        since=since,
        version=server["version"].split()[0],
        statements=tuple(Statement(**row) for row in statements),
        tables=tuple(TableUse(**row) for row in tables),
        indexes=tuple(IndexUse(**row) for row in indexes),
        hit_ratio=100 * server["hit"] / blocks if blocks else None,
        cache_bytes=server["cache_bytes"],
        database_bytes=server["database_bytes"],
        connections=server["connections"],
        idle=server["idle"],
        max_connections=server["max_connections"],
        missing=missing,
    )
