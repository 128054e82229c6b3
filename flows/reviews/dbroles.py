"""Permissions of the databases that nobody uses: PostgreSQL's roles against the system file, and what shows their use.

Absence of evidence is told as such: a server keeps no date of a login, and counts statements only since a reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from flows.engine.providers import Components
from flows.engine.system import LoadedSystem
from flows.reviews.finding import Finding, Severity, Table
from tasks.database._accounts import Accounted, Accounts, Role
from tasks.database.protocol import Database
from tasks.errors import RelightError
from tasks.secrets import redact

UNUSED = timedelta(days=90)
"""So long must statements be counted before a role that ran none is called unused."""
ENDS, ENDS_BAD = timedelta(days=60), timedelta(days=14)
THEIRS = frozenset({
    "rdsadmin", "rdsrepladmin", "rdstopmgr", "rds_superuser", "rds_replication", "rds_iam", "rds_password", "rds_ad",
    "rds_reserved", "rds_extension", "supabase_admin", "supabase_auth_admin", "supabase_etl_admin",
    "supabase_functions_admin", "supabase_read_only_user", "supabase_realtime_admin", "supabase_replication_admin",
    "supabase_storage_admin",
})  # fmt: skip
"""Roles of the services themselves, which a customer can neither change nor drop."""


@dataclass(frozen=True)
class Seen:
    """One database. ``roles``: by its primary, or else by the first node that answered.

    Attributes:
        views: of every node that answered. lost: node -> why it did not.
        named: roles that the system file names.
    """

    component: str
    roles: tuple[Role, ...]
    views: tuple[Accounts, ...]
    lost: dict[str, str]
    named: frozenset[str]

    def connected(self, role: Role) -> list[str]:
        """Nodes where it has a session now."""
        return [v.node for v in self.views for r in v.roles if r.name == role.name and r.connected]

    def counted(self, role: Role) -> list[str]:
        """Nodes that counted a statement of it."""
        return [v.node for v in self.views for r in v.roles if r.name == role.name and r.counted]

    def use(self, role: Role) -> str:
        """What shows that it is used."""
        now, ran = self.connected(role), self.counted(role)
        said = [f"connected to {', '.join(now)} now"] if now else []
        said += [f"{', '.join(ran)} counted statements of it"] if ran else []
        if said:
            return " and ".join(said)
        nobody = all(v.missing for v in self.views)
        return f"not connected now, and {'nobody counts statements' if nobody else 'no statement of it was counted'}"


def named_roles(settings: Any) -> Iterator[str]:
    """The roles in settings: the values of ``user``, ``role`` and ``…_user``."""
    given = settings.model_dump() if isinstance(settings, BaseModel) else settings
    if isinstance(given, dict):
        for key, value in given.items():
            if isinstance(value, str) and (key in ("user", "role") or str(key).endswith("_user")):
                yield value
            else:
                yield from named_roles(value)
    elif isinstance(given, list | tuple):
        for value in given:
            yield from named_roles(value)


async def audit(
    loaded: LoadedSystem, components: Components, now: datetime
) -> tuple[list[Finding], list[tuple[str, ...]]]:
    """(findings, rows of the table) of every database of the system; changes nothing."""
    named = frozenset(n for s in loaded.settings.values() for n in named_roles(s))
    findings: list[Finding] = []
    rows: list[tuple[str, ...]] = []
    for name, database in components.of(Database):
        if not isinstance(database, Accounted):
            findings.append(_unknown(name, "its provider does not tell them"))
            continue
        nodes = database.nodes()
        answers = await asyncio.gather(*(_accounts(database, node) for node in nodes))
        views = sorted((a for a in answers if isinstance(a, Accounts)), key=lambda a: a.replica)
        lost = {node: a for node, a in zip(nodes, answers, strict=True) if isinstance(a, str)}
        if not views:
            findings.append(_unknown(name, "; ".join(f"{n}: {why}" for n, why in lost.items())))
            continue
        seen = Seen(name, views[0].roles, tuple(views), lost, named)
        findings += judge(seen, now)
        rows += [_row(seen, role) for role in seen.roles]
    return findings, rows


async def _accounts(database: Accounted, node: str) -> Accounts | str:
    try:
        return await database.accounts(node)
    except RelightError as e:
        return redact(e.message)


def _unknown(name: str, why: str) -> Finding:
    return Finding(f"roles {name}", "unknown", f"who may do what in {name} is not known", why)


def _row(seen: Seen, role: Role) -> tuple[str, ...]:
    nodes = len(seen.views)
    used = f"now at {len(seen.connected(role))} of {nodes}, counted at {len(seen.counted(role))}"
    return (
        role.name,
        "yes" if role.login else "no",
        ", ".join(p.lower() for p in role.powers) or "-",
        ", ".join(role.member_of) or "-",
        str(role.owns),
        str(role.granted),
        "yes" if role.name in seen.named else "no",
        used if role.login else "-",
    )


def table(rows: list[tuple[str, ...]]) -> Table:
    """Every role, for the appendix."""
    note = "" if rows else "No database told its roles."
    columns = ("role", "logs in", "powers", "member of", "owns", "grants", "named", "seen")
    return Table("Roles of the databases", columns, tuple(rows), (4, 5), note)


def judge(seen: Seen, now: datetime) -> Iterator[Finding]:
    """What nobody uses or may need, and what cannot be told. Pure."""
    roles = [r for r in seen.roles if r.name not in THEIRS]
    for role in roles:
        yield from _powers(seen, role)
    empty = [r for r in roles if r.login and r.holds_nothing and not _in_use(seen, r)]
    for role in empty:
        yield Finding(
            f"role-empty {seen.component} {role.name}",
            "warning",
            f"{role.name} can log in to {seen.component}, owns nothing and holds no grant",
            f"{seen.use(role)}; the system file does not name it; all it has is what PUBLIC has",
            f"ALTER ROLE {role.quoted} NOLOGIN;\n-- back: ALTER ROLE {role.quoted} LOGIN;\n"
            f"-- when nobody missed it for a month: DROP ROLE {role.quoted};",
            "sql",
        )
    yield from _unseen(seen, [r for r in roles if r.login and r not in empty and not _in_use(seen, r)], now)
    yield from _ends(seen, roles, now)
    yield _unknowable(seen)


def _in_use(seen: Seen, role: Role) -> bool:
    return bool(role.name in seen.named or role.bootstrap or seen.connected(role) or seen.counted(role))


def _powers(seen: Seen, role: Role) -> Iterator[Finding]:
    """More than ordinary powers of whom the system file does not name; and a superuser that it does name."""
    powers = [p for p in role.powers if p != "CREATEDB"]
    if role.name in seen.named:
        powers = [p for p in powers if p == "SUPERUSER"]
    elif role.reaches:
        powers += [f"member of {m}" for m in role.reaches]
    if not powers:
        return
    key, use = f"role-power {seen.component} {role.name}", seen.use(role) if role.login else "it cannot log in itself"
    if role.bootstrap:
        fix = "nobody can drop it: let it in over the local socket only (pg_hba.conf: local all postgres peer)"
        text = f"{role.name} of {seen.component} is the superuser that initdb made"
        yield Finding(key, "info", text, f"{use}; the system file does not name it", fix)
        return
    named = "the system file names it" if role.name in seen.named else "the system file does not name it"
    had = [p for p in role.powers if p in powers]
    fix = f"ALTER ROLE {role.quoted} {' '.join(f'NO{p}' for p in had)};" if had else ""
    fix += f"    -- back: ALTER ROLE {role.quoted} {' '.join(had)};" if had else ""
    for group in () if role.name in seen.named else role.reaches:
        direct = group in role.member_of
        revoke = f"REVOKE {group} FROM {role.quoted};"
        fix += ("\n" if fix else "") + (revoke if direct else f"-- {group} comes through another role it is member of")
    if role.name in seen.named:
        fix += "\n-- relight needs no superuser: first the grants of docs/aws.md, or of deployments/lab/database.py"
    title = f"{role.name} of {seen.component} is {', '.join(powers)}, and {named}"
    yield Finding(key, "warning" if role.login else "info", title, use, fix, "sql")


def _unseen(seen: Seen, roles: list[Role], now: datetime) -> Iterator[Finding]:
    if not roles:
        return
    names = ", ".join(r.name for r in roles)
    why = [f"{n} was not asked: {w}" for n, w in seen.lost.items()]
    for view in seen.views:
        if view.missing:
            why.append(f"{view.node}: {view.missing['statements']}")
        elif view.since is None or now - view.since < UNUSED:
            began = "at a time that it does not tell" if view.since is None else f"{(now - view.since).days} days ago"
            why.append(f"{view.node} began to count statements {began}, {UNUSED.days} days are asked for")
        elif view.lost != 0:
            why.append(f"{view.node} threw out entries of pg_stat_statements meanwhile")
    key = f"roles-unseen {seen.component}"
    what = "1 role that can" if len(roles) == 1 else f"{len(roles)} roles that can"
    if why:
        title = f"{what} log in to {seen.component} perhaps never did: {names}"
        text = "none is connected now and no statement was counted, but " + "; ".join(why)
        yield Finding(key, "unknown", title, text, "ask who they are for; the server's log tells with log_connections")
        return
    fix = "\n".join(f"ALTER ROLE {r.quoted} NOLOGIN;    -- back: ALTER ROLE {r.quoted} LOGIN;" for r in roles)
    days = min((now - v.since).days for v in seen.views if v.since)
    title = f"{what} log in to {seen.component} ran no statement in {days} days: {names}"
    yield Finding(key, "warning", title, "by pg_stat_statements of every node; none is connected now", fix, "sql")


def _ends(seen: Seen, roles: list[Role], now: datetime) -> Iterator[Finding]:
    for role in roles:
        end = role.valid_until
        if end is None or not role.login:
            continue
        key, day = f"role-ends {seen.component} {role.name}", f"{end:%Y-%m-%d}"
        if role.name in seen.named and end - now < ENDS:
            severity: Severity = "critical" if end - now < ENDS_BAD else "warning"
            text = f"the password of {role.name} of {seen.component} end{'ed' if end <= now else 's'} on {day}"
            then = "the system file names it: from then on nobody gets in with it, relight neither"
            fix = f"ALTER ROLE {role.quoted} VALID UNTIL 'infinity';    -- or a new password with a new day"
            yield Finding(key, severity, text, then, fix, "sql")
        elif role.name not in seen.named and end <= now:
            text = f"the password of {role.name} of {seen.component} ended on {day}, and the role is still there"
            fix = f"ALTER ROLE {role.quoted} NOLOGIN;    -- back: ALTER ROLE {role.quoted} LOGIN;"
            yield Finding(key, "info", text, f"{seen.use(role)}; VALID UNTIL is of passwords only", fix, "sql")
    endless = [r.name for r in roles if r.login and r.valid_until is None]
    if endless:
        yield Finding(
            f"roles-endless {seen.component}",
            "info",
            f"{len(endless)} roles of {seen.component} have no day on which their password ends: {', '.join(endless)}",
            "VALID UNTIL is not set; whether they have a password at all only a superuser can see",
            "for people: ALTER ROLE … VALID UNTIL …; not for accounts of applications or relight: it locks them out",
        )


def _unknowable(seen: Seen) -> Finding:
    logs = ", ".join(f"{v.node}: {v.log_connections}" for v in seen.views)
    return Finding(
        f"roles-unknowable {seen.component}",
        "unknown",
        f"not known of {seen.component}: logins of the past, which grants were ever used, the age of passwords",
        "PostgreSQL keeps no date of a login or a password, and counts the use of tables, not of grants; its log has"
        f" the logins where log_connections is on ({logs}), and pgaudit the statements",
        "ALTER SYSTEM SET log_connections = on; SELECT pg_reload_conf();    -- on RDS in the parameter group",
        "sql",
    )
