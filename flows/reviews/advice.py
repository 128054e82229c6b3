"""What a database's workload says should be done. Pure: figures in, findings out.

Every rule says its figures, and none fires on too few: counters that began an hour ago prove no index unused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from flows.reviews.figures import number, seconds, size
from flows.reviews.finding import Finding
from tasks.database._workload import IndexUse, Statement, TableUse, Workload

SLOW_S = 0.1
"""A statement that takes this long on average is slow …"""
OFTEN = 5
"""… a warning only if it was called that often: one slow report a week is nobody's trouble;"""
HEAVY_SHARE = 20.0
"""… and one that takes this share of all time, percent, is worth a look at any speed, if it took this long in all:"""
HEAVY_S = 10.0
BIG_ROWS = 10_000
"""A table that is read whole at no cost that matters has fewer rows."""
SELECTIVE = 0.05
"""A filter that leaves at most this part of a big table is what an index is for."""
OLD_ENOUGH = timedelta(days=7)
"""Counters younger than this prove no index unused: a monthly report may need it."""
WASTED = 50.0
WASTED_BYTES = 1_000_000
HIT_RATIO = 99.0
HIT_RATIO_BAD = 90.0
WRAPAROUND = 200_000_000
"""``autovacuum_freeze_max_age``: autovacuum should have been there."""
BUSY, IDLE = 80.0, 90.0


def database(work: Workload, plans: dict[str, dict[str, Any] | str], component: str = "database") -> list[Finding]:
    """Every finding about the database. ``plans``: statement id -> plan, or why there is none."""
    return [
        *_missing(work),
        *slow(work, plans),
        *missing_indexes(work, plans),
        *indexes(work),
        *cache(work),
        *upkeep(work, component),
        *connections(work),
    ]


def _missing(work: Workload) -> Iterator[Finding]:
    cure = {
        "statements": "shared_preload_libraries = 'pg_stat_statements' (a restart), then\n"
        "CREATE EXTENSION pg_stat_statements;\nGRANT pg_read_all_stats TO relight;",
        "bloat": "CREATE EXTENSION pgstattuple;\nGRANT pg_stat_scan_tables TO relight;",
    }
    for what, why in work.missing.items():
        yield Finding(
            f"unread {what}", "unknown", f"{what} of {work.node} could not be read", why, cure.get(what, ""), "sql"
        )


def _short(text: str, limit: int = 90) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def slow(work: Workload, plans: dict[str, dict[str, Any] | str]) -> Iterator[Finding]:
    """Statements that are slow, or take much of all time."""
    for s in work.statements:
        if s.mean_s < SLOW_S and (s.share < HEAVY_SHARE or s.total_s < HEAVY_S):
            continue
        plan = plans.get(s.id, "not asked for")
        shown = plan if isinstance(plan, str) else "\n".join(lines(plan))
        yield Finding(
            f"slow-statement {s.id}",
            "warning" if s.mean_s >= SLOW_S and s.calls >= OFTEN else "info",
            f"Slow: {_short(s.text)}" if s.mean_s >= SLOW_S else f"Heavy: {_short(s.text)}",
            f"{seconds(s.mean_s)} on average, {seconds(s.worst_s)} at worst, {number(s.calls)} calls:"
            f" {s.share:.0f}% of all time; {number(s.rows / s.calls)} rows a call"
            + (f", {size(8192 * s.temp)} through temporary files" if s.temp else ""),
            "",
            detail=f"{s.text.strip()}\n\n{'no plan: ' if isinstance(plan, str) else ''}{shown}",
        )


def lines(plan: dict[str, Any], depth: int = 0) -> Iterator[str]:
    """A plan of ``EXPLAIN (FORMAT JSON)`` as text."""
    on = f" on {plan['Relation Name']}" if "Relation Name" in plan else ""
    using = f" using {plan['Index Name']}" if "Index Name" in plan else ""
    yield f"{'  ' * depth}{plan['Node Type']}{using}{on} (cost {plan['Total Cost']:.0f}, rows {plan['Plan Rows']:.0f})"
    for key in ("Index Cond", "Filter", "Hash Cond", "Sort Key"):
        if key in plan:
            yield f"{'  ' * depth}  {key}: {plan[key]}"
    for child in plan.get("Plans", ()):
        yield from lines(child, depth + 1)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def missing_indexes(work: Workload, plans: dict[str, dict[str, Any] | str]) -> Iterator[Finding]:
    """A big table is read whole again and again, for a filter that leaves little of it."""
    tables = {t.table: t for t in work.tables}
    seen: set[str] = set()
    for s in work.statements:
        plan = plans.get(s.id)
        for node in _nodes(plan) if isinstance(plan, dict) else ():
            found = _wants_index(s, node, tables)
            if found and found.key not in seen:
                seen.add(found.key)
                yield found


_COMPARED = re.compile(r"\(*\b([a-z_][a-z0-9_]*)\)*(?:::\w+)* (=|>=|<=|>|<|~~) ")


def _wants_index(s: Statement, node: dict[str, Any], tables: dict[str, TableUse]) -> Finding | None:
    if node["Node Type"] != "Seq Scan" or "Filter" not in node:
        return None
    table = _named(tables, node.get("Relation Name", ""))
    if table is None or table.rows < BIG_ROWS or node["Plan Rows"] > SELECTIVE * table.rows:
        return None
    compared = _COMPARED.findall(node["Filter"])
    # equality first: an index serves those and one range after them (manual, 11.3)
    columns = list(dict.fromkeys([c for c, o in compared if o == "="] + [c for c, o in compared if o != "="][:1]))
    if not columns or "~~" in {o for _, o in compared}:
        return None
    fix = f"CREATE INDEX CONCURRENTLY ON {table.table} ({', '.join(columns)});"
    return Finding(
        f"missing-index {table.table} {','.join(columns)}",
        "warning",
        f"{table.table} is read whole for each call of a selective statement",
        f"{number(table.rows)} rows ({size(table.bytes)}), of which {node['Filter']} leaves about"
        f" {number(node['Plan Rows'])}; {number(s.calls)} calls of {seconds(s.mean_s)}, {s.share:.0f}% of all time;"
        f" {number(table.scans)} sequential scans read {number(table.scanned_rows)} rows",
        fix + "\n-- then: EXPLAIN the statement again; an index that is not used is only a cost",
        "sql",
        detail=_short(s.text, 400),
    )


def _named(tables: dict[str, TableUse], name: str) -> TableUse | None:
    found = [t for key, t in tables.items() if key.rpartition(".")[2].strip('"') == name]
    return found[0] if len(found) == 1 else None


def indexes(work: Workload) -> Iterator[Finding]:
    """Duplicate, invalid, unused and bloated ones."""
    by_key: dict[str, list[IndexUse]] = defaultdict(list)
    for i in work.indexes:
        by_key[i.key].append(i)
    spare: set[str] = set()
    for same in by_key.values():
        keep = max(same, key=lambda i: (i.valid, i.wanted, i.scans))
        for i in same:
            if i is not keep and not i.wanted:
                spare.add(i.index)
                yield _duplicate(i, keep)
    rest = [i for i in work.indexes if i.index not in spare]
    yield from _unused(work, [i for i in rest if i.valid and i.scans == 0 and not i.wanted])
    for i in rest:
        if not i.valid:
            yield Finding(
                f"invalid-index {i.index}",
                "warning",
                f"{i.index} is invalid: every write pays for it, no query uses it",
                f"{size(i.bytes)} on {i.table}; a CREATE INDEX CONCURRENTLY failed, or still goes on",
                f"REINDEX INDEX CONCURRENTLY {i.index};",
                "sql",
            )
        if i.valid and i.wasted is not None and i.wasted >= WASTED and i.bytes >= WASTED_BYTES:
            yield Finding(
                f"bloated-index {i.index}",
                "warning" if i.wasted >= 70 else "info",
                f"{i.index} is {i.wasted:.0f}% empty",
                f"{size(i.bytes)}, of which about {size(i.bytes * i.wasted / 100)} would come back",
                f"REINDEX INDEX CONCURRENTLY {i.index};",
                "sql",
            )


def _duplicate(i: IndexUse, keep: IndexUse) -> Finding:
    return Finding(
        f"duplicate-index {i.index}",
        "warning",
        f"{i.index} is the same as {keep.index}",
        f"same table, columns, order and predicate; {size(i.bytes)}, and every write is paid for twice",
        f"DROP INDEX CONCURRENTLY {i.index};\n-- back: {i.definition};",
        "sql",
    )


def _unused(work: Workload, never: list[IndexUse]) -> Iterator[Finding]:
    """A DROP is offered only where the counters are old enough to prove it."""
    age = None if work.since is None else work.at - work.since
    if never and (age is None or age < OLD_ENOUGH):
        known = "nobody knows since when" if age is None else f"only for {seconds(age.total_seconds())}"
        yield Finding(
            "unused-indexes unproven",
            "unknown",
            f"{len(never)} indexes were perhaps never used: {', '.join(i.index for i in never)}",
            f"no scan of them was counted, and {work.node} counts {known}; {OLD_ENOUGH.days} days are asked for",
            "leave them; the next review knows more",
        )
        return
    for i in never:
        yield Finding(
            f"unused-index {i.index}",
            "info",
            f"{i.index} was never used",
            f"no scan in {seconds(age.total_seconds() if age else 0)} of counting on {work.node}; {size(i.bytes)} on"
            f" {i.table}. Replicas count for themselves: look there too",
            f"DROP INDEX CONCURRENTLY {i.index};\n-- back: {i.definition};",
            "sql",
        )


def cache(work: Workload) -> Iterator[Finding]:
    """Is the server's cache large enough for what is read?"""
    if work.hit_ratio is None:
        yield Finding(
            "cache-hit-ratio",
            "unknown",
            "the cache hit ratio is not known",
            "nothing was read since the counters began",
        )
        return
    said = (
        f"{work.hit_ratio:.2f}% of the blocks that were read, cache {size(work.cache_bytes)},"
        f" database {size(work.database_bytes)}"
    )
    if work.hit_ratio < HIT_RATIO:
        larger = work.database_bytes > work.cache_bytes
        yield Finding(
            "cache-hit-ratio",
            "warning" if work.hit_ratio < HIT_RATIO_BAD else "info",
            f"{100 - work.hit_ratio:.1f}% of reads go past the server's cache",
            said,
            f"-- the database is larger than the cache; up to a quarter of memory is usual, and needs a restart\n"
            f"ALTER SYSTEM SET shared_buffers = '{max(128, 2 * work.cache_bytes // 2**20)}MB';"
            if larger
            else "",
            "sql",
        )


def upkeep(work: Workload, component: str = "database") -> Iterator[Finding]:
    """Vacuum and analyze where they are due by the server's own rule, and have not come."""
    for t in work.tables:
        dead, changed = t.dead >= max(1.0, t.vacuum_at), t.changed >= max(1.0, t.analyze_at)
        if t.frozen_age > WRAPAROUND:
            yield Finding(
                f"frozen {t.table}",
                "critical" if t.frozen_age > 5 * WRAPAROUND else "warning",
                f"{t.table} was not frozen for {number(t.frozen_age)} transactions",
                "at two thousand million the server takes no more writes; autovacuum comes at"
                f" {number(WRAPAROUND)} unless something holds it up",
                f"VACUUM (FREEZE) {t.table};\n-- and look for what holds it up: old transactions, replication slots",
                "sql",
            )
        if dead or changed:
            due = " and ".join([*(["vacuum"] if dead else []), *(["analyze"] if changed else [])])
            last = t.vacuumed_at.strftime("%d %b %H:%M") if t.vacuumed_at else "never"
            yield Finding(
                f"vacuum-due {t.table}",
                "warning" if t.dead > 3 * t.vacuum_at or t.vacuumed_at is None else "info",
                f"{due} of {t.table} is due",
                f"{number(t.dead)} dead rows (due at {number(t.vacuum_at)}), {number(t.changed)} changed since the last"
                f" analyze (due at {number(t.analyze_at)}), {number(t.rows)} rows; last vacuumed: {last}"
                + ("" if t.ours else "; not ours to do: the account does not own it"),
                f"SET lock_timeout = '1s'; VACUUM (ANALYZE, TRUNCATE false) {t.table};",
                "sql",
                safe=t.ours,
                target=(component, work.node, t.table),
            )


def connections(work: Workload) -> Iterator[Finding]:
    """Is the server's limit near, and are connections held for nothing?"""
    used = 100 * work.connections / work.max_connections
    idle = 100 * work.idle / work.connections if work.connections else 0.0
    if used >= BUSY:
        yield Finding(
            "connections",
            "warning",
            f"{used:.0f}% of {work.node}'s connections are in use",
            f"{work.connections} of {work.max_connections}, {work.idle} of them idle",
            "lower the pools of the applications, or put a pooler in transaction mode between",
        )
    elif idle >= IDLE and work.connections >= 20:
        yield Finding(
            "idle-connections",
            "info",
            f"{idle:.0f}% of {work.node}'s connections are idle",
            f"{work.idle} of {work.connections}; each costs memory, and a failover waits for all of them to come back",
            "lower min_pool_size of the pooler (database.connection_pool.min)",
        )
