"""The shares of a pool's target groups at each route: as they are, as they are wanted, and as commands for people.

Sources: Elastic Load Balancing API 2015-12-01; *Application Load Balancers*, Weighted target groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tasks.errors import BadInput
from tasks.manual import Command, NoManual, aws
from tasks.traffic._elb import View
from tasks.traffic._elb_quotas import Counting
from tasks.traffic._forwarding import Route
from tasks.traffic.protocol import Weights


class Sharing(Counting):
    """Fulfils what ``Weighted`` has beside ``Members``, ``CloudByHand`` and ``WeighedByHand``."""

    def canary(self, site: str, pool: str) -> str:
        have = self._pool(site, pool).canaries
        if not have:
            raise BadInput(
                f"{self._around.component}: pool {pool} of {site} has no canary; give one of its groups `canary: true`"
            )
        return have[0]

    async def weights(self, site: str, pool: str) -> Weights:
        view = await self._view(site, pool)
        return {r.label: {n: r.weights[a] for n, a in view.arns.items() if a in r.weights} for r in view.routes}

    async def set_weights(self, site: str, pool: str, weights: Weights) -> None:
        view = await self._view(site, pool)
        if gone := set(weights) - {r.label for r in view.routes}:
            raise BadInput(f"{view.label}: {', '.join(sorted(gone))} does not forward to it; look at its listeners")
        for server in {n for given in weights.values() for n in given}:
            self._known(view, server)
        await self._give(site, pool, view, weights)

    async def shift_lines(self, site: str, pool: str, to: str) -> list[Command | NoManual]:
        """See ``tasks.traffic.manual.CloudByHand``: what is healthy is looked at first, then every route is changed."""
        view, sites = await self._view(site, pool), self.groups(site, pool)
        mine = [n for n in view.arns if sites.get(n) == to]
        if not mine:
            return [NoManual(f"pool {pool} of {site} has no target group of {to}")]
        groups = self._pool(site, pool).groups
        given = {n: groups[n].weight if n in mine else 0 for n in view.arns}
        found: list[Command | NoManual] = [self._look_line(site, pool, view, n) for n in mine]
        return found + [self._line(site, view, r, given, f"{r.label} sends to {to} only.") for r in view.routes]

    async def weigh_lines(self, site: str, pool: str, weights: Weights) -> list[Command | NoManual]:
        """See ``tasks.traffic.manual.WeighedByHand``."""
        view = await self._view(site, pool)
        more = {n for r, given in weights.items() for n, w in given.items() if w > self._now(view, r, n)}
        found: list[Command | NoManual] = [self._look_line(site, pool, view, n) for n in view.arns if n in more]
        for route in (r for r in view.routes if r.label in weights):
            given = weights[route.label]
            why = f"{route.label}: {', '.join(f'{n} {w}' for n, w in given.items())}."
            found.append(self._line(site, view, route, given, why))
        return found

    @staticmethod
    def _now(view: View, label: str, server: str) -> int:
        return next((r.weights.get(view.arns[server], 0) for r in view.routes if r.label == label), 0)

    def _look_line(self, site: str, pool: str, view: View, server: str) -> Command:
        line = aws(
            self._site(site).region, self._settings.profile, "elbv2", "describe-target-health",
            "--target-group-arn", view.arns[server],
            "--query", "TargetHealthDescriptions[].TargetHealth.State", "--output", "text",
        )  # fmt: skip
        need = self._pool(site, pool).needs(server)
        why = f"{server}, at least {need} times. Where it is not, stop: nobody would be served."
        return Command(line, "healthy", why)

    def _line(self, site: str, view: View, route: Route, given: Mapping[str, int], why: str) -> Command:
        """Other groups of the route keep their weights. The answer names those that have one."""
        verb, key, value = (
            ("modify-listener", "--listener-arn", "--default-actions")
            if route.default
            else ("modify-rule", "--rule-arn", "--actions")
        )
        meant = {view.arns[n]: w for n, w in given.items()}
        weights = {**route.weights, **{a: w for a, w in meant.items() if w or a in route.weights}}
        actions = json.dumps(route.weighing(weights))
        shown = next((n for n, w in given.items() if w), "")
        words = ("elbv2", verb, key, route.arn, value, actions, "--output", "text")
        return Command(aws(self._site(site).region, self._settings.profile, *words), shown, why)
