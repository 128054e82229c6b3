"""Send database connections to the one node that is primary now, and to nobody else."""

from __future__ import annotations

import asyncio
from typing import Annotated

from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.database.protocol import Database, NodeView
from tasks.errors import BadInput, Contradiction, NotYet, SafetyRefusal, UnhealthyTarget, Unreachable
from tasks.traffic._pool import Pool, as_fact, confirmed, serves, shown
from tasks.traffic.protocol import Balancer, Server
from tasks.waiting import insisted, until


async def primary(database: Database) -> NodeView:
    """The one node that answers, is not in recovery and takes writes, on the newest timeline that any node knows.

    Raises Contradiction for two of them or for a replica that is further, NotYet for none.
    """
    views = await asyncio.gather(*(database.view(n) for n in database.nodes()))
    writers = [v for v in views if v.reach == "answers" and v.in_recovery is False and v.read_only is not True]
    if len(writers) > 1:
        both = " and ".join(v.node for v in writers)
        raise Contradiction(f"{both} all say that they are primary and take writes: fence all but one of them first")
    if not writers:
        seen = ", ".join(f"{v.node} {v.reach if v.reach != 'answers' else 'in recovery or read-only'}" for v in views)
        raise NotYet(f"no node is a primary that takes writes ({seen})")
    newer = [v for v in views if (v.timeline or 0) > (writers[0].timeline or 0)]
    if newer:
        raise Contradiction(
            f"{writers[0].node} is primary on timeline {writers[0].timeline}, but {newer[0].node} is on"
            f" {newer[0].timeline}: somebody was promoted after it"
        )
    return writers[0]


@action("traffic.route_primary")
class RoutePrimary(Undoable):
    """A balancer's database pool sends connections to the current primary only.

    Server names in the pool are node names. The other servers go to maintenance *before* the primary is made ready,
    and their sessions are closed: for a moment nobody is better than two. Which node is primary is asked of the
    database itself right before the change. Raises SafetyRefusal (Contradiction), NotYet, UnhealthyTarget, Unreachable.
    """

    at: Annotated[str, SiteParam()]
    pool: str = "db"
    component: Annotated[str, ComponentParam("traffic")] = "traffic"
    database: Annotated[str, ComponentParam("database")] = "database"
    may_be_gone: bool = False
    """A balancer that does not answer is accepted: it routes nothing either."""

    async def observe(self, ctx: Context) -> Observation:
        pool = self._pool(ctx)
        node = await self._primary(ctx)
        try:
            servers = await insisted(ctx, pool.servers)
        except Unreachable as e:
            if not self.may_be_gone:
                raise
            return Observation(
                holds=True,
                summary=f"{pool.site}'s balancer does not answer; nothing to route there",
                facts={"gone": True, "why": str(e), "primary": node.node},
            )
        target = _named(pool, servers, node.node)
        others = [s for s in servers if s is not target]
        changes = [f"{s.name}: {s.admin} -> maint" for s in others if s.admin != "maint"]
        changes += [f"{s.name}: close {s.sessions} sessions" for s in others if s.sessions]
        if target.admin != "ready":
            changes.append(f"{target.name}: {target.admin} -> ready")
        elif not serves(target):
            changes.append(f"{target.name}: wait until its check passes")
        return Observation(
            holds=not changes,
            summary=f"{pool.label}: primary is {node.node}; {shown(servers)}",
            changes=tuple(changes),
            facts={
                "gone": False,
                "primary": node.node,
                "timeline": node.timeline,
                "lsn": node.lsn,
                "servers": as_fact(servers),
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        return await self._route(self._pool(ctx), (await self._primary(ctx)).node)

    async def confirm(self, ctx: Context) -> Observation:
        return await confirmed(ctx, self.observe)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        if evidence.get("gone"):
            return
        were = sorted(name for name, s in evidence["servers"].items() if s["admin"] == "ready")
        now = (await self._primary(ctx)).node
        if were != [now]:
            raise SafetyRefusal(
                f"{self._pool(ctx).label} sent to {', '.join(were) or 'nobody'} before, and the primary is {now}: going"
                " back would send writes to a node that is not the primary"
            )
        await self._route(self._pool(ctx), now)

    async def _route(self, pool: Pool, node: str) -> Facts:
        servers = await pool.servers()
        target = _named(pool, servers, node)
        others = {s.name for s in servers if s is not target}
        for server in servers:
            if server.name in others and server.admin != "maint":
                await pool.set(server.name, "maint")
        for server in await pool.servers():
            if server.name in others and server.sessions:
                await pool.close(server.name)
        if target.admin != "ready":
            await pool.set(node, "ready")

        async def routed() -> None:
            now = await pool.servers()
            left = [f"{s.name} has {s.sessions} sessions" for s in now if s.name in others and s.sessions]
            if not serves(_named(pool, now, node)) or left:
                raise NotYet("; ".join(left) or f"the balancer's check of {node} does not pass yet")

        try:
            await until(pool.ctx, routed, most_s=0.1)
        except NotYet as e:
            raise UnhealthyTarget(
                f"{pool.label}: {e}. {node} is the primary and the only server that is ready; look at the way from the"
                " balancer to it."
            ) from e
        return {"routed_to": node, "closed": sorted(s.name for s in servers if s.sessions and s.name in others)} | (
            await pool.persist()
        )

    async def _primary(self, ctx: Context) -> NodeView:
        database: Database = ctx.component(self.database, Database)
        return await primary(database)

    def _pool(self, ctx: Context) -> Pool:
        balancer: Balancer = ctx.component(self.component, Balancer)
        if not balancer.closes_sessions:
            raise BadInput(
                f"component {self.component!r} ({type(balancer).__name__}) cannot close sessions of an old primary, so"
                " it cannot keep a single writer; route database connections with HAProxy, PgBouncer or a name"
            )
        return Pool(ctx, balancer, ctx.site(self.at), self.pool)


def _named(pool: Pool, servers: tuple[Server, ...], node: str) -> Server:
    for server in servers:
        if server.name == node:
            return server
    raise BadInput(
        f"{pool.label} has no server named {node}, which is the primary; it has {', '.join(s.name for s in servers)}."
        " Give each server there the name of its node."
    )
