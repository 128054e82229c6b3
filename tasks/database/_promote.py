"""database.promote: the point of no return. It trusts no earlier step and proves everything again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam
from tasks.database import _loss
from tasks.database._proof import Views, followed, look, proofs, shown, suspects, told, writers
from tasks.database.protocol import Database, Durability, Limited, NodeView, Operated
from tasks.errors import (
    Contradiction,
    LossAboveBudget,
    NotFenced,
    NotYet,
    RelightError,
    SafetyRefusal,
    UnhealthyTarget,
    Unreachable,
)

ANSWER_S = 60.0
LOOK_S = 5.0
"""What is left of an attempt for looking once more and saying what was seen."""


@action("database.promote")
class Promote(Action):
    """The most advanced replica of the site is the one primary, and what that lost is known and allowed.

    Refuses with NotFenced, LossAboveBudget (waiver ``loss``), UnhealthyTarget (no replica is fit), Contradiction,
    and with SafetyRefusal where its service lets nobody promote.
    """

    irreversible: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("database.fence",)

    site: Annotated[str, SiteParam()] = Field(description="The site that shall have the primary.")
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        database = ctx.component(self.component, Database)
        if isinstance(database, Limited) and (why := database.cannot("promote")):
            raise SafetyRefusal(f"{self.component}: {why} Nothing was changed.")
        views, site = await self._answered(ctx, database), ctx.site(self.site)
        found = writers(views)
        facts: Facts = {"component": self.component, "views": shown(views.values())}
        if len(found) > 1:
            said = "; ".join(told(views[n]) for n in found)
            raise Contradiction(f"more than one node takes writes ({said}); nothing is promoted", primaries=found)
        if found and database.site_of(found[0]) == site:
            one = views[found[0]]
            newer = [n for n, v in views.items() if (v.timeline or 0) > (one.timeline or 0)]
            if newer:
                raise Contradiction(
                    f"{one.node} takes writes on timeline {one.timeline}, but {', '.join(newer)} is on a newer one:"
                    " somebody was promoted after it. Find out which one clients wrote to; nothing was changed.",
                    primaries=found,
                    newer=newer,
                )
            facts |= {"primary": one.node, "timeline": one.timeline, "lsn": one.lsn}
            return Observation(
                holds=True, summary=f"{one.node} is the primary, on timeline {one.timeline}", facts=facts
            )
        choice = _loss.choose([views[n] for n in database.nodes(site)])
        if choice.chosen is None:
            why = "; ".join(f"{n}: {w}" for n, w in choice.passed_over.items())
            return Observation(holds=False, summary=f"no replica of {site} is fit: {why}", facts=facts)
        measured = await self._measure(ctx, database, views, choice.chosen)
        facts |= {"chosen": choice.chosen.node, "passed_over": dict(choice.passed_over), **measured}
        change = f"promote {choice.chosen.node}: {'; '.join(measured['rpo']['reasons'])}"
        return Observation(holds=False, summary=f"{choice.chosen.node} is a replica", changes=(change,), facts=facts)

    async def _answered(self, ctx: Context, database: Database) -> Views:
        """The nodes, once those that were told to promote themselves answer: one that does so is silent for a while
        (Aurora restarts it), and that must not cost an attempt. Raises Unreachable after ``ANSWER_S``.
        """
        until = min(ctx.clock.monotonic() + ANSWER_S, ctx.deadline - LOOK_S)
        while True:
            views = await look(database)
            try:
                self._told_answer(ctx, views)
            except Unreachable as e:
                if ctx.clock.monotonic() >= until:
                    raise
                ctx.report(e.message)
            else:
                return views
            await ctx.clock.sleep(1.0)

    @staticmethod
    def _told_answer(ctx: Context, views: Views) -> None:
        """A node that an earlier attempt chose may have been told to promote itself. Silent, it may be doing so: then
        nothing can be told, and no other one may be promoted beside it. Raises Unreachable.
        """
        for node in _told(ctx, views):
            if views[node].reach != "refused" and views[node].in_recovery is None:
                raise Unreachable(
                    f"{node} may have been told to become the primary, and does not say whether it is"
                    f" ({told(views[node])}). Nothing else is promoted meanwhile: bring it back, or kill it."
                )

    async def _measure(self, ctx: Context, database: Database, views: Views, chosen: NodeView) -> Facts:
        """What promoting ``chosen`` now would lose, and whether that is allowed."""
        primary, final, final_at = followed(views), None, None
        for fenced in ctx.facts_of("database.fence"):
            for node, at in (fenced.get("final") or {}).items():
                if node == primary or primary is None:
                    primary = node
                    final = (at["timeline"], at["lsn"]) if "lsn" in at else None
                    final_at = datetime.fromisoformat(at["at"]) if "at" in at else None
        promise, doubt = await self._promise(database, chosen, primary)
        known = _loss.Known(
            primary=primary,
            promise=promise,
            doubt=doubt,
            final=final,
            now=ctx.clock.utc(),
            final_at=final_at,
        )
        loss = _loss.estimate(chosen, tuple(views.values()), known)
        verdict = _loss.judge(loss, ctx.rpo_s.get(self.component))
        rpo = _loss.facts(loss, verdict, ctx.run.waivers.get("loss"))
        return {"old_primary": primary, "rpo": rpo}

    @staticmethod
    async def _promise(database: Database, chosen: NodeView, primary: str | None) -> tuple[Durability | None, str]:
        try:
            note = await database.promised(chosen.node) if isinstance(database, Operated) else None
            live = await database.live_durability(chosen.node)
        except RelightError as e:
            return None, f"what was promised cannot be read from {chosen.node}: {e.message}"
        return _loss.promise_of(primary, database.durability(), note, live)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        site = ctx.site(self.site)
        views = await look(database)
        # In the target too: whoever writes, was the primary, or was told to become it by an earlier attempt.
        perhaps = {*writers(views), *_told(ctx, views), followed(views)}
        others = [n for n in database.nodes() if database.site_of(n) != site or n in perhaps]
        fencing = await self._fenced(ctx, database, views, others)
        # after the fence was proven, so that nothing is written behind the measurement
        views = await look(database)
        choice = _loss.choose([views[n] for n in database.nodes(site)])
        if choice.chosen is None:
            why = "; ".join(f"{n}: {w}" for n, w in choice.passed_over.items())
            raise UnhealthyTarget(f"no replica of {site} can be promoted: {why}. Bring one back first.")
        if choice.chosen.node != observation.facts.get("chosen"):  # the journal has another intent, or none
            meant = observation.facts.get("chosen") or "none"
            raise NotYet(f"the most advanced replica is {choice.chosen.node} now, no longer {meant}; looking again")
        measured = await self._measure(ctx, database, views, choice.chosen)
        rpo = measured["rpo"]
        facts = {"fencing": fencing, "chosen": choice.chosen.node, "passed_over": dict(choice.passed_over), **measured}
        if rpo["verdict"] != "allowed" and not rpo["waiver"]:
            raise LossAboveBudget(
                f"promoting {choice.chosen.node} may lose too much: {'; '.join(rpo['reasons'])}. Nothing was promoted."
                " Bring a better replica or the old primary back, or accept the loss by name: --waive loss='who, why'.",
                **facts,
            )
        ctx.guard()
        ctx.report(f"promoting {choice.chosen.node}")
        await database.promote(choice.chosen.node)
        return facts

    async def _fenced(self, ctx: Context, database: Database, views: Views, others: list[str]) -> Facts:
        found = await proofs(ctx, database, suspects(views, others))
        loose = [f"{n}: {p.why}" for n, p in found.items() if not p.fenced]
        writing = [n for n in writers(views) if n in found and not found[n].fenced]
        if loose and (writing or "fence" not in ctx.run.waivers):
            raise NotFenced(
                f"nothing is promoted while another node may take writes ({'; '.join(loose)}). Fence it first.",
                proofs={n: p.facts() for n, p in found.items()},
            )
        return {n: p.facts() for n, p in found.items()}

    async def confirm(self, ctx: Context) -> Observation:
        """A write is taken, seen over another path than the one that promoted, where one is open."""
        seen = await self.observe(ctx)
        if not seen.holds:
            raise NotYet(f"after the promotion: {seen.summary}", **seen.facts)
        database = ctx.component(self.component, Database)
        node = seen.facts["primary"]
        probes = [await database.try_write(node, v) for v in reversed(database.vantages())]
        taken = [p for p in probes if p.outcome == "accepted"]
        if not taken:
            said = "; ".join(f"{p.vantage}: {p.outcome} {p.detail}" for p in probes)
            raise NotYet(f"{node} is the primary and takes no write yet ({said})", **seen.facts)
        facts = {**seen.facts, "write_seen_from": [p.vantage for p in taken]}
        return seen.model_copy(update={"facts": facts})


def _told(ctx: Context, views: Views) -> set[str]:
    """Nodes that an intent of this step names: each may have been told to promote itself, whatever was heard of it."""
    return {str(i["chosen"]) for i in ctx.intended if i.get("chosen") in views}
