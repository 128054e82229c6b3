"""Turn a site on and the others off by switches that were made beforehand, without any control plane."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import BadInput, LostCompare, NotYet
from tasks.quantities import Duration
from tasks.waiting import until
from tasks.zones._names import FullName, Rdtype, need_healthy
from tasks.zones._probe import ProbeText
from tasks.zones.protocol import Flipping, Switchboard

OVERRIDE = "safety-rules"
"""The waiver that lets a flip override the safety rules which its provider's settings name."""


@action("zones.flip")
class Flip(Undoable):
    """Lead a name to a site by switches (ARC routing controls, health checks that are ours): on there, off elsewhere.

    The name's failover or weighted record sets must exist beforehand, with these switches as their health checks.
    Holds when the site's switch is on and every other one is off. Confirmed by reading the switches back; that clients
    are led there is for ``zones.verify`` to prove.
    """

    record: FullName = Field(alias="name")
    """``name`` in a runbook: what follows the switches."""
    rdtype: Rdtype = "A"
    component: Annotated[str, ComponentParam("zones")] = "switches"
    site: Annotated[str, SiteParam()]
    probe: ProbeText
    """How each address of the site must answer right before the flip; as of ``zones.point``."""
    probe_timeout: Duration = 1.0
    ttl: Duration = 60.0
    """Of the record sets that are answered with until the flip: how long a resolver may keep an old answer."""

    def least_timeout_s(self) -> float:
        return self.probe_timeout

    def _board(self, ctx: Context) -> Switchboard:
        board: Switchboard = ctx.component(self.component, Switchboard)
        return board

    def _wanted(self, ctx: Context, board: Switchboard) -> dict[str, bool]:
        site, sites, names = ctx.site(self.site), board.sites(), board.names()
        if self.record not in names:
            raise BadInput(f"{self.record} does not follow {self.component}; these do: {', '.join(names)}")
        if site not in sites:
            raise BadInput(f"{self.component} has no switch for site {site!r}; it has them for {', '.join(sites)}")
        return {s: s == site for s in sites}

    async def observe(self, ctx: Context) -> Observation:
        board = self._board(ctx)
        wanted, now = self._wanted(ctx, board), dict(await board.states())
        changes = tuple(f"switch of {s}: {_word(now[s])} -> {_word(on)}" for s, on in wanted.items() if now[s] != on)
        return Observation(
            holds=not changes,
            summary=f"{self.record} follows " + ", ".join(f"{s} {_word(on)}" for s, on in now.items()),
            changes=changes,
            facts={
                "name": self.record,
                "rdtype": self.rdtype,
                "site": ctx.site(self.site),
                "old": now,
                "wanted": wanted,
                "old_ttl_s": self.ttl,
                "needs": list(board.needs()),
                "control_plane": "",
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        board = self._board(ctx)
        wanted, healthy = self._wanted(ctx, board), await self._need_healthy(ctx, board, ctx.site(self.site))
        ctx.guard()
        await board.flip(observation.facts["old"], wanted, self._flipping(ctx))
        return {"written_at": ctx.clock.utc().isoformat(), "epoch": ctx.run.epoch, "healthy": healthy}

    async def confirm(self, ctx: Context) -> Observation:
        async def turned() -> Observation:
            found = await self.observe(ctx)
            if not found.holds:
                raise NotYet(found.summary, **found.facts)
            return found.model_copy(update={"facts": {"states": found.facts["wanted"]}})

        return await until(ctx, turned)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        board = self._board(ctx)
        old, wanted, now = evidence["old"], evidence["wanted"], dict(await board.states())
        if now == old:
            return
        if now != wanted:
            raise LostCompare(f"{self.component} is {now}, not what this run set; left alone", found=now)
        for site in (s for s, on in old.items() if on):
            await self._need_healthy(ctx, board, site)
        ctx.guard()
        await board.flip(now, old, self._flipping(ctx))

    async def _need_healthy(self, ctx: Context, board: Switchboard, site: str) -> list[str]:
        return await need_healthy(ctx, board.reached_at(site), self.probe, self.record, self.probe_timeout)

    @staticmethod
    def _flipping(ctx: Context) -> Flipping:
        return Flipping(ctx.run.epoch, override=OVERRIDE in ctx.run.waivers)


def _word(on: bool) -> str:
    return "on" if on else "off"
