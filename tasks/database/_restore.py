"""database.restore and database.restart: what a managed database offers besides a promotion."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import AwareDatetime, Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam
from tasks.database import _loss
from tasks.database._proof import look, prove, told
from tasks.database.protocol import Database, Restartable, Restorable
from tasks.errors import LossAboveBudget, NotFenced, NotYet, Rejected, RelightError
from tasks.waiting import until


@action("database.restore")
class Restore(Action):
    """The database is what it was at a moment, in place, and takes writes again; what came later is lost.

    A restore begins a new timeline: that is how it is known to be done, whoever began it.
    """

    irreversible: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("database.fence",)

    to: AwareDatetime | None = Field(default=None, description="The moment, with its zone; none: the latest kept.")
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        database = ctx.component(self.component, Database)
        restorable = ctx.component(self.component, Restorable)
        views = await look(database)
        view = views[restorable.restores()]
        # Where it does not answer its replicas know its timeline: without one, a restore that is done looks like none.
        timeline = max((v.timeline for v in views.values() if v.timeline), default=None)
        facts: Facts = {"component": self.component, "timeline": view.timeline or timeline, "node": view.node}
        # Only an intent of this very step makes a newer timeline its doing.
        before = [int(i["timeline"]) for i in ctx.intended if i.get("timeline") is not None]
        if before and view.in_recovery is False and (view.timeline or 0) > min(before):
            said = f"{view.node} is restored, on timeline {view.timeline}"
            facts |= {"to": ctx.intended[0].get("to"), "restored": True}
            changes = (f"let {view.node} write again",) if view.read_only else ()
            return Observation(holds=not view.read_only, summary=said, changes=changes, facts=facts)
        kept = await restorable.backups()
        moment = next((datetime.fromisoformat(i["to"]) for i in ctx.intended if i.get("to")), self.to or kept.latest)
        if not kept.point_in_time or moment is None:
            raise Rejected(
                f"{view.node} keeps no point in time to go back to; its newest complete backup is of"
                f" {kept.completed[0] if kept.completed else 'nowhere'}. Nothing was changed."
            )
        facts |= {"to": moment.isoformat(), **self._loss(ctx, moment)}
        change = f"restore {view.node} to {moment.isoformat()}: {'; '.join(facts['rpo']['reasons'])}"
        return Observation(holds=False, summary=told(view), changes=(change,), facts=facts)

    def _loss(self, ctx: Context, moment: datetime) -> Facts:
        bound_s = round(max(0.0, (ctx.clock.utc() - moment).total_seconds()), 3)
        loss = _loss.Loss(None, bound_s, proven_zero=False, basis=f"everything after {moment.isoformat()} is given up")
        verdict = _loss.judge(loss, ctx.rpo_s.get(self.component))
        return {"rpo": _loss.facts(loss, verdict, ctx.run.waivers.get("loss"))}

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        restorable = ctx.component(self.component, Restorable)
        node = restorable.restores()
        if observation.facts.get("restored"):  # an earlier attempt got so far
            ctx.guard()
            await database.unfence(node)
            return None
        rpo = observation.facts["rpo"]
        if rpo["verdict"] != "allowed" and not rpo["waiver"]:
            raise LossAboveBudget(
                f"restoring {node} loses too much: {'; '.join(rpo['reasons'])}. Nothing was restored. Choose a later"
                " moment, or accept the loss by name: --waive loss='who, why'.",
                **observation.facts,
            )
        proof = await prove(database, node)
        if not proof.fenced and any(p.outcome == "accepted" for p in proof.probes):
            raise NotFenced(f"{node} takes writes that a restore would lose ({proof.why}). Fence it first.")
        ctx.guard()
        ctx.report(f"restoring {node} to {observation.facts['to']}")
        await restorable.restore(datetime.fromisoformat(observation.facts["to"]))
        if (await database.view(node)).read_only:  # the moment may be after the fence
            ctx.guard()
            await database.unfence(node)
        return {"old_timeline": observation.facts["timeline"]}

    async def confirm(self, ctx: Context) -> Observation:
        """A write is taken."""
        database = ctx.component(self.component, Database)
        node = ctx.component(self.component, Restorable).restores()

        async def taken() -> Observation:
            view = await database.view(node)
            probes = [await database.try_write(node, v) for v in database.vantages()]
            if not any(p.outcome == "accepted" for p in probes):
                raise NotYet(f"{node} takes no write yet ({'; '.join(f'{p.vantage}: {p.detail}' for p in probes)})")
            facts = {"primary": node, "timeline": view.timeline}
            return Observation(holds=True, summary=f"{node} is restored and takes writes", facts=facts)

        return await until(ctx, taken)


@action("database.restart")
class Restart(Action):
    """Every node of the site was started after the incident began; one with a standby of its own fails over to it."""

    site: Annotated[str, SiteParam()] = Field(description="The site whose nodes are restarted.")
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        database, control = ctx.component(self.component, Database), ctx.component(self.component, Restartable)
        since, old, facts = datetime.fromisoformat(ctx.run.incident_started_at), [], {}
        for node in database.nodes(ctx.site(self.site)):
            try:
                at = await control.started_at(node)
            except RelightError as e:
                facts[node] = e.message
                old.append(node)
                continue
            facts[node] = at.isoformat()
            if at <= since:
                old.append(node)
        said = "; ".join(f"{n} runs since {at}" for n, at in facts.items())
        changes = tuple(f"restart {n}" for n in old)
        return Observation(holds=not old, summary=said, changes=changes, facts={"started": facts, "old": old})

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        control = ctx.component(self.component, Restartable)
        for node in observation.facts["old"]:
            ctx.guard()
            ctx.report(f"restarting {node}")
            await control.restart(node)

        async def all_new() -> None:
            seen = await self.observe(ctx)
            if not seen.holds:
                raise NotYet(seen.summary)

        await until(ctx, all_new)
        return None
