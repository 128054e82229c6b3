"""Promotion, and who replicates from whom."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasks.database import _durability as durability
from tasks.database._fencing import Fencing, reset_parameter, set_parameter
from tasks.database._nodes import slot
from tasks.database._reading import NOTE, one
from tasks.database._session import Connection, ask, poll, said
from tasks.database.protocol import Durability, NodeView
from tasks.errors import BadInput, Contradiction, EffectUnknown, NotYet, Rejected, Unreachable
from tasks.secrets import resolve

HISTORY = (
    "SELECT convert_from(pg_read_binary_file('pg_wal/' || lpad(to_hex(%s::int), 8, '0') || '.history'), 'UTF8') AS text"
)


class Replicating(Fencing):
    """See ``tasks.database.protocol.Database``."""

    async def promote(self, node: str) -> None:
        """``pg_promote(false)`` and a poll every 10 ms (``wait => true`` looks only every 100 ms).

        Availability goes before durability here: where fewer of the standbys that the node's own
        ``synchronous_standby_names`` asks for are alive than it needs, commits would hang for ever, so it is emptied.
        ``set_durability`` (action database.protect) puts it back once the other site is a standby again.
        """
        others = [n for n in self.nodes() if n != node]
        views = dict(zip(others, await asyncio.gather(*(self.view(n) for n in others)), strict=True))

        async def work(connection: Connection) -> None:
            await self._check_promotable(connection, node, views)
            wanted = await _promise(connection)
            alive = [s for s in wanted.standbys if s in views and views[s].in_recovery]
            if wanted.method != "async" and len(alive) < wanted.needed:
                await set_parameter(connection, "synchronous_standby_names", "")
                wanted = durability.ASYNC
            if (await one(connection, "SELECT current_setting('default_transaction_read_only') AS now"))["now"] == "on":
                await reset_parameter(connection, "default_transaction_read_only", "off")  # came with a base backup
            if not (await one(connection, "SELECT pg_promote(false) AS sent"))["sent"]:
                raise Rejected(f"{node}: pg_promote could not signal the server; look at its log")

            async def recovering() -> bool:
                return bool((await one(connection, "SELECT pg_is_in_recovery() AS yes"))["yes"])

            if await poll(recovering, lambda yes: not yes, self._settings.promote_timeout):
                raise EffectUnknown(
                    f"{node} was told to promote itself and is still in recovery after"
                    f" {self._settings.promote_timeout:g} s; it may still become a primary. Look at its log."
                )
            await _note(connection, node, wanted)

        limit_s = self._settings.promote_timeout + self._settings.query_timeout
        try:
            await ask(self._server(node), work, timeout_s=limit_s)
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node} cannot be promoted: {said(e)}; grant it to {self._settings.user}") from e
        except psycopg.Error as e:
            raise EffectUnknown(f"promotion of {node}: {said(e)}") from e

    async def _check_promotable(self, connection: Connection, node: str, views: dict[str, NodeView]) -> None:
        """Identity and role, read on the very connection that will promote."""
        row = await one(
            connection,
            "SELECT pg_is_in_recovery() AS replica, (SELECT system_identifier::text FROM pg_control_system()) AS id",
        )
        if not row["replica"]:
            raise Rejected(f"{node} is no replica any more; observe again before anything else is done")
        strangers = [n for n, v in views.items() if v.system_identifier not in (None, row["id"])]
        if strangers:
            raise Contradiction(
                f"{node} has system identifier {row['id']}, but {', '.join(strangers)} another one: these are not the"
                " same database. Check the addresses in the system file."
            )
        writing = [n for n, v in views.items() if v.in_recovery is False and not v.read_only]
        if writing:
            raise Contradiction(f"{', '.join(writing)} takes writes as primary; {node} is not promoted beside it")

    async def set_durability(self, node: str, wanted: Durability) -> None:
        """Notes "asynchronous" before the change and ``wanted`` after it is in force: a note never promises more
        than the server does, at whichever record of the WAL a standby stops.
        """

        async def work(connection: Connection) -> None:
            if (await one(connection, "SELECT pg_is_in_recovery() AS yes"))["yes"]:
                raise Rejected(f"{node} is a replica; what it promises is set when it is the primary")
            await _note(connection, node, durability.ASYNC)
            await set_parameter(connection, "synchronous_standby_names", durability.show(wanted))
            if wanted.method == "async":
                return

            async def confirming() -> int:
                row = await one(
                    connection,
                    "SELECT count(*) AS n FROM pg_stat_replication WHERE state = 'streaming'"
                    " AND sync_state IN ('sync', 'quorum')",
                )
                return int(row["n"])

            found = await poll(confirming, lambda n: n >= wanted.needed, self._settings.query_timeout / 2)
            if found < wanted.needed:
                raise NotYet(
                    f"{node} waits for {wanted.needed} of {', '.join(wanted.standbys)} now, and {found} stream: commits"
                    " there hang until they do. Bring the standbys back."
                )
            await _note(connection, node, wanted)

        try:
            await ask(self._server(node), work)
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; grant it to {self._settings.user}") from e
        except psycopg.Error as e:
            raise EffectUnknown(f"synchronous_standby_names of {node}: {said(e)}") from e

    async def follow(self, node: str, upstream: str) -> None:
        """``primary_conninfo`` and ``primary_slot_name`` by ALTER SYSTEM and a reload, which restarts the WAL receiver
        (PostgreSQL 13 and newer). What the replica's conninfo says otherwise (passfile, TLS) is kept.
        """
        source = await self._one_primary(upstream, but=node)
        await self._slot(upstream, node)

        async def work(connection: Connection) -> None:
            row = await one(
                connection,
                "SELECT pg_is_in_recovery() AS replica,"
                " (SELECT system_identifier::text FROM pg_control_system()) AS id,"
                " (SELECT setting FROM pg_settings WHERE name = 'primary_conninfo') AS conninfo,"
                " current_setting('default_transaction_read_only') AS read_only",
            )
            if not row["replica"]:
                raise Rejected(f"{node} is no replica; bring it back with database.rejoin")
            if row["id"] != source.system_identifier:
                raise Contradiction(
                    f"{node} is another database than {upstream}: system identifier {row['id']}, expected"
                    f" {source.system_identifier}. Nothing was changed."
                )
            if row["read_only"] == "on":
                await reset_parameter(connection, "default_transaction_read_only", "off")
            await set_parameter(connection, "primary_slot_name", slot(node))
            await set_parameter(connection, "primary_conninfo", self._conninfo(node, upstream, row["conninfo"]))

        try:
            await ask(self._server(node), work)
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; grant it to {self._settings.user}") from e
        except psycopg.Error as e:
            raise EffectUnknown(f"{node} was to follow {upstream}: {said(e)}") from e

    def _conninfo(self, node: str, upstream: str, existing: str | None) -> str:
        kept = {k: str(v) for k, v in conninfo_to_dict(existing or "").items() if k != "hostaddr" and v is not None}
        host, _, port = self._address(upstream, self.site_of(node)).rpartition(":")
        reference = self._settings.replication_password
        if not {"password", "passfile"} & set(kept) and reference is not None:
            kept["password"] = resolve(reference).get_secret_value()
        ours = {"host": host, "port": port, "user": self._settings.replication_user, "application_name": node}
        return make_conninfo(**{**kept, **ours})

    async def _slot(self, upstream: str, node: str) -> None:
        """A physical slot for ``node``, so that its WAL is kept while it is away."""

        async def work(connection: Connection) -> None:
            await connection.execute(
                "SELECT pg_create_physical_replication_slot(%(name)s) WHERE NOT EXISTS"
                " (SELECT FROM pg_replication_slots WHERE slot_name = %(name)s)",
                {"name": slot(node)},
            )

        try:
            await ask(self._server(upstream), work)
        except errors.DuplicateObject:
            return  # somebody else was faster
        except errors.InsufficientPrivilege as e:
            raise Rejected(f"{upstream}: {said(e)}; {self._settings.user} needs REPLICATION") from e
        except psycopg.Error as e:
            raise EffectUnknown(f"replication slot {slot(node)} on {upstream}: {said(e)}") from e

    async def rejoin(self, node: str, upstream: str) -> str:
        """Least destructive first: follow (it runs), start and follow (stopped), pg_rewind, a fresh copy.

        The text says how, and what of the node's own is discarded by it. Raises Contradiction when ``upstream`` is not
        the one primary or ``node`` still takes writes, Rejected with every reason when no means worked.
        """
        source = await self._one_primary(upstream, but=node)
        before = await self.view(node)
        self._check_expendable(before, source)
        if before.reach == "silent" or (before.reach == "answers" and before.in_recovery is None):
            raise Unreachable(f"{node} can neither follow nor be stopped: {before.reach} {before.why}. Kill it first.")
        diverged = await self._diverged(before, source)
        await self._slot(upstream, node)  # a standby that starts without it never gets its WAL
        failed: list[str] = []
        standby = before.in_recovery is True
        if before.reach == "refused" and (await self._status(node)).get("in_recovery_signal") is True:
            try:
                await self._command("start", node)
                await self._answers(node)
                standby = True
            except (Rejected, EffectUnknown, NotYet) as e:
                failed.append(e.message)
        if standby:
            why = await self._streams(node, source)
            if why is None:
                return "start" if before.reach == "refused" else "follow"
            failed.append(why)
            diverged = await self._diverged(await self.view(node), source) or diverged
        if (await self.view(node)).reach != "refused":
            await self._command("stop", node)
            await self._gone(node)
        for command in ("rewind", "copy"):
            await self._one_primary(upstream, but=node)
            try:
                await self._command(command, node, timeout_s=self._settings.rejoin_timeout, upstream=upstream)
                await self._answers(node)
            except (Rejected, NotYet, BadInput) as e:
                failed.append(e.message)
                continue
            why = await self._streams(node, source)
            if why is None:
                after = f" (after: {'; '.join(failed)})" if failed else ""
                return f"{command}{after}; {diverged or 'how much it had diverged is not known, it was stopped'}"
            failed.append(why)
            await self._command("stop", node)
            await self._gone(node)
        raise Rejected(f"{node} could not be brought back: {'; '.join(failed)}", node=node, failed=failed)

    async def _diverged(self, node: NodeView, source: NodeView) -> str:
        """What ``node`` holds that ``source`` does not, in words; empty when nothing tells."""
        if node.lsn is None or node.timeline is None or source.timeline is None:
            return ""
        if node.timeline == source.timeline:
            return "it has not diverged"

        async def work(connection: Connection) -> str:
            return str((await one(connection, HISTORY, source.timeline))["text"])

        try:
            history = await ask(self._server(source.node), work)
        except (psycopg.Error, Unreachable, EffectUnknown):
            return ""
        for line in history.splitlines():
            timeline, _, rest = line.partition("\t")
            if timeline.strip() == str(node.timeline):
                fork = rest.split("\t")[0]
                high, _, low = fork.partition("/")
                beyond = node.lsn - ((int(high, 16) << 32) + int(low, 16))
                if beyond <= 0:
                    return f"it has not diverged from timeline {node.timeline}, which ended at {fork}"
                return f"{beyond} bytes that it wrote on timeline {node.timeline} after {fork} are discarded"
        return ""

    async def _streams(self, node: str, source: NodeView) -> str | None:
        """Point it at ``source`` and wait until it streams on that one's timeline. None, or why it does not.

        The timeline counts: the WAL receiver asks from the start of a segment, so a node that has diverged streams
        too, on its old timeline, until it is sent the end of that and fails.
        """
        try:
            await self.follow(node, source.node)
        except (Rejected, Unreachable, EffectUnknown) as e:
            return e.message

        def good(view: NodeView) -> bool:
            return bool(view.streaming) and view.upstream == source.node and view.timeline == source.timeline

        seen = await poll(partial(self.view, node), good, 2 * self._settings.stale_after)
        if good(seen):
            return None
        return (
            f"{node} follows {source.node} and does not stream on its timeline {source.timeline}"
            f" (it is on {seen.timeline}, at LSN {seen.lsn})"
        )


async def _promise(connection: Connection) -> Durability:
    row = await one(connection, "SELECT current_setting('synchronous_standby_names') AS names")
    return durability.parse(row["names"])


async def _note(connection: Connection, node: str, promise: Durability) -> None:
    """Write into the replicated data what ``node`` promises, waiting for no standby. Without relight_probe nothing is
    noted, and a later measurement of loss relies on what the system file declares.
    """
    text = json.dumps({"primary": node, "synchronous": durability.show(promise)})
    query = sql.SQL(
        "INSERT INTO relight_probe (id, nonce) VALUES ({id}, {text})"
        " ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, at = now()"
    ).format(id=NOTE, text=sql.Literal(text))
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = local")
            await connection.execute(query)
    except errors.UndefinedTable:
        return
