"""A CDN by hand."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from tasks.cdn.protocol import Cdn
from tasks.contract import Context
from tasks.manual import Command, Manual, NoManual, none

Answer = list[Command | NoManual]


@runtime_checkable
class ByHand(Protocol):
    """A distribution that the AWS CLI changes."""

    async def switch_lines(self, site: str) -> list[Command | NoManual]:
        """What is fetched from another site's origin is fetched from ``site``'s."""
        ...

    def invalidate_line(self, paths: tuple[str, ...]) -> str:
        """The edges forget ``paths``."""
        ...


async def switch_origin(action: Any, ctx: Context) -> Answer:
    """Refused where somebody changed the distribution since the export (If-Match)."""
    edge = ctx.component(action.component, Cdn)
    if not isinstance(edge, ByHand):
        return [none(action, edge)]
    return await edge.switch_lines(ctx.site(action.site))


async def invalidate(action: Any, ctx: Context) -> Answer:
    """What the edges kept is gone."""
    edge = ctx.component(action.component, Cdn)
    if not isinstance(edge, ByHand):
        return [none(action, edge)]
    return [Command(edge.invalidate_line(tuple(action.paths)), "InProgress", "It takes some minutes.")]


MANUAL: dict[str, Manual] = {"cdn.invalidate": invalidate, "cdn.switch_origin": switch_origin}
