"""Application and Network Load Balancers (ELBv2): a pool is a set of weighted target groups, one or more a site.

A *server* of this balancer is a target group; it is ``ready`` when every listener and rule of the pool gives it weight,
``drain`` when none does, ``mixed`` in between (a change that broke off). Its targets are its members. Sessions are
not told by the API: targets that drain are counted instead. Sources: Elastic Load Balancing API 2015-12-01.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from pydantic import BaseModel

from tasks.contract import Facts
from tasks.errors import BadInput
from tasks.traffic._elb import Elbv2Settings, PoolSettings, View, attributes
from tasks.traffic._elb_shares import Sharing
from tasks.traffic.protocol import Server, Target

_CROSS_ZONE = "load_balancing.cross_zone.enabled"


class Elbv2(Sharing):
    """Fulfils ``Balancer`` and ``Weighted`` of ``tasks.traffic.protocol``, and ``Quoted``."""

    Settings: ClassVar[type[BaseModel]] = Elbv2Settings
    closes_sessions: ClassVar[bool] = False

    async def servers(self, site: str, pool: str) -> tuple[Server, ...]:
        view, settings = await self._view(site, pool), self._pool(site, pool)
        names = [n for n in settings.groups if n in view.arns]
        targets = await asyncio.gather(*(self._targets(site, view.arns[n]) for n in names))
        return tuple(
            self._server(pool, name, settings, view, found) for name, found in zip(names, targets, strict=True)
        )

    def _server(self, pool: str, name: str, settings: PoolSettings, view: View, targets: tuple[Target, ...]) -> Server:
        group = settings.groups[name]
        weights = view.weights(name, named_only=group.canary)
        healthy = tuple(t.name for t in targets if t.state == "healthy")
        admin = "ready" if all(weights) else "mixed" if any(weights) else "drain"
        return Server(
            pool,
            name,
            group.site,
            view.arns[name],
            admin,
            up=len(healthy) >= settings.needs(name),
            weight=max(weights) or group.weight,  # a drained server keeps the weight that it gets again
            sessions=sum(t.state in ("draining", "unhealthy.draining") for t in targets),
            members=healthy,
            canary=group.canary,
        )

    async def explain(self, site: str, pool: str) -> Facts:
        """Cross-zone balancing, deregistration delays and stickiness: what a weight alone does not say. Read once."""
        have = self._explained.get((site, pool))
        if have is None:
            view = await self._view(site, pool)
            balancer = await self._ask(
                site,
                "describe_load_balancer_attributes",
                lambda c: c.describe_load_balancer_attributes(LoadBalancerArn=view.balancer),
            )
            groups = {n: await self._attributes(site, a) for n, a in view.arns.items()}
            # An ALB balances across zones, an NLB where its attribute says so; a group may say otherwise for itself.
            of_all = ":loadbalancer/app/" in view.balancer or attributes(balancer).get(_CROSS_ZONE) == "true"
            have = self._explained[site, pool] = {
                "cross_zone": {
                    n: a.get(_CROSS_ZONE, "") == "true" or (a.get(_CROSS_ZONE, "") != "false" and of_all)
                    for n, a in groups.items()
                },
                "deregistration_delay_s": {
                    n: int(a.get("deregistration_delay.timeout_seconds", 300)) for n, a in groups.items()
                },
                "sticky_s": max(r.sticky_s for r in view.routes),
                "routes": [r.label for r in view.routes],
            }
        return have

    async def set_admin(self, site: str, pool: str, server: str, admin: str) -> None:
        """``maint`` is as ``drain``: a weight of 0. Raises UnhealthyTarget rather than send to nobody healthy."""
        if admin not in ("ready", "drain", "maint"):
            raise BadInput(f"{self._around.component}: admin state {admin!r}; expected ready, drain or maint")
        group = self._group(site, pool, server)
        if group.canary and admin == "ready":
            raise BadInput(f"{self._around.component}: {server} is a canary, which gets a share only (traffic.weigh)")
        await self._weigh(site, pool, server, group.weight if admin == "ready" else 0)

    async def set_weight(self, site: str, pool: str, server: str, weight: int) -> None:
        if not 0 <= weight <= 999:
            raise BadInput(f"{self._around.component}: weight {weight} of {server}; expected 0 to 999")
        self._group(site, pool, server)
        await self._weigh(site, pool, server, weight)

    async def close_sessions(self, site: str, pool: str, server: str) -> None:
        """A load balancer of AWS closes nothing on demand: what is open ends by itself, or with its target."""
        self._group(site, pool, server)

    async def persist(self, site: str) -> None:
        """What was set is kept by AWS."""
        self._site(site)

    # ---- members ----

    async def targets(self, site: str, pool: str, server: str) -> tuple[Target, ...]:
        view = await self._view(site, pool)
        return await self._targets(site, view.arns[self._known(view, server)])

    async def deregister(self, site: str, pool: str, server: str, target: Target) -> None:
        await self._membership(site, pool, server, target, "deregister_targets")

    async def register(self, site: str, pool: str, server: str, target: Target) -> None:
        await self._membership(site, pool, server, target, "register_targets")

    async def _membership(self, site: str, pool: str, server: str, target: Target, operation: str) -> None:
        view = await self._view(site, pool)
        arn = view.arns[self._known(view, server)]
        which = {"Id": target.name, **({"Port": target.port} if target.port else {})}
        await self._change(
            site,
            f"{operation} {target.name} of {server}",
            lambda c: getattr(c, operation)(TargetGroupArn=arn, Targets=[which]),
        )


PROVIDER = Elbv2
