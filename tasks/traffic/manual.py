"""A balancer by hand."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from tasks.contract import Context
from tasks.database.manual import chosen
from tasks.database.protocol import Database
from tasks.manual import Command, Manual, NoManual, none
from tasks.traffic.protocol import Balancer, Server, Weights

Answer = list[Command | NoManual]


@runtime_checkable
class ByHand(Protocol):
    """A balancer that takes commands on a socket."""

    def line(self, site: str, *commands: str) -> str:
        """The command line that gives ``commands`` to the balancer of ``site``."""
        ...


@runtime_checkable
class CloudByHand(Protocol):
    """A balancer that the AWS CLI changes."""

    async def shift_lines(self, site: str, pool: str, to: str) -> list[Command | NoManual]:
        """All of the pool's weight on the servers of ``to``."""
        ...


@runtime_checkable
class WeighedByHand(Protocol):
    """A balancer whose weights the AWS CLI changes."""

    async def weigh_lines(self, site: str, pool: str, weights: Weights) -> list[Command | NoManual]:
        """These weights, at each route that is named; what gets more is looked at first."""
        ...


async def _servers(ctx: Context, action: Any) -> tuple[Server, ...]:
    return await ctx.component(action.component, Balancer).servers(ctx.site(action.at), action.pool)


async def route_primary(action: Any, ctx: Context) -> Answer:
    """Everybody else to maintenance and cut, then the primary ready."""
    balancer = ctx.component(action.component, Balancer)
    if not isinstance(balancer, ByHand):
        return [none(action, balancer)]
    site, pool = ctx.site(action.at), action.pool
    node = await chosen(ctx.component(action.database, Database), ctx.site("target"))
    gone = " || echo 'gone: it routes nothing'" if action.may_be_gone else ""
    others = [f"{pool}/{s.name}" for s in await _servers(ctx, action) if s.name != node]
    off = [f"set server {o} state maint" for o in others] + [f"shutdown sessions server {o}" for o in others]
    return [
        Command(balancer.line(site, *off) + gone, "(empty lines)", "Nobody is routed to an old primary."),
        Command(balancer.line(site, f"set server {pool}/{node} state ready") + gone, "(an empty line)"),
        Command(
            balancer.line(site, f"show servers state {pool}") + gone,
            f"{node}, its address, `2 0` or `2 4` (up, ready); the others `0 1` or `0 5` (maintenance)",
        ),
    ]


async def shift(action: Any, ctx: Context) -> Answer:
    """The site's own servers ready first, then the others drain."""
    balancer = ctx.component(action.component, Balancer)
    if isinstance(balancer, CloudByHand):
        return await balancer.shift_lines(ctx.site(action.at), action.pool, ctx.site(action.to))
    if not isinstance(balancer, ByHand):
        return [none(action, balancer)]
    site, to, pool = ctx.site(action.at), ctx.site(action.to), action.pool
    servers = await _servers(ctx, action)
    mine = [f"set server {pool}/{s.name} state ready" for s in servers if s.site == to]
    rest = [f"set server {pool}/{s.name} state drain" for s in servers if s.site != to and s.admin != "maint"]
    found: Answer = [Command(balancer.line(site, *mine), "(empty lines)", f"Servers of {to} take traffic.")]
    found.append(
        Command(
            balancer.line(site, f"show servers state {pool}"),
            f"a server of {to} with `2 0` or `2 4` behind its address (up, ready)",
        )
    )
    if rest:
        found.append(Command(balancer.line(site, *rest), "(empty lines)", "Only once one of the others is up."))
    return found


async def weigh(action: Any, ctx: Context) -> Answer:
    """The canary's share, as it would be given now."""
    balancer = ctx.component(action.component, Balancer)
    if not isinstance(balancer, WeighedByHand):
        return [none(action, balancer)]
    return await balancer.weigh_lines(ctx.site(action.at), action.pool, await action.wanted(ctx))


MANUAL: dict[str, Manual] = {"traffic.route_primary": route_primary, "traffic.shift": shift, "traffic.weigh": weigh}
