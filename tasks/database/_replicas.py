"""Replicas around the primary: who may be promoted, who follows, who comes back, who confirms commits."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.database import _loss
from tasks.database._proof import Views, look, shown, streams, the_primary, told
from tasks.database.protocol import Database, Durability, NodeView, Operated
from tasks.errors import BadInput, NotYet, RelightError, SafetyRefusal
from tasks.quantities import Duration
from tasks.waiting import unless_over, until


class _OnDatabase(Action):
    component: Annotated[str, ComponentParam("database")] = "database"

    def _operated(self, ctx: Context) -> Any:
        """The database, where relight operates its servers. Raises BadInput for a managed one."""
        return ctx.component(self.component, Operated)


@action("database.ready_to_switch")
class ReadyToSwitch(_OnDatabase):
    """One healthy primary outside the site, and a replica of the site that streams and keeps up. Changes nothing."""

    phase: ClassVar[Phase] = Phase.DETECT
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()] = Field(description="The site to switch to.")
    max_lag_bytes: int = Field(default=16 * 1024 * 1024, ge=0)

    async def observe(self, ctx: Context) -> Observation:
        database = ctx.component(self.component, Database)
        views, site = await look(database), ctx.site(self.site)
        primary = the_primary(views)
        facts: Facts = {"views": shown(views.values()), "primary": primary.node}
        if primary.site == site:
            return Observation(holds=True, summary=f"{primary.node} of {site} is the primary already", facts=facts)
        choice = _loss.choose([views[n] for n in database.nodes(site)], primary.system_identifier)
        if choice.chosen is None or not streams(choice.chosen, primary):
            why = "; ".join(told(views[n]) for n in database.nodes(site))
            return Observation(holds=False, summary=f"no replica of {site} streams: {why}", facts=facts)
        lag = max(0, (primary.lsn or 0) - (choice.chosen.lsn or 0))
        facts |= {"chosen": choice.chosen.node, "lag_bytes": lag}
        said = f"{primary.node} is healthy; {choice.chosen.node} streams, {lag} bytes behind"
        return Observation(holds=lag <= self.max_lag_bytes, summary=said, facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        async def again() -> Facts:
            seen = await self.observe(ctx)
            ctx.report(seen.summary)
            if not seen.holds:
                raise NotYet(seen.summary, **seen.facts)
            return seen.facts

        try:
            return await until(ctx, again)
        except NotYet as e:
            raise SafetyRefusal(f"not ready for a planned switch: {e.message}. Nothing was changed.", **e.facts) from e


@action("database.catch_up")
class CatchUp(_OnDatabase):
    """A replica of the site has everything that the fenced primary wrote. Waits; changes nothing."""

    read_only: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("database.fence",)

    site: Annotated[str, SiteParam()] = Field(description="The site whose replica is to be promoted.")

    async def observe(self, ctx: Context) -> Observation:
        database = ctx.component(self.component, Database)
        views, site = await look(database), ctx.site(self.site)
        ends = [at for f in ctx.facts_of("database.fence") for at in (f.get("final") or {}).values()]
        finals = [at["lsn"] for at in ends if "lsn" in at]
        # A run that was resumed may not have noted the end; then the furthest that any replica heard of is the mark.
        # A primary that is read only and still answers says so itself.
        heard = [lsn or 0 for v in views.values() for lsn in (v.upstream_lsn, v.lsn)]
        goal = max(finals) if finals else max(heard, default=0)
        choice = _loss.choose([views[n] for n in database.nodes(site)])
        if choice.chosen is not None and choice.chosen.lsn is None:
            return _complete(choice.chosen, [datetime.fromisoformat(at["at"]) for at in ends if "at" in at])
        if choice.chosen is None or choice.chosen.lsn is None:
            why = "; ".join(told(views[n]) for n in database.nodes(site))
            return Observation(holds=False, summary=f"no replica of {site} is fit: {why}")
        behind = max(0, goal - choice.chosen.lsn)
        facts: Facts = {
            "chosen": choice.chosen.node,
            "lsn": choice.chosen.lsn,
            "goal_lsn": goal,
            "behind_bytes": behind,
        }
        said = (
            f"{choice.chosen.node} has everything" if not behind else f"{choice.chosen.node} is {behind} bytes behind"
        )
        return Observation(holds=not behind, summary=said, facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        async def again() -> Facts:
            seen = await self.observe(ctx)
            ctx.report(seen.summary)
            if not seen.holds:
                raise NotYet(f"{seen.summary}; nothing was promoted", **seen.facts)
            return seen.facts

        return await until(ctx, again)


def _complete(chosen: NodeView, ends: list[datetime]) -> Observation:
    """Whether a replica that tells no position has everything until its primary was fenced."""
    last, end = chosen.last_commit_at, max(ends, default=None)
    facts: Facts = {
        "chosen": chosen.node,
        "complete_until": last and last.isoformat(),
        "goal_at": end and end.isoformat(),
    }
    if end is None:
        said = f"{chosen.node} tells no position, and no step noted when the primary was fenced"
        return Observation(holds=False, summary=said, facts=facts)
    said = f"{chosen.node} is complete until {last}, the primary was fenced at {end}"
    return Observation(holds=last is not None and last >= end, summary=said, facts=facts)


@action("database.follow")
class Follow(_OnDatabase):
    """Every replica that answers streams from the current primary; nodes that do not answer are named, not waited for.

    A replica of another site that was pointed at the primary and does not stream within ``patience`` is named too: it
    has diverged, and database.rejoin brings it back.
    """

    patience: Duration = Field(default=5.0, description="How long a replica of another site may take to stream.")

    async def observe(self, ctx: Context) -> Observation:
        return await self._look(ctx, diverged_elsewhere=False)

    async def _look(self, ctx: Context, *, diverged_elsewhere: bool) -> Observation:
        """``diverged_elsewhere``: leave out replicas of other sites that follow the primary and do not stream."""
        views = await look(ctx.component(self.component, Database))
        primary = the_primary(views)
        astray = [v for v in _replicas(views) if not streams(v, primary)]
        away = [n for n, v in views.items() if n != primary.node and not (v.reach == "answers" and v.in_recovery)]
        if diverged_elsewhere:
            diverged = [v for v in astray if v.site != primary.site and v.upstream == primary.node]
            away += [v.node for v in diverged]
            astray = [v for v in astray if v not in diverged]
        facts: Facts = {"primary": primary.node, "astray": [v.node for v in astray], "left_out": away}
        left = f"; left out: {', '.join(told(views[n]) for n in away)}" if away else ""
        if astray:
            said = "; ".join(told(v) for v in astray)
            changes = tuple(f"point {v.node} at {primary.node}" for v in astray)
            return Observation(holds=False, summary=said + left, changes=changes, facts=facts)
        names = ", ".join(v.node for v in _replicas(views) if v.node not in away) or "no replica answers, so none"
        return Observation(holds=True, summary=f"{names} streams from {primary.node}{left}", facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        primary = observation.facts["primary"]

        async def one(node: str) -> str:
            view = await database.view(node)
            if view.upstream != primary:
                ctx.guard()
                ctx.report(f"pointing {node} at {primary}")
                await database.follow(node, primary)
            return node

        results = await asyncio.gather(*(one(n) for n in observation.facts["astray"]), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

        patient_until = ctx.clock.monotonic() + self.patience

        async def streaming() -> None:
            seen = await self._look(ctx, diverged_elsewhere=ctx.clock.monotonic() >= patient_until)
            if not seen.holds:
                raise NotYet(seen.summary, **seen.facts)

        await unless_over(ctx, streaming)
        return None

    async def confirm(self, ctx: Context) -> Observation:
        return await self._look(ctx, diverged_elsewhere=True)


def _replicas(views: Views) -> list[NodeView]:
    return [v for v in views.values() if v.reach == "answers" and v.in_recovery]


def _known(standbys: dict[str, str] | None, node: str) -> bool:
    return standbys is None or standbys.get(node) == "streaming"


@action("database.rejoin")
class Rejoin(_OnDatabase):
    """Every node of the site is a replica of the current primary again: started, rewound or copied."""

    site: Annotated[str, SiteParam()] = Field(description="The site to bring back.")

    async def observe(self, ctx: Context) -> Observation:
        database = ctx.component(self.component, Database)
        views, site = await look(database), ctx.site(self.site)
        primary = the_primary(views)
        if primary.site == site:
            raise SafetyRefusal(f"{primary.node} of {site} is the primary; only the other site can re-join it")
        known: dict[str, str] | None = None  # a managed primary does not name its standbys
        if isinstance(database, Operated):
            known = {s.node: s.state for s in await database.standbys(primary.node)}
        away = [n for n in database.nodes(site) if not (streams(views[n], primary) and _known(known, n))]
        facts: Facts = {"primary": primary.node, "away": away, "views": shown(views.values()), "standbys": known}
        if away:
            said = "; ".join(told(views[n]) for n in away)
            changes = tuple(f"bring {n} back as a replica of {primary.node}" for n in away)
            return Observation(holds=False, summary=said, changes=changes, facts=facts)
        names = ", ".join(database.nodes(site))
        as_told = "" if known is None else ", as it says itself"
        return Observation(holds=True, summary=f"{names} follow {primary.node}{as_told}", facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        primary = observation.facts["primary"]

        async def one(node: str) -> str:
            ctx.guard()
            ctx.report(f"bringing {node} back")
            return await database.rejoin(node, primary)

        nodes = observation.facts["away"]
        results = await asyncio.gather(*(one(n) for n in nodes), return_exceptions=True)
        failed = [f"{n}: {r}" for n, r in zip(nodes, results, strict=True) if isinstance(r, RelightError)]
        for result in results:
            if isinstance(result, BaseException):
                if isinstance(result, RelightError) and len(failed) > 1:
                    raise type(result)("; ".join(failed)) from result
                raise result
        return {"how": dict(zip(nodes, results, strict=True))}

    async def confirm(self, ctx: Context) -> Observation:
        async def again() -> Observation:
            seen = await self.observe(ctx)
            if not seen.holds:
                raise NotYet(seen.summary, **seen.facts)
            return seen

        return await until(ctx, again)


@action("database.protect")
class Protect(_OnDatabase):
    """A commit is acknowledged only when a standby of the site has it, as the system file declares it."""

    site: Annotated[str, SiteParam()] = Field(description="The site of the synchronous standbys.")

    async def observe(self, ctx: Context) -> Observation:
        database = ctx.component(self.component, Database)
        primary = the_primary(await look(database))
        wanted = self._wanted(ctx, database)
        live = await database.live_durability(primary.node)
        note = await self._operated(ctx).promised(primary.node)
        facts: Facts = {"primary": primary.node, "live": _words(live), "wanted": _words(wanted)}
        if live == wanted and (wanted.method == "async" or note == (primary.node, wanted)):
            return Observation(holds=True, summary=f"{primary.node} promises {_words(wanted)}", facts=facts)
        change = f"{primary.node}: {_words(live)} becomes {_words(wanted)}"
        return Observation(
            holds=False, summary=f"{primary.node} promises {_words(live)}", changes=(change,), facts=facts
        )

    def _wanted(self, ctx: Context, database: Database) -> Durability:
        declared, site = database.durability(), ctx.site(self.site)
        if declared.method == "async":
            return declared
        nodes = database.nodes(site)[: max(1, len(declared.standbys))]
        if len(nodes) < declared.needed:
            raise BadInput(f"{site} has {len(nodes)} nodes, the system file promises {declared.needed} standbys")
        return Durability(declared.method, declared.needed, nodes)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        ctx.guard()
        await self._operated(ctx).set_durability(observation.facts["primary"], self._wanted(ctx, database))
        return None


def _words(d: Durability) -> str:
    return "asynchronous" if d.method == "async" else f"{d.method.upper()} {d.needed} ({', '.join(d.standbys)})"
