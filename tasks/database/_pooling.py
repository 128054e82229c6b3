"""The pooler in front of the database: hold writes, let them go, and write through it as a client does."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam, Undoable
from tasks.database._proof import look, the_primary
from tasks.database.protocol import Database, Pooler
from tasks.errors import EffectUnknown, NotYet, RelightError, Unreachable
from tasks.quantities import show_duration
from tasks.waiting import insisted, until


@action("database.pause")
class Pause(Undoable):
    """New queries wait at the site's pooler, and none is under way. Clients get no error unless it lasts too long."""

    site: Annotated[str, SiteParam()] = Field(description="The site whose pooler holds queries.")
    pooler: Annotated[str, ComponentParam("database")] = "pooler"

    async def observe(self, ctx: Context) -> Observation:
        site, pooler = ctx.site(self.site), ctx.component(self.pooler, Pooler)
        paused = await pooler.paused(site)
        said = f"the pooler of {site} {'holds' if paused else 'passes'} queries"
        return Observation(holds=paused, summary=said, changes=() if paused else (f"pause the pooler of {site}",))

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        site, since = ctx.site(self.site), ctx.clock.utc().isoformat()
        ctx.guard()
        await ctx.component(self.pooler, Pooler).pause(site)
        return {"held_at": site, "held_since": since}

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        await ctx.component(self.pooler, Pooler).resume(ctx.site(self.site))


@action("database.resume")
class Resume(Action):
    """The site's pooler passes queries."""

    site: Annotated[str, SiteParam()] = Field(description="The site whose pooler lets queries go.")
    pooler: Annotated[str, ComponentParam("database")] = "pooler"
    may_be_gone: bool = Field(default=False, description="A pooler that does not answer holds nothing: accept that.")

    async def observe(self, ctx: Context) -> Observation:
        site, pooler = ctx.site(self.site), ctx.component(self.pooler, Pooler)
        try:
            paused = await insisted(ctx, lambda: pooler.paused(site))
        except Unreachable as e:
            if self.may_be_gone:
                return Observation(holds=True, summary=f"the pooler of {site} does not answer", facts={"gone": True})
            raise e from None
        said = f"the pooler of {site} {'holds' if paused else 'passes'} queries"
        return Observation(holds=not paused, summary=said, changes=(f"resume the pooler of {site}",) if paused else ())

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        site = ctx.site(self.site)
        ctx.guard()
        await ctx.component(self.pooler, Pooler).resume(site)
        held = [f["held_since"] for f in ctx.facts_of("database.pause") if f.get("held_at") == site]
        if not held:
            return None
        # a wall clock that was set back meanwhile does not make it less than nothing
        held_s = max(0.0, round((ctx.clock.utc() - datetime.fromisoformat(held[-1])).total_seconds(), 3))
        return {"held_s": held_s, "said": f"writes were held for {show_duration(held_s)}"}


@action("database.verify")
class Verify(Action):
    """A client's committed write through the site's pooler is on the current primary, and is read back.

    ``observe`` never holds: only a write proves that writes work, and a dry run makes none.
    """

    phase: ClassVar[Phase] = Phase.VERIFY

    site: Annotated[str, SiteParam()] = Field(description="The site whose pooler is used.")
    component: Annotated[str, ComponentParam("database")] = "database"
    pooler: Annotated[str, ComponentParam("database")] = "pooler"

    async def observe(self, ctx: Context) -> Observation:
        site = ctx.site(self.site)
        try:
            said = f"it leads to {await ctx.component(self.pooler, Pooler).target(site)}"
        except RelightError as e:
            said = e.message
        change = f"commit a row through the pooler of {site} and read it back"
        return Observation(holds=False, summary=f"the pooler of {site}: {said}", changes=(change,))

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        return await until(ctx, lambda: self._once(ctx), on=(NotYet, Unreachable, EffectUnknown))

    async def confirm(self, ctx: Context) -> Observation:
        facts = await self._once(ctx)
        return Observation(
            holds=True, summary=f"a write through {ctx.site(self.site)} is on {facts['primary']}", facts=facts
        )

    async def _once(self, ctx: Context) -> Facts:
        site = ctx.site(self.site)
        primary = the_primary(await look(ctx.component(self.component, Database)))
        nonce = f"{ctx.run.run_id}:{ctx.clock.monotonic():.6f}"
        ctx.guard()
        trip = await ctx.component(self.pooler, Pooler).round_trip(site, nonce)
        if trip.read_back != nonce or trip.in_recovery:
            raise NotYet(f"a write through the pooler of {site} was read back as {trip.read_back!r}, not {nonce!r}")
        another = primary.system_identifier not in (None, trip.system_identifier)
        if another or (None not in (trip.timeline, primary.timeline) and trip.timeline != primary.timeline):
            raise NotYet(
                f"the pooler of {site} leads to timeline {trip.timeline} of {trip.system_identifier}, the primary"
                f" {primary.node} is on timeline {primary.timeline} of {primary.system_identifier}"
            )
        return {"primary": primary.node, "nonce": nonce, "timeline": trip.timeline}
