"""What a group does by itself: its rules, its version, and whether the account lets it grow."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.capacity._plan import AutoScaling
from tasks.capacity.protocol import Elastic, Refreshing, Rolling, Scaling
from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam, Undoable
from tasks.errors import EffectUnknown, NotYet, Rejected, SafetyRefusal
from tasks.quantities import Duration
from tasks.waiting import until

Component = Annotated[str, ComponentParam("capacity")]


@action("capacity.policy")
class Policy(Undoable):
    """A site's group scales by the rules of the plan: limits, cpu target, steps and cooldowns. Never stops an instance.

    The steps are policies that something has to call (a CloudWatch alarm); the cpu target acts by itself.
    """

    site: Annotated[str, SiteParam()]
    auto_scaling: AutoScaling
    component: Component = "capacity"

    async def observe(self, ctx: Context) -> Observation:
        group, site = self._parts(ctx)
        now, desired = await group.scaling(site)
        wanted = self.auto_scaling.scaling()
        have = asdict(now)
        drift = {k: (have[k], v) for k, v in asdict(wanted).items() if have[k] != v}
        return Observation(
            holds=not drift,
            summary=f"scaling at {site} is as planned" if not drift else f"scaling at {site} differs in {len(drift)}",
            changes=tuple(f"{k}: {was if was is not None else 'not set'} -> {to}" for k, (was, to) in drift.items()),
            facts={"before": have, "desired": desired, "drift": sorted(drift)},
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        group, site = self._parts(ctx)
        ctx.guard()
        await group.set_scaling(site, self.auto_scaling.scaling())

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        group, site = self._parts(ctx)
        ctx.guard()
        await group.set_scaling(site, Scaling(**evidence["before"]))

    def _parts(self, ctx: Context) -> tuple[Elastic, str]:
        group: Elastic = ctx.component(self.component, Elastic)
        return group, ctx.site(self.site)


@action("capacity.refresh")
class RefreshAll(Undoable):
    """Every instance of a site's group runs ``version``; they are replaced a few at a time.

    Undo turns a refresh round that goes on, and goes back to the version from before otherwise.
    """

    site: Annotated[str, SiteParam()]
    version: str = Field(pattern=r"^\d+$", description="Number of the launch template's version; not $Latest.")
    minimum_healthy: int = Field(default=90, ge=0, le=100, description="Percent that must serve all the time.")
    maximum_healthy: int = Field(default=110, ge=100, le=200)
    warmup: Duration = 60.0
    component: Component = "capacity"

    async def observe(self, ctx: Context) -> Observation:
        group, site = self._parts(ctx)
        versions, refresh = await group.versions(site), await group.newest_refresh(site)
        other = sorted(i for i, v in versions.items() if v != self.version)
        going = refresh is not None and refresh.going
        told = f"; refresh {refresh.name} is {refresh.status}, {refresh.percent}%" if refresh is not None else ""
        return Observation(
            holds=not other and not going,
            summary=f"{len(versions) - len(other)} of {len(versions)} instances at {site} run {self.version}{told}",
            changes=tuple(f"replace {i}, which runs {versions[i]}" for i in other),
            facts={
                "versions": versions,
                "version": self.version,
                "refresh": None if refresh is None else asdict(refresh),
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        return await self._to(ctx, self.version)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        group, site = self._parts(ctx)
        were = sorted(set(evidence["versions"].values()))
        refresh = await group.newest_refresh(site)
        if refresh is not None and refresh.going and refresh.version == self.version:
            if refresh.status != "RollbackInProgress":
                ctx.guard()
                await group.roll_back(site)
            await until(ctx, lambda: self._over(ctx, self.version, "RollbackSuccessful"))
            return
        if len(were) != 1:
            raise SafetyRefusal(
                f"the instances at {site} ran {', '.join(were)} before: no single version to go back to"
            )
        if set((await group.versions(site)).values()) != set(were):
            await self._to(ctx, were[0])

    async def _to(self, ctx: Context, version: str) -> Facts:
        group, site = self._parts(ctx)
        ctx.guard()
        how = Rolling(version, self.minimum_healthy, self.maximum_healthy, round(self.warmup))
        try:
            await group.start_refresh(site, how)
        except EffectUnknown:
            refresh = await group.newest_refresh(site)
            if refresh is None or not refresh.going or refresh.version != version:
                raise
        return await until(ctx, lambda: self._over(ctx, version, "Successful"))

    async def _over(self, ctx: Context, version: str, wanted: str) -> Facts:
        group, site = self._parts(ctx)
        refresh = await group.newest_refresh(site)
        if refresh is None or refresh.version != version:  # lists lag behind
            raise NotYet(f"the refresh at {site} to version {version} cannot be seen yet")
        if refresh.going:
            line = f"refresh {refresh.name} at {site} is {refresh.status}, {refresh.percent}%"
            ctx.report(line)
            raise NotYet(line)
        if refresh.status != wanted:
            raise Rejected(
                f"refresh {refresh.name} at {site} ended as {refresh.status}: {refresh.reason or 'no reason given'};"
                " look at the instances that did not become healthy",
                refresh=asdict(refresh),
            )
        return {"refresh": asdict(refresh)}

    def _parts(self, ctx: Context) -> tuple[Refreshing, str]:
        group: Refreshing = ctx.component(self.component, Refreshing)
        return group, ctx.site(self.site)


@action("capacity.quota")
class Quota(Action):
    """The account may run the group's maximum in the site's region, as far as its quota of vCPUs says."""

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()]
    component: Component = "capacity"

    async def observe(self, ctx: Context) -> Observation:
        group: Elastic = ctx.component(self.component, Elastic)
        allowed, needed = await group.quota(ctx.site(self.site))
        return Observation(
            holds=allowed >= needed,
            summary=f"{needed:g} vCPUs needed at most at {ctx.site(self.site)}, {allowed:g} allowed by the quota",
            facts={"allowed_vcpus": allowed, "needed_vcpus": needed, "counts": "this group only"},
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        found = await self.observe(ctx)
        if not found.holds:
            raise Rejected(f"{found.summary}: ask for a higher quota (Service Quotas, ec2 L-1216C47A)", **found.facts)
