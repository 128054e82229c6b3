"""health.verify: a client's own write through the public name is the only proof that a site serves."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.errors import NotYet
from tasks.health import _probes
from tasks.health._client import Client, Receipt, resolve
from tasks.health._probes import Address
from tasks.network import Ask
from tasks.quantities import Duration
from tasks.waiting import until
from tasks.zones.protocol import Zone

_MARGIN_S = 0.1
"""Requests end this long before the step is cut off."""


@action("health.verify")
class Verify(Action):
    """A client that resolves the public name gets a write acknowledged and reads it back, ``times`` in a row.

    ``observe`` only asks for readiness; it never holds, for only a write proves that writes work. With ``address``
    or ``zone`` the name is not resolved: the target is verified before DNS points to it.
    """

    # An action's own name is a ClassVar, so the parameter that YAML calls ``name`` is ``public_name`` here.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    phase: ClassVar[Phase] = Phase.VERIFY

    public_name: str = Field(alias="name", min_length=1, description="The public name that clients use.")
    scheme: Literal["http", "https"] = Field(default="http", description="https: the certificate must be the name's.")
    port: int = Field(default=80, ge=1, le=65535)
    write_path: str = Field(default="/events", pattern="^/")
    read_path: str = Field(default="/events/{client}/{n}", pattern="^/")
    ready_path: str = Field(default="/readyz", pattern="^/")
    resolver: Address | None = Field(default=None, description="host:port; None: the system's resolver.")
    site: Annotated[str | None, SiteParam()] = Field(default=None, description="The site that must answer.")
    address: str | None = Field(default=None, description="Connect here instead of resolving the name.")
    zone: Annotated[str | None, ComponentParam("zones")] = Field(
        default=None, description="Connect to where this zone would point the name at site, instead of resolving it."
    )
    times: int = Field(default=3, ge=1, le=100)
    within: Duration = Field(default=2.0, gt=0, description="How soon each single answer must come.")

    @model_validator(mode="after")
    def _has_one_way(self) -> Verify:
        if self.address and self.zone:
            raise ValueError("address and zone exclude each other: give one, or neither to resolve the name")
        if self.zone and not self.site:
            raise ValueError("zone needs site: it says where the name would point for that site")
        return self

    async def observe(self, ctx: Context) -> Observation:
        ready: dict[str, str] = {}
        addresses: tuple[str, ...] = ()
        try:
            addresses = await self._addresses(ctx)
            ready = dict(zip(addresses, await asyncio.gather(*(self._ready(ctx, a) for a in addresses)), strict=True))
            summary = "; ".join(f"{a}: {said}" for a, said in ready.items())
        except NotYet as e:
            summary = e.message
        return Observation(
            holds=False,
            summary=f"{self.public_name}: {summary}",
            changes=(f"write an event and read it back through {self._way()}, {self.times} times in a row",),
            facts={"addresses": list(addresses), "ready": ready, "through_name": self._through_name()},
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        ctx.report(observation.summary)
        return await self._patiently(ctx, self.times)

    async def confirm(self, ctx: Context) -> Observation:
        """Once more from the start: resolved again, on new connections, with a write of its own."""
        found = await self._patiently(ctx, 1)
        last = found["writes"][-1]
        return Observation(
            holds=True,
            summary=f"a client's write through {self._way()} is acknowledged by {last['app']}, site {last['site']}",
            facts={"confirmed": last},
        )

    async def _patiently(self, ctx: Context, times: int) -> Facts:
        """Waits for ``times`` successes. At the deadline it raises the last reason that was not the deadline itself."""
        reason: NotYet | None = None

        async def cycles() -> Facts:
            nonlocal reason
            try:
                return await self._cycles(ctx, times)
            except NotYet as e:
                if reason is None or ctx.left_s() > 1.5 * _MARGIN_S:
                    reason = e
                ctx.report(reason.message)
                raise reason from None

        return await until(ctx, cycles)

    async def _cycles(self, ctx: Context, times: int) -> Facts:
        """``times`` successes in a row at every address. Raises NotYet, Rejected."""
        receipts: list[Receipt] = []
        first_success_at = ""
        for _ in range(times):
            for address in await self._addresses(ctx):
                ctx.guard()
                receipts.append(await self._write(ctx, address, len(receipts)))
                first_success_at = first_success_at or ctx.clock.utc().isoformat()
        last = receipts[-1]
        return {
            "addresses": sorted({r.address for r in receipts}),
            "first_success_at": first_success_at,
            "site": last.site,
            "app": last.app,
            "node": last.node,
            "slowest_write_s": round(max(r.write_s for r in receipts), 4),
            "writes": [r.facts() for r in receipts],
        }

    async def _write(self, ctx: Context, address: str, index: int) -> Receipt:
        client_id = re.sub(r"[^\w.-]", "-", f"relight-verify-{ctx.run.run_id}", flags=re.ASCII)[:64]
        host = self.public_name.rstrip(".")
        # Cut off by the runner, a write would count as an effect that may have happened; so it ends a little before.
        until_s = ctx.deadline - _MARGIN_S
        client = Client(
            host, self.port, client_id, self.write_path, self.read_path, self.within, until_s, ctx.clock, ctx.network,
            self.scheme,
        )  # fmt: skip
        # Milliseconds and a counter: a number of its own for each write, and below 2**53 for JSON readers.
        n = int(ctx.clock.utc().timestamp() * 1000) * 100 + index % 100
        receipt = await client.write_and_read(address, n)
        wanted = ctx.site(self.site) if self.site else None
        if wanted and receipt.site != wanted:
            raise NotYet(
                f"{self.public_name} at {address}: {receipt.app} of site {receipt.site} answered, expected {wanted}"
            )
        return receipt

    async def _addresses(self, ctx: Context) -> tuple[str, ...]:
        if self.address:
            return (self.address,)
        if self.zone:
            zone: Zone = ctx.component(self.zone, Zone)
            found = zone.wanted(self.public_name, "A", ctx.site(str(self.site)))
            return tuple(target.rstrip(".") for target in found.targets)  # of an alias: its load balancer's name
        return await resolve(
            ctx.network, self.public_name, self.resolver, max(0.01, min(self.within, ctx.left_s() - _MARGIN_S))
        )

    async def _ready(self, ctx: Context, address: str) -> str:
        try:
            url = f"{self.scheme}://{address}:{self.port}{self.ready_path}"
            host = self.public_name.rstrip(".")
            await _probes.http(ctx.network, ctx.clock, Ask("GET", url, host), status=200, within_s=self.within)
        except NotYet as e:
            return e.message
        return "ready"

    def _through_name(self) -> bool:
        return not (self.address or self.zone)

    def _way(self) -> str:
        return (
            self.public_name
            if self._through_name()
            else f"{self.address or f'the addresses of {self.site}'}:{self.port}"
        )
