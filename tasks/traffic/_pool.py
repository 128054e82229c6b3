"""One pool of one balancer, changed so that somebody healthy serves at every moment."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tasks.contract import Context, Facts, Observation
from tasks.errors import BadInput, NotYet, Rejected, UnhealthyTarget, Unreachable
from tasks.traffic.protocol import Balancer, Server
from tasks.waiting import until


def serves(server: Server) -> bool:
    """New connections go to it, and it passes its check."""
    return server.admin == "ready" and server.up and server.weight > 0


def as_fact(servers: Iterable[Server]) -> Facts:
    """Server name -> what it was, for evidence."""
    return {s.name: {"admin": s.admin, "up": s.up, "weight": s.weight, "sessions": s.sessions} for s in servers}


def shown(servers: Iterable[Server]) -> str:
    """For messages: ``east-app1 ready up, west-app1 drain down, 8 others maint down``.

    Ten servers in the same plain state are one number; those that serve, or are on their way, have names.
    """
    servers = list(servers)
    named = [s for s in servers if s.up or s.sessions or len(servers) <= 4]
    rest = Counter(f"{s.admin} {'up' if s.up else 'down'}" for s in servers if s not in named)
    told = [f"{s.name} {s.admin} {'up' if s.up else 'down'}" for s in named]
    return ", ".join([*told, *(f"{n} others {state}" for state, n in rest.items())]) or "none"


@dataclass(frozen=True)
class Pool:
    """A pool at the balancer of ``site``. Every change asks the guard first."""

    ctx: Context
    balancer: Balancer
    site: str
    name: str

    @property
    def label(self) -> str:
        return f"pool {self.name} at {self.site}"

    async def servers(self) -> tuple[Server, ...]:
        """Raises Unreachable, BadInput (unknown, or without any server)."""
        found = await self.balancer.servers(self.site, self.name)
        if not found:
            raise BadInput(f"{self.label} has no servers")
        return found

    async def set(self, server: str, admin: str) -> None:
        self.ctx.guard()
        await self.balancer.set_admin(self.site, self.name, server, admin)

    async def close(self, server: str) -> None:
        self.ctx.guard()
        await self.balancer.close_sessions(self.site, self.name, server)

    async def persist(self) -> Facts:
        """What was set must survive a reload. A file that cannot be written does not stop a recovery, it is told."""
        try:
            await self.balancer.persist(self.site)
        except (Rejected, Unreachable) as e:
            self.ctx.report(f"not persisted: {e}")
            return {"persisted": False, "not_persisted_because": str(e)}
        return {"persisted": True}

    async def move(self, ready: frozenset[str], rest: Mapping[str, str], minimum: int) -> None:
        """Make ``ready`` take the traffic, and only then give the servers of ``rest`` their admin state.

        While somebody else serves, a server comes out of maintenance by way of ``drain``: it is checked there before
        it gets a request. When nobody serves there is nothing to lose, and it is made ready at once. Raises
        UnhealthyTarget, with ``ready`` as it was and ``rest`` untouched, when not ``minimum`` of them get healthy.
        """
        before = await self.servers()
        chosen = [s for s in before if s.name in ready]
        somebody = any(serves(s) for s in before if s.name not in ready)
        if somebody:
            for server in chosen:
                if server.admin == "maint":
                    await self.set(server.name, "drain")
        else:
            with contextlib.suppress(UnhealthyTarget):  # a balancer that refuses by itself: waited for below
                await self._make_ready(chosen)
        try:
            await self._healthy(ready, minimum, admin=None)
            await self._make_ready([s for s in await self.servers() if s.name in ready])
            now = await self._healthy(ready, minimum, admin="ready")
        except NotYet as e:
            for server in chosen:
                if server.admin != "mixed":
                    await self.set(server.name, server.admin)
            raise UnhealthyTarget(
                f"{self.label}: {e}. Nothing was drained. Bring the servers up, or look at their health check.",
                **e.facts,
            ) from e
        for server in now:
            admin = rest.get(server.name, server.admin)
            if server.admin != admin:
                await self.set(server.name, admin)

    async def _make_ready(self, servers: Iterable[Server]) -> None:
        for server in servers:
            if server.admin != "ready":
                await self.set(server.name, "ready")

    async def _healthy(self, names: frozenset[str], minimum: int, admin: str | None) -> tuple[Server, ...]:
        """Wait until ``minimum`` of ``names`` are up (and in ``admin``). Raises NotYet with time left to go back."""

        async def look() -> tuple[Server, ...]:
            servers = await self.servers()
            mine = [s for s in servers if s.name in names]
            good = [s for s in mine if s.up and s.weight > 0 and admin in (None, s.admin)]
            if len(good) < minimum:
                self.ctx.report(f"{self.label}: {len(good)} of {minimum} healthy")
                raise NotYet(
                    f"{len(good)} of the {minimum} needed servers are healthy: {shown(mine)}", servers=as_fact(mine)
                )
            return servers

        reserve_s = min(1.0, self.ctx.left_s() / 5)
        return await until(replace(self.ctx, deadline=self.ctx.deadline - reserve_s), look, most_s=0.1)


async def confirmed(ctx: Context, observe: Callable[[Context], Awaitable[Observation]]) -> Observation:
    """Observe until it holds: one health check that fails in between is no news, one that goes on is NotYet."""

    async def look() -> Observation:
        found = await observe(ctx)
        if not found.holds:
            raise NotYet(found.summary, **found.facts)
        return found

    return await until(ctx, look, most_s=0.1)
