"""Is there room at a balancer for what a move takes? Source: DescribeAccountLimits of ELB API 2015-12-01."""

from __future__ import annotations

import asyncio

from tasks.errors import Rejected
from tasks.quotas import Allowance
from tasks.traffic._elb import Weighing
from tasks.traffic.protocol import Target


class Counting(Weighing):
    """Fulfils ``Quoted`` of ``tasks.quotas``."""

    async def allowances(self, active: str, target: str) -> tuple[Allowance, ...]:
        """Targets of each balancer that is used at ``target``, for as many as are healthy at ``active`` now.

        A target counts once for each target group. Counted are the pools of the settings.
        """
        sites = (target,) if target in self._settings.sites else tuple(self._settings.sites)
        return tuple(await asyncio.gather(*(self._allowance(s, active, target) for s in sites)))

    async def _allowance(self, site: str, active: str, target: str) -> Allowance:
        where, home = self._site(site), active if active in self._settings.sites else site
        used = needs = 0
        for pool in where.pools:
            here, there = await self._members(home, pool), await self._members(site, pool)
            have = sum(len(t) for s, t in there if s == target)
            serve = sum(t.state == "healthy" for s, some in here if s == active for t in some)
            used, needs = used + sum(len(t) for _, t in there), needs + max(0, serve - have)
        (balancer,) = await self._pages(site, "describe_load_balancers", "LoadBalancers", Names=[where.load_balancer])
        name = f"targets-per-{balancer.get('Type', 'application')}-load-balancer"
        limits = {d["Name"]: float(d["Max"]) for d in await self._pages(site, "describe_account_limits", "Limits")}
        if name not in limits:
            raise Rejected(f"{self._around.component}: AWS tells no limit {name} in {where.region}")
        return Allowance(f"targets of {where.load_balancer}", limits[name], float(used), float(needs), f"ELB {name}")

    async def _members(self, site: str, pool: str) -> list[tuple[str, tuple[Target, ...]]]:
        """Of each target group: the site of its targets, and those."""
        if pool not in self._site(site).pools:
            return []
        view, groups = await self._view(site, pool), self._pool(site, pool).groups
        found = await asyncio.gather(*(self._targets(site, arn) for arn in view.arns.values()))
        return [(groups[name].site, some) for name, some in zip(view.arns, found, strict=True)]
