"""The admin console of one PgBouncer a site, and connections through it.

Source: pgbouncer(1), *Admin console*.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import Surroundings
from tasks.database._session import Connection, NoConnection, Server, ask, said
from tasks.errors import BadInput, Rejected, Unreachable
from tasks.quantities import Duration
from tasks.secrets import SecretRef
from tasks.variables import expand

T = TypeVar("T")


class PgBouncerSettings(BaseModel):
    """``sites``: site -> ``host:port`` of its PgBouncer. ``user`` is one of its admin_users. ``config``: site -> its
    pgbouncer.ini, where the engine can write it: limits then outlast a restart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str
    user: str
    password: SecretRef
    sites: dict[str, str] = Field(min_length=1)
    config: dict[str, str] = Field(default_factory=dict)
    timeout: Duration = 2.0
    pause_timeout: Duration = 5.0
    round_trip_timeout: Duration = 3.0


class Console:
    """What every command of a PgBouncer goes through."""

    def __init__(self, settings: PgBouncerSettings, around: Surroundings) -> None:
        self._settings, self._name = settings, around.component

    async def _shown(self, site: str) -> dict[str, Any]:
        rows = await self._say(site, "SHOW DATABASES", self._settings.timeout)
        found = next((r for r in rows if r["name"] == self._settings.database), None)
        if found is None:
            known = ", ".join(str(r["name"]) for r in rows)
            raise BadInput(f"PgBouncer of {site} has no database {self._settings.database!r}; it has {known}")
        return found

    async def _say(self, site: str, command: str, timeout_s: float) -> list[dict[str, Any]]:
        """A command of the admin console, ``{}`` in it being the database. Broken when its answer does not come."""

        async def work(connection: Connection) -> list[dict[str, Any]]:
            cursor = psycopg.AsyncClientCursor(connection, row_factory=dict_row)
            text = sql.SQL(command).format(*([sql.Identifier(self._settings.database)] if "{}" in command else []))
            await cursor.execute(text)
            return list(await cursor.fetchall()) if cursor.description else []

        return await self._ask(site, "pgbouncer", work, timeout_s)

    async def _ask(self, site: str, database: str, work: Callable[[Connection], Awaitable[T]], timeout_s: float) -> T:
        if site not in self._settings.sites:
            raise BadInput(f"component {self._name} has no PgBouncer in site {site!r}")
        address = expand(self._settings.sites[site])
        server = Server(
            label=f"PgBouncer of {site} ({address})",
            address=address,
            database=database,
            user=self._settings.user,
            password=self._settings.password,
            connect_timeout_s=self._settings.timeout,
            query_timeout_s=timeout_s,
        )
        try:
            return await ask(server, work)
        except NoConnection as e:
            raise Unreachable(e.message, site=site) from e
        except psycopg.Error as e:
            if "server_login_retry" in str(
                e
            ):  # it waits between two tries; a server that was promoted just now is there
                raise Unreachable(f"{server.label}: {said(e)}", site=site) from e
            raise Rejected(f"{server.label} refused: {said(e)}") from e
