"""The annual infrastructure audit: is what the system file names there, up to date, and has recovery been practised?"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from datetime import datetime, timedelta

from flows.engine import readiness, readyfile
from flows.engine.providers import Components
from flows.engine.system import Component, LoadedSystem, System
from flows.reviews import awsusers, dbroles, looking
from flows.reviews.finding import Finding, Review, Severity, Table, ordered
from flows.reviews.looking import Certificate, EndOfLife, Ran
from tasks.capacity.protocol import Capacity
from tasks.clock import Clock
from tasks.database._workload import Reviewed
from tasks.database.protocol import Database, Restorable
from tasks.errors import RelightError
from tasks.secrets import redact

SOON = timedelta(days=365)
CERTIFICATE, CERTIFICATE_BAD = timedelta(days=60), timedelta(days=14)
SECRET = timedelta(days=365)
PRACTISED, BACKED_UP = timedelta(days=183), timedelta(days=2)
TABLE_OLD = timedelta(days=365)


async def review(loaded: LoadedSystem, components: Components, clock: Clock, _window_s: float) -> Review:
    """Look at everything; changes nothing."""
    system, now = loaded.system, clock.utc()
    rows, findings = await inventory(system, components)
    versions, old = await _versions(components, now)
    findings += old
    certificates, expiring = await _certificates(system, now)
    findings += expiring
    findings += await _ports(system)
    findings += secrets(system, now)
    findings += await _backups(components, now)
    unused, roles = await dbroles.audit(loaded, components, now)
    findings += unused
    findings += await awsusers.audit(loaded, clock, now)
    practised, unproven = practice(system.system, readiness.runbooks_of(loaded.document.file), now)
    findings += unproven
    tables = (
        Table("Inventory: the system file against what answers", ("component", "provider", "what", "now"), tuple(rows)),
        Table("Versions", ("what", "version", "security fixes until"), tuple(versions)),
        Table("Runbooks", ("runbook", "last success", "last drill", "last readiness check"), tuple(practised)),
        Table("Certificates", ("endpoint", "valid until"), tuple(certificates), (), _none(certificates)),
        dbroles.table(roles),
    )
    facts = {
        "Sites": ", ".join(f"{n}{f' ({s.region})' if s.region else ''}" for n, s in system.sites.items()),
        "Components": str(len(system.components)),
        "Objectives": ", ".join(f"{n} {int(o.rto // 60)}m" for n, o in system.objectives.items() if o.rto is not None),
        "Not looked at": "policies of resources, and which single permissions other users and roles than relight's use",
    }
    return Review("annual", system.system, now, ordered(findings), facts, tables)


def _none(rows: list[tuple[str, ...]]) -> str:
    return "" if rows else "The system file names no https endpoint, so no certificate was looked at."


async def inventory(system: System, components: Components) -> tuple[list[tuple[str, ...]], list[Finding]]:
    """Everything that the system file names, and whether it answers."""
    rows: list[tuple[str, ...]] = []
    findings: list[Finding] = []
    for name, component in system.components.items():
        try:
            found = await _things(system, component, components(name))
        except RelightError as e:
            found = [("", redact(e.message), None)]
        rows += [(name, component.provider, what, f"not known: {n}" if g is None else n) for what, n, g in found]
        findings += [
            _missing(name, what or component.provider, now, unknown=good is None)
            for what, now, good in found
            if not good
        ]
    return rows, findings


def _missing(name: str, what: str, why: str, *, unknown: bool) -> Finding:
    key = f"inventory {name} {what}"
    if unknown:
        return Finding(key, "unknown", f"{name}: {what} cannot be told", why)
    fix = "bring it back (relight run scaling --system SYSTEM), or take it out of the system file"
    return Finding(key, "warning", f"{name}: {what} is not as the system file says", why, fix)


async def _things(system: System, component: Component, provider: object) -> list[tuple[str, str, bool | None]]:
    """(what, how it is, good) of one component; None where that cannot be told."""
    found: list[tuple[str, str, bool | None]] = []
    if isinstance(provider, Database):
        views = await asyncio.gather(*(provider.view(node) for node in provider.nodes()))
        for v in views:
            role = {True: "replica", False: "primary", None: "role not known"}[v.in_recovery]
            good = v.reach == "answers" and v.in_recovery is not None
            found.append((v.node, f"answers, {role}" if good else f"{v.reach}: {v.why}", good))
    elif isinstance(provider, Capacity):
        for site in system.sites:
            least = provider.limits(site).minimum
            try:
                ready = [i for i in await provider.instances(site) if i.ready]
            except RelightError as e:
                found.append((f"instances at {site}", redact(e.message), None))
                continue
            found.append((f"instances at {site}", f"{len(ready)} ready, at least {least}", len(ready) >= least))
    else:
        named = sorted({(host, port) for host, port, _ in looking.endpoints(component.settings) if port})
        answers = await asyncio.gather(*(looking.opened(host, port) for host, port in named))
        for (host, port), yes in zip(named, answers, strict=True):
            found.append((f"{host}:{port}", "takes connections" if yes else "takes no connection", yes))
        if not named:
            found.append(("", "not looked at: it names no address", True))
    return found


async def _versions(components: Components, now: datetime) -> tuple[list[tuple[str, ...]], list[Finding]]:
    table = looking.end_of_life()
    found = [("python", platform.python_version(), "relight's own Python")]
    try:
        release = platform.freedesktop_os_release()
        found.append((release.get("ID", ""), release.get("VERSION_ID", ""), "relight's own machine"))
    except OSError:
        pass  # no Linux that says what it is
    findings: list[Finding] = []
    for name, database in components.of(Reviewed):
        for node in database.nodes() if isinstance(database, Database) else ():
            try:
                found.append(("postgresql", (await database.workload(node)).version, node))
            except RelightError as e:
                findings.append(
                    Finding(f"version {name} {node}", "unknown", f"{node}'s version is not known", redact(e.message))
                )
    findings += [
        Finding(f"version {name}", "unknown", f"{name}'s version is not known", "its provider does not tell it")
        for name, database in components.of(Database)
        if not isinstance(database, Reviewed)
    ]
    rows: list[tuple[str, ...]] = [
        (f"{product} ({where})", version, _until(table, product, version)) for product, version, where in found
    ]
    products = {(p, v): [w for a, b, w in found if (a, b) == (p, v)] for p, v, _ in found}
    findings += [f for (p, v), where in products.items() for f in aging(table, p, v, where, now)]
    if now.date() - table.checked > TABLE_OLD:
        findings.append(
            Finding(
                "end-of-life-table",
                "warning",
                "the table of ends of life is old",
                f"of {table.checked}",
                "update relight",
            )
        )
    return rows, findings


def _until(table: EndOfLife, product: str, version: str) -> str:
    end = table.of(product, version)
    return end.isoformat() if end else "not in the table"


def aging(table: EndOfLife, product: str, version: str, where: list[str], now: datetime) -> Iterator[Finding]:
    """What gets no more fixes, or soon none."""
    end = table.of(product, version)
    key, title = f"end-of-life {product} {version}", f"{product} {version} ({', '.join(where)})"
    if end is None:
        yield Finding(key, "unknown", f"how long {title} gets fixes is not known", "not in the table that ships")
        return
    left = end - now.date()
    if left > SOON:
        return
    severity: Severity = "critical" if left.days < 0 else "warning" if left.days < 180 else "info"
    when = f"{-left.days} days ago" if left.days < 0 else f"in {left.days} days"
    yield Finding(
        key,
        severity,
        f"{title} gets {'no more security fixes' if left.days < 0 else f'security fixes for {left.days} more days'}",
        f"they end{'ed' if left.days < 0 else ''} on {end}, {when} (source: {table.sources[product]}, copied"
        f" {table.checked})",
        "plan the upgrade: pg_upgrade or logical replication; on RDS and Aurora a blue/green deployment"
        if product == "postgresql"
        else "plan the upgrade",
    )


async def _certificates(system: System, now: datetime) -> tuple[list[tuple[str, ...]], list[Finding]]:
    places = {
        (host, port) for c in system.components.values() for host, port, tls in looking.endpoints(c.settings) if tls
    }
    ordered_places = sorted(places)
    served = await asyncio.gather(*(looking.certificate(host, port) for host, port in ordered_places))
    rows: list[tuple[str, ...]] = []
    findings: list[Finding] = []
    for (host, port), found in zip(ordered_places, served, strict=True):
        key, where = f"certificate {host}:{port}", f"{host}:{port}"
        rows.append((where, found if isinstance(found, str) else found.end.date().isoformat()))
        if isinstance(found, str):
            findings.append(Finding(key, "unknown", f"the certificate of {where} could not be seen", found))
        else:
            findings += _certificate(key, host, where, found, now)
    return rows, findings


def _certificate(key: str, host: str, where: str, found: Certificate, now: datetime) -> Iterator[Finding]:
    left = found.end - now
    if left < CERTIFICATE:
        severity: Severity = "critical" if left < CERTIFICATE_BAD else "warning"
        over = left < timedelta(0)
        text = f"the certificate of {where} end{'ed' if over else 's'} on {found.end.date()}"
        evidence = f"{(-left).days} days ago" if over else f"{left.days} days are left"
        yield Finding(key, severity, text, evidence, "renew it, and find out why nothing renewed it by itself")
    if not found.fits:
        names = ", ".join(found.names) or "nobody"
        text = f"the certificate of {where} is not for {host}"
        fix = f"issue it for {host} too, or write the name that clients use into the system file"
        yield Finding(f"{key} name", "warning", text, f"it is for {names}; who checks names is turned away", fix)


async def _ports(system: System) -> list[Finding]:
    """A few doors that should be shut, at every host that the system file names by its address."""
    known = {(h, p) for c in system.components.values() for h, p, _ in looking.endpoints(c.settings)}
    asked = [(h, p) for h in sorted({h for h, _ in known}) for p in looking.PORTS if (h, p) not in known]
    turn = asyncio.Semaphore(32)

    async def one(host: str, port: int) -> bool:
        async with turn:
            return await looking.opened(host, port)

    answers = await asyncio.gather(*(one(h, p) for h, p in asked))
    open_at: dict[int, list[str]] = {}
    for (host, port), yes in zip(asked, answers, strict=True):
        if yes:
            open_at.setdefault(port, []).append(host)
    return [
        Finding(
            f"open-port {port}",
            "warning",
            f"{looking.PORTS[port]} (port {port}) is open at {', '.join(hosts)}, and the system file does not name it",
            "a connection from the machine that runs relight was accepted",
            "shut it, or limit who may connect",
        )
        for port, hosts in open_at.items()
    ]


def secrets(system: System, now: datetime) -> list[Finding]:
    """Files of secrets: how old, who may read them. References to the environment say no age."""
    findings = []
    ageless = set()
    for name, component in system.components.items():
        ageless |= {t for t in looking.texts(component.settings) if t.startswith(("env:", "prefect:", "aws-secret:"))}
        for s in looking.secrets(component.settings):
            key = f"secret {s.reference}"
            if s.changed is None:
                findings.append(Finding(key, "unknown", f"{s.reference} ({name}) cannot be seen", "no such file here"))
                continue
            if s.open_to:
                fix = f"chmod 600 {s.reference.removeprefix('file:')}"
                text = f"{s.reference} ({name}) can be read by {s.open_to}"
                findings.append(Finding(key, "critical", text, "its mode says so", fix, "shell"))
            if now - s.changed > SECRET:
                findings.append(
                    Finding(
                        f"{key} old",
                        "warning",
                        f"{s.reference} ({name}) is {(now - s.changed).days} days old",
                        f"it was last written on {s.changed.date()}",
                        "rotate it",
                    )
                )
    if ageless:
        text = ", ".join(sorted(ageless))
        findings.append(
            Finding(
                "secrets-ageless",
                "unknown",
                f"the age of {len(ageless)} secrets cannot be told",
                text,
                "keep them in files, or ask their keeper: aws secretsmanager describe-secret has LastChangedDate",
            )
        )
    return findings


async def _backups(components: Components, now: datetime) -> list[Finding]:
    found = components.of(Restorable)
    if not found:
        return [
            Finding(
                "backups",
                "unknown",
                "whether a backup can be restored is not known",
                "no component of the system file can restore one; a replica is no backup: it repeats every mistake",
                "restore one into an empty server this quarter, and write down how long it took",
            )
        ]
    findings = []
    for name, database in found:
        try:
            backups = await database.backups()
        except RelightError as e:
            findings.append(Finding(f"backups {name}", "unknown", f"backups of {name}: unknown", redact(e.message)))
            continue
        newest = backups.latest or next(iter(backups.completed), None)
        if newest is None or now - newest > BACKED_UP:
            text = f"{name} has no backup" if newest is None else f"{name}'s last backup is of {newest.date()}"
            findings.append(Finding(f"backups {name}", "critical", text, "asked of its provider", "turn backups on"))
    return findings


def practice(system: str, runbooks: list[str], now: datetime) -> tuple[list[tuple[str, ...]], list[Finding]]:
    """What was practised, by the journals of this state folder; what never ran is not proven."""
    every = list(looking.runs(system))
    rows: list[tuple[str, ...]] = []
    findings: list[Finding] = []
    for book in runbooks:
        last = max((r.at for r in every if r.runbook == book), default=None)
        drilled = max((r.at for r in every if r.runbook == book and r.drill), default=None)
        looked, ready, _ = readyfile.newest(system, book)
        checked = "never" if looked is None else f"{looked.date()}, {'ready' if ready else 'not ready'}"
        rows.append((book, str(last.date()) if last else "never", str(drilled.date()) if drilled else "never", checked))
        if last is None or now - last > PRACTISED:
            findings.append(_unproven(system, book, last))
    if not any(r.drill and now - r.at < PRACTISED for r in every):
        findings.append(_no_drill(system, every))
    return rows, findings


def _unproven(system: str, book: str, last: datetime | None) -> Finding:
    return Finding(
        f"unproven {book}",
        "warning",
        f"runbook {book} {'never ran to a good end here' if last is None else f'ran last on {last.date()}'}",
        f"by the journals of this state folder; {PRACTISED.days} days are asked for",
        f"relight prove {book} --system {system}    # crashes and faults, simulated\n"
        f"relight plan {book} --system {system}    # against the live system, changes nothing",
        "shell",
    )


def _no_drill(system: str, every: list[Ran]) -> Finding:
    last = max((r.at for r in every if r.drill), default=None)
    return Finding(
        "no-drill",
        "warning",
        f"no drill succeeded in the last {PRACTISED.days} days",
        f"the last one: {last.date() if last else 'never'}, by the journals of this state folder",
        f"a game day: relight run failover --mode graceful --system {system}; on the lab: relight drill",
        "text",
    )
