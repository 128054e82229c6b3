"""One site, one server at a time: out of the balancers, onto the release, proven, back in. Resumable at any point."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from tasks.capacity.protocol import Capacity, Startable
from tasks.contract import Context, Facts
from tasks.deploy._turns import Bounds, Seen, turns
from tasks.deploy.protocol import Releases
from tasks.errors import BadInput, LeaseHeld, NotYet, RelightError, UnhealthyTarget
from tasks.traffic._pool import Pool, serves
from tasks.traffic.protocol import TAKES
from tasks.waiting import until


@dataclass(frozen=True)
class Patience:
    """How long each part of one server's turn may take, in seconds, and how many good answers in a row it needs."""

    drain_s: float
    gate_s: float
    times: int


async def within(ctx: Context, seconds: float, look: Callable[[], Awaitable[None]]) -> None:
    """``until``, for that many seconds at most."""
    bounded = replace(ctx, deadline=min(ctx.deadline, ctx.clock.monotonic() + seconds))
    await until(bounded, look, most_s=0.2)


@dataclass(frozen=True)
class Balanced:
    """A site's servers behind every balancer. ``minimum``: how many must serve; ``pools``: the same one at each."""

    ctx: Context
    site: str
    pools: tuple[Pool, ...]
    minimum: int
    patience: Patience

    async def admins(self) -> dict[str, dict[str, str]]:
        """Balancer -> server of this site -> admin state."""
        return {p.site: {s.name: s.admin for s in await p.servers() if s.site == self.site} for p in self.pools}

    async def weights(self) -> dict[str, dict[str, int]]:
        """Balancer -> server of this site -> weight."""
        return {p.site: {s.name: s.weight for s in await p.servers() if s.site == self.site} for p in self.pools}

    async def out(self, name: str) -> None:
        """No new requests to it anywhere, and the open ones have ended. Somebody else serves in its place first."""
        for pool in self.pools:
            await within(self.ctx, self.patience.gate_s, lambda p=pool: self._spared(p, name))  # type: ignore[misc]
            if await self._takes(pool, name):
                await pool.set(name, "drain")
        await within(self.ctx, self.patience.drain_s, lambda: self._idle(name))

    async def _spared(self, pool: Pool, name: str) -> None:
        """Raises NotYet while fewer than the minimum would serve without it."""
        servers = await pool.servers()
        mine = [s for s in servers if s.name == name]
        if not mine:
            raise BadInput(f"{pool.label} has no server {name}; an instance and its server must have one name")
        rest = sum(serves(s) for s in servers if s.name != name)
        if serves(mine[0]) and rest < self.minimum:
            raise NotYet(f"{pool.label}: without {name} {rest} servers would serve, and {self.minimum} must")

    async def _idle(self, name: str) -> None:
        for pool in self.pools:
            for server in await pool.servers():
                if server.name == name and server.sessions:
                    raise NotYet(f"{pool.label}: {name} still has {server.sessions} sessions")

    async def back(self, name: str, before: Facts) -> None:
        """The admin states from before, and where it takes requests it passes the balancer's own check first."""
        for pool in self.pools:
            was = before["admin"].get(pool.site, {}).get(name, "")
            if was not in TAKES or await self._takes(pool, name):
                continue

            async def up(pool: Pool = pool, *, ready: bool = False) -> None:
                server = next(s for s in await pool.servers() if s.name == name)
                if not (serves(server) if ready else server.up):
                    raise NotYet(f"{pool.label}: {name} does not pass the balancer's check")

            await within(self.ctx, self.patience.gate_s, up)
            await pool.set(name, "ready")
            await within(self.ctx, self.patience.gate_s, lambda u=up: u(ready=True))  # type: ignore[misc]

    async def restore(self, name: str, before: Facts) -> None:
        """The admin states from before, of one that does not run: it would take requests if it were started."""
        for pool in self.pools:
            was = before["admin"].get(pool.site, {}).get(name, "")
            if was in TAKES and not await self._takes(pool, name):
                await pool.set(name, "ready")

    async def _takes(self, pool: Pool, name: str) -> bool:
        return any(s.admin in TAKES for s in await pool.servers() if s.name == name)


@dataclass(frozen=True)
class Site:
    """Everything that is asked and changed at one site."""

    ctx: Context
    name: str
    releases: Releases
    capacity: Capacity
    starter: Startable
    balanced: Balanced
    patience: Patience

    async def fleet(self) -> tuple[dict[str, Seen], dict[str, str]]:
        """Instance -> what it is now; instance -> its address. Raises Unreachable."""
        fleet, addresses = dict[str, Seen](), dict[str, str]()
        for one in await self.capacity.instances(self.name):
            answer = await self.releases.ask(one.address) if one.running else None
            fleet[one.name] = Seen(one.running, answer.version if answer else None, bool(answer and answer.ready))
            addresses[one.name] = one.address
        return fleet, addresses

    async def roll(self, version: str, before: Facts) -> Facts:
        """Every running instance is on ``version``, and as many run, in the same admin states, as in ``before``.

        Raises what went wrong with one server, with that server back on the release from before.
        """
        limits, began = self.capacity.limits(self.name), self.ctx.clock.monotonic()
        fleet, _ = await self.fleet()
        # One that was left drained serves nobody: it has its turn first, and counts for the others only afterwards.
        out = drained(await self.balanced.admins(), before)
        idle = {n: replace(s, ready=False) for n, s in fleet.items() if n in out and s.version != version}
        todo = turns({**fleet, **idle}, version, Bounds(limits.minimum, limits.maximum), before["running"])
        await self._switch(version)
        for name, seen in fleet.items():  # what a run that died left drained serves again before the next one goes
            if seen.running and name not in todo.replace:
                await self._proven(name, version)
                await self.balanced.back(name, before)
        done: list[str] = []
        for name in (*((todo.extra,) if todo.extra else ()), *todo.replace):
            self.ctx.report(f"{name} of {self.name} goes to release {version}, {len(done)} done")
            await self._or_back(name, version, before)
            done.append(name)
        await self._settle(before)
        return {"replaced": done, "extra": todo.extra, "took_s": round(self.ctx.clock.monotonic() - began, 3)}

    async def _or_back(self, name: str, version: str, before: Facts) -> None:
        try:
            await self._replace(name, version, before)
        except LeaseHeld:
            raise  # it is another run's now: nothing more is changed
        except RelightError as e:
            old, began = str(before["release"]), self.ctx.clock.monotonic()
            if version == old:
                raise
            self.ctx.report(f"{name}: {e}; it goes back to release {old}")
            try:
                await self._switch(old)
                await self._put_back(name, old, before)
            except RelightError as worse:
                e.facts["not_put_back"] = f"{name}: {worse}"
            else:
                e.facts |= {"put_back": name, "put_back_after_s": round(self.ctx.clock.monotonic() - began, 3)}
            raise

    async def _put_back(self, name: str, old: str, before: Facts) -> None:
        fleet, _ = await self.fleet()
        if name not in before["running"]:
            await self._retire(name, before)
        elif fleet[name] == Seen(running=True, version=old, ready=True):  # it was never stopped: its requests went on
            await self.balanced.back(name, before)
        else:
            await self._replace(name, old, before)

    async def _replace(self, name: str, version: str, before: Facts) -> None:
        await self.balanced.out(name)
        await self._stopped(name)

        async def start() -> None:
            self.ctx.guard()
            await self.starter.start(self.name, name)  # NotYet while its last processes end

        await within(self.ctx, self.patience.gate_s, start)
        await self._proven(name, version)
        await self.balanced.back(name, before)

    async def _switch(self, version: str) -> None:
        if await self.releases.chosen(self.name) != version:
            self.ctx.guard()
            await self.releases.switch(self.name, version)

    async def _stopped(self, name: str) -> None:
        self.ctx.guard()
        await self.starter.stop(self.name, name)

        async def gone() -> None:
            # a port that still answers is an instance that still lives
            if any(i.running for i in await self.capacity.instances(self.name) if i.name == name):
                raise NotYet(f"{name} is still running")
            if (await self.releases.ask(addresses[name])).version is not None:
                raise NotYet(f"{name} still answers")

        _, addresses = await self.fleet()
        await within(self.ctx, self.patience.gate_s, gone)

    async def _proven(self, name: str, version: str) -> None:
        """The health gate: ready, and of the wanted release, ``times`` in a row. Raises UnhealthyTarget."""
        good = 0

        async def look() -> None:
            nonlocal good
            fleet, addresses = await self.fleet()
            answer = await self.releases.ask(addresses[name])
            if not fleet[name].running:
                raise UnhealthyTarget(f"{name} ended by itself on release {version}; look at its log")
            fine = answer.ready and answer.version == version
            good = good + 1 if fine else 0
            if good < self.patience.times:
                found = f"runs {answer.version or 'nothing that answers'}, {answer.why or 'ready'}"
                raise NotYet(f"{name} is not proven on release {version}: {found}")

        try:
            await within(self.ctx, self.patience.gate_s, look)
        except NotYet as e:
            raise UnhealthyTarget(f"{e} after {self.patience.gate_s:g} s; no request was sent to it") from e

    async def _settle(self, before: Facts) -> None:
        """Nobody is left drained by a run that died, and what was started only to have one to spare is stopped."""
        fleet, _ = await self.fleet()
        for name, seen in fleet.items():
            if seen.running and name not in before["running"]:
                await self._retire(name, before)
            elif seen.running:
                await self.balanced.back(name, before)
            else:
                await self.balanced.restore(name, before)

    async def _retire(self, name: str, before: Facts) -> None:
        await self.balanced.out(name)
        await self._stopped(name)
        await self.balanced.restore(name, before)


def drained(admins: Mapping[str, Mapping[str, str]], before: Facts) -> set[str]:
    """Servers that took requests before, and do not now, at some balancer."""
    was = before["admin"]
    return {
        name
        for at, servers in admins.items()
        for name, admin in servers.items()
        if admin not in TAKES and was.get(at, {}).get(name) in TAKES
    }


def left_over(fleet: Mapping[str, Seen], admins: Mapping[str, Mapping[str, str]], before: Facts) -> list[str]:
    """What a run that died left behind, against what was before it; for people."""
    extra = [n for n, s in fleet.items() if s.running and n not in before["running"]]
    found = [f"stop {n}, which was started for the update" for n in extra]
    found += [f"start {n}, which ran before" for n in before["running"] if n in fleet and not fleet[n].running]
    for at, servers in admins.items():
        for name, admin in servers.items():
            was = before["admin"].get(at, {}).get(name, admin)
            if was in TAKES and admin not in TAKES:
                found.append(f"{name}: {admin} -> {was} at {at}")
    return found
