"""Caches of a site: nothing stale in them, and what is asked for most is in them before clients come."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Annotated

from pydantic import Field

from tasks.cache.protocol import Cache
from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam
from tasks.errors import NotYet, Rejected, RelightError, Unreachable
from tasks.quantities import Percent
from tasks.waiting import insisted, until

Component = Annotated[str, ComponentParam("cache")]
Callback = Callable[[str], Awaitable[None]]
_SHOWN = 5


@action("cache.flush")
class Flush(Action):
    """What the site's cache kept before this run is not served any more: it may be of the time before the failure."""

    site: Annotated[str, SiteParam()]
    component: Component = "cache"

    async def observe(self, ctx: Context) -> Observation:
        cache, site = self._parts(ctx)
        last = await insisted(ctx, lambda: cache.flushed_by(site))
        done = last == ctx.run.run_id
        return Observation(
            holds=done,
            summary=f"the cache of {site} was {'flushed by this run' if done else 'not flushed by this run'}",
            changes=() if done else (f"flush the cache of {site}",),
            facts={"flushed_by": last},
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        cache, site = self._parts(ctx)
        ctx.guard()
        await cache.flush(site, ctx.run.run_id)

    def _parts(self, ctx: Context) -> tuple[Cache, str]:
        cache: Cache = ctx.component(self.component, Cache)
        return cache, ctx.site(self.site)


@action("cache.warm")
class Warm(Action):
    """``keys`` are served from the site's cache; others are fetched, a few at a time, and looked at again."""

    site: Annotated[str, SiteParam()]
    keys: tuple[str, ...] = Field(min_length=1)
    concurrency: int = Field(default=8, ge=1, le=64)
    least: Percent = Field(default=100.0, description="How many of the keys must be hits in the end.")
    component: Component = "cache"

    async def observe(self, ctx: Context) -> Observation:
        missing = await self._missing(ctx)
        site, hits = ctx.site(self.site), len(self.keys) - len(missing)
        return Observation(
            holds=hits >= self._needed,
            summary=f"{hits} of {len(self.keys)} keys are in the cache of {site}",
            changes=() if hits >= self._needed else (f"fetch {len(missing)} keys: {_few(missing)}",),
            facts={"hits": hits, "keys": len(self.keys), "missing": missing[:_SHOWN]},
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        cache, site = self._parts(ctx)
        fetched: set[str] = set()

        async def warmed() -> Facts:
            failed: dict[str, str] = {}

            async def fetch(key: str) -> None:
                ctx.guard()
                try:
                    await cache.warm(site, key)
                    fetched.add(key)
                except (Unreachable, NotYet, Rejected) as e:  # the others go on; it is told below
                    failed[key] = str(e)

            await self._some_at_a_time(fetch, await self._missing(ctx))
            missing = await self._missing(ctx)
            hits = len(self.keys) - len(missing)
            ctx.report(f"{hits} of {len(self.keys)} keys are in the cache of {site}")
            if hits < self._needed:
                why = next(iter(failed.values()), "fetched, and still not served from it: may it be cached at all?")
                raise NotYet(
                    f"{hits} of {len(self.keys)} keys are in the cache of {site}, {self._needed} wanted; not"
                    f" {_few(missing)} ({why})",
                    missing=missing[:_SHOWN],
                )
            return {"hits": hits, "fetched": len(fetched), "missing_after": missing[:_SHOWN]}

        return await until(ctx, warmed, most_s=1.0, on=(NotYet, Unreachable))

    async def _missing(self, ctx: Context) -> list[str]:
        """Keys that are not served from the cache, in the order of ``keys``. Raises Unreachable for a dead cache."""
        cache, site = self._parts(ctx)
        hits: dict[str, bool] = {}

        async def look(key: str) -> None:
            hits[key] = await insisted(ctx, lambda: cache.has(site, key))

        await self._some_at_a_time(look, list(self.keys))
        return [k for k in self.keys if not hits[k]]

    async def _some_at_a_time(self, do: Callback, keys: list[str]) -> None:
        """Raises the first error; those that are on their way are cancelled."""
        slots = asyncio.Semaphore(self.concurrency)

        async def one(key: str) -> None:
            async with slots:
                await do(key)

        tasks = [asyncio.ensure_future(one(k)) for k in keys]
        try:
            await asyncio.gather(*tasks)
        except RelightError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    @property
    def _needed(self) -> int:
        return math.ceil(len(self.keys) * self.least / 100)

    def _parts(self, ctx: Context) -> tuple[Cache, str]:
        cache: Cache = ctx.component(self.component, Cache)
        return cache, ctx.site(self.site)


def _few(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
