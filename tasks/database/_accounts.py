"""What a PostgreSQL server knows of its roles: what they may do, what they hold, and what shows that one was used.

The catalogs are those of PostgreSQL 13 to 18 (manual, *System Catalogs*). ``pg_shdepend`` has, for every database of
the cluster, what a role owns (deptype ``o``) and where a grant or a policy names it; what the bootstrap superuser owns
is not in it. A server keeps no date of a login, of a password, nor of a grant that was used. What it does have: who is
connected now, and in ``pg_stat_statements`` whose statements were counted since it was reset (``dealloc``: entries that
were thrown out meanwhile).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from psycopg import errors

from tasks.database._session import Connection, said

STRONG = (
    "pg_execute_server_program",
    "pg_read_all_data",
    "pg_read_server_files",
    "pg_write_all_data",
    "pg_write_server_files",
    "rds_superuser",
)
"""Roles that come with the server and give everything away, or all of the data (manual, *Predefined Roles*)."""


@dataclass(frozen=True)
class Role:
    """One role. ``quoted``: its name as SQL writes it.

    Attributes:
        powers: SUPERUSER, CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS, as far as it has them.
        bootstrap: the superuser that initdb made, which nobody can drop.
        valid_until: of its password; None: no end.
        owns, granted: objects that it owns, and that a grant or a policy gives it, in all databases of the cluster.
        member_of: roles that it is a member of itself.
        reaches: superusers and ``STRONG`` roles that it is a member of, however indirectly.
        members: roles that are members of it.
        connected: sessions now.
        counted: statements of it are counted; None: nobody counts any.
    """

    name: str
    quoted: str
    login: bool
    powers: tuple[str, ...]
    bootstrap: bool
    valid_until: datetime | None
    owns: int
    granted: int
    member_of: tuple[str, ...]
    reaches: tuple[str, ...]
    members: int
    connected: int
    counted: bool | None = None

    @property
    def holds_nothing(self) -> bool:
        return not (self.powers or self.owns or self.granted or self.member_of or self.members)


@dataclass(frozen=True)
class Accounts:
    """Of one node. ``since``: when it began to count statements, None where it does not; ``lost``: entries thrown out.

    Attributes:
        log_connections: the server's setting, as it writes it.
        missing: what could not be read -> why.
    """

    node: str
    replica: bool
    roles: tuple[Role, ...]
    since: datetime | None
    lost: int | None
    log_connections: str
    missing: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Accounted(Protocol):
    """A database that says who may do what in it."""

    def nodes(self, site: str | None = None) -> tuple[str, ...]: ...

    async def accounts(self, node: str) -> Accounts:
        """Read-only. What the account may not see is in ``missing``. Raises Unreachable, Rejected."""
        ...


ROLES = """
SELECT r.oid::bigint AS id, r.rolname AS name, quote_ident(r.rolname) AS quoted, r.rolcanlogin AS login,
       array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
                          CASE WHEN r.rolcreatedb THEN 'CREATEDB' END,
                          CASE WHEN r.rolreplication THEN 'REPLICATION' END,
                          CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END], NULL) AS powers,
       r.oid = 10 AS bootstrap,
       CASE WHEN isfinite(r.rolvaliduntil) THEN r.rolvaliduntil END AS valid_until,
       (SELECT count(*) FROM pg_shdepend d
        WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o') AS owns,
       (SELECT count(*) FROM pg_shdepend d
        WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype <> 'o') AS granted,
       ARRAY(SELECT p.rolname::text FROM pg_auth_members m JOIN pg_roles p ON p.oid = m.roleid
             WHERE m.member = r.oid ORDER BY 1) AS member_of,
       ARRAY(SELECT p.rolname::text FROM pg_roles p
             WHERE p.oid <> r.oid AND (p.rolsuper OR p.rolname = ANY (%s)) AND NOT r.rolsuper
               AND pg_has_role(r.oid, p.oid, 'MEMBER') ORDER BY 1) AS reaches,
       (SELECT count(*) FROM pg_auth_members m WHERE m.roleid = r.oid) AS members,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid) AS connected
FROM pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY r.rolname
"""
SERVER = """
SELECT pg_is_in_recovery() AS replica, current_setting('log_connections') AS log_connections,
       current_setting('pg_stat_statements.track', true) AS track
"""
COUNTED = "SELECT DISTINCT userid::bigint AS id FROM pg_stat_statements"
COUNTED_SINCE = "SELECT stats_reset AS since, dealloc AS lost FROM pg_stat_statements_info"


async def read(connection: Connection, node: str) -> Accounts:
    """Everything above, of the server at the other end of ``connection``."""
    await connection.execute("SET default_transaction_read_only = on")
    server = await (await connection.execute(SERVER)).fetchone() or {}
    rows = await (await connection.execute(ROLES, [list(STRONG)])).fetchall()
    missing: dict[str, str] = {}
    counted: set[int] | None = None
    since, lost = None, None
    try:
        counted = {row["id"] for row in await (await connection.execute(COUNTED)).fetchall()}
        about = await (await connection.execute(COUNTED_SINCE)).fetchone() or {}
        since, lost = about.get("since"), about.get("lost")
    except (errors.UndefinedTable, errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState) as e:
        missing["statements"] = said(e)
    except errors.QueryCanceled as e:
        missing["statements"] = said(e)
    if counted is not None and server["track"] == "none":
        counted, missing["statements"] = None, "pg_stat_statements.track is none"
    roles = []
    for row in rows:
        number = row.pop("id")
        for name in ("powers", "member_of", "reaches"):
            row[name] = tuple(row[name])
        roles.append(Role(**row, counted=None if counted is None else number in counted))
    return Accounts(node, server["replica"], tuple(roles), since, lost, server["log_connections"], missing)
