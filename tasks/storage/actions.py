"""Which site's bucket takes writes, and which one is copied from which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from tasks.catalog import action
from tasks.contract import ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.errors import BadInput, Contradiction, LossAboveBudget, NotYet, Rejected, SafetyRefusal, Unreachable
from tasks.quantities import Duration, show_duration
from tasks.storage._copies import CopyIsWhole, RouteTo
from tasks.storage._loss import Loss, loss
from tasks.storage.protocol import BucketView, Replicated, Storage
from tasks.waiting import until

__all__ = ["CopyFrom", "CopyIsWhole", "RouteTo", "TakeOver"]


class _OnStorage(Undoable):
    """What both actions share. ``from`` in YAML is ``source`` in Python."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    component: Annotated[str, ComponentParam("storage")] = "storage"

    def _storage(self, ctx: Context) -> Storage:
        storage: Storage = ctx.component(self.component, Storage)
        return storage


@action("storage.take_over")
class TakeOver(_OnStorage):
    """The site's bucket is writable on its own: it is no longer copied from the failed site."""

    site: Annotated[str, SiteParam()] = "target"
    source: Annotated[str, SiteParam()] = Field(default="failed", alias="from")
    max_behind: Duration | None = Field(default=None, description="Loss allowed; never above the objective's RPO.")
    catch_up: Duration = Field(
        default=2.0,
        description="How long to wait for the copier while the other bucket still answers; graceful: the whole step.",
    )

    async def observe(self, ctx: Context) -> Observation:
        site, other = ctx.site(self.site), ctx.site(self.source)
        now_from, (measured, buckets) = await asyncio.gather(self._storage(ctx).source(site), self._measure(ctx))
        facts: Facts = {"source": now_from, "rpo": measured.facts(self._allowed_s(ctx)), "buckets": buckets}
        if now_from is None:
            return Observation(holds=True, summary=f"the bucket of {site} is copied from nowhere", facts=facts)
        return Observation(
            holds=False,
            summary=f"the bucket of {site} is copied from {now_from}; behind: {measured}",
            changes=(f"stop copying from {other} into the bucket of {site}", "write, read back and delete one object"),
            facts=facts,
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        storage, site, other = self._storage(ctx), ctx.site(self.site), ctx.site(self.source)
        measured = await self._caught_up(ctx, observation.facts["rpo"]["objects_behind"] is not None)
        allowed_s = self._allowed_s(ctx)
        waived = ctx.run.waivers.get("loss")
        if not measured.within(allowed_s) and waived is None:
            raise LossAboveBudget(
                f"bucket of {site} lacks {measured}; allowed are {show_duration(allowed_s or 0)}. "
                f"Bring {other} back, or give waiver 'loss' with a reason.",
                rpo=measured.facts(allowed_s),
            )
        now_from = await storage.source(site)
        if now_from not in (None, other):
            raise Contradiction(f"bucket of {site} is copied from {now_from}, not from {other}; name the right one")
        if now_from is not None:
            ctx.guard()
            await storage.set_source(site, None)
        ctx.guard()
        await storage.probe(site, f"take-over-{ctx.run.run_id}")
        final, buckets = await self._measure(ctx)
        # The copier's last pass may have brought more; where the source went dark since, the first measure stands.
        final = final if final.objects_behind is not None or measured.objects_behind is None else measured
        return {"rpo": {**final.facts(allowed_s), "waived": waived}, "buckets": buckets}

    async def confirm(self, ctx: Context) -> Observation:
        """The bucket itself takes a write and gives it back; then what its tag says."""
        site = ctx.site(self.site)
        ctx.guard()
        await self._storage(ctx).probe(site, f"confirm-{ctx.run.run_id}")
        now_from = await self._storage(ctx).source(site)
        return Observation(
            holds=now_from is None,
            summary=f"the bucket of {site} takes writes; copied from {now_from or 'nowhere'}",
            facts={"read_back": True},
        )

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        before = evidence["source"]
        storage, site = self._storage(ctx), ctx.site(self.site)
        if await storage.source(site) != before:
            ctx.guard()
            await storage.set_source(site, before)

    async def _caught_up(self, ctx: Context, answers: bool) -> Loss:
        """The loss, after waiting for the copier as long as that can still lessen it."""
        graceful = ctx.run.mode == "graceful"
        patient_until = ctx.deadline if graceful else ctx.clock.monotonic() + self.catch_up

        async def level() -> Loss:
            measured, _ = await self._measure(ctx)
            if measured.bound_s == 0 or measured.objects_behind is None or ctx.clock.monotonic() >= patient_until:
                return measured
            ctx.report(f"copier is behind by {measured}")
            raise NotYet(f"the bucket of {ctx.site(self.site)} still lacks {measured}; is the copier running?")

        if not answers and not graceful:
            return (await self._measure(ctx))[0]
        return await until(ctx, level)

    async def _measure(self, ctx: Context) -> tuple[Loss, Facts]:
        """The loss and both buckets now. The site's own must answer; of the other one silence is an answer too."""
        storage, site, other = self._storage(ctx), ctx.site(self.site), ctx.site(self.source)
        if site == other:
            raise BadInput(f"site and from are both {site}; a bucket takes over from another site's")
        why = ""

        async def far() -> BucketView | None:
            nonlocal why
            try:
                return await storage.view(other)
            except (Unreachable, Rejected) as e:
                why = e.message
                return None

        mine, theirs = await asyncio.gather(storage.view(site), far())
        witness = "the copier's mark"
        if theirs is None and not mine.copied.get(other) and isinstance(storage, Replicated):
            sure, _ = await storage.replicated_until(site, other)
            if sure is not None:
                mine, witness = replace(mine, copied={**mine.copied, other: sure}), "the store's replication metric"
        incident_at = datetime.fromisoformat(ctx.run.incident_started_at)
        buckets = {site: _shown(mine), other: _shown(theirs) if theirs else {"silent": why}}
        return loss(mine, other, theirs, incident_at, witness), buckets

    def _allowed_s(self, ctx: Context) -> float | None:
        """Graceful loses nothing; else the RPO of this component, or ``max_behind`` where that is less."""
        if ctx.run.mode == "graceful":
            return 0.0
        limits = [s for s in (self.max_behind, ctx.rpo_s.get(self.component)) if s is not None]
        return min(limits, default=None)


@action("storage.copy_from")
class CopyFrom(_OnStorage):
    """The site's bucket is copied from the other one again: it is a copy and takes no writes of its own."""

    site: Annotated[str, SiteParam()]
    source: Annotated[str, SiteParam()] = Field(alias="from")

    async def observe(self, ctx: Context) -> Observation:
        site, other = ctx.site(self.site), ctx.site(self.source)
        if site == other:
            raise BadInput(f"site and from are both {site}; a bucket is copied from another site's")
        now_from = await self._storage(ctx).source(site)
        facts: Facts = {"source": now_from}
        summary = f"the bucket of {site} is copied from {now_from or 'nowhere'}"
        if now_from == other:
            return Observation(holds=True, summary=summary, facts=facts)
        return Observation(
            holds=False, summary=summary, changes=(f"copy from {other} into the bucket of {site}",), facts=facts
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        storage, site, other = self._storage(ctx), ctx.site(self.site), ctx.site(self.source)
        await self._refuse_active(ctx, site, other)
        ctx.guard()
        await storage.set_source(site, other)
        return {"source_before": observation.facts["source"]}

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        before = evidence["source"]
        storage, site = self._storage(ctx), ctx.site(self.site)
        if await storage.source(site) == ctx.site(self.source) != before:
            ctx.guard()
            await storage.set_source(site, before)

    async def _refuse_active(self, ctx: Context, site: str, other: str) -> None:
        """What is copied over must not be what users write to. Raises SafetyRefusal."""
        if ctx.roles.get("active") == site:
            raise SafetyRefusal(f"{site} is the active site: its bucket takes writes and must not be a copy of {other}")
        upstream = await self._storage(ctx).source(other)
        if upstream is not None:
            raise SafetyRefusal(
                f"the bucket of {other} is itself copied from {upstream}, so it is not the one that takes writes; "
                f"use storage.take_over for {other} first"
            )


def _shown(view: BucketView) -> Facts:
    return {"objects": view.objects, "bytes": view.bytes, "newest": view.newest, "copied": dict(view.copied)}
