"""Application and Network Load Balancers (ELBv2): a pool is a set of weighted target groups, one or more a site.

A *server* of this balancer is a target group; it is ``ready`` when every listener and rule of the pool gives it weight,
``drain`` when none does, ``mixed`` in between (a change that broke off). Its targets are its members. Sessions are
not told by the API: targets that drain are counted instead. Sources: Elastic Load Balancing API 2015-12-01.
"""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

from pydantic import BaseModel

from tasks.contract import Facts
from tasks.errors import BadInput
from tasks.manual import Command, NoManual, aws
from tasks.traffic._elb import Elbv2Settings, PoolSettings, View, attributes
from tasks.traffic._elb_quotas import Counting
from tasks.traffic.protocol import Server, Target

_CROSS_ZONE = "load_balancing.cross_zone.enabled"


class Elbv2(Counting):
    """Fulfils ``Balancer`` and ``Members`` of ``tasks.traffic.protocol``, and ``Quoted``."""

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
        weights, group = view.weights(name), settings.groups[name]
        healthy = tuple(t.name for t in targets if t.state == "healthy")
        admin = "ready" if all(weights) else "mixed" if any(weights) else "drain"
        return Server(
            pool,
            name,
            group.site,
            view.arns[name],
            admin,
            up=len(healthy) >= settings.healthy,
            weight=max(weights) or group.weight,  # a drained server keeps the weight that it gets again
            sessions=sum(t.state in ("draining", "unhealthy.draining") for t in targets),
            members=healthy,
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
        await self._weigh(site, pool, server, group.weight if admin == "ready" else 0)

    async def set_weight(self, site: str, pool: str, server: str, weight: int) -> None:
        if not 0 <= weight <= 999:
            raise BadInput(f"{self._around.component}: weight {weight} of {server}; expected 0 to 999")
        self._group(site, pool, server)
        await self._weigh(site, pool, server, weight)

    async def shift_lines(self, site: str, pool: str, to: str) -> list[Command | NoManual]:
        """See ``tasks.traffic.manual.CloudByHand``: what is healthy is looked at first, then every route is changed."""
        view, sites, where = await self._view(site, pool), self.groups(site, pool), self._site(site)
        mine = [n for n in view.arns if sites[n] == to]
        region, profile = where.region, self._settings.profile
        states = "TargetHealthDescriptions[].TargetHealth.State"
        found: list[Command | NoManual] = [
            Command(
                aws(region, profile, "elbv2", "describe-target-health", "--target-group-arn", view.arns[n],
                    "--query", states, "--output", "text"),
                "healthy",
                f"{n}, at least {self._pool(site, pool).healthy} times. Where it is not, stop: nobody would be served.",
            )
            for n in mine
        ]  # fmt: skip
        weights = {arn: self._pool(site, pool).groups[n].weight if n in mine else 0 for n, arn in view.arns.items()}
        for route in view.routes:
            verb, key, value = (
                ("modify-listener", "--listener-arn", "--default-actions")
                if route.default
                else ("modify-rule", "--rule-arn", "--actions")
            )
            actions = json.dumps(route.weighing(weights))
            line = aws(region, profile, "elbv2", verb, key, route.arn, value, actions, "--output", "text")
            found.append(Command(line, f"{mine[0] if mine else to}", f"{route.label} sends to {to} only."))
        return found if mine else [NoManual(f"pool {pool} of {site} has no target group of {to}")]

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
