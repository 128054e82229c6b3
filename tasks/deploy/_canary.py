"""One server on the new release beside those on the old one: started, weighed, compared, and gone again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tasks.contract import Facts
from tasks.deploy._compare import Compared, compare, show
from tasks.deploy._roll import Site
from tasks.errors import BadInput, Breached, LeaseHeld, NotYet, RelightError, SafetyRefusal, Unreachable
from tasks.metrics.protocol import Requests, Served
from tasks.traffic._pool import serves
from tasks.traffic.protocol import TAKES
from tasks.waiting import until

WARM_UP = 30
"""Requests of a fresh canary that do not count: its connections and its compiled code are made with them."""
EVERY_S = 1.0
HEAVIEST = 256
"""HAProxy's highest weight (configuration manual, 5.2 ``weight``)."""


@dataclass(frozen=True)
class Judge:
    """How a canary is judged; see the parameters of ``deploy.canary``. ``share``: 0 to 1."""

    share: float
    for_s: float
    most_s: float
    minimum: int
    alpha: float
    tolerance: int

    @property
    def last_level(self) -> float:
        """Half of ``alpha`` is for the last look, for each of two tests."""
        return self.alpha / 4

    @property
    def early_level(self) -> float:
        """The other half is shared by all looks before it: only what is beyond doubt ends it early."""
        return self.alpha / 4 / math.ceil((self.for_s + self.most_s) / EVERY_S)


@dataclass(frozen=True)
class Trial:
    """One canary at one site. ``before``: what there was, with ``weights``."""

    site: Site
    requests: Requests
    version: str
    before: Facts
    judge: Judge

    async def run(self) -> Facts:
        """The comparison. Everything is as before afterwards, whatever came out; what was worse is raised as
        Breached, not enough data as NotYet, and how long going back took is in the error's facts.
        """
        ctx = self.site.ctx
        if ctx.intended:
            await self.home()  # what a run that died left
        fleet, _ = await self.site.fleet()
        name = self._chosen([n for n, s in fleet.items() if s.running], list(fleet))
        try:
            share = await self._begin(name)
            found = await self._compared(name)
            if found.worse:
                raise Breached(
                    f"canary {name} on release {self.version} is worse in {' and '.join(found.worse)}: {found}",
                    **found.facts(),
                )
        except LeaseHeld:
            raise  # it is another run's now: nothing more is changed
        except RelightError as e:
            ctx.report(f"{name}: {e}; everything goes back")
            e.facts["server"] = name
            try:
                e.facts["put_back_after_s"] = await self.home()
            except RelightError as worse:
                e.facts["not_put_back"] = f"{name}: {worse}"
            raise
        took_s = await self.home()
        said = f"canary {name} on release {self.version} is no worse: {found}"
        return {**found.facts(), "server": name, "share": share, "put_back_after_s": took_s, "said": said}

    def _chosen(self, running: list[str], every: list[str]) -> str:
        limits, idle = self.site.capacity.limits(self.site.name), [n for n in every if n not in running]
        if idle and len(running) < limits.maximum:
            return idle[0]
        if len(running) > limits.minimum:
            return running[-1]
        raise SafetyRefusal(
            f"a canary at {self.site.name} needs one server more than the minimum of {limits.minimum}, and"
            f" {len(running)} run of at most {limits.maximum}. Raise the maximum, or lower the minimum."
        )

    async def _begin(self, name: str) -> float:
        """The canary serves. Returns its share of the requests; the weights are set before it gets the first."""
        share = await self._weigh(name)
        await self.site._switch(self.version)
        await self.site._replace(name, self.version, self.before)
        await self.site._switch(str(self.before["release"]))  # one that restarts by itself stays on the release it had
        return share

    async def _weigh(self, name: str) -> float:
        shares = []
        for pool in self.site.balanced.pools:
            if self.before["admin"].get(pool.site, {}).get(name) not in TAKES:
                continue
            others = sum(s.weight for s in await pool.servers() if s.name != name and serves(s))
            weight = min(HEAVIEST, max(1, round(others * self.judge.share / (1 - self.judge.share))))
            await self._set_weight(pool.site, pool.name, name, weight)
            shares.append(weight / (others + weight))
        if not shares:
            raise BadInput(f"no balancer sends requests to {name}: make it ready in one before an update")
        return round(max(shares), 3)

    async def _set_weight(self, at: str, pool: str, name: str, weight: int) -> None:
        balancer = next(p.balancer for p in self.site.balanced.pools if p.site == at)
        self.site.ctx.guard()
        await balancer.set_weight(at, pool, name, weight)

    async def home(self) -> float:
        """Everything as in ``before``: servers, releases, admin states, weights. Returns how many seconds it took."""
        began = self.site.ctx.clock.monotonic()
        await self.site._switch(str(self.before["release"]))
        fleet, _ = await self.site.fleet()
        for name, seen in fleet.items():
            if seen.running and name not in self.before["running"]:
                await self.site._retire(name, self.before)
        await self.site.roll(str(self.before["release"]), self.before)
        for pool in self.site.balanced.pools:
            was = self.before["weights"].get(pool.site, {})
            for server in await pool.servers():
                if server.name in was and server.weight != was[server.name]:
                    await self._set_weight(pool.site, pool.name, server.name, was[server.name])
        return round(self.site.ctx.clock.monotonic() - began, 3)

    async def _compared(self, name: str) -> Compared:
        """Raises NotYet where there was not enough data in time, Unreachable."""
        ctx, judge = self.site.ctx, self.judge
        others = [n for n in self.before["running"] if n != name]
        deadline = min(ctx.deadline, ctx.clock.monotonic() + judge.for_s + judge.most_s)
        bounded = replace(ctx, deadline=deadline)
        first = await until(bounded, self._served, on=(Unreachable,), most_s=EVERY_S)

        async def warm() -> dict[str, Served]:
            now = await self._served()
            done = now.get(name, Served()).since(first.get(name, Served()))
            if done.requests < WARM_UP:
                raise NotYet(f"not enough data: canary {name} answered {done.requests} of {WARM_UP} first requests")
            return now

        start = await until(bounded, warm, on=(NotYet, Unreachable), first_s=EVERY_S, most_s=EVERY_S)
        began = ctx.clock.monotonic()

        async def look() -> Compared:
            now = await self._served()
            ours, theirs = _since(now, start, [name]), _since(now, start, others)
            told = f"canary {show(ours)}; the others {show(theirs)}"
            ctx.report(told)
            early = ours.requests >= WARM_UP and theirs.requests >= WARM_UP
            found = compare(ours, theirs, judge.early_level, judge.tolerance) if early else None
            if found and found.worse:
                return found
            if min(ours.requests, theirs.requests) < judge.minimum:
                raise NotYet(f"not enough data: {told}; each needs {judge.minimum} requests. Nothing is concluded.")
            if found is None or ctx.clock.monotonic() - began < judge.for_s:
                raise NotYet(f"not enough data: {told}, but not for {judge.for_s:g} s yet")
            return replace(found, level=judge.last_level)

        return await until(bounded, look, on=(NotYet, Unreachable), first_s=EVERY_S, most_s=EVERY_S)

    async def _served(self) -> dict[str, Served]:
        return await self.requests.served(self.site.name)


def _since(now: dict[str, Served], start: dict[str, Served], names: Iterable[str]) -> Served:
    """Of all of ``names`` together. Raises BadInput where their buckets differ."""
    total = Served()
    for name in names:
        if name in now:
            one = now[name].since(start.get(name, Served()))
            if total.bounds and total.bounds != one.bounds:
                raise BadInput(
                    f"the latency buckets of {name} are others than those beside it; they cannot be compared"
                )
            total = total.plus(one)
    return total
