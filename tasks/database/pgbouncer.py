"""PgBouncer through its admin console. Fulfils ``tasks.database.protocol.Pooler``, ``tasks.database._sizes.SizedPool``.

Behaviour relied on (pgbouncer.org/usage.html, "Admin console"): the console speaks the simple query protocol only;
``PAUSE db`` returns when every server connection of the database is released, and new queries wait from the moment
it is sent; ``RESUME db`` lets them go; ``SHOW DATABASES`` has a ``paused`` column, which is 1 from the moment that a
pause is asked for, so ``SHOW POOLS`` (``sv_active``) must tell whether a query is still under way. ``SET key = value``
lasts until the next restart or ``RELOAD``, which reads the file again. ``SHOW DATABASES`` has what is in force for a
database: ``min_pool_size``, ``pool_size`` (a user's), ``max_connections`` (of all users; 0 is no limit).
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from tasks.contract import in_thread
from tasks.database._inifile import write_settings
from tasks.database._pgbouncer_console import Console, PgBouncerSettings
from tasks.database._reading import one
from tasks.database._session import Broken, Connection, endpoint
from tasks.database._sizes import PoolLimits
from tasks.database.protocol import RoundTrip
from tasks.errors import EffectUnknown, NotYet, RelightError
from tasks.manual import secret
from tasks.variables import expand

WRITE = """
INSERT INTO relight_probe (id, nonce) VALUES (1, %(nonce)s)
ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, at = now()
"""
READ = """
SELECT (SELECT nonce FROM relight_probe WHERE id = 1) AS read_back, pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END AS timeline
"""


class PgBouncer(Console):
    """One PgBouncer a site."""

    Settings: ClassVar[type[BaseModel]] = PgBouncerSettings

    async def aclose(self) -> None:
        """Nothing is held open."""

    def psql(self, site: str, statement: str, *, console: bool) -> str:
        """See ``tasks.database.manual.PoolerByHand``."""
        host, port = endpoint(expand(self._settings.sites[site]))
        database = "pgbouncer" if console else self._settings.database
        words = [
            "psql",
            "-h",
            host,
            "-p",
            str(port),
            "-U",
            self._settings.user,
            "-d",
            database,
            "-XAt",
            "-c",
            statement,
        ]
        return f'PGCONNECT_TIMEOUT=2 PGPASSWORD="{secret(self._settings.password)}" {shlex.join(words)}'

    def name_of_database(self) -> str:
        return self._settings.database

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    async def paused(self, site: str) -> bool:
        """True when new queries are held and none is under way."""
        if str((await self._shown(site))["paused"]) != "1":
            return False
        pools = await self._say(site, "SHOW POOLS", self._settings.timeout)
        return not any(int(p["sv_active"]) for p in pools if p["database"] == self._settings.database)

    async def target(self, site: str) -> str:
        shown = await self._shown(site)
        return f"{shown['host']}:{shown['port']}"

    async def pause(self, site: str) -> None:
        """Bounded: when transactions do not end in time, the pause is taken back and NotYet raised."""
        try:
            await self._say(site, "PAUSE {}", self._settings.pause_timeout)
        except Broken as e:
            with contextlib.suppress(RelightError):  # the error that counts is that it could not pause
                await self.resume(site)
            raise NotYet(
                f"PgBouncer of {site}: transactions of {self._settings.database} did not end within"
                f" {self._settings.pause_timeout:g} s; the pause was taken back",
                site=site,
            ) from e

    async def resume(self, site: str) -> None:
        if str((await self._shown(site))["paused"]) == "1":
            await self._say(site, "RESUME {}", self._settings.timeout)

    async def round_trip(self, site: str, nonce: str) -> RoundTrip:
        """A client's view: the row is committed on one connection and read back on another."""

        async def write(connection: Connection) -> None:
            await connection.execute(WRITE, {"nonce": nonce})

        async def read(connection: Connection) -> dict[str, Any]:
            return await one(connection, READ)

        database, limit_s = self._settings.database, self._settings.round_trip_timeout
        await self._ask(site, database, write, limit_s)
        return RoundTrip(nonce, **await self._ask(site, database, read, limit_s))

    async def pool_limits(self, site: str) -> PoolLimits:
        shown = await self._shown(site)
        return PoolLimits(*(int(shown[k]) for k in ("min_pool_size", "pool_size", "max_connections")))

    async def set_pool_limits(self, site: str, limits: PoolLimits) -> str:
        """Settings of the whole PgBouncer: an entry in its ``[databases]`` that says otherwise still wins."""
        await self._shown(site)  # it answers, and it is the one that has our database
        values = {
            "min_pool_size": limits.minimum or 0,
            "default_pool_size": limits.size,
            "max_db_connections": limits.maximum,
        }
        try:
            if site in self._settings.config:
                path = Path(expand(self._settings.config[site]))
                await in_thread(lambda: write_settings(path, values))
                await self._say(site, "RELOAD", self._settings.timeout)
                return f"{path} and RELOAD"
            for key, value in values.items():
                await self._say(site, f"SET {key} = {value}", self._settings.timeout)
            return "SET: until PgBouncer is restarted or reloaded; name its file under config to make it last"
        except Broken as e:
            raise EffectUnknown(f"PgBouncer of {site}: its limits may have been set: {e.message}", site=site) from e


PROVIDER = PgBouncer
