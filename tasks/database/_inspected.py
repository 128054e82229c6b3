"""What a PostgreSQL server is set to, and what its host says of its backups. Reads only.

Sources: PostgreSQL 15 manual, 20.5 (WAL), 20.6 (replication), 54.24 (pg_settings), 28.2.9 (pg_stat_archiver).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from tasks.database._nodes import slot
from tasks.database._psql import ByPsql
from tasks.database._reading import one
from tasks.database._replicating import Replicating
from tasks.database._session import Connection, Row, endpoint
from tasks.database.protocol import Backed, Standing
from tasks.errors import Rejected
from tasks.hosts.protocol import ByHand

READ = (
    "fsync", "full_page_writes", "synchronous_commit", "wal_level", "wal_log_hints", "data_checksums", "hot_standby",
    "max_wal_senders", "max_replication_slots", "max_connections", "max_worker_processes", "max_prepared_transactions",
    "max_locks_per_transaction", "max_slot_wal_keep_size", "archive_mode", "shared_buffers",
)  # fmt: skip
QUERY = """
SELECT (SELECT json_object_agg(name, current_setting(name)) FROM pg_settings WHERE name = ANY(%s)) AS parameters,
       clock_timestamp() AS now, current_setting('server_version') AS version,
       (SELECT last_failed_time::text FROM pg_stat_archiver
        WHERE last_failed_time > coalesce(last_archived_time, '-infinity')) AS archive_failing
"""


class Inspected(ByPsql, Replicating):
    """Fulfils ``Inspected`` and ``BackedUp`` of ``tasks.database.protocol``, and ``tasks.database.manual.ByHand``."""

    async def standing(self, node: str) -> Standing:
        async def work(connection: Connection) -> Row:
            return await one(connection, QUERY, list(READ))

        row = await self._ask(node, work)
        return Standing(row["parameters"], row["now"], row["version"], row["archive_failing"] or "")

    def host_line(self, command: str, node: str) -> str | None:
        hosts = self._hosts()
        return hosts.line(command, node) if isinstance(hosts, ByHand) and hosts.knows(command) else None

    def slot_of(self, node: str) -> str:
        return slot(node)

    def address_for(self, node: str, site: str) -> tuple[str, str]:
        host, port = endpoint(self._address(node, site))
        return host, str(port)

    async def backed(self, node: str) -> Backed | None:
        """By host command ``backups``: ``{"completed_at": ISO 8601 | null, "restored_at": ISO 8601 | null}``."""
        hosts = self._hosts()
        if hosts is None or not hosts.knows("backups"):
            return None
        ran = await hosts.run("backups", node, timeout_s=self._settings.command_timeout)
        try:
            document = json.loads(ran.stdout) if ran.status == 0 else None
            if not isinstance(document, dict):
                raise ValueError("no JSON object")  # noqa: TRY004 - one kind of error for bad data
            return Backed(_moment(document.get("completed_at")), _moment(document.get("restored_at")))
        except (ValueError, TypeError) as e:
            got = (ran.stdout or ran.stderr)[-200:]
            raise Rejected(
                f'host command backups for {node}: expected {{"completed_at": …, "restored_at": …}} and status 0, got'
                f" {ran.status}: {got} ({e})"
            ) from e


def _moment(text: Any) -> datetime | None:
    if text is None:
        return None
    at = datetime.fromisoformat(str(text))
    return at if at.tzinfo else at.replace(tzinfo=UTC)
