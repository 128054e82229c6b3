"""The weekly performance review: slow statements, indexes, cache, vacuum, pools, thresholds, latency and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flows.engine import evaluation, roles
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem, System
from flows.reviews import advice, load
from flows.reviews.figures import measure, number, seconds, size
from flows.reviews.finding import Finding, Review, Table, ordered
from flows.reviews.load import Recorded
from tasks.clock import Clock
from tasks.database._sizes import SizedPool
from tasks.database._workload import Reviewed, Workload
from tasks.database.protocol import Database
from tasks.errors import RelightError
from tasks.secrets import redact

DAY_S = 86_400.0
CHARTED = ("request_latency", "error_rate", "concurrent_users", "cpu_usage", "connection_count", "replication_lag")
PLANS = 8
"""Statements whose plans are asked for: the heaviest."""


async def review(loaded: LoadedSystem, components: Components, clock: Clock, window_s: float = 7 * DAY_S) -> Review:
    """Look at everything; changes nothing. What cannot be told is a finding, not an error."""
    system = loaded.system
    found = await load.recorded(components, window_s)
    judged = await evaluation.evaluate(loaded, components)
    findings: list[Finding] = [
        *load.crossed(found, system),
        *load.trend(found, "request_latency"),
        *load.trend(found, "error_rate"),
        *load.unmeasured(found, judged),
    ]
    facts, tables = {"Window": f"{seconds(window_s)} to {clock.utc().strftime('%-d %B, %H:%M UTC')}"}, []
    for name, database in components.of(Reviewed):
        try:
            node = await primary(loaded, components, name)
            work = await database.workload(node)
            plans = await _plans(database, work)
        except RelightError as e:
            why = redact(e.message)
            findings.append(Finding(f"unread {name}", "unknown", f"{name} could not be reviewed", why))
            continue
        findings += advice.database(work, plans, name)
        facts |= _facts(work)
        tables += [_statements(work), _tables(work)]
    findings += [_unasked(name, system) for name, d in components.of(Database) if not isinstance(d, Reviewed)]
    findings += await _pools(system, components, found)
    facts |= dict(_load_facts(found))
    return Review(
        "weekly",
        system.system,
        clock.utc(),
        ordered(findings),
        facts,
        tuple(tables),
        tuple(load.charts(found, system, CHARTED)),
    )


def _unasked(name: str, system: System) -> Finding:
    """A database that nobody looked into must not look like one without findings."""
    provider = system.components[name].provider
    why = f"{provider} tells nothing of its statements, tables and indexes"
    fix = "look there: pg_stat_statements, pg_stat_user_tables, pg_stat_user_indexes"
    return Finding(f"unread {name}", "unknown", f"{name} was not reviewed", why, fix)


async def primary(loaded: LoadedSystem, components: Components, name: str) -> str:
    """The node of component ``name`` that takes writes. Raises what tells that it cannot be said."""
    from tasks.database._proof import look, the_primary  # noqa: PLC0415 - the proofs are actions' ground

    found = the_primary(await look(components(name))).node
    await roles.resolve(loaded.system, components, roles.Wish())  # contradictory health is nothing to review in
    return str(found)


async def _plans(database: Reviewed, work: Workload) -> dict[str, dict[str, Any] | str]:
    plans: dict[str, dict[str, Any] | str] = {}
    for s in work.statements[:PLANS]:
        try:
            plans[s.id] = await database.plan(work.node, s.text)
        except RelightError as e:
            plans[s.id] = redact(e.message)
    return plans


def _facts(work: Workload) -> dict[str, str]:
    ratio = "not known" if work.hit_ratio is None else f"{work.hit_ratio:.2f}% of reads"
    since = work.since.strftime("%-d %B, %H:%M UTC") if work.since else "nobody knows"
    return {
        "Database": f"{work.node}, PostgreSQL {work.version}, {size(work.database_bytes)}",
        "Served from its cache": f"{ratio} (shared_buffers {size(work.cache_bytes)})",
        "Connections": f"{work.connections} of {work.max_connections}, {work.idle} idle",
        "Statements counted since": since,
    }


def _load_facts(found: Recorded) -> Iterator[tuple[str, str]]:
    for name, word, unit in (("request_latency", "Latency (95th percentile)", "s"), ("error_rate", "Errors", "%")):
        said = []
        for s in found.series.get(name, ()):
            values = sorted(v for _, v in s.samples)
            said.append(f"{s.site} {measure(values[len(values) // 2], unit)}, {measure(values[-1], unit)} at worst")
        yield word, "; ".join(said) or f"not known: {found.why.get(name, 'no samples')}"


def _statements(work: Workload) -> Table:
    rows = tuple(
        (
            " ".join(s.text.split())[:110],
            number(s.calls),
            seconds(s.mean_s),
            seconds(s.worst_s),
            f"{s.share:.1f}%",
            f"{100 * s.hit / (s.hit + s.read):.1f}%" if s.hit + s.read else "-",
        )
        for s in work.statements[:12]
    )
    note = "" if rows else work.missing.get("statements", "No statement was counted yet.")
    columns = ("statement", "calls", "mean", "worst", "of all time", "cached")
    return Table(f"Where the time goes on {work.node}", columns, rows, (1, 2, 3, 4, 5), note)


def _tables(work: Workload) -> Table:
    rows = tuple(
        (
            t.table,
            number(t.rows),
            size(t.bytes),
            number(t.scans),
            number(t.index_scans),
            f"{number(t.dead)} of {number(t.vacuum_at)}",
            t.vacuumed_at.strftime("%-d %b %H:%M") if t.vacuumed_at else "never",
        )
        for t in work.tables[:12]
    )
    columns = ("table", "rows", "size", "read whole", "by index", "dead, of due at", "last vacuum")
    return Table(f"Tables of {work.node}", columns, rows, (1, 2, 3, 4, 5, 6), "" if rows else "No tables.")


async def _pools(system: System, components: Components, found: Recorded) -> list[Finding]:
    """Limits as the plan says? And do they fit what is used?"""
    plan = system.database.connection_pool if system.database else None
    findings: list[Finding] = []
    for name, pooler in components.of(SizedPool):
        for site in system.sites:
            key = f"pool {name} {site}"
            try:
                now = await pooler.pool_limits(site)
            except RelightError as e:
                why = redact(e.message)
                findings.append(Finding(key, "unknown", f"the pool of {site} could not be read", why))
                continue
            least = plan.min if plan and now.minimum is not None else None  # a pooler that keeps no minimum lacks none
            if plan and (now.minimum, now.maximum) != (least, plan.max):
                findings.append(
                    Finding(
                        key,
                        "warning",
                        f"the pool of {site} is not sized as the system file says",
                        f"it keeps {now} server connections; wanted: {plan.min} to {plan.max}",
                        f"relight run scaling --system {system.system}",
                        "shell",
                    )
                )
    used = [v for s in found.series.get("connection_count", ()) for _, v in s.samples]
    if plan and used and max(used) > 70:
        findings.append(
            Finding(
                "pool-peak",
                "warning",
                f"connections peaked at {max(used):.0f}% of the server's limit",
                "a failover reconnects everybody at once: the peak must leave room for that",
                "lower database.connection_pool.max, or raise max_connections (a restart)",
            )
        )
    return findings
