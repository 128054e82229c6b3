"""Sizes of a database kept as the scaling plan says: autovacuum, pool limits, read replicas."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam
from tasks.database._proof import Views, look, streams, the_primary, told
from tasks.database._sizes import PoolLimits, SizedPool, TableVacuum, Vacuumed
from tasks.database.protocol import Database, NodeView
from tasks.errors import BadInput, Contradiction, EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.quantities import Duration


@action("database.autovacuum")
class Autovacuum(Action):
    """Each table of the system's database is vacuumed after so many changed rows; set on the primary, table by table.

    A table that is locked is left for the next attempt: no lock is waited for longer than ``lock_timeout``, so nobody
    queues behind this.
    """

    threshold: int = Field(ge=0, description="Changed rows before a vacuum.")
    enabled: bool = True
    tables: tuple[str, ...] = Field(default=(), description="schema.name; none: every one.")
    lock_timeout: Duration = Field(default=1.0, gt=0)
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        node = the_primary(await look(ctx.component(self.component, Database))).node
        every = await ctx.component(self.component, Vacuumed).autovacuum(node)
        chosen = [t for t in every if not self.tables or t.table in self.tables]
        if missing := set(self.tables) - {t.table for t in every}:
            raise BadInput(
                f"{node} has no table {', '.join(sorted(missing))}; it has {', '.join(t.table for t in every)}"
            )
        other = [t for t in chosen if not self._fits(t)]
        changes = [f"{t.table}: threshold {t.threshold} → {self.threshold}{self._switch(t)}" for t in other]
        off = bool(chosen) and not chosen[0].server_enabled and self.enabled
        summary = f"{len(chosen) - len(other)} of {len(chosen)} tables on {node} have threshold {self.threshold}"
        if off:
            summary += "; autovacuum is off in the server's configuration"
        facts: Facts = {"node": node, "server_off": off, "tables": {t.table: t.threshold for t in chosen}}
        facts["differ"] = [t.table for t in other]
        return Observation(holds=not other and not off, summary=summary, changes=tuple(changes), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        if observation.facts["server_off"]:
            raise Rejected(
                f"autovacuum is off on {observation.facts['node']}; set autovacuum = on in its configuration"
            )
        database = ctx.component(self.component, Vacuumed)
        node = the_primary(await look(ctx.component(self.component, Database))).node
        locked: list[str] = []
        for table in observation.facts["differ"]:
            ctx.guard()
            try:
                await database.set_autovacuum(
                    node, table, enabled=self.enabled, threshold=self.threshold, lock_timeout_s=self.lock_timeout
                )
            except NotYet as e:
                locked.append(e.message)
        if locked:
            raise NotYet(f"{len(locked)} tables are locked, the others are set: {'; '.join(locked)}")
        return {"set": observation.facts["differ"]}

    def _fits(self, table: TableVacuum) -> bool:
        return (table.enabled, table.threshold) == (self.enabled, self.threshold)

    def _switch(self, table: TableVacuum) -> str:
        said = "" if table.enabled == self.enabled else f", autovacuum {'on' if self.enabled else 'off'}"
        return said if table.ours else f"{said} (not ours to change)"


@action("database.pool_limits")
class Limit(Action):
    """The site's pooler holds ``minimum`` to ``maximum`` server connections; changed while it runs.

    A pooler that keeps no minimum (Supabase's) has the maximum only.
    """

    site: Annotated[str, SiteParam()] = Field(description="The site whose pooler it is.")
    minimum: int = Field(ge=0)
    maximum: int = Field(ge=1)
    pooler: Annotated[str, ComponentParam("database")] = "pooler"

    @model_validator(mode="after")
    def _ordered(self) -> Limit:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    async def observe(self, ctx: Context) -> Observation:
        site = ctx.site(self.site)
        now = await ctx.component(self.pooler, SizedPool).pool_limits(site)
        said, wanted = f"the pooler of {site} keeps {now} server connections", self._wanted(now.minimum)
        change = f"{said}, {now.size} a user → {wanted}, {wanted.size} a user"
        facts: Facts = {"site": site, "minimum": now.minimum, "maximum": now.maximum, "size": now.size}
        holds = now == wanted
        return Observation(holds=holds, summary=said, changes=() if holds else (change,), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        wanted = self._wanted(observation.facts["minimum"])
        ctx.guard()
        how = await ctx.component(self.pooler, SizedPool).set_pool_limits(ctx.site(self.site), wanted)
        return {"how": how}

    def _wanted(self, kept: int | None) -> PoolLimits:
        """``kept`` None: it keeps no minimum, so none is asked for."""
        return PoolLimits(None if kept is None else self.minimum, self.maximum, self.maximum)


@action("database.replicas")
class Replicas(Action):
    """At least ``minimum`` read replicas stream from the primary; missing ones are brought back.

    More than ``maximum`` are told, and left: which one to give up is for people to say.
    """

    minimum: int = Field(ge=0)
    maximum: int = Field(ge=1)
    component: Annotated[str, ComponentParam("database")] = "database"

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    async def observe(self, ctx: Context) -> Observation:
        views = await look(ctx.component(self.component, Database))
        primary = the_primary(views)
        streaming, away = self._sorted(views, primary)
        missing = self.minimum - len(streaming)
        summary = f"{len(streaming)} replicas stream from {primary.node}, {self.minimum} to {self.maximum} wanted"
        if len(streaming) > self.maximum:
            summary += f": {len(streaming) - self.maximum} too many; take them away by hand"
        facts: Facts = {"primary": primary.node, "streaming": streaming, "away": [v.node for v in away]}
        facts["above"] = max(0, len(streaming) - self.maximum)
        names = ", ".join(told(v) for v in away) or "no node is left to start; add one to the system file"
        changes = (f"bring back {missing} of: {names}",) if missing > 0 else ()
        return Observation(holds=missing <= 0, summary=summary, changes=changes, facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        database = ctx.component(self.component, Database)
        done: dict[str, Any] = {}
        failed: list[str] = []
        for node in observation.facts["away"]:
            views = await look(database)
            primary = the_primary(views)
            streaming, away = self._sorted(views, primary)
            if len(streaming) >= self.minimum:
                break
            if node not in {v.node for v in away}:
                continue
            ctx.report(f"bringing {node} back as a replica of {primary.node}")
            ctx.guard()
            try:
                done[node] = await database.rejoin(node, primary.node)
            except (NotYet, Rejected, Unreachable, EffectUnknown, Contradiction) as e:
                failed.append(e.message)
        if len(self._sorted(views := await look(database), the_primary(views))[0]) < self.minimum:
            raise self._too_few(failed)
        return {"brought_back": done, "failed": failed}

    def _too_few(self, failed: list[str]) -> RelightError:
        return NotYet(f"fewer than {self.minimum} replicas stream; {'; '.join(failed) or 'no node is left to start'}")

    @staticmethod
    def _sorted(views: Views, primary: NodeView) -> tuple[list[str], list[NodeView]]:
        """Names that stream, and the others that could: never a node that says it is a primary itself."""
        streaming = [v.node for v in views.values() if v.node != primary.node and streams(v, primary)]
        rest = [v for v in views.values() if v.node != primary.node and v.node not in streaming]
        return streaming, [v for v in rest if v.in_recovery is not False]
