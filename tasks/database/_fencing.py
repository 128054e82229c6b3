"""Taking the right to write from a PostgreSQL node, and giving it back."""

from __future__ import annotations

from functools import partial

import psycopg
from psycopg import errors, sql

from tasks.database._reading import one
from tasks.database._session import Connection, NoConnection, ask, poll, said
from tasks.database._standing import Standing
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, Unreachable

RELOAD_S = 1.0
"""How long a reload may take; it is a signal and the reading of a file."""

END_OTHERS = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
  AND NOT (application_name = 'relight' AND usename = current_user)
"""
"""Every client connection but those of relight itself, whose probes never commit."""


class Fencing(Standing):
    """Means, strongest first: the process is ended by its host; its server is made read only by SQL.

    The second is weaker: a client may still say ``SET default_transaction_read_only = off``. It is used where no host
    command works, and by an orderly fence to bring writes to an end before the server is stopped.
    """

    async def quiesce(self, node: str) -> int:
        async def work(connection: Connection) -> int:
            if (await one(connection, "SELECT pg_is_in_recovery() AS yes"))["yes"]:
                raise Rejected(f"{node} is a replica: it takes no writes, and there is nothing to fence")
            await set_parameter(connection, "default_transaction_read_only", "on")
            # Sessions see the reloaded default from their next transaction on; what they have begun is ended with them.
            left = await poll(
                partial(_end_clients, connection), lambda pids: not pids, self._settings.query_timeout / 2
            )
            if left:
                raise Rejected(
                    f"clients of {node} do not end: process ids {', '.join(map(str, left))}. End them by hand."
                )
            return int((await one(connection, "SELECT pg_current_wal_insert_lsn() - '0/0' AS lsn"))["lsn"])

        try:
            return await ask(self._server(node), work)
        except errors.InsufficientPrivilege as e:
            raise Rejected(
                f"{node} cannot be fenced by SQL: {said(e)}. {self._settings.user} needs ALTER SYSTEM on"
                " default_transaction_read_only, pg_reload_conf and pg_signal_backend; sessions of superusers are"
                " only ended by one."
            ) from e
        except psycopg.Error as e:
            raise Rejected(f"{node} cannot be fenced by SQL: {said(e)}") from e

    async def fence(self, node: str, *, orderly: bool) -> str:
        """Order of means: host command ``stop`` (orderly) or ``kill``, then SQL. See the Protocol and the class."""
        seen = await self.view(node)
        if seen.reach == "answers" and seen.in_recovery:
            raise Rejected(f"{node} is a replica, not a primary: it takes no writes, and there is nothing to fence")
        failed: list[str] = []
        command = "stop" if orderly else "kill"
        try:
            await self._command(command, node)
            await self._gone(node)
            return f"host command {command}"
        except (Unreachable, Rejected, EffectUnknown, BadInput, NotYet) as e:
            failed.append(e.message)
        try:
            await self.quiesce(node)
            return f"default_transaction_read_only, clients ended ({failed[0]})"
        except NoConnection as e:
            if e.reach == "refused":
                return f"nothing listens there ({failed[0]})"
            failed.append(e.message)
        except (Unreachable, Rejected, EffectUnknown) as e:
            failed.append(e.message)
        raise Unreachable(
            f"no means fenced {node}: {'; '.join(failed)}. Cut its network, power it off, or make its host reachable.",
            node=node,
            failed=failed,
        )

    async def unfence(self, node: str) -> None:
        """Start the node if it is stopped and let it write again. Raises Rejected when it is no longer the newest
        primary, Unreachable, EffectUnknown.
        """
        before = await self._no_successor(node)
        if before.reach == "refused":
            # It comes up as it was stopped. A killed one was not made read only before, so look again who else writes.
            await self._command("start", node)
            await self._answers(node)
            before = await self._no_successor(node)
        if before.in_recovery is not False:
            raise Rejected(f"{node} is no primary ({before.why or 'it is in recovery'}), so it cannot be unfenced")

        async def work(connection: Connection) -> None:
            await reset_parameter(connection, "default_transaction_read_only", "off")

        try:
            await ask(self._server(node), work)
        except psycopg.Error as e:
            raise Rejected(f"{node} cannot be unfenced: {said(e)}") from e

    async def _command(self, command: str, node: str, *, timeout_s: float | None = None, **values: str) -> str:
        """Run a host command; its output. Raises Unreachable, Rejected (status not 0), EffectUnknown, BadInput."""
        hosts = self._hosts()
        if hosts is None or not hosts.knows(command):
            raise Rejected(f"there is no host command {command!r}")
        limit_s = self._settings.command_timeout if timeout_s is None else timeout_s
        ran = await hosts.run(command, node, timeout_s=limit_s, values=values or None)
        if ran.status != 0:
            raise Rejected(f"host command {command} for {node} ended with {ran.status}: {ran.stderr or ran.stdout}")
        return ran.stdout

    async def _gone(self, node: str) -> None:
        """Wait until nothing listens. Raises NotYet after ``query_timeout``."""
        seen = await poll(partial(self.view, node), lambda v: v.reach == "refused", self._settings.query_timeout)
        if seen.reach != "refused":
            raise NotYet(f"its host command ended well, but {node} is not gone: {seen.reach} {seen.why}")

    async def _answers(self, node: str) -> None:
        """Wait until queries are answered. Raises NotYet after ``command_timeout``."""
        limit_s = self._settings.command_timeout
        seen = await poll(partial(self.view, node), lambda v: v.in_recovery is not None, limit_s)
        if seen.in_recovery is None:
            raise NotYet(f"{node} was started, but takes no queries: {seen.reach} {seen.why}")


async def set_parameter(connection: Connection, name: str, value: str) -> None:
    """``ALTER SYSTEM SET``, reload, and wait until this session sees it.

    A backend sees a reload only after the postmaster has (it is the postmaster that passes the signal on), so every
    session that begins from then on has it too.
    """
    await connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    await _reload(connection, name, value)


async def reset_parameter(connection: Connection, name: str, expected: str) -> None:
    """``ALTER SYSTEM RESET``, reload, and wait until the value is ``expected``: where the configuration file says
    otherwise it never is, and the connection's time-out ends the wait.
    """
    await connection.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))
    await _reload(connection, name, expected)


async def _reload(connection: Connection, name: str, value: str) -> None:
    await connection.execute("SELECT pg_reload_conf()")

    async def now() -> str:
        return str((await one(connection, "SELECT current_setting(%s) AS now", name))["now"])

    found = await poll(now, lambda v: v == value, RELOAD_S)
    if found != value:
        # Without the values: a primary_conninfo may hold a password.
        raise Rejected(
            f"{name} is not as set by ALTER SYSTEM after a reload: something else sets it, look at pg_settings"
        )


async def _end_clients(connection: Connection) -> list[int]:
    """Process ids of the clients that were there, each told to end."""
    rows = await connection.execute(END_OTHERS)
    return [row["pid"] for row in await rows.fetchall()]
