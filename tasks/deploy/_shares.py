"""Is a canary that has a share of the requests worse than what is beside it? By what the balancer counts of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.deploy._compare import more_errors, must_have_scipy
from tasks.errors import Breached, NotYet, Unreachable
from tasks.metrics.protocol import Counted, Counts
from tasks.quantities import Duration, show_duration
from tasks.waiting import until

EARLIEST = 30
"""Requests of each before which nothing is concluded, as of ``deploy.canary``."""


@dataclass(frozen=True)
class Look:
    """Both at one moment. ``p``: None where one of them answered too little."""

    canary: Counts
    beside: Counts
    p: float | None

    def __str__(self) -> str:
        p = "" if self.p is None else f"; p of errors {self.p:.2g}"
        return f"canary {_shown(self.canary)}; the others {_shown(self.beside)}{p}"

    def facts(self) -> Facts:
        return {
            "canary": {"requests": self.canary.requests, "errors": self.canary.errors},
            "baseline": {"requests": self.beside.requests, "errors": self.beside.errors},
            "p_errors": self.p,
        }


@action("deploy.compare")
class Compare(Action):
    """A canary that got a share of the requests (``traffic.weigh``) answers no more errors than what is beside it.

    Counted is from the moment when it got its share, as far as whole periods of the source allow. One-sided test of
    Fisher (``tasks/deploy/_compare.py``): a canary that is worse beyond doubt fails at once (Breached), the rest
    is decided once, after ``for`` and at least ``minimum`` requests on both sides. Fewer within ``most`` more is not
    enough data (NotYet), and that is not passed. How long requests take is for ``metrics.within``: a balancer of AWS
    tells no distribution of it that could be tested.
    """

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()]
    for_: Duration = Field(default=180.0, gt=0, alias="for", description="How long they are compared at least.")
    most: Duration = Field(default=300.0, gt=0, description="How much longer to wait for enough requests.")
    minimum: int = Field(default=200, ge=EARLIEST, description="Requests that each must have answered.")
    alpha: float = Field(default=0.01, gt=0, le=0.2, description="How often, at most, a good release is called worse.")
    every: Duration = Field(default=10.0, gt=0, description="How often to look.")
    component: Annotated[str, ComponentParam("metrics")] = "canary-metrics"

    def least_timeout_s(self) -> float:
        return self.for_ + self.most

    async def observe(self, ctx: Context) -> Observation:
        must_have_scipy()
        now = ctx.clock.utc()
        look = await self._look(ctx, self._since(ctx) or now - timedelta(seconds=self.for_))
        change = f"compare what both answer for {show_duration(self.for_)}, {self.minimum} requests of each at least"
        return Observation(holds=False, summary=str(look), changes=(change,), facts=look.facts())

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        began, since = ctx.clock.monotonic(), self._since(ctx) or ctx.clock.utc()
        bounded = replace(ctx, deadline=min(ctx.deadline, began + self.for_ + self.most))

        async def decided() -> Facts:
            look = await self._look(ctx, since)
            ctx.report(str(look))
            self._must_not_be_worse(look, self._early_level)
            if min(look.canary.requests, look.beside.requests) < self.minimum:
                raise NotYet(f"not enough data: {look}. Each needs {self.minimum} requests; nothing is concluded.")
            if ctx.clock.monotonic() - began < self.for_:
                raise NotYet(f"not enough data: {look}, but not for {show_duration(self.for_)} yet")
            self._must_not_be_worse(look, self.alpha / 2)
            return {**look.facts(), "level": self.alpha / 2, "said": f"no more errors: {look}"}

        return await until(bounded, decided, on=(NotYet, Unreachable), first_s=self.every, most_s=self.every)

    async def confirm(self, ctx: Context) -> Observation:
        """That nothing is beyond doubt worse since."""
        look = await self._look(ctx, self._since(ctx) or ctx.clock.utc() - timedelta(seconds=self.for_))
        return Observation(
            holds=look.p is None or look.p >= self._early_level, summary=str(look), facts={"after": look.facts()}
        )

    @property
    def _early_level(self) -> float:
        """Half of ``alpha`` is for the last look, the other half is shared by all before it (Bonferroni)."""
        return self.alpha / 2 / math.ceil((self.for_ + self.most) / self.every)

    def _must_not_be_worse(self, look: Look, level: float) -> None:
        if look.p is not None and look.p < level:
            raise Breached(f"the canary answers more errors: {look}, worse is below {level:.2g}", **look.facts())

    async def _look(self, ctx: Context, since: datetime) -> Look:
        canary, beside = await ctx.component(self.component, Counted).counted(ctx.site(self.site), since)
        enough = min(canary.requests, beside.requests) >= EARLIEST
        p = more_errors((canary.requests, canary.errors), (beside.requests, beside.errors)) if enough else None
        return Look(canary, beside, p)

    @staticmethod
    def _since(ctx: Context) -> datetime | None:
        """When an earlier step of this run gave it its share; None: none did, or it had it before."""
        given = [facts["given_at"] for facts in ctx.facts_of("traffic.weigh") if "given_at" in facts]
        return datetime.fromisoformat(given[-1]) if given else None


def _shown(counts: Counts) -> str:
    if not counts.requests:
        return "n=0"
    return f"n={counts.requests}, errors {100 * counts.errors / counts.requests:.2g}%"
