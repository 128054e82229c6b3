"""Is a copy whole, and where does the one name before all buckets lead?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam, Undoable
from tasks.errors import BadInput, NotYet, Rejected
from tasks.storage.protocol import Compared, Replicated, Replicating, Routed
from tasks.waiting import until


@action("storage.replicated")
class CopyIsWhole(Action):
    """The store's own replication has brought every object of one site to the other: by status, by count, by content.

    A deletion loses nothing: a key behind a delete marker has its versions still. It waits for what is PENDING, and
    fails at once for what is FAILED, or where versioning or the rule is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()] = "target"
    source: Annotated[str, SiteParam()] = Field(default="failed", alias="from")
    sample: int = Field(default=20, ge=0, le=1000, description="How many of the newest are asked for their status.")
    read: int = Field(default=20, ge=0, le=1000, description="How many are read at both sites and compared.")
    component: Annotated[str, ComponentParam("storage")] = "storage"

    async def observe(self, ctx: Context) -> Observation:
        state, compared = await self._look(ctx)
        why = [*wrong(state), *behind(state, compared)]
        told = f"{compared.objects} objects of {state.source}, {compared.sampled} of them read at both sites"
        return Observation(
            holds=not why,
            summary=f"the bucket of {state.site} is a whole copy: {told}"
            if not why
            else f"the bucket of {state.site} is no whole copy: {'; '.join(why)}",
            facts={"replication": asdict(state), "compared": asdict(compared)},
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        async def whole() -> Facts:
            state, compared = await self._look(ctx)
            if never := wrong(state):
                raise Rejected(f"the bucket of {state.site} will not become whole by waiting: {'; '.join(never)}")
            if late := behind(state, compared):
                line = f"the bucket of {state.site} is behind {state.source}: {'; '.join(late)}"
                ctx.report(line)
                raise NotYet(line, compared=asdict(compared), statuses=dict(state.statuses))
            return {"replication": asdict(state), "compared": asdict(compared)}

        return await until(ctx, whole)

    async def _look(self, ctx: Context) -> tuple[Replicating, Compared]:
        store: Replicated = ctx.component(self.component, Replicated)
        site, source = ctx.site(self.site), ctx.site(self.source)
        if site == source:
            raise BadInput(f"site and from are both {site}; a bucket is a copy of another site's")
        state = await store.replicating(site, source, self.sample)
        return state, await store.compare(site, source, self.read)


def wrong(state: Replicating) -> list[str]:
    """What does not get better by waiting."""
    found = [f"versioning is off at {s}" for s, on in state.versioned.items() if not on]
    if not state.rules:
        found.append(f"{state.source} has no enabled rule that copies all of it to {state.site}")
    if failed := state.statuses.get("FAILED", 0):
        found.append(f"replication of {failed} objects has FAILED ({', '.join(state.failed)}): write them again")
    return found


def behind(state: Replicating, compared: Compared) -> list[str]:
    """What is on its way, or lost."""
    told = {
        "are PENDING": state.statuses.get("PENDING", 0),
        "are missing": compared.missing,
        "are different": compared.different,
    }
    keys = {"are missing": "missing", "are different": "different"}
    return [
        f"{n} objects {what}" + (f" ({', '.join(compared.examples.get(keys[what], ()))})" if what in keys else "")
        for what, n in told.items()
        if n
    ]


@action("storage.route")
class RouteTo(Undoable):
    """The one name before all buckets leads to the site, and to no other (S3 Multi-Region Access Point)."""

    site: Annotated[str, SiteParam()] = "target"
    component: Annotated[str, ComponentParam("storage")] = "access-point"

    async def observe(self, ctx: Context) -> Observation:
        point, site = self._parts(ctx)
        now = dict(await point.active())
        wanted = {s: s == site for s in point.sites()}
        told = " and ".join(s for s, on in now.items() if on) or "nowhere"
        return Observation(
            holds=now == wanted,
            summary=f"{self.component} leads to {told}",
            changes=() if now == wanted else tuple(_changed(now, wanted)),
            facts={"active": now},
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        point, site = self._parts(ctx)
        ctx.guard()
        await point.route(observation.facts["active"], {s: s == site for s in point.sites()})

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        point, _ = self._parts(ctx)
        now, before = dict(await point.active()), evidence["active"]
        if now != before:
            ctx.guard()
            await point.route(now, before)

    def _parts(self, ctx: Context) -> tuple[Routed, str]:
        point: Routed = ctx.component(self.component, Routed)
        site = ctx.site(self.site)
        if site not in point.sites():
            raise BadInput(f"{self.component} has no bucket of {site}; it has {', '.join(point.sites())}")
        return point, site


def _changed(now: Mapping[str, bool], wanted: Mapping[str, bool]) -> list[str]:
    return [f"{s}: {'active' if wanted[s] else 'passive'}" for s in wanted if now[s] != wanted[s]]
