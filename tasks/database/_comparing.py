"""What a PostgreSQL server plans with. Fulfils ``tasks.database._plans.Planned``, with ``_reviewing``.

Sources: PostgreSQL 15 manual, 20.7 *Query Planning* and 20.4 (what the planner looks at), F.32 *pg_stat_statements*,
9.27 (``pg_database_collation_actual_version``, since 15).
"""

from __future__ import annotations

import psycopg
from psycopg import errors

from tasks.database._plans import Planning
from tasks.database._reading import one
from tasks.database._reviewing import Reviewing
from tasks.database._session import Connection, Row, ask, said
from tasks.database._workload_sql import STATEMENTS
from tasks.errors import EffectUnknown, Rejected, Unreachable

SETTINGS = """
SELECT json_object_agg(name, current_setting(name)) AS settings FROM pg_settings
WHERE category LIKE 'Query Tuning%' OR name IN ('work_mem', 'hash_mem_multiplier', 'max_parallel_workers',
    'max_parallel_workers_per_gather', 'max_worker_processes')
"""
COLLATION = """
SELECT datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
FROM pg_database WHERE datname = current_database()
"""


class Comparing(Reviewing):
    """The half that compares sites."""

    async def top_statements(self, node: str, most: int) -> tuple[str, ...]:
        async def work(connection: Connection) -> list[Row]:
            return await (await connection.execute(STATEMENTS)).fetchall()

        try:
            rows = await ask(self._server(node), work)
        except EffectUnknown as e:
            raise Unreachable(e.message) from e
        except psycopg.Error as e:
            raise Rejected(f"{node} counts no statements: {said(e)}; it needs pg_stat_statements") from e
        return tuple(str(r["text"]) for r in rows[:most])

    async def planning(self, node: str) -> Planning:
        async def work(connection: Connection) -> tuple[Row, Row]:
            settings = await one(connection, SETTINGS)
            try:
                return settings, await one(connection, COLLATION)
            except (errors.UndefinedFunction, errors.UndefinedColumn):  # before 15
                return settings, {"recorded": None, "actual": None}

        settings, collation = await self._ask(node, work)
        return Planning(settings["settings"], (collation["recorded"], collation["actual"]))
