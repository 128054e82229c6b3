"""Traffic between sites: shift it, drain it, route database connections, prove that an old site is quiet."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam, Undoable
from tasks.errors import BadInput, NotYet, SafetyRefusal, UnhealthyTarget, Unreachable
from tasks.quantities import Duration
from tasks.traffic._members import Deregister
from tasks.traffic._pool import Pool, as_fact, confirmed, serves, shown
from tasks.traffic._route import RoutePrimary
from tasks.traffic._weigh import Weigh
from tasks.traffic.protocol import TAKES, Balancer, Members, Server
from tasks.waiting import insisted, until

Traffic = Annotated[str, ComponentParam("traffic")]

__all__ = ["Deregister", "Drain", "Quiet", "RoutePrimary", "Shift", "Weigh"]


def _pool(ctx: Context, component: str, at: str, name: str) -> Pool:
    balancer: Balancer = ctx.component(component, Balancer)
    return Pool(ctx, balancer, ctx.site(at), name)


async def _told(ctx: Context, component: str, pool: Pool) -> Facts:
    """What else decides where requests go, where the balancer can say."""
    balancer = ctx.component(component, Balancer)
    return {"balancer": await balancer.explain(pool.site, pool.name)} if isinstance(balancer, Members) else {}


@action("traffic.shift")
class Shift(Undoable):
    """At one balancer, only the servers of one site take new connections; the others drain.

    The site's servers are made ready and must pass the balancer's own check first; when they do not, nothing is
    drained (UnhealthyTarget). Raises Unreachable, Rejected, EffectUnknown, BadInput.
    """

    at: Annotated[str, SiteParam()]
    """Whose balancer."""
    to: Annotated[str, SiteParam()]
    """Whose servers."""
    pool: str = "app"
    component: Traffic = "traffic"
    keep_minimum: int = Field(default=1, ge=1)
    """How many healthy servers of ``to`` there must be before anything is drained."""
    may_be_gone: bool = False
    """A balancer that does not answer is accepted: it sends nobody anywhere."""

    async def observe(self, ctx: Context) -> Observation:
        pool = _pool(ctx, self.component, self.at, self.pool)
        try:
            servers = await insisted(ctx, pool.servers)
        except Unreachable as e:
            if not self.may_be_gone:
                raise
            return Observation(
                holds=True,
                summary=f"{pool.site}'s balancer does not answer; nothing to shift there",
                facts={"gone": True, "why": str(e)},
            )
        site, mine = ctx.site(self.to), self._mine(ctx, pool, servers)
        others = [s for s in servers if s.site != site or s.canary]
        changes = [f"{s.name}: {s.admin} -> ready" for s in mine if s.admin != "ready"]
        changes += [f"{s.name}: {s.admin} -> drain" for s in others if s.admin in TAKES]
        good = sum(serves(s) for s in mine)
        told = await _told(ctx, self.component, pool)
        if good < self.keep_minimum:
            changes.insert(0, f"wait for {self.keep_minimum} healthy servers of {site}, {good} now")
        return Observation(
            holds=not changes,
            summary=f"{pool.label}: {good} healthy of {site}; {shown(servers)}",
            changes=tuple(changes),
            facts={"gone": False, "pool": self.pool, "at": pool.site, "to": site, "servers": as_fact(servers)} | told,
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        pool = _pool(ctx, self.component, self.at, self.pool)
        servers = await pool.servers()
        mine = frozenset(s.name for s in self._mine(ctx, pool, servers))
        rest = {s.name: "drain" for s in servers if s.name not in mine and s.admin in TAKES}
        await pool.move(mine, rest, self.keep_minimum)
        return await pool.persist()

    async def confirm(self, ctx: Context) -> Observation:
        return await confirmed(ctx, self.observe)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        if evidence.get("gone"):
            return
        pool = _pool(ctx, self.component, self.at, self.pool)
        canaries = {s.name for s in await pool.servers() if s.canary}  # one that was taken away stays away
        was = {n: "ready" if s["admin"] in TAKES else s["admin"] for n, s in evidence["servers"].items()}
        was |= {n: "drain" for n in was if n in canaries}
        ready = frozenset(name for name, admin in was.items() if admin == "ready")
        if not ready:
            raise SafetyRefusal(f"{pool.label} had no ready server before; undo would leave it without one")
        await pool.move(ready, {name: admin for name, admin in was.items() if admin != "ready"}, 1)
        await pool.persist()

    def _mine(self, ctx: Context, pool: Pool, servers: tuple[Server, ...]) -> list[Server]:
        site = ctx.site(self.to)
        mine = [s for s in servers if s.site == site and not s.canary]
        if len(mine) < self.keep_minimum:
            raise BadInput(
                f"{pool.label} has {len(mine)} servers of {site}, fewer than keep_minimum {self.keep_minimum}; it has"
                f" {', '.join(s.name for s in servers)} (a server's site is its name up to the first dash)"
            )
        return mine


@action("traffic.drain")
class Drain(Undoable):
    """No new connections to one site's servers at a balancer; the open ones may end, then what is left is closed.

    Refuses to take the last healthy server away (UnhealthyTarget) unless ``may_empty``.
    """

    at: Annotated[str, SiteParam()]
    site: Annotated[str, SiteParam()]
    """Whose servers."""
    pool: str = "app"
    component: Traffic = "traffic"
    within: Duration = 10.0
    """How long open connections may go on before they are closed."""
    may_empty: bool = False
    """Nobody has to be left: a planned pause of everything."""

    def least_timeout_s(self) -> float:
        return self.within + 1.0

    async def observe(self, ctx: Context) -> Observation:
        pool = _pool(ctx, self.component, self.at, self.pool)
        servers = await pool.servers()
        mine = [s for s in servers if s.site == ctx.site(self.site)]
        changes = [f"{s.name}: {s.admin} -> drain" for s in mine if s.admin in TAKES]
        changes += [f"{s.name}: wait for {s.sessions} sessions" for s in mine if s.sessions]
        return Observation(
            holds=not changes,
            summary=f"{pool.label}: {shown(mine)}, {sum(s.sessions for s in mine)} sessions",
            changes=tuple(changes),
            facts={"pool": self.pool, "at": pool.site, "servers": as_fact(mine)},
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        pool, site = _pool(ctx, self.component, self.at, self.pool), ctx.site(self.site)
        servers = await pool.servers()
        if not self.may_empty and not any(serves(s) for s in servers if s.site != site):
            raise UnhealthyTarget(
                f"{pool.label}: no healthy server but those of {site} ({shown(servers)}); nothing was drained. Make"
                " another site's servers ready first, or say may_empty: true."
            )
        for server in servers:
            if server.site == site and server.admin in TAKES:
                await pool.set(server.name, "drain")
        bounded = replace(ctx, deadline=min(ctx.deadline - 0.5, ctx.clock.monotonic() + self.within))
        closed: dict[str, int] = {}
        try:
            await until(bounded, lambda: _no_sessions(pool, site), most_s=0.1)
        except NotYet:
            for server in await pool.servers():
                if server.site == site and server.sessions:
                    closed[server.name] = server.sessions
                    await pool.close(server.name)
            await until(ctx, lambda: _no_sessions(pool, site), most_s=0.1)
        return {"closed": closed} | await pool.persist()

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        pool = _pool(ctx, self.component, self.at, self.pool)
        for server in await pool.servers():
            was = evidence["servers"].get(server.name, {}).get("admin")
            if was in TAKES and server.admin != "ready" and not server.canary:
                await pool.set(server.name, "ready")
        await pool.persist()


@action("traffic.quiet")
class Quiet(Action):
    """Wait until nobody is connected to one site's servers any more: at one balancer, or at all of them."""

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()]
    """Whose servers."""
    at: Annotated[str | None, SiteParam()] = None
    """Whose balancer; all of them by default."""
    pool: str = "app"
    component: Traffic = "traffic"
    may_be_gone: bool = False
    """A balancer that does not answer holds no sessions."""

    async def observe(self, ctx: Context) -> Observation:
        balancer: Balancer = ctx.component(self.component, Balancer)
        places = (ctx.site(self.at),) if self.at else balancer.sites()
        site, sessions, gone = ctx.site(self.site), dict[str, int](), list[str]()
        for place in places:
            try:
                servers = await insisted(ctx, Pool(ctx, balancer, place, self.pool).servers)
            except Unreachable:
                if not self.may_be_gone:
                    raise
                gone.append(place)
                continue
            sessions |= {f"{place}/{s.name}": s.sessions for s in servers if s.site == site}
        busy = {name: count for name, count in sessions.items() if count}
        lines = ", ".join(f"{name} has {count}" for name, count in busy.items())
        return Observation(
            holds=not busy,
            summary=f"sessions at {site} in pool {self.pool}: {lines or 'none'}",
            facts={"sessions": sessions, "gone": gone},
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        async def quiet() -> None:
            found = await self.observe(ctx)
            if not found.holds:
                ctx.report(found.summary)
                raise NotYet(found.summary, **found.facts)

        await until(ctx, quiet)


async def _no_sessions(pool: Pool, site: str) -> None:
    busy = [f"{s.name} has {s.sessions} sessions" for s in await pool.servers() if s.site == site and s.sessions]
    if busy:
        pool.ctx.report(f"{pool.label}: {', '.join(busy)}")
        raise NotYet(f"{pool.label}: {', '.join(busy)}")
