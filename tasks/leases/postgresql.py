"""The lease as one row of a table in a PostgreSQL database; each change is one UPDATE … WHERE the old record.

The row's age comes from the server's clock. A commit is durable before it is answered only as far as the server is:
see ``docs/leases.md`` on which database to use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import Surroundings
from tasks.database import _session as session
from tasks.errors import LostCompare, Rejected, Unreachable
from tasks.leases.protocol import Held
from tasks.quantities import Duration
from tasks.secrets import SecretRef
from tasks.variables import expand

T = TypeVar("T")


class PostgresLeaseSettings(BaseModel):
    """As in ``docs/leases.md``. The database belongs in neither of the sites that a run moves between."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    """``host:port``; of the server itself: a pooler in transaction mode works too."""
    database: str = "postgres"
    user: str = "relight"
    password: SecretRef | None = None
    sslmode: str = "prefer"
    table: str = Field("relight_lease", pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    """Made when it is missing."""
    connect_timeout: Duration = 2.0
    query_timeout: Duration = 2.0
    ttl: Duration = Field(default=10.0, ge=1.0)


class PostgresLease:
    """Fulfils ``tasks.leases.protocol.LeaseStore``."""

    Settings: ClassVar[type[BaseModel]] = PostgresLeaseSettings

    def __init__(self, settings: PostgresLeaseSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component, self._system = around.component, around.system

    @property
    def ttl_s(self) -> float:
        return self._settings.ttl

    @property
    def where(self) -> str:
        return f"{self._component}: table {self._settings.table} at {expand(self._settings.address)}"

    async def read(self) -> tuple[Held | None, float | None]:
        query = sql.SQL(
            "SELECT record, extract(epoch FROM clock_timestamp() - written_at)::float8 AS age_s"
            " FROM {} WHERE system = %s"
        )

        async def work(connection: session.Connection) -> session.Row | None:
            return await (await connection.execute(self._of(query), (self._system,))).fetchone()

        try:
            row = await self._ask(work)
        except session.Broken as e:
            raise Unreachable(str(e)) from e
        except psycopg.errors.UndefinedTable:
            return None, None
        if row is None:
            return None, None
        # a clock that was set back makes a record young, never old
        return Held.decode(row["record"], self.where), max(0.0, float(row["age_s"]))

    async def swap(self, old: Held | None, new: Held) -> None:
        text = new.encode()
        insert = "INSERT INTO {} (system, record) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        update = "UPDATE {} SET record = %s, written_at = clock_timestamp() WHERE system = %s AND record = %s"

        async def work(connection: session.Connection) -> int:
            if old is None:
                await self._make_table(connection)
                done = await connection.execute(self._of(sql.SQL(insert)), (self._system, text))
            else:
                done = await connection.execute(self._of(sql.SQL(update)), (text, self._system, old.encode()))
            return done.rowcount

        try:
            written = await self._ask(work)
        except psycopg.errors.UndefinedTable:
            written = 0
        if written != 1:
            raise LostCompare(f"{self.where} is not what it was; it was written in between")

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    async def _make_table(self, connection: session.Connection) -> None:
        # looked for first: CREATE needs a right on the schema even where the table is there
        found = await connection.execute("SELECT to_regclass(%s) AS made", (self._settings.table,))
        row = await found.fetchone()
        if row is not None and row["made"] is not None:
            return
        made = sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (system text PRIMARY KEY, record text NOT NULL,"
            " written_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        try:
            await connection.execute(self._of(made))
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
            return  # somebody made it at the same moment, which IF NOT EXISTS does not see

    def _of(self, statement: sql.SQL) -> sql.Composed:
        return statement.format(sql.Identifier(self._settings.table))

    async def _ask(self, work: Callable[[session.Connection], Awaitable[T]]) -> T:
        """Raises Unreachable, EffectUnknown, Rejected, and UndefinedTable."""
        settings = self._settings
        server = session.Server(
            label=self.where,
            address=expand(settings.address),
            database=settings.database,
            user=settings.user,
            password=settings.password,
            connect_timeout_s=settings.connect_timeout,
            query_timeout_s=settings.query_timeout,
            sslmode=settings.sslmode,
            application_name="relight-lease",
        )
        try:
            return await session.ask(server, work)
        except psycopg.errors.UndefinedTable:
            raise
        except psycopg.Error as e:
            raise Rejected(
                f"{self.where}: {session.said(e)}. Check the grants in docs/leases.md.", code=e.sqlstate
            ) from e


PROVIDER = PostgresLease
