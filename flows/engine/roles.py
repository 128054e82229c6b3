"""Who is who, from what is observed at run start and never from a state file.

``active`` is the site the system runs in, ``target`` the one to run in, ``failed`` the one to leave. The databases
say where the primary is or was (a replica knows whom it follows); the public names say where clients are sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from flows.engine.providers import Components
from flows.engine.system import System
from tasks.contract import Facts
from tasks.database.protocol import Database, NodeView
from tasks.errors import BadInput, Contradiction, RelightError
from tasks.zones.protocol import Switchboard, Zone


@dataclass(frozen=True)
class Roles:
    """Role and site names -> site names, with what they were concluded from."""

    by_name: Mapping[str, str]
    evidence: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """Sites named by the person (or alert) that starts the run."""

    leave: str | None = None
    to: str | None = None


async def resolve(system: System, components: Components, wish: Wish) -> Roles:
    """Observe and conclude. Raises Contradiction when the sources disagree and nobody named the sites, BadInput."""
    sites = tuple(system.sites)
    for name in (wish.leave, wish.to):
        if name is not None and name not in sites:
            raise BadInput(f"no site {name!r} in system {system.system}; it has {', '.join(sites)}")
    if wish.leave is not None and wish.leave == wish.to:
        raise BadInput(f"the site to leave and the site to go to are both {wish.to!r}")
    databases, names = await asyncio.gather(_databases(components), _names(components, sites))
    evidence: Facts = {"database": databases, "names": names}
    active = conclude(databases, names, wish)
    target = wish.to or _other(sites, wish.leave or active)
    failed = wish.leave or (active if active != target else _other(sites, target))
    roles = {**{s: s for s in sites}, "active": active, "failed": failed, "target": target}
    return Roles(roles, evidence)


def _other(sites: tuple[str, ...], one: str) -> str:
    rest = [s for s in sites if s != one]
    if len(rest) != 1:
        raise BadInput(f"name the site to go to (--to): besides {one} there are {', '.join(rest) or 'none'}")
    return rest[0]


def conclude(databases: Mapping[str, Facts], names: Mapping[str, str | None], wish: Wish) -> str:
    """The active site. Pure, so that each disagreement can be tested by itself."""
    doubled = {n: d["primary_nodes"] for n, d in databases.items() if len(d["primary_nodes"]) > 1}
    if doubled and wish.leave is None:
        sites: set[str] = {s for n in doubled for s in databases[n]["primary_sites"]} - {wish.to or ""}
        if wish.to is not None and len(sites) == 1:
            return sites.pop()  # a person said which site is meant to change; its nodes are checked again by the steps
        said = "; ".join(f"{n}: {', '.join(nodes)}" for n, nodes in doubled.items())
        raise Contradiction(
            f"more than one node claims to be primary ({said}). Nothing was changed. Find out which one clients wrote"
            " to, then name the site to leave (--from SITE): its primary is fenced first. To bring the other one back"
            " as a standby instead: relight run rejoin --to SITE.",
            database=dict(databases),
            names=dict(names),
        )
    # each database by itself: where its primary is, else where its replicas say it was
    said_by = [d["primary_site"] or d["followed_site"] for d in databases.values()]
    by_data = Counter(s for s in said_by if s)
    serving = Counter(s for s in names.values() if s)
    if wish.leave is not None:
        # said by a person; the actions still check each node before they touch it
        return next(iter(by_data)) if len(by_data) == 1 else wish.leave
    if not by_data and not serving:
        raise Contradiction(
            "no database node and no name server answers, so nothing tells which site is active. Name it: --from SITE.",
            database=dict(databases),
            names=dict(names),
        )
    site = (by_data or serving).most_common(1)[0][0]
    if len(by_data or serving) > 1 or (by_data and serving and set(serving) != {site} and wish.to is None):
        raise Contradiction(
            f"the databases say that {', '.join(by_data) or 'no site'} is active, the public names point to"
            f" {', '.join(serving) or 'no site'}."
            " A failover may be half done: resume it (relight resume last), or name the sites (--from, --to).",
            database=dict(databases),
            names=dict(names),
        )
    return site


async def _databases(components: Components) -> dict[str, Facts]:
    async def one(database: Database) -> Facts:
        views = await asyncio.gather(*(database.view(n) for n in database.nodes()))
        return summary(views, {n: database.site_of(n) for n in database.nodes()})

    found = components.of(Database)
    return dict(zip([n for n, _ in found], await asyncio.gather(*(one(d) for _, d in found)), strict=True))


def summary(views: list[NodeView] | tuple[NodeView, ...], site_of: Mapping[str, str]) -> Facts:
    """What a database's nodes say together: who writes, and whom the replicas follow."""
    writers = [v for v in views if v.reach == "answers" and v.in_recovery is False and not v.read_only]
    upstreams = Counter(
        site_of[v.upstream] for v in views if v.in_recovery and v.upstream is not None and v.upstream in site_of
    )
    return {
        "primary_nodes": [v.node for v in writers],
        "primary_sites": sorted({v.site for v in writers}),
        "primary_site": writers[0].site if len(writers) == 1 else None,
        "followed_site": upstreams.most_common(1)[0][0] if len(upstreams) == 1 else None,
        "nodes": {v.node: v.why or ("primary" if v.in_recovery is False else f"follows {v.upstream}") for v in views},
    }


async def _names(components: Components, sites: tuple[str, ...]) -> dict[str, str | None]:
    """Public name -> the site it points to; None where it cannot be read or points elsewhere."""
    found: dict[str, str | None] = {}
    for _, zone in components.of(Zone):
        for name, rdtype in zone.names():
            try:
                now = (await zone.read(name, rdtype)).rrset
            except RelightError:
                now = None
            pointing = [s for s in sites if now and zone.wanted(name, rdtype, s).values == now.values]
            found[name] = pointing[0] if pointing else None
    for _, board in components.of(Switchboard):  # its names go where the switches say, whatever their record sets say
        try:
            on = [s for s, state in (await board.states()).items() if state]
        except RelightError:
            on = []
        found |= dict.fromkeys(board.names(), on[0] if len(on) == 1 else None)
    return found
