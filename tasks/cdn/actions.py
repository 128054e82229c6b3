"""Where a content delivery network fetches from, and what it must forget."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.cdn.protocol import Cdn, Edge
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import LostCompare, NotYet, SafetyRefusal, UnhealthyTarget, Unreachable
from tasks.network import Ask
from tasks.waiting import until

Component = Annotated[str, ComponentParam("cdn")]
_COMPARES = 3
_SLOWEST_S = 5.0
"""A deployment takes minutes: it need not be asked for more often than this."""


@action("cdn.switch_origin")
class SwitchOrigin(Undoable):
    """Every path that the network fetches from a site of the system is fetched from ``site``, at every edge.

    The origin must be healthy first, where the system file says how to see that (UnhealthyTarget). The change is
    compare-and-set: what somebody else changed meanwhile is never overwritten.
    """

    site: Annotated[str, SiteParam()]
    component: Component = "cdn"
    check_within_s: ClassVar[float] = 3.0

    async def observe(self, ctx: Context) -> Observation:
        cdn, site = self._parts(ctx)
        edge = await cdn.edge()
        changes = [] if edge.site == site else [f"origin: {edge.site or 'of several sites'} -> {site}"]
        changes += [] if edge.deployed and not changes else ["wait until it is deployed at every edge"]
        state = "deployed" if edge.deployed else "being deployed"
        return Observation(
            holds=not changes,
            summary=f"{edge.name} fetches from {edge.site or 'several sites'}, {state}",
            changes=tuple(changes),
            facts={
                "site": edge.site,
                "origins": dict(edge.origins),
                "version": edge.version,
                "deployed": edge.deployed,
                "control_plane": cdn.control_plane(),
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        cdn, site = self._parts(ctx)
        await self._healthy(ctx, cdn, site)
        edge = await self._switch(ctx, cdn, site)
        return {"version_after": edge.version}

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        cdn, _ = self._parts(ctx)
        before = evidence["site"]
        if before is None:
            raise SafetyRefusal("the paths were fetched from several sites before; put them back by hand, each its own")
        await self._healthy(ctx, cdn, before)
        await self._switch(ctx, cdn, before)

    async def _switch(self, ctx: Context, cdn: Cdn, site: str) -> Edge:
        edge = await cdn.edge()
        for compare in range(1, _COMPARES + 1):
            if edge.site == site:
                break
            ctx.guard()
            try:
                await cdn.switch(site, edge.version)
            except LostCompare:
                if compare == _COMPARES:
                    raise
            edge = await cdn.edge()

        async def deployed() -> Edge:
            now = await cdn.edge()
            if now.site != site or not now.deployed:
                line = f"{now.name} fetches from {now.site or 'several sites'}, not deployed at every edge yet"
                ctx.report(line)
                raise NotYet(line, version=now.version)
            return now

        return await until(ctx, deployed, most_s=_SLOWEST_S, on=(NotYet, Unreachable))

    async def _healthy(self, ctx: Context, cdn: Cdn, site: str) -> None:
        url = cdn.check(site)
        if url is None:
            return
        try:
            reply = await ctx.network.http(Ask("GET", url), within_s=min(self.check_within_s, ctx.left_s()))
        except Unreachable as e:
            raise UnhealthyTarget(f"the origin of {site} does not answer at {url} ({e}); nothing was switched") from e
        if not reply.good:
            raise UnhealthyTarget(
                f"the origin of {site} answers HTTP {reply.status} at {url}, expected 2xx; nothing was switched"
            )

    def _parts(self, ctx: Context) -> tuple[Cdn, str]:
        cdn: Cdn = ctx.component(self.component, Cdn)
        return cdn, ctx.site(self.site)


@action("cdn.invalidate")
class Invalidate(Action):
    """What the edges have cached of ``paths`` is gone. Once a run, however often the step is tried."""

    paths: tuple[str, ...] = Field(default=("/*",), min_length=1)
    component: Component = "cdn"

    async def observe(self, ctx: Context) -> Observation:
        cdn: Cdn = ctx.component(self.component, Cdn)
        reference = self._reference(ctx)
        done = await cdn.invalidated(reference)
        shown = ", ".join(self.paths)
        return Observation(
            holds=bool(done),
            summary=f"{shown}: {'invalidated' if done else 'not invalidated yet' if done is None else 'in progress'}",
            changes=() if done else (f"invalidate {shown}",) if done is None else ("wait until it is completed",),
            facts={"reference": reference, "paths": list(self.paths), "control_plane": cdn.control_plane()},
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        cdn: Cdn = ctx.component(self.component, Cdn)
        reference = self._reference(ctx)
        if await cdn.invalidated(reference) is None:
            ctx.guard()
            await cdn.invalidate(reference, self.paths)

        async def completed() -> None:
            if not await cdn.invalidated(reference):
                line = f"invalidation {reference} is in progress"
                ctx.report(line)
                raise NotYet(line)

        await until(ctx, completed, most_s=_SLOWEST_S, on=(NotYet, Unreachable))

    def _reference(self, ctx: Context) -> str:
        """One for each run and set of paths."""
        which = hashlib.sha256("\n".join(sorted(self.paths)).encode()).hexdigest()[:8]
        return f"{ctx.run.run_id}-{which}"
