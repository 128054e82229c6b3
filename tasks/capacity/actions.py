"""Instances of the application: enough of them, running and ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from tasks.capacity._elastic import Policy, Quota, RefreshAll
from tasks.capacity._relief import Relieve
from tasks.capacity.protocol import Capacity, Elastic, Instance, Limited, Limits
from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import BadInput, NotYet, Unreachable
from tasks.quantities import Duration, show_duration
from tasks.traffic.protocol import Balancer
from tasks.waiting import unless_over, until

__all__ = ["Ensure", "Policy", "Quota", "RefreshAll", "Relieve", "Replace"]


class Fleet(NamedTuple):
    """A site's instances at one moment."""

    site: str
    every: tuple[Instance, ...]

    @property
    def running(self) -> int:
        return sum(i.running for i in self.every)

    @property
    def ready(self) -> int:
        return sum(i.ready for i in self.every)

    def facts(self) -> Facts:
        return {
            "site": self.site,
            "running": self.running,
            "ready": self.ready,
            "instances": {
                i.name: {"address": i.address, "running": i.running, "ready": i.ready}
                for i in self.every
                if i.running or i.ready
            },
        }

    def waiting_for(self) -> str:
        late = ", ".join(f"{i.name} at {i.address}" for i in self.every if i.running and not i.ready)
        summary = f"{self.ready} of {self.running} running instances at {self.site} are ready"
        return f"{summary}; not: {late}" if late else summary


class _OnCapacity(Undoable):
    """What both actions of this domain share: where, and how to put the count back."""

    site: Annotated[str, SiteParam()] = Field(description="Where the instances must run.")
    component: Annotated[str, ComponentParam("capacity")] = "capacity"

    def _parts(self, ctx: Context) -> tuple[Capacity, str]:
        provider: Capacity = ctx.component(self.component, Capacity)
        return provider, ctx.site(self.site)

    async def _told(self, ctx: Context) -> Facts:
        """What else decides whether a group grows, where it can say."""
        provider, site = self._parts(ctx)
        return {"group": await provider.explain(site)} if isinstance(provider, Elastic) else {}

    async def _fleet(self, ctx: Context) -> Fleet:
        provider, site = self._parts(ctx)
        return Fleet(site, await provider.instances(site))

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        """Back to the count that ran before, within the limits; instances that were started are stopped again."""
        provider, site = self._parts(ctx)
        limits = provider.limits(site)
        before = min(max(int(evidence["running"]), limits.minimum), limits.maximum)
        if (await self._fleet(ctx)).running > before:
            ctx.guard()
            await provider.scale(site, before)


@action("capacity.ensure")
class Ensure(_OnCapacity):
    """At least ``count`` instances run at the site and are ready. Never stops one that runs above the count."""

    count: int | None = Field(
        default=None,
        ge=0,
        description="None: the system's minimum, or as many as run at any other site, whichever is more.",
    )
    traffic: Annotated[str | None, ComponentParam("traffic")] = Field(
        default=None, description="Balancer whose own health checks must agree, with pool."
    )
    pool: str | None = None

    @model_validator(mode="after")
    def _has_both_or_none(self) -> Ensure:
        if (self.traffic is None) != (self.pool is None):
            raise ValueError("traffic and pool belong together: give both or neither")
        return self

    async def observe(self, ctx: Context) -> Observation:
        fleet, (count, why) = await asyncio.gather(self._fleet(ctx), self._wanted(ctx))
        facts = {**fleet.facts(), "wanted": count, "wanted_because": why, **await self._told(ctx)}
        if fleet.ready >= count:
            return Observation(
                holds=True, summary=f"{fleet.ready} instances at {fleet.site} are ready, {count} wanted", facts=facts
            )
        missing = count - fleet.running
        change = (
            f"start {missing} instances at {fleet.site}, to {count} ({why})"
            if missing > 0
            else f"wait for {count} ready instances at {fleet.site}"
        )
        return Observation(
            holds=False,
            summary=f"{fleet.ready} instances at {fleet.site} are ready, {count} wanted",
            changes=(change,),
            facts=facts,
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        # What was wanted when the step was observed: the other site's count may be gone by now.
        count = int(observation.facts["wanted"])
        started_s = ctx.clock.monotonic()
        fleet = await _grow(ctx, self, count, count)
        took_s = round(ctx.clock.monotonic() - started_s, 3)
        return {"ready_after": fleet.ready, "running_before": _before(ctx, observation), "took_s": took_s}

    async def confirm(self, ctx: Context) -> Observation:
        if self.traffic is None:
            return await self.observe(ctx)

        async def balanced() -> Observation:
            seen = await self._balanced(ctx)
            found = await self.observe(ctx)
            wanted = int(found.facts["wanted"])
            if len(seen) < wanted:
                raise NotYet(
                    f"the balancer of {found.facts['site']} sends to {len(seen)} of {wanted} instances in pool "
                    f"{self.pool}: {', '.join(seen) or 'none'}. Check the server states there."
                )
            return found.model_copy(update={"facts": {**found.facts, "balanced": seen}})

        return await until(ctx, balanced, on=(NotYet, Unreachable))

    async def _balanced(self, ctx: Context) -> list[str]:
        """Servers of the pool in the site's balancer that are our ready instances, up and taking traffic."""
        balancer: Balancer = ctx.component(str(self.traffic), Balancer)
        fleet = await self._fleet(ctx)
        addresses = {i.address for i in fleet.every if i.ready}
        servers = await balancer.servers(fleet.site, str(self.pool))
        serving = [s for s in servers if s.up and s.admin == "ready"]
        one_each = [s.name for s in serving if s.address in addresses]
        return one_each + sorted(addresses.intersection(*[{m for s in serving for m in s.members}]))

    async def _wanted(self, ctx: Context) -> tuple[int, str]:
        """How many instances, and why that many. Raises BadInput for a count outside the limits."""
        provider, site = self._parts(ctx)
        limits = provider.limits(site)
        if self.count is not None:
            _within(limits, self.count, site)
            return self.count, "as the runbook says"
        others = sorted({s for s in ctx.roles.values() if s != site})
        running = await asyncio.gather(*(_running_at(provider, other) for other in others))
        most = max(running, default=0)
        if most > limits.minimum:
            return min(most, limits.maximum), f"as many as run at {others[running.index(most)]}"
        return limits.minimum, "the minimum of the system file"


@action("capacity.replace")
class Replace(_OnCapacity):
    """Dead and sick instances of a site are replaced, until at least the minimum is ready.

    Sick is one that runs and is not ready although another one of the site is: then it is not the database
    behind all of them, and one more instance helps. It keeps running, so that it can be looked at.
    """

    patience: Duration = Field(default=5.0, description="How long a running instance may take to become ready.")

    def least_timeout_s(self) -> float:
        return self.patience + 1.0

    async def observe(self, ctx: Context) -> Observation:
        fleet = await self._fleet(ctx)
        provider, site = self._parts(ctx)
        minimum = provider.limits(site).minimum
        summary = f"{fleet.ready} instances at {site} are ready, {minimum} needed"
        facts = {**fleet.facts(), "wanted": minimum}
        if fleet.ready >= minimum:
            return Observation(holds=True, summary=summary, facts=facts)
        dead = max(0, minimum - fleet.running)
        change = (
            f"start {dead} instances at {site}"
            if dead
            else f"wait {show_duration(self.patience)} for those that run at {site}, then start others beside them"
        )
        return Observation(holds=False, summary=summary, changes=(change,), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        provider, site = self._parts(ctx)
        limits = provider.limits(site)
        since: dict[str, float] = {}  # each has its own patience, one that was just started too

        def target(fleet: Fleet) -> int:
            now = ctx.clock.monotonic()
            waiting = [i.name for i in fleet.every if i.running and not i.ready]
            for name in since.keys() - set(waiting):
                del since[name]
            sick = sum(now - since.setdefault(name, now) >= self.patience for name in waiting)
            return min(limits.minimum + sick, limits.maximum) if fleet.ready else limits.minimum

        fleet = await _grow(ctx, self, limits.minimum, target)
        return {
            "ready_before": observation.facts["ready"],
            "running_before": _before(ctx, observation),
            "ready_after": fleet.ready,
            "running_after": fleet.running,
        }


@action("capacity.limits")
class Keep(Action):
    """Between ``minimum`` and ``maximum`` instances run at the site, and the group's own limits say the same.

    Where they are settings of the system file (no Auto Scaling group), a difference is told: people change the file.
    """

    site: Annotated[str, SiteParam()] = Field(description="Whose group.")
    minimum: int = Field(ge=0)
    maximum: int = Field(ge=1)
    component: Annotated[str, ComponentParam("capacity")] = "capacity"

    @model_validator(mode="after")
    def _ordered(self) -> Keep:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    async def observe(self, ctx: Context) -> Observation:
        provider, site = ctx.component(self.component, Capacity), ctx.site(self.site)
        live = await _live(provider, site)
        fleet = Fleet(site, await provider.instances(site))
        wanted = min(max(fleet.running, self.minimum), self.maximum)
        changes = []
        if live != Limits(self.minimum, self.maximum):
            changes.append(f"limits of {site}: {live.minimum} to {live.maximum} → {self.minimum} to {self.maximum}")
        if wanted != fleet.running:
            changes.append(f"{'start' if wanted > fleet.running else 'stop'} {abs(wanted - fleet.running)} at {site}")
        facts = {**fleet.facts(), "minimum": live.minimum, "maximum": live.maximum, "desired": wanted}
        said = f"{fleet.running} instances run at {site}, limits {live.minimum} to {live.maximum}"
        return Observation(holds=not changes, summary=said, changes=tuple(changes), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        provider, site = ctx.component(self.component, Capacity), ctx.site(self.site)
        wanted = Limits(self.minimum, self.maximum)
        if isinstance(provider, Limited):
            if await provider.live_limits(site) != wanted:
                ctx.guard()
                await provider.set_limits(site, wanted)
        elif provider.limits(site) != wanted:
            raise BadInput(
                f"component {self.component} has limits {observation.facts['minimum']} to"
                f" {observation.facts['maximum']} in the system file, and {wanted.minimum} to {wanted.maximum} are"
                " wanted; change one of the two"
            )
        running = Fleet(site, await provider.instances(site)).running
        count = min(max(running, self.minimum), self.maximum)
        if count != running:
            ctx.guard()
            await provider.scale(site, count)
        return {"running_before": running, "asked_for": count}


async def _live(provider: Capacity, site: str) -> Limits:
    """The group's own limits, where it has some; else those of the system file."""
    return await provider.live_limits(site) if isinstance(provider, Limited) else provider.limits(site)


def _before(ctx: Context, observation: Observation) -> int:
    """How many ran before this run first changed it, also where an earlier attempt did."""
    first = ctx.intended[0] if ctx.intended else observation.facts
    return int(first["running"])


async def _grow(ctx: Context, part: _OnCapacity, ready: int, running: int | Callable[[Fleet], int]) -> Fleet:
    """Keeps ``running`` (a number, or a function of the fleet) instances running until ``ready`` are ready.

    Asked again in each round: an instance that starts and dies at once is replaced by the next one.
    Raises NotYet at the deadline, and what ``Capacity.scale`` raises.
    """
    provider, site = part._parts(ctx)

    async def grown() -> Fleet:
        fleet = await part._fleet(ctx)
        if fleet.ready >= ready:
            return fleet
        count = running(fleet) if callable(running) else running
        if fleet.running < count:
            ctx.guard()
            await provider.scale(site, count)
        ctx.report(fleet.waiting_for())
        raise NotYet(
            f"{fleet.waiting_for()}; {ready} needed. Look at the logs of the others, and at what they depend on.",
            **fleet.facts(),
        )

    return await unless_over(ctx, grown, on=(NotYet, Unreachable))


async def _running_at(provider: Capacity, site: str) -> int:
    """Running instances of another site; 0 where its control does not answer, which is no reason to wait."""
    try:
        return sum(i.running for i in await provider.instances(site))
    except Unreachable:
        return 0


def _within(limits: Limits, count: int, site: str) -> None:
    if not limits.minimum <= count <= limits.maximum:
        raise BadInput(f"count {count} at {site} is outside the limits {limits.minimum} to {limits.maximum}")
