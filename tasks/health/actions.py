"""Checks: is the failure real, does something answer, does a client get its write."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, Context, Facts, Observation
from tasks.errors import NotYet
from tasks.health import _probes
from tasks.health._failure import ConfirmFailure
from tasks.health._probes import Address, Url
from tasks.health._verify import Verify
from tasks.network import Ask
from tasks.quantities import Duration
from tasks.waiting import until

__all__ = ["ConfirmFailure", "Http", "Tcp", "Verify"]


class _Check(Action):
    """What the two plain probes share: ``times`` answers in a row, waited for until the step's time-out."""

    read_only: ClassVar[bool] = True

    times: int = Field(default=1, ge=1, le=100)
    within: Duration = Field(default=2.0, gt=0, description="How soon each single answer must come.")

    async def _once(self, ctx: Context) -> float:
        """Seconds that one probe took. Raises NotYet."""
        raise NotImplementedError

    def _what(self) -> str:
        raise NotImplementedError

    async def _all(self, ctx: Context) -> Observation:
        took = [await self._once(ctx) for _ in range(self.times)]
        facts: Facts = {"latencies_s": [round(s, 4) for s in took]}
        return Observation(holds=True, summary=f"{self._what()} answered {self.times} times in a row", facts=facts)

    async def observe(self, ctx: Context) -> Observation:
        ctx.report(f"probing {self._what()}")
        try:
            return await self._all(ctx)
        except NotYet as e:
            return Observation(holds=False, summary=e.message, changes=(f"wait for {self._what()}",))

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        ctx.report(observation.summary)
        return (await until(ctx, lambda: self._all(ctx))).facts


@action("health.http")
class Http(_Check):
    """A URL answers with the expected status."""

    url: Url
    status: int = Field(default=200, ge=100, le=599)

    async def _once(self, ctx: Context) -> float:
        return await _probes.http(
            ctx.network, ctx.clock, Ask("GET", self.url), status=self.status, within_s=self.within
        )

    def _what(self) -> str:
        return self.url


@action("health.tcp")
class Tcp(_Check):
    """An address accepts connections."""

    address: Address

    async def _once(self, ctx: Context) -> float:
        return await _probes.tcp(ctx.network, ctx.clock, self.address, within_s=self.within)

    def _what(self) -> str:
        return self.address
