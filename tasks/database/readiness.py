"""Would a replica of the target do? Replicas and lag, durability, room, clocks, backups, drift."""

from __future__ import annotations

import asyncio
from datetime import datetime

from tasks.database import _durability as durability
from tasks.database._proof import look, the_primary
from tasks.database.protocol import Backed, BackedUp, Database, Inspected, Limited, NodeView, Restorable, Standing
from tasks.errors import RelightError
from tasks.quantities import show_duration
from tasks.readiness import Asked, Check, Finding, Part

BACKUP_AGE_S = 26 * 3600.0
"""A daily backup, and two hours for it."""
RESTORE_AGE_S = 90 * 86400.0
CLOCK_S = 2.0
"""Seconds that a server's clock may differ from ours: the loss is told by its clock."""
BEHIND_BYTES = 16 * 2**20
"""One WAL segment: more than that is no moment's delay."""
MUST = {"fsync": "on", "full_page_writes": "on"}
"""Off, a crash may leave a database that is damaged without a word (PostgreSQL manual, 20.5)."""
LIKE_PRIMARY = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction",
)  # fmt: skip
"""A standby that has less of these stops replaying or does not start (manual, 27.4.3)."""


async def replicas(asked: Asked, part: Part) -> list[Finding]:
    """The target has a replica that streams from the primary, and how far it is behind."""
    database = part.provider
    if not isinstance(database, Database):
        return []
    if isinstance(database, Limited) and (why := database.cannot("promote")):
        return [part.found("replicas", "warning", why, "the runbook must restore or use a logical replica")]
    views = await look(database)
    primary = the_primary(views)
    found, able = [], 0
    for node in database.nodes():
        view = views[node]
        if node == primary.node:
            continue
        level, says = _replica(primary, view)
        able += level == "ok" and view.site == asked.target
        fix = f"bring {node} back (relight run rejoin), and look at its log"
        found.append(part.found("replicas", "ok" if level == "ok" else "warning", says, fix, view.site))
    if not able:
        says = f"no replica of {asked.target} keeps up with {primary.node}: nothing could be promoted there"
        found.append(part.found("replicas", "failing", says, "relight run rejoin", asked.target))
    return found


def _replica(primary: NodeView, view: NodeView) -> tuple[str, str]:
    if view.reach != "answers":
        return "no", f"{view.node} does not answer ({view.reach} {view.why})".replace(" )", ")")
    if not view.in_recovery:
        return "no", f"{view.node} is no replica"
    if not view.streaming or view.upstream != primary.node:
        return "no", f"{view.node} does not stream from {primary.node} (it follows {view.upstream or 'nobody'})"
    behind = max(0, (primary.lsn or 0) - (view.lsn or 0))
    says = f"{view.node} streams from {primary.node}, {behind} bytes behind, heard {view.heard_age_s or 0:.1f} s ago"
    return ("no" if behind > BEHIND_BYTES else "ok"), says


async def promises(asked: Asked, part: Part) -> list[Finding]:
    """An acknowledged commit is where the system file says that it is."""
    database = part.provider
    if not isinstance(database, Database):
        return []
    primary = the_primary(await look(database)).node
    wanted, live = database.durability(), await database.live_durability(primary)
    says = f"{primary} waits for {durability.show(live) or 'no standby'}"
    away = [s for s in live.standbys if s in database.nodes() and database.site_of(s) != asked.active]
    rpo_s = asked.rpo_s.get(part.name, asked.rpo_s.get("database"))
    fix = "relight run rejoin puts it back (database.protect)"
    if rpo_s == 0 and not away:
        return [part.found("durability", "failing", f"{says} of another site; the RPO is 0 s", fix, asked.active)]
    if live.method == "async" and wanted.method != "async":
        says += f"; the system file wants {durability.show(wanted)}"
        return [part.found("durability", "failing", says, fix, asked.active)]
    return [part.found("durability", "ok", says, site=asked.active)]


async def settings(asked: Asked, part: Part) -> list[Finding]:
    """Each server of both sites that answers: durability and WAL settings, archive, clock, version; and drift."""
    database = part.provider
    if not isinstance(database, Database) or not isinstance(database, Inspected):
        return []
    nodes = [n for s in dict.fromkeys((asked.active, asked.target)) for n in database.nodes(s)]
    began = asked.clock.utc()
    answers = await asyncio.gather(*(_stood(database, n) for n in nodes))
    standing = {n: s for n, s in zip(nodes, answers, strict=True) if isinstance(s, Standing)}
    found = [
        part.found("settings", "unknown", f"{n}: {e}", f"bring {n} back", database.site_of(n))
        for n, e in zip(nodes, answers, strict=True)
        if not isinstance(e, Standing)
    ]
    for node, one in standing.items():
        site = database.site_of(node)
        found += [
            Finding(f.check, f.level, f.says, f.fix, part.name, site, f"{node} {one.version}")
            for f in (*_set(node, one), _clock(node, one.now, began, asked.clock.utc()))
        ]
    return found + _drift(asked, part, database, standing)


async def _stood(database: Inspected, node: str) -> Standing | RelightError:
    try:
        return await database.standing(node)
    except RelightError as e:
        return e


def _set(node: str, one: Standing) -> list[Finding]:
    p, found = one.parameters, []
    for name, value in MUST.items():
        if p.get(name) != value:
            fix = f"ALTER SYSTEM SET {name} = {value}, then reload"
            found.append(Finding("durability", "failing", f"{node}: {name} is {p.get(name)}", fix))
    if p.get("synchronous_commit") in ("off", "local"):
        fix = "ALTER SYSTEM RESET synchronous_commit, then reload"
        says = f"{node}: synchronous_commit is {p['synchronous_commit']}: acknowledged commits may be lost"
        found.append(Finding("durability", "failing", says, fix))
    if p.get("wal_level") == "minimal" or p.get("max_wal_senders") == "0":
        fix = "wal_level = replica and max_wal_senders above 0, then restart"
        found.append(Finding("wal", "failing", f"{node} cannot have replicas after its promotion", fix))
    if p.get("wal_log_hints") != "on" and p.get("data_checksums") != "on":
        fix = "wal_log_hints = on, then restart"
        found.append(Finding("wal", "warning", f"{node}: pg_rewind cannot be used; a rejoin copies everything", fix))
    if one.archive_failing:
        fix = "look at archive_command and at the server's log; pg_wal grows meanwhile"
        found.append(Finding("archive", "failing", f"{node}: WAL is not archived since {one.archive_failing}", fix))
    return found or [Finding("settings", "ok", f"{node}: durable, WAL for replicas, PostgreSQL {one.version}")]


def _clock(node: str, now: datetime, began: datetime, ended: datetime) -> Finding:
    """Between the two moments of ours that bound it, a clock is right; the offset is what is beyond them."""
    off_s = max((began - now).total_seconds(), (now - ended).total_seconds(), 0.0)
    if off_s > CLOCK_S:
        return Finding("clock", "failing", f"{node}'s clock differs from ours by {off_s:.1f} s", "run NTP on both")
    return Finding("clock", "ok", f"{node}'s clock is right within {off_s:.1f} s and the time that asking took")


def _drift(asked: Asked, part: Part, database: Database, standing: dict[str, Standing]) -> list[Finding]:
    ours = [standing[n] for n in database.nodes(asked.active) if n in standing]
    if not ours:
        return []
    found = []
    for node in (n for n in database.nodes(asked.target) if n in standing):
        one = standing[node]
        less = [
            f"{name} {one.parameters[name]} (there {ours[0].parameters[name]})"
            for name in LIKE_PRIMARY
            if name in one.parameters and int(one.parameters[name]) < int(ours[0].parameters[name])
        ]
        if less:
            fix = "give it at least as much, then restart it"
            found.append(part.found("drift", "failing", f"{node} has less: {', '.join(less)}", fix, asked.target))
        other = [
            f"{n} {one.parameters.get(n)} (there {ours[0].parameters.get(n)})"
            for n in ("shared_buffers", "max_replication_slots")
            if one.parameters.get(n) != ours[0].parameters.get(n)
        ]
        if one.version != ours[0].version:
            other.append(f"version {one.version} (there {ours[0].version})")
        if other:
            says = f"{node} differs: {', '.join(other)}"
            found.append(part.found("drift", "warning", says, "make both sites alike", asked.target))
    return found


async def backups(asked: Asked, part: Part) -> list[Finding]:
    """The newest backup, and the newest that was restored for a test: what was never restored is a hope."""
    database = part.provider
    if not isinstance(database, Database):
        return []
    said: Backed | None = None
    if isinstance(database, Restorable):
        have = await database.backups()
        newest = max((m for m in (have.latest, *have.completed) if m), default=None)
        said = Backed(newest, None)
    elif isinstance(database, BackedUp):
        nodes = database.nodes(asked.target) or database.nodes()
        said = await database.backed(nodes[0])
    if said is None:
        fix = 'give hosts a command `backups` that prints {"completed_at": …, "restored_at": …}'
        return [part.found("backups", "unknown", "nothing tells of backups, nor of a restore", fix)]
    now = asked.clock.utc()
    return [_aged(part, "backups", now, said.completed_at), _aged(part, "restores", now, said.restored_at)]


AGES = {
    "backups": ("the newest backup", BACKUP_AGE_S),
    "restores": ("the last successful restore of a backup", RESTORE_AGE_S),
}


def _aged(part: Part, check: str, now: datetime, at: datetime | None) -> Finding:
    what, most_s = AGES[check]
    if at is None:
        return part.found(check, "unknown", f"nothing tells when {what} was", "restore one, and have it noted")
    age_s = (now - at).total_seconds()
    says = f"{what} is {show_duration(max(0.0, age_s))} old"
    if age_s > most_s:
        return part.found(check, "failing", f"{says}; at most {show_duration(most_s)}", "make one now, and look why")
    return part.found(check, "ok", says)


CHECKS: tuple[Check, ...] = (replicas, promises, settings, backups)
