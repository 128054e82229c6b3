"""Give a canary its share of a pool's requests, and take it away again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator

from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import BadInput, UnhealthyTarget
from tasks.quantities import Percent
from tasks.traffic._pool import confirmed
from tasks.traffic.protocol import Weighted, Weights

HEAVIEST = 999
"""Of a target group (Elastic Load Balancing API, TargetGroupTuple: 0 to 999)."""
ALONE = 100
"""The weight of a canary that has all requests."""


@action("traffic.weigh")
class Weigh(Undoable):
    """At one balancer, the canary of a pool gets ``share`` of the requests; the other servers keep their weights.

    Changed are the routes (a listener's default action, a rule) that name both the canary and a server beside it. Right
    before, the canary must have healthy targets, in proportion to its share: a tenth of the requests of ten targets
    wants one, all of them want ten (UnhealthyTarget, and nothing is changed). ``share: 0`` takes its weight away, and
    gives it back to the others where it had all. Undo puts the old weights back, and never gives a canary more than it
    has: only a step that is meant to does that. Raises BadInput, SafetyRefusal (not marked), UnhealthyTarget,
    Unreachable, Rejected, EffectUnknown.
    """

    at: Annotated[str, SiteParam()] = Field(description="Whose balancer.")
    share: Percent = Field(ge=0, le=100, description="Of the pool's requests: 0% to 50%, or 100%.")
    pool: str = "app"
    component: Annotated[str, ComponentParam("traffic")] = "traffic"

    @field_validator("share")
    @classmethod
    def _can_be_weighed(cls, value: float) -> float:
        if 50 < value < 100:
            raise ValueError(f"a share of {value:g}% is none of a canary: up to 50%, or 100% to give it everything")
        return value

    async def observe(self, ctx: Context) -> Observation:
        balancer, at, canary = self._parts(ctx)
        weights, told = await self._weights(ctx), await balancer.explain(at, self.pool)
        wanted, healthy = self._wanted(ctx, weights), (await self._healthy(ctx, [canary]))[canary]
        changes = [
            f"{route}: {name} {weights[route][name]} -> {weight}"
            for route, given in wanted.items()
            for name, weight in given.items()
            if weights[route][name] != weight
        ]
        sticky_s = told.get("sticky_s")
        if changes and sticky_s:
            changes.append(f"clients that have a target group keep it for {sticky_s} s, whatever the weights say")
        return Observation(
            holds=not changes,
            summary=f"pool {self.pool} at {at}: {canary} has {_shown(weights, canary)} of the requests, and {healthy}"
            " healthy targets",
            changes=tuple(changes),
            facts={
                "pool": self.pool,
                "at": at,
                "canary": canary,
                "healthy": healthy,
                "weights": weights,
                "balancer": told,
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        balancer, at, canary = self._parts(ctx)
        weights = await self._weights(ctx)
        wanted = self._wanted(ctx, weights)
        if self.share:
            await self._must_carry(ctx, weights)
        else:
            await self._must_be_spare(ctx, wanted)
        given_at = ctx.clock.utc()
        ctx.guard()
        await balancer.set_weights(at, self.pool, wanted)
        return {"share": _shares(wanted, canary), "given_at": given_at.isoformat()}

    async def confirm(self, ctx: Context) -> Observation:
        return await confirmed(ctx, self.observe)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        balancer, at, canary = self._parts(ctx)
        now, before = await balancer.weights(at, self.pool), evidence["weights"]
        less = {
            route: given
            for route, given in before.items()
            if route in now and _share(given, canary) < _share(now[route], canary)
        }
        if less:
            ctx.guard()
            await balancer.set_weights(at, self.pool, less)

    async def wanted(self, ctx: Context) -> Weights:
        """The weights that it would give now; for the commands by hand."""
        return self._wanted(ctx, await self._weights(ctx))

    async def _weights(self, ctx: Context) -> Weights:
        """Of the routes that name the canary and somebody beside it, and send to either. Raises BadInput for none."""
        balancer, at, canary = self._parts(ctx)
        every = await balancer.weights(at, self.pool)
        both = {r: w for r, w in every.items() if canary in w and len(w) > 1 and any(w.values())}
        if not both:
            raise BadInput(
                f"pool {self.pool} at {at}: none of {', '.join(every)} forwards to {canary} and to a server beside it,"
                " with weight. Put the canary's target group into the forward action with weight 0, so that its targets"
                " are checked; and make the others ready first."
            )
        return both

    def _wanted(self, ctx: Context, weights: Weights) -> Weights:
        """Where the canary had all, the balancer's own site's servers get what it gives away, in equal parts."""
        balancer, at, canary = self._parts(ctx)
        own = [n for n, site in balancer.groups(at, self.pool).items() if site == at]
        wanted = {}
        for route, have in weights.items():
            others = {n: w for n, w in have.items() if n != canary}
            if self.share == 100:
                wanted[route] = {**dict.fromkeys(others, 0), canary: have[canary] or ALONE}
                continue
            if not any(others.values()):
                others |= {n: ALONE for n in own if n in others}
            part = sum(others.values()) * self.share / (100 - self.share)
            wanted[route] = {**others, canary: min(HEAVIEST, max(1, round(part))) if self.share else 0}
        return wanted

    async def _must_carry(self, ctx: Context, weights: Weights) -> None:
        _, at, canary = self._parts(ctx)
        found = await self._healthy(ctx, [canary, *_beside(weights, canary)])
        have = found.pop(canary)
        need = max(1, math.ceil(sum(found.values()) * self.share / 100))
        if have < need:
            others = ", ".join(f"{name} ({count} healthy)" for name, count in found.items()) or "nobody"
            raise UnhealthyTarget(
                f"pool {self.pool} at {at}: canary {canary} has {have} healthy targets, and {self.share:g}% of the"
                f" requests of {others} want {need}. Nothing was changed. Bring its targets up, look at their health"
                " check, or give it a smaller share.",
                healthy={canary: have, **found},
                wanted=need,
            )

    async def _must_be_spare(self, ctx: Context, wanted: Weights) -> None:
        """An undo does not ask this: there the canary is known to be no good."""
        _, at, canary = self._parts(ctx)
        found = await self._healthy(ctx, _beside(wanted, canary))
        if not any(found.values()):
            raise UnhealthyTarget(
                f"pool {self.pool} at {at}: nobody beside canary {canary} is healthy ({', '.join(found) or 'none'}"
                " would have weight); its own stays. Bring the others up first.",
                healthy=found,
            )

    async def _healthy(self, ctx: Context, names: list[str]) -> dict[str, int]:
        """Server -> how many of its targets are healthy."""
        balancer, at, _ = self._parts(ctx)
        every = await asyncio.gather(*(balancer.targets(at, self.pool, name) for name in names))
        return {n: sum(t.state == "healthy" for t in some) for n, some in zip(names, every, strict=True)}

    def _parts(self, ctx: Context) -> tuple[Weighted, str, str]:
        balancer: Weighted = ctx.component(self.component, Weighted)
        at = ctx.site(self.at)
        return balancer, at, balancer.canary(at, self.pool)


def _beside(weights: Weights, canary: str) -> list[str]:
    """Servers beside the canary that have weight."""
    return sorted({n for given in weights.values() for n, w in given.items() if n != canary and w})


def _share(given: Mapping[str, int], canary: str) -> float:
    """Percent."""
    total = sum(given.values())
    return 100 * given.get(canary, 0) / total if total else 0.0


def _shares(weights: Weights, canary: str) -> dict[str, float]:
    return {route: round(_share(given, canary), 1) for route, given in weights.items()}


def _shown(weights: Weights, canary: str) -> str:
    """``10%``, or of each route where they differ."""
    shares = _shares(weights, canary)
    if len(set(shares.values())) == 1:
        return f"{next(iter(shares.values())):g}%"
    return ", ".join(f"{share:g}% at {route}" for route, share in shares.items())
