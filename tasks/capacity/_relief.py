"""More instances where the load is too much for those that run."""

from __future__ import annotations

import asyncio
from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.capacity.protocol import Capacity
from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import NotYet, SafetyRefusal
from tasks.metrics.protocol import Metrics, Reading, metric
from tasks.quantities import Change, Duration, ThresholdText
from tasks.waiting import until


@action("capacity.relieve")
class Relieve(Undoable):
    """A site has capacity to spare: no metric is above its threshold, or ``adjustment`` more instances are ready.

    Looks once. What is not known is neither above nor below: NotYet. At the maximum it refuses, and people decide.
    """

    site: Annotated[str, SiteParam()]
    above: dict[str, ThresholdText] = Field(min_length=1, description="Metric -> threshold: {cpu_usage: 85%}.")
    adjustment: Change = Field(default=1, ge=1, description="How many instances are added.")
    over: Duration | None = Field(default=None, gt=0, description="How far back to look; the source's own for none.")
    component: Annotated[str, ComponentParam("capacity")] = "capacity"
    metrics: Annotated[str, ComponentParam("metrics")] = "metrics"

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, limit in self.above.items():
            found = metric(name)
            if found is None:
                raise ValueError(f"no metric {name!r}; `relight metrics` lists those there are")
            if limit.unit != (found.unit if found.unit in ("%", "s") else ""):
                raise ValueError(f"{name} is measured in {found.unit or 'a bare number'}; {limit.value} is not")
        return self

    async def observe(self, ctx: Context) -> Observation:
        provider, site = ctx.component(self.component, Capacity), ctx.site(self.site)
        every, readings = await asyncio.gather(provider.instances(site), self._readings(ctx))
        running, ready = sum(i.running for i in every), sum(i.ready for i in every)
        facts: Facts = {
            "site": site,
            "running": running,
            "ready": ready,
            "metrics": {r.metric: r.value for r in readings},
        }
        if ctx.intended:  # a run that died began it: what was wanted then, and not that much more again
            wanted = int(ctx.intended[0]["wanted"])
            summary = f"{ready} instances at {site} are ready, {wanted} wanted"
            changes = () if ready >= wanted else (f"start instances at {site}, to {wanted}",)
            return Observation(holds=not changes, summary=summary, changes=changes, facts={**facts, "wanted": wanted})
        told = ", ".join(f"{r.metric} {r.value:.3g}{self.above[r.metric].unit}" for r in readings)
        crossed = [r.metric for r in readings if float(r.value or 0) > float(self.above[r.metric].value)]
        if not crossed:
            return Observation(holds=True, summary=f"{running} instances at {site} are enough: {told}", facts=facts)
        most = provider.limits(site).maximum
        wanted = min(running + self.adjustment, most)
        if wanted <= running:
            raise SafetyRefusal(f"{site}: {', '.join(crossed)} too high ({told}), and {running} of at most {most} run")
        return Observation(
            holds=False,
            summary=f"{running} instances at {site} are too few: {told}",
            changes=(f"start {wanted - running} instances at {site}, to {wanted}: {', '.join(crossed)} too high",),
            facts={**facts, "wanted": wanted, "crossed": crossed},
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        provider, site = ctx.component(self.component, Capacity), ctx.site(self.site)
        wanted, began = int(observation.facts["wanted"]), ctx.clock.monotonic()
        if sum(i.running for i in await provider.instances(site)) < wanted:
            ctx.guard()
            await provider.scale(site, wanted)

        async def ready() -> None:
            count = sum(i.ready for i in await provider.instances(site))
            if count < wanted:
                raise NotYet(f"{count} of {wanted} instances at {site} are ready")

        await until(ctx, ready)
        return {"took_s": round(ctx.clock.monotonic() - began, 3), "said": observation.changes[0]}

    async def confirm(self, ctx: Context) -> Observation:
        every = await ctx.component(self.component, Capacity).instances(ctx.site(self.site))
        running, ready = sum(i.running for i in every), sum(i.ready for i in every)
        return Observation(holds=ready >= running, summary=f"{ready} of {running} that run are ready")

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        provider, site = ctx.component(self.component, Capacity), ctx.site(self.site)
        limits = provider.limits(site)
        before = min(max(int(evidence["running"]), limits.minimum), limits.maximum)
        if sum(i.running for i in await provider.instances(site)) > before:
            ctx.guard()
            await provider.scale(site, before)

    async def _readings(self, ctx: Context) -> list[Reading]:
        """One of each metric. Raises NotYet for one that is not known."""
        source, site = ctx.component(self.metrics, Metrics), ctx.site(self.site)
        found = []
        for name in self.above:
            one = next((r for r in await source.now(name, self.over) if r.site in (site, "")), None)
            if one is None or not one.known:
                why = f"{one.state}: {one.why}" if one else "the source knows no such site"
                raise NotYet(f"{name} of {site} is unknown ({why}); whether it is too high cannot be told")
            found.append(one)
        return found
