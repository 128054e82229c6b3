"""Would the other site plan the same statements worse? Asked before traffic goes there.

A physical replica has the same tables, indexes and statistics as its primary: it cannot lack an index. What may differ
is what is not in the data: settings of the planner, and the C library that orders text. Both are read here, and the
plans that come of them are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.database._proof import look, streams, the_primary
from tasks.database.protocol import Database
from tasks.errors import Rejected, UnhealthyTarget

AGAIN_S = 0.5
INDEXED = ("Index Scan", "Index Only Scan", "Bitmap Heap Scan")


@dataclass(frozen=True)
class Planning:
    """What a node plans with. ``settings``: of the planner; ``collation``: version that the database's text was ordered
    by, and the one that the node's C library has; None where the locale has no versions.
    """

    settings: Mapping[str, str]
    collation: tuple[str | None, str | None]


@runtime_checkable
class Planned(Protocol):
    """A database whose statements and plans can be read."""

    async def top_statements(self, node: str, most: int) -> tuple[str, ...]:
        """Those that took most time, constants replaced by ``$1``. Raises Rejected where they are not counted."""
        ...

    async def planning(self, node: str) -> Planning:
        """Raises Unreachable."""
        ...

    async def plan(self, node: str, statement: str) -> dict[str, Any]:
        """See ``_workload.Reviewed.plan``."""
        ...


def nodes(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(kind, relation, index) of every node of a plan, from the top."""
    yield str(plan.get("Node Type")), str(plan.get("Relation Name", "")), str(plan.get("Index Name", ""))
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def worse(ours: Mapping[str, Any], theirs: Mapping[str, Any], factor: float) -> str:
    """Pure. Why ``theirs`` is worse than ``ours``; empty where it is not.

    The same shape is not worse, whatever it is said to cost: costs are in units that the settings define.
    """
    here, there = list(nodes(ours)), list(nodes(theirs))
    if here == there:
        return ""
    by_index = {relation for kind, relation, _ in here if kind in INDEXED}
    whole = {relation for kind, relation, _ in there if kind == "Seq Scan"} & by_index
    whole -= {relation for kind, relation, _ in here if kind == "Seq Scan"}
    if whole:
        return f"{', '.join(sorted(whole))} is read whole there and by an index here"
    before, after = float(ours.get("Total Cost", 0)), float(theirs.get("Total Cost", 0))
    if after > factor * before:
        return f"another plan of cost {after:.0f} there, {before:.0f} here"
    return ""


def differences(ours: Planning, theirs: Planning) -> dict[str, str]:
    """Pure. Setting -> its value here and there, where they differ."""
    names = sorted({*ours.settings, *theirs.settings})
    pairs = {n: (ours.settings.get(n), theirs.settings.get(n)) for n in names}
    return {n: f"{here} here, {there} there" for n, (here, there) in pairs.items() if here != there}


def miscollated(node: str, planning: Planning) -> str:
    """Pure. What is wrong with the order of text at ``node``; empty where nothing is (ALTER COLLATION, Notes)."""
    recorded, actual = planning.collation
    if recorded is None or actual is None or recorded == actual:
        return ""
    return (
        f"{node}: text in its indexes is ordered by collation version {recorded}, and its C library has {actual}: they"
        " may miss rows. Bring its C library to the other's, or REINDEX on the primary that runs with it"
    )


@action("database.plans")
class Plans(Action):
    """The site's replicas plan the active site's costliest statements no worse, and order text as it was ordered.

    Generic plans by EXPLAIN, which executes nothing. Statements that give no plan are named and pass.
    """

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()] = Field(description="The site that traffic is to go to.")
    top: int = Field(default=10, ge=1, le=100, description="How many statements, by the time they took.")
    factor: float = Field(default=2.0, gt=1, description="Another plan may cost so many times as much.")
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        database, planned = ctx.component(self.component, Database), ctx.component(self.component, Planned)
        views = await look(database)
        primary = the_primary(views)
        replicas = [n for n in database.nodes(ctx.site(self.site)) if streams(views[n], primary)]
        if not replicas:
            raise Rejected(f"no replica of {ctx.site(self.site)} streams from {primary.node}; nothing can be compared")
        ours = await planned.planning(primary.node)
        plans: dict[str, dict[str, Any]] = {}
        unplanned: dict[str, str] = {}
        for text in await planned.top_statements(primary.node, self.top):
            try:
                plans[text] = await planned.plan(primary.node, text)
            except Rejected as e:
                unplanned[text] = e.message
        wrong, differ = [w for w in [miscollated(primary.node, ours)] if w], dict[str, dict[str, str]]()
        regressed: list[Facts] = []
        for node in replicas:
            theirs = await planned.planning(node)
            differ[node] = differences(ours, theirs)
            wrong += [w for w in [miscollated(node, theirs)] if w]
            for text, plan in plans.items():
                other = await planned.plan(node, text)
                if worse(plan, other, self.factor):  # a table that grows meanwhile may be between two plans: look again
                    await ctx.clock.sleep(AGAIN_S)
                    plan, other = await planned.plan(primary.node, text), await planned.plan(node, text)  # noqa: PLW2901
                if why := worse(plan, other, self.factor):
                    shape = {"here": list(nodes(plan)), "there": list(nodes(other))}
                    regressed.append({"node": node, "statement": text[:300], "why": why, **shape})
                    wrong.append(f"{node}: {why}: {' '.join(text.split())[:120]}")
        facts: Facts = {"compared": len(plans), "unplanned": unplanned, "settings": differ, "regressed": regressed}
        if not wrong:
            said = f"{len(plans)} statements of {primary.node} are planned no worse by {', '.join(replicas)}"
            return Observation(holds=True, summary=said, facts=facts)
        causes = "; ".join(f"{n}: {k} is {v}" for n, d in differ.items() for k, v in d.items())
        said = "; ".join(wrong) + (f". Settings that differ: {causes}" if causes else "")
        return Observation(holds=False, summary=said, changes=("nothing: it only looks",), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        raise UnhealthyTarget(f"{observation.summary}. Nothing was changed.", **observation.facts)
