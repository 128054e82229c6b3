"""Looks at a load balancer of AWS and its target groups, and changes the weights of a pool at all its routes together.

Sources: Elastic Load Balancing API 2015-12-01; *Application Load Balancers*, Target group health.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.aws import Account, Aws
from tasks.contract import Facts, Surroundings
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, RelightError, UnhealthyTarget
from tasks.marks import owned, pairs
from tasks.traffic._forwarding import Route, of_pool, route
from tasks.traffic.protocol import Target

T = TypeVar("T")
_PAUSES_S = (0.1, 0.3, 0.9)
"""Between the tries of one call that AWS asks to make later: a change of several listeners must not stop half way."""


class TargetGroup(BaseModel):
    """A target group of a pool. ``site``: where its targets run; ``weight``: what it gets when it is ready.

    ``canary``: its targets are for trying a release; only ``traffic.weigh`` gives it weight, every other step takes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    weight: int = Field(default=100, ge=1, le=999)
    canary: bool = False


class PoolSettings(BaseModel):
    """``groups``: target group name -> which. ``healthy``: how many healthy targets a group needs to get traffic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: dict[str, TargetGroup] = Field(min_length=1)
    healthy: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _has_one_canary_at_most(self) -> PoolSettings:
        canaries = self.canaries
        if len(canaries) > 1 or len(canaries) == len(self.groups):
            raise ValueError(
                f"a pool has one canary at most, and a group that is none; here the canaries are {canaries}"
            )
        return self

    @property
    def canaries(self) -> list[str]:
        return [n for n, g in self.groups.items() if g.canary]

    def needs(self, group: str) -> int:
        """Healthy targets without which ``group`` gets no weight."""
        return 1 if self.groups[group].canary else self.healthy


class SiteBalancer(BaseModel):
    """One site's load balancer, by its name, in its own region."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    load_balancer: str
    pools: dict[str, PoolSettings] = Field(min_length=1)


class Elbv2Settings(Account):
    """``sites``: each with its balancer. Balancer and target groups carry the tag ``relight:system``."""

    sites: dict[str, SiteBalancer] = Field(min_length=1)


@dataclass(frozen=True)
class View:
    """A pool as it is: target group name -> ARN, and the routes to them."""

    label: str
    balancer: str
    arns: Mapping[str, str]
    routes: tuple[Route, ...]
    canaries: frozenset[str] = frozenset()
    """ARNs."""

    def weights(self, group: str, *, named_only: bool = False) -> list[int]:
        """At each route. ``named_only``: a route that does not name it is meant to do without."""
        arn = self.arns[group]
        return [r.weights.get(arn, 0) for r in self.routes if arn in r.weights or not named_only] or [0]

    def told(self, weights: Mapping[str, int]) -> str:
        """ARN -> weight, for people."""
        return ", ".join(f"{n} {weights[a]}" for n, a in self.arns.items() if a in weights)


Change = tuple[Route, Mapping[str, int]]
"""A route, and target group ARN -> the weight that it gets there."""


class Reading:
    """Looks only."""

    def __init__(self, settings: Elbv2Settings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._aws = Aws(settings, around.component)
        self._explained: dict[tuple[str, str], Facts] = {}

    async def _ask(self, site: str, what: str, call: Callable[[Any], T]) -> T:
        client = await self._aws.client("elbv2", self._site(site).region)
        return await self._aws.call(what, lambda: call(client))

    async def _pages(self, site: str, operation: str, key: str, **arguments: Any) -> list[Any]:
        """Every item of every page."""
        found = await self._ask(
            site, operation, lambda c: c.get_paginator(operation).paginate(**arguments).build_full_result()
        )
        return list(found.get(key, []))

    async def _view(self, site: str, pool: str) -> View:
        """Raises SafetyRefusal for what is not marked, BadInput for what is not there."""
        where, settings = self._site(site), self._pool(site, pool)
        label = f"{self._around.component}: pool {pool} of {where.load_balancer} in {where.region}"
        (balancer,) = await self._pages(site, "describe_load_balancers", "LoadBalancers", Names=[where.load_balancer])
        arn = balancer["LoadBalancerArn"]
        trying = settings.canaries
        steady = [n for n in settings.groups if n not in trying]
        groups, canaries, listeners = await asyncio.gather(
            self._pages(site, "describe_target_groups", "TargetGroups", Names=steady),
            _if_there(functools.partial(self._pages, site, "describe_target_groups", "TargetGroups"), trying),
            self._pages(site, "describe_listeners", "Listeners", LoadBalancerArn=arn),
        )
        arns = {g["TargetGroupName"]: g["TargetGroupArn"] for g in (*groups, *canaries)}
        await self._marked(site, label, [arn, *arns.values()])
        every = await asyncio.gather(*(self._routes(site, listener) for listener in listeners))
        names = {a: n for n, a in arns.items()}
        trial = frozenset(g["TargetGroupArn"] for g in canaries)
        return View(label, arn, arns, tuple(of_pool([r for some in every for r in some], names, label)), trial)

    async def _routes(self, site: str, listener: Mapping[str, Any]) -> list[Route]:
        where, port = listener["ListenerArn"], listener.get("Port")
        default = route(where, listener["DefaultActions"], default=True, label=f"listener {port}")
        found = [
            route(rule["RuleArn"], rule["Actions"], default=False, label=f"listener {port} rule {rule['Priority']}")
            for rule in await self._pages(site, "describe_rules", "Rules", ListenerArn=where)
            if not rule["IsDefault"]
        ]
        return [r for r in (default, *found) if r is not None]

    async def _marked(self, site: str, label: str, arns: list[str]) -> None:
        for start in range(0, len(arns), 20):  # DescribeTags takes twenty
            some = arns[start : start + 20]
            answer = await self._ask(site, "describe_tags", functools.partial(_tags_of, some))
            tags = {d["ResourceArn"]: pairs(d.get("Tags", [])) for d in answer["TagDescriptions"]}
            for arn in some:
                owned(f"{label}: {arn.rpartition(':')[2]}", tags.get(arn, {}), self._around.system)

    async def _targets(self, site: str, arn: str) -> tuple[Target, ...]:
        answer = await self._ask(site, "describe_target_health", lambda c: c.describe_target_health(TargetGroupArn=arn))
        return tuple(
            Target(
                str(d["Target"]["Id"]),
                int(d["Target"].get("Port") or 0),
                str(d["TargetHealth"]["State"]),
                str(d["TargetHealth"].get("Reason") or ""),
            )
            for d in answer["TargetHealthDescriptions"]
        )

    async def _attributes(self, site: str, arn: str) -> dict[str, str]:
        return attributes(
            await self._ask(
                site,
                "describe_target_group_attributes",
                lambda c: c.describe_target_group_attributes(TargetGroupArn=arn),
            )
        )

    async def aclose(self) -> None:
        """Close the clients."""
        await self._aws.aclose()

    def groups(self, site: str, pool: str) -> dict[str, str]:
        return {name: g.site for name, g in self._pool(site, pool).groups.items() if not g.canary}

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    def _site(self, site: str) -> SiteBalancer:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(
                f"{self._around.component}: no balancer in site {site!r}; there is one in: {known}"
            ) from None

    def _pool(self, site: str, pool: str) -> PoolSettings:
        pools = self._site(site).pools
        if pool not in pools:
            raise BadInput(f"{self._around.component}: no pool {pool!r} at {site}; it has {', '.join(pools)}")
        return pools[pool]


class Weighing(Reading):
    """Changes, each of all routes of the pool together."""

    async def _weigh(self, site: str, pool: str, server: str, weight: int) -> None:
        """Give ``server`` this weight at every route, or at none: what was changed is put back where one fails."""
        view = await self._view(site, pool)
        self._known(view, server)
        await self._give(site, pool, view, {r.label: {server: weight} for r in view.routes})

    async def _give(self, site: str, pool: str, view: View, wanted: Mapping[str, Mapping[str, int]]) -> None:
        """``wanted``: label of a route -> server -> weight; other servers keep theirs. All of it or nothing."""
        arns, others = view.arns, dict.fromkeys((a for a in view.arns.values() if a not in view.canaries), 0)
        given = [(r, {arns[n]: w for n, w in wanted.get(r.label, {}).items()}) for r in view.routes]
        changing = [(r, g) for r, g in given if any(r.weights.get(a, 0) != w for a, w in g.items())]
        if not changing:
            return
        await self._must_serve(site, pool, view, changing)
        done: list[Route] = []
        for found, weights in changing:
            try:
                await self._modify(site, found, {**others, **found.weights, **weights})
            except RelightError as e:
                touched = done if e.state_known else [*done, found]
                await self._put_back(site, view, touched, e)
                raise
            done.append(found)
        now = {r.label: r.weights for r in (await self._view(site, pool)).routes}
        for found, weights in changing:
            reads = {a: now.get(found.label, {}).get(a, 0) for a in weights}
            if reads != weights:
                raise EffectUnknown(
                    f"{view.label}: {found.label} was given {view.told(weights)} and reads back {view.told(reads)}:"
                    " somebody else writes there, or it is not in effect yet",
                    weights={n: reads[a] for n, a in arns.items() if a in reads},
                )

    async def _must_serve(self, site: str, pool: str, view: View, changing: Sequence[Change]) -> None:
        """Nobody is sent to a group with too few healthy targets, and no route is left without any weight."""
        settings = self._pool(site, pool)
        for server, arn in view.arns.items():
            if any(g.get(arn, 0) > r.weights.get(arn, 0) for r, g in changing):
                await self._must_be_healthy(site, view, server, settings.needs(server))
        for found, weights in changing:
            meant = {a for a, w in weights.items() if w}  # a canary serves everybody only where that is asked for
            if not any(w for a, w in {**found.weights, **weights}.items() if a not in view.canaries or a in meant):
                less = ", ".join(n for n, a in view.arns.items() if weights.get(a) == 0)
                raise UnhealthyTarget(
                    f"{view.label}: without {less} {found.label} would have no target group with any weight left, and"
                    " would answer 503; make another one ready first"
                )

    async def _must_be_healthy(self, site: str, view: View, server: str, need: int) -> None:
        states = [t.state for t in await self._targets(site, view.arns[server])]
        healthy = states.count("healthy")
        if healthy < need:
            seen = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))) or "no targets"
            raise UnhealthyTarget(
                f"{view.label}: {server} has {healthy} healthy targets, {need} wanted ({seen}); nothing was shifted"
                " to it. Bring its targets up, or look at their health check.",
                healthy=healthy,
                wanted=need,
            )

    async def _modify(self, site: str, found: Route, weights: Mapping[str, int]) -> None:
        actions = found.weighing(weights)
        if found.default:
            await self._change(
                site,
                f"ModifyListener {found.label}",
                lambda c: c.modify_listener(ListenerArn=found.arn, DefaultActions=actions),
            )
        else:
            await self._change(
                site, f"ModifyRule {found.label}", lambda c: c.modify_rule(RuleArn=found.arn, Actions=actions)
            )

    async def _put_back(self, site: str, view: View, touched: list[Route], why: RelightError) -> None:
        """Raises EffectUnknown where that fails too: then some routes have the new weight and some the old."""
        left: dict[str, str] = {}
        for found in reversed(touched):
            try:
                await self._modify(site, found, found.weights)
            except RelightError as e:
                left[found.label] = str(e)
        if left:
            raise EffectUnknown(
                f"{view.label}: {why}; and what was changed before could not be put back at {', '.join(left)}. The"
                " next look tells how the weights are now.",
                not_put_back=left,
            ) from why

    async def _change(self, site: str, what: str, call: Callable[[Any], Any]) -> None:
        """A call that changes something, made again where AWS asks to come back."""
        client = await self._aws.client("elbv2", self._site(site).region)

        async def once() -> None:
            await self._aws.call(what, lambda: call(client), changes=True)

        await _patiently(once, self._around.clock.sleep)

    def _group(self, site: str, pool: str, server: str) -> TargetGroup:
        groups = self._pool(site, pool).groups
        if server not in groups:
            raise BadInput(
                f"{self._around.component}: pool {pool} of {site} has no target group {server!r}; it has"
                f" {', '.join(groups)}"
            )
        return groups[server]

    @staticmethod
    def _known(view: View, server: str) -> str:
        if server not in view.arns:
            raise BadInput(f"{view.label}: AWS has no target group {server!r}; it has {', '.join(view.arns)}")
        return server


def attributes(answer: Mapping[str, Any]) -> dict[str, str]:
    """Of a balancer or a target group, by key."""
    return {a["Key"]: str(a["Value"]) for a in answer["Attributes"]}


async def _if_there(describe: Callable[..., Awaitable[list[Any]]], names: list[str]) -> list[Any]:
    """A canary's group that is not there is no reason to move nobody: a recovery needs none."""
    if not names:
        return []
    try:
        return await describe(Names=names)
    except Rejected as e:
        if e.facts.get("code") != "TargetGroupNotFound":
            raise
        return []


def _tags_of(arns: list[str], client: Any) -> Any:
    return client.describe_tags(ResourceArns=arns)


async def _patiently(call: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[None]]) -> None:
    for pause_s in _PAUSES_S:
        try:
            return await call()
        except NotYet:
            await sleep(pause_s)
    return await call()
