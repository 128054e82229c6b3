"""Deploying releases: one server at a time, behind a health gate, and back again when one does not pass it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.capacity.protocol import Capacity, Startable
from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.deploy._roll import Balanced, Patience, Site, left_over
from tasks.deploy.protocol import Releases
from tasks.errors import BadInput, SafetyRefusal
from tasks.quantities import Duration
from tasks.traffic._pool import Pool, confirmed
from tasks.traffic.protocol import Balancer


@action("deploy.rolling")
class Rolling(Undoable):
    """Every running server of a site runs ``version``; never fewer serve than the system file's minimum.

    Each is drained at every balancer that holds it, restarted when it has no sessions left, must say that it is ready
    and of this version, and only then gets requests again. With none to spare, one is started first and stopped last.
    The first that does not pass is put back on the release from before, and the step fails (UnhealthyTarget, NotYet);
    undo puts all of them back in the same way.
    """

    site: Annotated[str, SiteParam()]
    version: str = Field(min_length=1, description="Of a release that is there.")
    pool: str = "app"
    drain: Duration = Field(default=10.0, gt=0, description="How long open requests may go on; none is ever cut.")
    gate: Duration = Field(default=15.0, gt=0, description="How soon a server must be proven, after its start.")
    times: int = Field(default=3, ge=1, le=100, description="Good answers in a row that prove a server.")
    component: Annotated[str, ComponentParam("deploy")] = "releases"
    capacity: Annotated[str, ComponentParam("capacity")] = "capacity"
    traffic: Annotated[str, ComponentParam("traffic")] = "traffic"

    def least_timeout_s(self) -> float:
        return 2 * (self.drain + self.gate)

    async def observe(self, ctx: Context) -> Observation:
        site = self._site(ctx)
        there = await site.releases.available(site.name)
        if self.version not in there:
            raise BadInput(f"no release {self.version!r} at {site.name}; there are: {', '.join(there) or 'none'}")
        fleet, _ = await site.fleet()
        admins, release = await site.balanced.admins(), await site.releases.chosen(site.name)
        running = {n: s for n, s in fleet.items() if s.running}
        facts: Facts = {
            "site": site.name,
            "release": release,
            "versions": {n: s.version for n, s in running.items()},
            "running": sorted(running),
            "admin": admins,
        }
        changes = [] if release == self.version else [f"{site.name} starts from release {self.version}, not {release}"]
        changes += [
            f"drain and restart {n}: {s.version or 'no answer'} -> {self.version}"
            for n, s in running.items()
            if s.version != self.version or not s.ready
        ]
        changes += left_over(fleet, admins, ctx.intended[0]) if ctx.intended else []
        told = ", ".join(f"{n} {s.version or 'does not answer'}" for n, s in running.items()) or "none"
        return Observation(
            holds=not changes, summary=f"releases at {site.name}: {told}", changes=tuple(changes), facts=facts
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        before = ctx.intended[0] if ctx.intended else observation.facts
        if before["release"] not in await self._site(ctx).releases.available(ctx.site(self.site)):
            raise SafetyRefusal(
                f"release {before['release']}, which {ctx.site(self.site)} runs now, is gone: there would be no way"
                " back. Put its folder back first."
            )
        return await self._site(ctx).roll(self.version, before)

    async def confirm(self, ctx: Context) -> Observation:
        return await confirmed(ctx, self.observe)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        await self._site(ctx).roll(str(evidence["release"]), evidence)

    def _site(self, ctx: Context) -> Site:
        balancer: Balancer = ctx.component(self.traffic, Balancer)
        name, patience = ctx.site(self.site), Patience(self.drain, self.gate, self.times)
        capacity: Capacity = ctx.component(self.capacity, Capacity)
        pools = tuple(Pool(ctx, balancer, at, self.pool) for at in balancer.sites())
        return Site(
            ctx,
            name,
            ctx.component(self.component, Releases),
            capacity,
            ctx.component(self.capacity, Startable),
            Balanced(ctx, name, pools, capacity.limits(name).minimum, patience),
            patience,
        )
