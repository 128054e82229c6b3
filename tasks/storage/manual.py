"""A bucket by hand."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from tasks.contract import Context
from tasks.manual import Command, Manual, NoManual, none
from tasks.storage.protocol import Routed, Storage


@runtime_checkable
class ByHand(Protocol):
    """A store that the AWS CLI changes."""

    async def stand_alone_line(self, site: str) -> str:
        """The command line after which ``site``'s bucket is copied from nowhere."""
        ...


async def take_over(action: Any, ctx: Context) -> list[Command | NoManual]:
    """The copying into the target's bucket stops, so that it may be written."""
    storage: Storage = ctx.component(action.component, Storage)
    if not isinstance(storage, ByHand):
        return [none(action, storage)]
    site = ctx.site(action.site)
    why = f"The bucket of {site} is copied from nowhere any more; what was not copied yet stays in the other one."
    return [Command(await storage.stand_alone_line(site), "(nothing)", why)]


@runtime_checkable
class RoutesByHand(Protocol):
    """An access point that the AWS CLI leads elsewhere."""

    def route_lines(self, site: str) -> list[Command]:
        """It leads to ``site``'s bucket only."""
        ...


async def route(action: Any, ctx: Context) -> list[Command | NoManual]:
    """All routes in one request."""
    point = ctx.component(action.component, Routed)
    if not isinstance(point, RoutesByHand):
        return [none(action, point)]
    return [*point.route_lines(ctx.site(action.site))]


MANUAL: dict[str, Manual] = {"storage.route": route, "storage.take_over": take_over}
