"""Which version a PostgreSQL server runs, and which its host has installed. Fulfils ``_installed.Installed``.

Relied on (PostgreSQL manual): minor versions keep the data format, and an update is the new programs and a restart
(19.6, *Upgrading a PostgreSQL Cluster*); ``server_version`` is compiled into the running program (20.16).
"""

from __future__ import annotations

import json
from functools import partial

from tasks.database._installed import Version
from tasks.database._reading import one
from tasks.database._replicating import Replicating
from tasks.database._session import Connection, Row, Server, poll
from tasks.errors import NotYet, Rejected, SafetyRefusal

RUNNING = (
    "SELECT current_setting('server_version') AS version, pg_postmaster_start_time() AS started,"
    " pg_is_in_recovery() AS replica"
)


class Updating(Replicating):
    """The half that restarts standbys, and lends its way to a node to other domains."""

    def server(self, node: str) -> Server:
        """How to reach ``node``, for other domains that speak SQL to it."""
        return self._server(node)

    def replication(self) -> tuple[str, str | None]:
        """User for replication, and the reference to its password."""
        return self._settings.replication_user, self._settings.replication_password

    async def version(self, node: str) -> Version:
        """Host command ``version``: ``{"installed": "15.18 …", "replaced": bool}``, as ``postgres --version`` says."""
        row = await self._ask(node, self._running_version)
        said = await self._command("version", node)
        try:
            document = json.loads(said)
            installed, replaced = str(document["installed"]), bool(document["replaced"])
        except (ValueError, TypeError, KeyError) as e:
            raise Rejected(
                f'host command version for {node}: expected {{"installed": …, "replaced": …}}, got {said[-200:]!r}'
            ) from e
        return Version(str(row["version"]), installed, row["started"], replaced=replaced)

    async def restart_standby(self, node: str) -> None:
        """By host commands ``stop`` and ``start``; its role is looked at right before."""
        before = await self.view(node)
        if before.reach == "answers":
            if before.in_recovery is not True:
                raise SafetyRefusal(f"{node} is no standby ({before.why or 'it is a primary'}); it is not restarted")
            await self._command("stop", node)
            await self._gone(node)
        elif (await self._status(node)).get("in_recovery_signal") is not True:
            # an earlier attempt may have died between the two; anything else is not ours to start
            raise SafetyRefusal(f"{node} does not answer and its host does not say that it is a standby")
        await self._command("start", node)
        await self._answers(node)
        after = await poll(partial(self.view, node), lambda v: bool(v.streaming), self._settings.command_timeout)
        if not after.streaming:
            raise NotYet(f"{node} was restarted and does not stream yet from {after.upstream or 'anybody'}")

    async def _running_version(self, connection: Connection) -> Row:
        return await one(connection, RUNNING)
