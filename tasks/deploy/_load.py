"""Staging, or a site, under load, before clients meet the release that it runs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.deploy.protocol import Environment, Load, Loaded, LoadTests
from tasks.errors import Breached, NotYet, SafetyRefusal
from tasks.quantities import Duration, ThresholdText, show_duration


@action("deploy.load_test")
class LoadTest(Action):
    """A site, or an environment, bears the load of ``users`` visitors: error rate and 95th percentile stay below
    their thresholds.

    It refuses the active site, whose clients would feel it, unless the runbook says ``on_active: true``.
    """

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()] = "target"
    environment: Annotated[str | None, ComponentParam("deploy")] = Field(
        default=None, description="In place of a site: an environment of its own, such as staging."
    )
    users: int = Field(default=10, ge=1, le=10_000, description="At the same time.")
    for_: Duration = Field(default=15.0, ge=1, alias="for", description="How long, once they are there.")
    errors: ThresholdText = Field(description="Requests that may fail, less than: 1%.")
    p95: ThresholdText = Field(description="19 of 20 answers come in less than: 500ms.")
    minimum: int = Field(default=100, ge=20, description="Requests below which nothing is concluded.")
    on_active: bool = Field(default=False, description="Allow it on the active site.")
    component: Annotated[str, ComponentParam("deploy")] = "load"

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if self.environment is not None and "site" in self.model_fields_set:
            raise ValueError(f"site and environment exclude each other: {self.site} or {self.environment}")
        return self

    @model_validator(mode="after")
    def _units(self) -> Self:
        if self.errors.unit != "%" or self.p95.unit != "s":
            raise ValueError(f"errors is a share such as 1% and p95 a duration such as 500ms, not {self.errors.value}"
                             f"{self.errors.unit} and {self.p95.value}{self.p95.unit}")  # fmt: skip
        return self

    def least_timeout_s(self) -> float:
        return self.for_ + 10.0

    async def observe(self, ctx: Context) -> Observation:
        url = await self._target(ctx)
        change = f"{self.users} visitors of {url} for {show_duration(self.for_)}"
        return Observation(holds=False, summary=f"{url} is not under load", changes=(change,), facts={"target": url})

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        url = await self._target(ctx)  # who is active may have changed
        ctx.guard()
        found = await ctx.component(self.component, LoadTests).run(url, Load(self.users, self.for_))
        facts, said = as_facts(found), show(found)
        if found.requests < self.minimum or found.p95_s is None:
            raise NotYet(f"not enough data: {said}; {self.minimum} requests are needed. Nothing is concluded.", **facts)
        worse = []
        if 100 * found.failures / found.requests >= float(self.errors.value):
            worse.append(f"errors not below {self.errors.value:g}%")
        if found.p95_s >= float(self.p95.value):
            worse.append(f"p95 not below {show_duration(float(self.p95.value))}")
        if worse:
            place = self.environment or ctx.site(self.site)
            raise Breached(f"{place} does not bear the load: {', '.join(worse)} ({said})", **facts)
        return {**facts, "said": said}

    async def confirm(self, ctx: Context) -> Observation:
        return Observation(holds=True, summary=f"{self.users} visitors of {await self._target(ctx)}")

    async def _target(self, ctx: Context) -> str:
        tests = ctx.component(self.component, LoadTests)
        if self.environment is not None:
            url = ctx.component(self.environment, Environment).url
            await tests.allowed(url)
            return url
        site = ctx.site(self.site)
        if site == ctx.roles.get("active") and not self.on_active:
            raise SafetyRefusal(
                f"{site} is the active site: a load test there is felt by its clients. Test the standby, or say"
                " on_active: true in the runbook."
            )
        return await tests.target(site)


def as_facts(found: Loaded) -> Facts:
    """As evidence."""
    return {
        "requests": found.requests,
        "failures": found.failures,
        "error_rate": round(100 * found.failures / found.requests, 3) if found.requests else None,
        "p95_s": found.p95_s,
        "by_name": {name: {"requests": n, "failures": f} for name, (n, f) in found.by_name.items()},
    }


def show(found: Loaded) -> str:
    """For people."""
    rate = f", errors {100 * found.failures / found.requests:.2g}%" if found.requests else ""
    return f"n={found.requests}{rate}" + ("" if found.p95_s is None else f", p95 {show_duration(found.p95_s)}")
