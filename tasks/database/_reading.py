"""What a PostgreSQL node says of itself. Everything here only reads, or rolls back what it writes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from tasks.database import _durability as durability
from tasks.database._nodes import DIRECT, Nodes
from tasks.database._session import Broken, Connection, NoConnection, Row, ask, said
from tasks.database.protocol import Durability, NodeView, Standby, WriteProbe
from tasks.errors import EffectUnknown, Rejected, RelightError, Unreachable

T = TypeVar("T")

NOTE = 2
"""Row of relight_probe in which a primary notes what it promises; row 1 is for committed probes."""

VIEW = """
SELECT r.yes AS in_recovery,
       current_setting('default_transaction_read_only')::boolean AS read_only,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       CASE WHEN r.yes
            THEN greatest(
                (SELECT timeline_id FROM pg_control_checkpoint()),
                (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                w.received_tli,
                (SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_waldir()
                 WHERE name ~ '^[0-9A-F]{24}$'))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END AS timeline,
       CASE WHEN r.yes THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_insert_lsn() END - '0/0' AS lsn,
       CASE WHEN r.yes THEN pg_last_wal_replay_lsn() - '0/0' END AS replayed_lsn,
       pg_last_xact_replay_timestamp() AS last_commit_at,
       (SELECT setting FROM pg_settings WHERE name = 'primary_conninfo') AS conninfo,
       w.pid AS receiver, w.status, w.sender_host, w.sender_port, w.latest_end_lsn - '0/0' AS upstream_lsn,
       extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time)::float8 AS heard_age_s
FROM (SELECT pg_is_in_recovery() AS yes) r LEFT JOIN pg_stat_wal_receiver w ON true
"""
# Timeline of a replica: the control file has that of its last restart point, which may be an old one. Whoever
# received a byte of a newer timeline has a WAL file of it, whether the receiver still runs or not.


class Reading(Nodes):
    """The read-only half of ``tasks.database.protocol.Database``."""

    async def view(self, node: str, vantage: str | None = None) -> NodeView:
        """See the Protocol. A server that is starting up or shutting down (SQLSTATE 57P03), or lets nobody in,
        ``answers`` with ``in_recovery`` None and the reason in ``why``: something lives there.
        """
        site = self.site_of(node)
        try:
            row = await ask(self._server(node, vantage), _view)
        except NoConnection as e:
            return NodeView(node, site, e.reach, why=e.why)
        except Broken as e:
            return NodeView(node, site, "silent", why=e.message)
        except psycopg.Error as e:
            return NodeView(node, site, "answers", why=said(e))
        return self._as_view(node, row)

    def _as_view(self, node: str, row: Row) -> NodeView:
        replica, age_s = bool(row["in_recovery"]), row["heard_age_s"]
        streaming: bool | None = None
        if replica and (row["receiver"] is None or row["status"] is not None):
            streaming = row["status"] == "streaming" and age_s is not None and age_s <= self._settings.stale_after
        sender = self._named(row["sender_host"], row["sender_port"]) if row["status"] == "streaming" else None
        return NodeView(
            node,
            self.site_of(node),
            "answers",
            in_recovery=replica,
            # A replica refuses writes by being one; the setting says something only of a primary.
            read_only=None if replica else row["read_only"],
            system_identifier=row["system_identifier"],
            timeline=row["timeline"],
            lsn=_int(row["lsn"]),
            replayed_lsn=_int(row["replayed_lsn"]),
            last_commit_at=row["last_commit_at"] if replica else None,
            upstream=(sender or self._upstream(row["conninfo"])) if replica else None,
            streaming=streaming,
            heard_age_s=age_s,
            upstream_lsn=_int(row["upstream_lsn"]),
        )

    async def live_durability(self, node: str) -> Durability:
        async def work(connection: Connection) -> Row:
            return await one(
                connection,
                "SELECT current_setting('synchronous_standby_names') AS names,"
                " current_setting('synchronous_commit') AS commit",
            )

        row = await self._ask(node, work)
        return durability.parse(row["names"], row["commit"])

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        """A row is inserted, a transaction id assigned, and all rolled back: it proves that writes are taken, leaves
        nothing, and unlike a commit cannot hang where a synchronous standby is away. Each probe has its own key, so
        that no other transaction can block it.

        Only SQLSTATE 25006 (read_only_sql_transaction) is ``refused``: a missing table or grant proves nothing.
        """
        server = self._server(node, vantage)

        def probe(outcome: Any, detail: str) -> WriteProbe:
            return WriteProbe(vantage, node, outcome, detail, server.address)

        try:
            txid = await ask(server, _write)
        except NoConnection as e:
            return probe("gone" if e.reach == "refused" else "silent", e.why)
        except Broken as e:
            return probe("silent", e.message)
        except errors.ReadOnlySqlTransaction as e:
            return probe("refused", said(e))
        except psycopg.Error as e:
            return probe("silent", f"{said(e)} (SQLSTATE {e.sqlstate}); that proves nothing")
        return probe("accepted", f"transaction {txid} was begun, and rolled back")

    async def ask_host(self, node: str) -> WriteProbe | None:
        hosts = self._hosts()
        if hosts is None or not hosts.knows("status"):
            return None
        address = f"host of {node}"
        try:
            running = await self._running(node)
        except RelightError as e:
            return WriteProbe("host", node, "silent", e.message, address)
        if running:
            return WriteProbe("host", node, "runs", "its host says that its process runs", address)
        return WriteProbe("host", node, "gone", "its host says that no process of it runs", address)

    async def _running(self, node: str) -> bool:
        """What host command ``status`` says. Raises Unreachable, Rejected, EffectUnknown."""
        return bool((await self._status(node))["running"])

    async def _status(self, node: str) -> dict[str, Any]:
        hosts = self._hosts()
        if hosts is None or not hosts.knows("status"):
            raise Rejected(f"there is no host command 'status' to ask for {node}")
        ran = await hosts.run("status", node, timeout_s=self._settings.query_timeout)
        try:
            document = json.loads(ran.stdout) if ran.status == 0 else None
        except json.JSONDecodeError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("running"), bool):
            got = (ran.stdout or ran.stderr)[-200:]
            raise Rejected(
                f'host command status for {node}: expected {{"running": …}} and status 0, got {ran.status}: {got}'
            )
        return document

    async def standbys(self, node: str) -> tuple[Standby, ...]:
        async def work(connection: Connection) -> list[Row]:
            found = await connection.execute(
                "SELECT application_name, state, sync_state, flush_lsn - '0/0' AS flush_lsn FROM pg_stat_replication"
                " ORDER BY 1"
            )
            return await found.fetchall()

        rows = await self._ask(node, work)
        return tuple(
            Standby(r["application_name"], r["state"] or "", r["sync_state"] or "", _int(r["flush_lsn"])) for r in rows
        )

    async def promised(self, node: str) -> tuple[str, Durability] | None:
        async def work(connection: Connection) -> Row | None:
            found = await connection.execute("SELECT nonce FROM relight_probe WHERE id = %s", (NOTE,))
            return await found.fetchone()

        try:
            row = await ask(self._server(node), work)
        except (errors.UndefinedTable, errors.InsufficientPrivilege):
            return None
        except psycopg.Error as e:
            raise Unreachable(f"{node} does not tell what it promises: {said(e)}") from e
        try:
            note = json.loads(row["nonce"]) if row else None
            return (str(note["primary"]), durability.parse(str(note["synchronous"]))) if note else None
        except (ValueError, TypeError, KeyError):
            return None  # somebody else's row: it promises nothing

    async def _ask(self, node: str, work: Callable[[Connection], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """``ask`` at the node, for reading: where the answer is lost nothing changed, so that is Unreachable too."""
        try:
            return await ask(self._server(node, DIRECT), work, timeout_s=timeout_s)
        except EffectUnknown as e:
            raise Unreachable(e.message) from e
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; grant it to {self._settings.user}") from e
        except psycopg.Error as e:
            raise Unreachable(f"{node}: {said(e)}") from e


async def one(connection: Connection, query: str, *values: Any) -> Row:
    """The one row of a query."""
    row = await (await connection.execute(query, values or None)).fetchone()
    if row is None:
        raise Rejected("a query that always gives a row gave none")
    return row


async def _view(connection: Connection) -> Row:
    return await one(connection, VIEW)


async def _write(connection: Connection) -> int:
    key = -1 - secrets.randbelow(2**31 - 2)
    async with connection.transaction(force_rollback=True):
        await connection.execute("INSERT INTO relight_probe (id, nonce) VALUES (%s, 'rolled back')", (key,))
        return int((await one(connection, "SELECT txid_current() AS txid"))["txid"])


def _int(value: Any) -> int | None:
    return None if value is None else int(value)
