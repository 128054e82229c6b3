"""Instances by hand."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, runtime_checkable

from tasks.capacity.protocol import Capacity
from tasks.contract import Context
from tasks.manual import Command, Manual, NoManual, none


@runtime_checkable
class ByHand(Protocol):
    """A group that commands start instances of."""

    def scale_line(self, site: str, count: int) -> tuple[str, str]:
        """(command line, what it prints) that has ``count`` instances run."""
        ...


async def ensure(action: Any, ctx: Context) -> list[Command | NoManual]:
    """As many as run anywhere else now, and at least the minimum."""
    group: Capacity = ctx.component(action.component, Capacity)
    if not isinstance(group, ByHand):
        return [none(action, group)]
    site = ctx.site(action.site)
    limits = group.limits(site)
    sites = sorted(set(ctx.roles.values()))  # its own too: a command that asks for fewer would stop some
    running = [sum(i.running for i in found) for found in await asyncio.gather(*(group.instances(s) for s in sites))]
    count = min(max(action.count or 0, limits.minimum, *running), limits.maximum)
    line, expected = group.scale_line(site, count)
    return [Command(line, expected, f"{count} instances run at {site}.")]


MANUAL: dict[str, Manual] = {"capacity.ensure": ensure}
