"""Autovacuum of PostgreSQL's tables. Fulfils ``tasks.database._sizes.Vacuumed``.

Relied on (PostgreSQL manual): a table's storage parameters come before the server's settings (25.1.6 *The Autovacuum
Daemon*); ``ALTER TABLE … SET (autovacuum_…)`` takes SHARE UPDATE EXCLUSIVE (13.3.1), which holds up no read and no
write but waits for a VACUUM and for other changes of the table: hence ``lock_timeout``, whose error is 55P03.
"""

from __future__ import annotations

import psycopg
from psycopg import errors, sql

from tasks.database._reading import Reading, one
from tasks.database._session import Connection, Row, ask, said
from tasks.database._sizes import TableVacuum
from tasks.errors import EffectUnknown, NotYet, Rejected

TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       coalesce(o.enabled::boolean, true) AS enabled,
       coalesce(o.threshold::int, current_setting('autovacuum_vacuum_threshold')::int) AS threshold,
       current_setting('autovacuum')::boolean AS server_enabled,
       pg_has_role(c.relowner, 'USAGE') AS ours
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT max(option_value) FILTER (WHERE option_name = 'autovacuum_enabled') AS enabled,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold') AS threshold
    FROM pg_options_to_table(c.reloptions)) o ON true
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY 1
"""


class Vacuuming(Reading):
    """The half that reads and sets autovacuum."""

    async def autovacuum(self, node: str) -> tuple[TableVacuum, ...]:
        async def work(connection: Connection) -> list[Row]:
            return await (await connection.execute(TABLES)).fetchall()

        return tuple(TableVacuum(**row) for row in await self._ask(node, work))

    async def set_autovacuum(
        self, node: str, table: str, *, enabled: bool, threshold: int, lock_timeout_s: float
    ) -> None:
        change = sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = {}, autovacuum_vacuum_threshold = {})")

        async def work(connection: Connection) -> None:
            role = await one(connection, "SELECT pg_is_in_recovery() AS replica, to_regclass(%s)::text AS there", table)
            if role["replica"]:
                raise Rejected(f"{node} is a replica; its settings come from its primary")
            if role["there"] is None:
                raise Rejected(f"{node} has no table {table}; it was dropped or renamed meanwhile")
            limit = sql.Literal(f"{max(1, round(1000 * lock_timeout_s))}ms")
            await connection.execute(sql.SQL("SET lock_timeout = {}").format(limit))
            name = sql.SQL(table)  # quoted by the server (format %I), and found there just now
            await connection.execute(change.format(name, sql.Literal(enabled), sql.Literal(threshold)))

        try:
            await ask(self._server(node), work, timeout_s=self._settings.query_timeout + lock_timeout_s)
        except (errors.LockNotAvailable, errors.QueryCanceled) as e:
            raise NotYet(
                f"{node}: {table} is locked (a VACUUM, or another change of it), so nothing was changed: {said(e)}",
                table=table,
            ) from e
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; {self._settings.user} must own {table}, or be of its owner") from e
        except psycopg.Error as e:
            raise EffectUnknown(f"autovacuum of {table} on {node}: {said(e)}") from e
