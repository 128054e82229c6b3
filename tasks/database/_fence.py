"""database.fence: the old primary takes no more writes, with proof."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.database._proof import look, proofs, shown, suspects, told, writers
from tasks.database.protocol import Database, Drained, NodeView
from tasks.errors import EffectUnknown, NotFenced, RelightError, Unreachable

HOW = "Power it off, cut its network, or waive by name (--waive fence='who and why')"


@action("database.fence")
class Fence(Undoable):
    """No node of the site can take writes as a primary; every path to it says so, or its host does.

    A silent node is not fenced by its silence. Forced: the host kills it. Graceful: clients are ended, the position is
    noted, and it is shut down in order, so that its standbys receive everything.
    """

    site: Annotated[str, SiteParam()] = Field(description="The site whose nodes must stop writing.")
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        # An engine that died in the middle may have made it read only and not come to stop it: not done yet.
        return await self._look(ctx, finish=ctx.run.mode == "graceful" and bool(ctx.intended))

    async def _look(self, ctx: Context, *, waive: bool = False, finish: bool = False) -> Observation:
        """``waive``: only after every means was tried may a waiver stand for the proof. ``finish``: a primary that is
        only read only is not fenced yet.
        """
        database = ctx.component(self.component, Database)
        views = await look(database)
        nodes = suspects(views, database.nodes(ctx.site(self.site)))
        found = await proofs(ctx, database, nodes)
        loose = [n for n, p in found.items() if not p.fenced or (finish and _half_done(views[n]))]
        facts: Facts = {
            "component": self.component,
            "views": shown(views.values()),
            "primaries": [n for n in writers(views) if n in nodes],
            "proofs": {n: p.facts() for n, p in found.items()},
            "loose": loose,
        }
        if waive and loose and "fence" in ctx.run.waivers and not any(n in loose for n in writers(views)):
            facts["waived"] = ctx.run.waivers["fence"]
            return Observation(holds=True, summary=f"not proven for {', '.join(loose)}, waived", facts=facts)
        if loose:
            how = "shut down in order" if ctx.run.mode == "graceful" else "kill"
            said = "; ".join(f"{told(views[n])}: {found[n].why}" for n in loose)
            return Observation(holds=False, summary=said, changes=tuple(f"{how} {n}" for n in loose), facts=facts)
        said = "; ".join(f"{n}: {p.why}" for n, p in found.items()) or "it has only replicas"
        return Observation(holds=True, summary=f"{ctx.site(self.site)} takes no writes ({said})", facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        facts: Facts = {"means": {}, "final": {}}
        for node in observation.facts["loose"]:
            view = await database.view(node)
            if view.reach == "answers" and view.in_recovery:
                continue  # it became a replica meanwhile
            await self._one(ctx, database, view, facts)
        return facts

    async def _one(self, ctx: Context, database: Database, view: NodeView, facts: Facts) -> None:
        orderly = ctx.run.mode == "graceful"
        if orderly and view.in_recovery is False and isinstance(database, Drained):
            ctx.guard()
            ctx.report(f"ending the writes of {view.node}")
            lsn = await database.quiesce(view.node)
            facts["final"][view.node] = {"timeline": view.timeline, "lsn": lsn}
        ctx.guard()
        ctx.report(f"fencing {view.node}")
        try:
            facts["means"][view.node] = await database.fence(view.node, orderly=orderly)
            if orderly and view.node not in facts["final"]:  # no position tells the end of its writes: the time does
                facts["final"][view.node] = {"at": ctx.clock.utc().isoformat()}
        except (Unreachable, EffectUnknown) as e:
            if "fence" in ctx.run.waivers:
                facts["means"][view.node] = f"none worked: {e.message}"
                return
            raise NotFenced(f"{view.node} may still take writes: {e.message} {HOW}.", **e.facts) from e

    async def confirm(self, ctx: Context) -> Observation:
        seen = await self._look(ctx, waive=True)
        if not seen.holds:
            raise NotFenced(f"{seen.summary}. {HOW}.", **seen.facts)
        return seen

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        database = ctx.component(self.component, Database)
        failed: list[str] = []
        primaries = evidence.get("primaries", [])
        for node in dict.fromkeys((*primaries, *evidence.get("loose", []))):
            ctx.guard()
            try:
                if node in primaries or await _was_stopped(database, node):
                    await database.unfence(node)
            except RelightError as e:
                now = await database.view(node)
                if node in primaries or now.in_recovery is not True:  # started again, it is a replica as it was
                    failed.append(f"{node}: {e.message}")
        if failed:
            raise NotFenced("not put back: " + "; ".join(failed))


def _half_done(view: NodeView) -> bool:
    return view.reach == "answers" and view.in_recovery is False and view.read_only is True


async def _was_stopped(database: Database, node: str) -> bool:
    """A node that was silent before, and may have been killed: it is stopped now. Silent still, nothing reached it."""
    view = await database.view(node)
    return view.reach == "refused"
