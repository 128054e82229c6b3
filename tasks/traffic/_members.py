"""Take one target out of a target group, and wait until what it serves has ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import NotYet, UnhealthyTarget
from tasks.traffic.protocol import Members, Target
from tasks.waiting import until

_IN = ("initial", "healthy", "unhealthy", "unavailable")


@action("traffic.deregister")
class Deregister(Undoable):
    """A target is out of its group and drained; enough healthy ones stay (UnhealthyTarget otherwise)."""

    at: Annotated[str, SiteParam()]
    """Whose balancer."""
    server: str
    """The target group."""
    target: str
    """Instance id or address."""
    pool: str = "app"
    component: Annotated[str, ComponentParam("traffic")] = "traffic"
    keep_minimum: int = Field(default=1, ge=0)
    """How many healthy targets must stay in the group."""

    async def observe(self, ctx: Context) -> Observation:
        members, at = self._members(ctx)
        targets = await members.targets(at, self.pool, self.server)
        mine = [t for t in targets if t.name == self.target]
        delay_s = (await members.explain(at, self.pool))["deregistration_delay_s"].get(self.server)
        changes = [f"deregister {t.name} from {self.server}" for t in mine if t.state in _IN]
        changes += [f"wait until {t.name} has drained, {delay_s} s at most" for t in mine]
        return Observation(
            holds=not mine,
            summary=f"{self.target} in {self.server}: {', '.join(t.state for t in mine) or 'not registered'}",
            changes=tuple(changes),
            facts={
                "registered": [{"name": t.name, "port": t.port} for t in mine if t.state in _IN],
                "healthy": sorted(t.name for t in targets if t.state == "healthy"),
                "deregistration_delay_s": delay_s,
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        members, at = self._members(ctx)
        targets = await members.targets(at, self.pool, self.server)
        stay = [t.name for t in targets if t.state == "healthy" and t.name != self.target]
        if len(stay) < self.keep_minimum:
            raise UnhealthyTarget(
                f"{self.server} at {at}: without {self.target} {len(stay)} healthy targets would stay,"
                f" {self.keep_minimum} wanted; nothing was deregistered. Bring others up first."
            )
        for found in targets:
            if found.name == self.target and found.state in _IN:
                ctx.guard()
                await members.deregister(at, self.pool, self.server, found)

        async def drained() -> None:
            left = [t for t in await members.targets(at, self.pool, self.server) if t.name == self.target]
            if left:
                delay_s = observation.facts["deregistration_delay_s"]
                line = f"{self.target} is {left[0].state}; its group lets connections end within {delay_s} s"
                ctx.report(line)
                raise NotYet(line)

        await until(ctx, drained)
        return {"stay": stay}

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        members, at = self._members(ctx)
        have = {t.name for t in await members.targets(at, self.pool, self.server) if t.state in _IN}
        for was in evidence["registered"]:
            if was["name"] not in have:
                ctx.guard()
                await members.register(at, self.pool, self.server, Target(was["name"], int(was["port"]), "initial"))

    def _members(self, ctx: Context) -> tuple[Members, str]:
        members: Members = ctx.component(self.component, Members)
        return members, ctx.site(self.at)
