"""Deploying releases: one server at a time, behind a health gate, and back again when one does not pass it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.capacity.protocol import Capacity, Startable
from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.deploy._canary import Judge, Trial
from tasks.deploy._compare import must_have_scipy
from tasks.deploy._load import LoadTest
from tasks.deploy._roll import Balanced, Patience, Site, left_over
from tasks.deploy._shares import Compare
from tasks.deploy._turns import Seen
from tasks.deploy.protocol import Environment, Fleet, Releases
from tasks.errors import BadInput, SafetyRefusal
from tasks.metrics.protocol import Requests
from tasks.quantities import Duration, Percent, show_duration
from tasks.traffic._pool import Pool, confirmed
from tasks.traffic.protocol import Balancer

__all__ = ["Canary", "Compare", "LoadTest", "Rolling", "Stage"]


class _Deploys(Undoable):
    """Which release, and how patiently; what every action of this domain that changes servers shares."""

    version: str = Field(min_length=1, description="Of a release that is there.")
    pool: str = "app"
    drain: Duration = Field(default=10.0, gt=0, description="How long open requests may go on; none is ever cut.")
    gate: Duration = Field(default=15.0, gt=0, description="How soon a server must be proven, after its start.")
    times: int = Field(default=3, ge=1, le=100, description="Good answers in a row that prove a server.")

    def least_timeout_s(self) -> float:
        return 2 * (self.drain + self.gate)

    def _site(self, ctx: Context) -> Site:
        """Where."""
        raise NotImplementedError

    def _made_of(self, ctx: Context, name: str, fleet: Fleet) -> Site:
        patience = Patience(self.drain, self.gate, self.times)
        pools = tuple(Pool(ctx, fleet.balancer, at, self.pool) for at in fleet.balancer.sites())
        balanced = Balanced(ctx, name, pools, fleet.capacity.limits(name).minimum, patience)
        return Site(ctx, name, fleet.releases, fleet.capacity, fleet.starter, balanced, patience)

    async def _seen(self, ctx: Context) -> tuple[dict[str, Seen], Facts]:
        """The fleet, and what there is to put back. Raises BadInput for a release that is not there."""
        site = self._site(ctx)
        there = await site.releases.available(site.name)
        if self.version not in there:
            raise BadInput(f"no release {self.version!r} at {site.name}; there are: {', '.join(there) or 'none'}")
        fleet, _ = await site.fleet()
        running = {n: s for n, s in fleet.items() if s.running}
        facts: Facts = {
            "site": site.name,
            "release": await site.releases.chosen(site.name),
            "versions": {n: s.version for n, s in running.items()},
            "running": sorted(running),
            "admin": await site.balanced.admins(),
        }
        return fleet, facts

    def _before(self, ctx: Context, observation: Observation) -> Facts:
        """What there was before this run changed anything."""
        return ctx.intended[0] if ctx.intended else observation.facts

    async def _must_lead_back(self, ctx: Context, before: Facts) -> None:
        """Raises SafetyRefusal where the release from before is gone."""
        site = self._site(ctx)
        if before["release"] not in await site.releases.available(site.name):
            raise SafetyRefusal(
                f"release {before['release']}, which {site.name} runs now, is gone: there would be no way"
                " back. Put its folder back first."
            )


class _AtSite(_Deploys):
    """At a site of the system."""

    site: Annotated[str, SiteParam()]
    component: Annotated[str, ComponentParam("deploy")] = "releases"
    capacity: Annotated[str, ComponentParam("capacity")] = "capacity"
    traffic: Annotated[str, ComponentParam("traffic")] = "traffic"

    def _site(self, ctx: Context) -> Site:
        capacity: Capacity = ctx.component(self.capacity, Capacity)
        balancer: Balancer = ctx.component(self.traffic, Balancer)
        starter, releases = ctx.component(self.capacity, Startable), ctx.component(self.component, Releases)
        return self._made_of(ctx, ctx.site(self.site), Fleet(releases, capacity, starter, balancer))


class _Rolls(_Deploys):
    """Every running server, one at a time."""

    async def observe(self, ctx: Context) -> Observation:
        fleet, facts = await self._seen(ctx)
        at, release, admins = facts["site"], facts["release"], facts["admin"]
        running = {n: s for n, s in fleet.items() if s.running}
        changes = [] if release == self.version else [f"{at} starts from release {self.version}, not {release}"]
        changes += [
            f"drain and restart {n}: {s.version or 'no answer'} -> {self.version}"
            for n, s in running.items()
            if s.version != self.version or not s.ready
        ]
        changes += left_over(fleet, admins, ctx.intended[0]) if ctx.intended else []
        told = ", ".join(f"{n} {s.version or 'does not answer'}" for n, s in running.items()) or "none"
        return Observation(holds=not changes, summary=f"releases at {at}: {told}", changes=tuple(changes), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        before = self._before(ctx, observation)
        await self._must_lead_back(ctx, before)
        return await self._site(ctx).roll(self.version, before)

    async def confirm(self, ctx: Context) -> Observation:
        return await confirmed(ctx, self.observe)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        await self._site(ctx).roll(str(evidence["release"]), evidence)


@action("deploy.rolling")
class Rolling(_Rolls, _AtSite):
    """Every running server of a site runs ``version``; never fewer serve than the system file's minimum.

    Each is drained at every balancer that holds it, restarted when it has no sessions left, must say that it is ready
    and of this version, and only then gets requests again. With none to spare, one is started first and stopped last.
    The first that does not pass is put back on the release from before, and the step fails (UnhealthyTarget, NotYet);
    undo puts all of them back in the same way.
    """


@action("deploy.stage")
class Stage(_Rolls):
    """Every running server of an environment that is no site (staging) runs ``version``, as ``deploy.rolling`` does it.

    It changes nothing but that environment, and it has come only when its own front door says so.
    """

    environment: Annotated[str, ComponentParam("deploy")] = "staging"

    async def observe(self, ctx: Context) -> Observation:
        found = await super().observe(ctx)
        if not found.holds:
            return found
        answer = await self._environment(ctx).front()
        if answer.ready and answer.version == self.version:
            return found
        why = answer.why or f"release {answer.version or 'unknown'}"
        said = f"the front door of {self.environment} says: {why}"
        wait = f"wait until it says release {self.version}"
        return Observation(holds=False, summary=said, changes=(wait,), facts=found.facts)

    def _site(self, ctx: Context) -> Site:
        environment = self._environment(ctx)
        return self._made_of(ctx, environment.name, environment.fleet())

    def _environment(self, ctx: Context) -> Environment:
        return ctx.component(self.environment, Environment)


@action("deploy.canary")
class Canary(_AtSite):
    """A server of a site that runs ``version`` does no worse than those beside it, over the same time.

    One more server is started for it (where none may be, and one is to spare, that one is used) and gets ``share`` of
    the requests by its weight. Errors are compared by Fisher's exact test and latencies, which are counts in buckets,
    by Wilcoxon's rank sum, both one-sided (``tasks/deploy/_compare.py`` says why, and the sources). Everything is as
    before afterwards, also the link that servers start from: a canary changes no other server. One that is worse fails
    the step (Breached), and so does not enough data (NotYet).
    """

    share: Percent = Field(default=20.0, gt=0, le=50, description="Of the site's requests.")
    for_: Duration = Field(default=15.0, gt=0, alias="for", description="How long they are compared at least.")
    most: Duration = Field(default=60.0, gt=0, description="How much longer to wait for enough requests.")
    minimum: int = Field(
        default=200, ge=50, description="Requests that the canary, and the others, must have answered."
    )
    alpha: float = Field(default=0.01, gt=0, le=0.2, description="How often, at most, a good release is called worse.")
    tolerance: int = Field(default=1, ge=0, le=5, description="By how many latency buckets slower is not worse yet.")
    metrics: Annotated[str, ComponentParam("metrics")] = "metrics"

    def least_timeout_s(self) -> float:
        return self.for_ + self.most + 2 * (self.drain + self.gate)

    async def observe(self, ctx: Context) -> Observation:
        must_have_scipy()
        ctx.component(self.metrics, Requests)
        fleet, facts = await self._seen(ctx)
        facts["weights"] = await self._site(ctx).balanced.weights()
        old = [n for n in facts["running"] if facts["versions"][n] != self.version]
        left = left_over(fleet, facts["admin"], ctx.intended[0]) if ctx.intended else []
        change = (
            f"one server on release {self.version} with {self.share:g}% of the requests of {facts['site']}, compared"
            f" with {', '.join(old)} for {show_duration(self.for_)}; then everything as before"
        )
        said = f"{', '.join(old)} at {facts['site']} run another release" if old else "there is nothing to compare with"
        return Observation(
            holds=not (old or left), summary=said, changes=(change, *left) if old else tuple(left), facts=facts
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        before = self._before(ctx, observation)
        await self._must_lead_back(ctx, before)
        return await self._trial(ctx, before).run()

    async def confirm(self, ctx: Context) -> Observation:
        """That it went again: no server but those on another release."""
        _, facts = await self._seen(ctx)
        on = [n for n in facts["running"] if facts["versions"][n] == self.version]
        gone = not on or len(on) == len(facts["running"])
        told = "every server is as before" if gone else f"{', '.join(on)} still runs it"
        return Observation(holds=gone, summary=told)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        await self._trial(ctx, evidence).home()

    def _trial(self, ctx: Context, before: Facts) -> Trial:
        judge = Judge(self.share / 100, self.for_, self.most, self.minimum, self.alpha, self.tolerance)
        return Trial(self._site(ctx), ctx.component(self.metrics, Requests), self.version, before, judge)
