"""DNS as the last step of a failover: point a name, prove that the world sees it, be ready to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam, Undoable
from tasks.errors import LostCompare, NotYet, SafetyRefusal, Unreachable
from tasks.quantities import Duration, show_duration
from tasks.waiting import unless_over, until
from tasks.zones import _routing as routing
from tasks.zones import _watch as watch
from tasks.zones._flip import Flip
from tasks.zones._names import FullName, Rdtype, need_healthy
from tasks.zones._probe import ProbeText
from tasks.zones.protocol import Owned, RRset, Zone

__all__ = ["Flip", "Point", "Ready", "Verify"]
FUDGE_S = 300.0
"""Seconds that clocks may differ under TSIG (RFC 8945 section 10)."""


class _AtName(Action):
    record: FullName = Field(alias="name")
    """``name`` in a runbook; in code that is already the action's own name."""
    rdtype: Rdtype = "A"
    component: Annotated[str, ComponentParam("zones")] = "dns"

    def zone(self, ctx: Context) -> Zone:
        zone: Zone = ctx.component(self.component, Zone)
        return zone


@action("zones.point")
class Point(_AtName, Undoable):
    """Point a name at a site: one compare-and-set at the primary, only when every address there is healthy.

    Holds when the primary's record set is what the system file wants for the site, TTL included. Refuses names that
    another controller writes. Confirmed by every authoritative server's own answer.
    """

    site: Annotated[str, SiteParam()]
    probe: ProbeText
    """How each address must answer right before the change: ``tcp:PORT``, ``http:PORT/PATH``, ``https:PORT/PATH``."""
    probe_timeout: Duration = 1.0
    may_be_gone: bool = False
    """An authoritative server that does not answer at all is reported instead of waited for."""
    taken_from: tuple[watch.Controller, ...] = ()
    """Controllers that were told to leave the name alone although their marks are still there."""

    def least_timeout_s(self) -> float:
        return self.probe_timeout

    async def observe(self, ctx: Context) -> Observation:
        zone = self.zone(ctx)
        wanted = zone.wanted(self.record, self.rdtype, ctx.site(self.site))
        owned, beside = await asyncio.gather(
            zone.read(self.record, self.rdtype), watch.beside(zone, wanted, self.taken_from)
        )
        if beside.refusals:
            raise SafetyRefusal("; ".join(beside.refusals), refusals=list(beside.refusals))
        holds = owned.rrset == wanted
        old = f"{owned.rrset.ttl} {' '.join(owned.rrset.values)}" if owned.rrset else "nothing"
        new = f"{wanted.ttl} {' '.join(wanted.values)}"
        return Observation(
            holds=holds,
            summary=f"{self.record} {self.rdtype} is {old}",
            changes=() if holds else (f"{self.record} {self.rdtype}: {old} -> {new}",),
            facts={
                "name": self.record,
                "rdtype": self.rdtype,
                "site": ctx.site(self.site),
                "wanted": _as_fact(wanted),
                "old": _as_fact(owned.rrset),
                "old_ttl_s": owned.rrset.ttl if owned.rrset else None,
                "old_epoch": owned.epoch,
                "old_serial": owned.serial,
                "inverse": _inverse(owned.rrset, wanted, routed=bool(zone.control_plane())),
                "control_plane": zone.control_plane(),
                "warnings": list(beside.warnings),
            },
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        zone = self.zone(ctx)
        wanted = zone.wanted(self.record, self.rdtype, ctx.site(self.site))
        facts = observation.facts
        seen = Owned(_from_fact(facts["old"]), facts["old_epoch"], facts["old_serial"])
        checked = await self._need_healthy(ctx, wanted)
        ctx.guard()
        await zone.swap(seen, wanted, ctx.run.epoch)
        await zone.in_sync(self.record, ctx.left_s())  # what was cached before ages from then on
        written_at = ctx.clock.utc().isoformat()
        try:
            serial: int | None = (await zone.read(self.record, self.rdtype)).serial
        except Unreachable:
            serial = None  # the change is in; zones.verify then compares answers only
        return {"written_at": written_at, "serial": serial, "epoch": ctx.run.epoch, "healthy": checked}

    async def confirm(self, ctx: Context) -> Observation:
        zone = self.zone(ctx)
        wanted = zone.wanted(self.record, self.rdtype, ctx.site(self.site))

        await zone.in_sync(self.record, ctx.left_s())

        async def served() -> Observation:
            found = await watch.authoritative(ctx, zone, wanted, serial=None, may_be_gone=self.may_be_gone)
            if found.open:
                raise NotYet("; ".join(found.open), servers=found.facts)
            everyone = f"every authoritative server ({len(zone.servers())})"
            return Observation(
                holds=True,
                summary=f"{everyone} serves {self.record} {self.rdtype} {' '.join(wanted.targets)}",
                facts={"servers": found.facts},
            )

        return await until(ctx, served, most_s=0.1)  # a transfer takes some tenths of a second

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        zone = self.zone(ctx)
        old, wanted = _from_fact(evidence["old"]), _from_fact(evidence["wanted"])
        now = await zone.read(self.record, self.rdtype)
        if now.rrset == old and old is not None:
            return
        if old is None:
            raise SafetyRefusal(
                f"{self.record} {self.rdtype} did not exist before; undo would leave it without a record"
            )
        if now.rrset != wanted:
            found = " ".join(now.rrset.values) if now.rrset else "nothing"
            raise LostCompare(f"{self.record} {self.rdtype} is {found}, not what this run wrote; left alone")
        await self._need_healthy(ctx, old)
        ctx.guard()
        await zone.swap(now, old, ctx.run.epoch)
        await zone.in_sync(self.record, ctx.left_s())

    async def _need_healthy(self, ctx: Context, rrset: RRset) -> list[str]:
        return await need_healthy(ctx, rrset.targets, self.probe, self.record, self.probe_timeout)


@action("zones.verify")
class Verify(_AtName):
    """Wait until the world sees the name point at the site: authoritative servers, resolvers, then the TTL run out.

    Before (time of the write + old TTL + slack) old answers from resolvers are expected; after it each is a finding.
    Facts: ``authoritative_s``, ``resolvers_s``, ``ttl_deadline_s``, seconds after the write.
    """

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("zones.point", "zones.flip")

    site: Annotated[str, SiteParam()]
    within: Duration = 30.0
    """Seconds until this must be true; more than the old TTL and the slack."""
    ttl: Duration = 0.0
    """The TTL that the old record is known to have, to check ``within`` when the file loads."""
    slack: Duration = 1.0
    """Added to the old TTL: clocks, rounding of TTLs to seconds, the way through forwarders."""
    wait_out_ttl: bool = True
    """Also wait until no resolver anywhere can hold the old answer, not only those that were asked."""
    may_be_gone: bool = False
    """A server or resolver that does not answer at all is reported instead of waited for."""

    @model_validator(mode="after")
    def _can_end(self) -> Verify:
        if self.within < self.ttl + self.slack:
            need = show_duration(self.ttl + self.slack)
            raise ValueError(f"within {show_duration(self.within)} is less than ttl + slack ({need})")
        return self

    def least_timeout_s(self) -> float:
        return self.within

    async def observe(self, ctx: Context) -> Observation:
        return await self._look(ctx, self._written(ctx), {})

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        written, seen = self._written(ctx), dict[str, float]()
        bounded = replace(ctx, deadline=min(ctx.deadline, ctx.clock.monotonic() + self.within))

        async def verified() -> Facts:
            found = await self._look(ctx, written, seen)
            if not found.holds:
                ctx.report(found.summary)
                raise NotYet(found.summary, **found.facts)
            return found.facts

        # A long TTL is waited out in longer pauses: nobody's name servers are asked hundreds of times.
        old_ttl_s = written.old_ttl_s if written else 0.0
        spare_s = self.within - old_ttl_s - self.slack
        return await unless_over(bounded, verified, most_s=max(0.5, min(old_ttl_s / 15, spare_s / 2)))

    async def confirm(self, ctx: Context) -> Observation:
        """Everyone once more. The times stay those that ``apply`` measured, and nothing is waited out twice."""
        found = await self._look(ctx, None, {})
        kept = {k: v for k, v in found.facts.items() if not k.endswith("_s")}
        return found.model_copy(update={"facts": kept})

    def _written(self, ctx: Context) -> watch.Written | None:
        """When this run made the change and what was cached before; None when this run did not change the name.

        A run that was killed right after the write does not know when it was: then it counts from now.
        """
        for done in reversed(ctx.earlier):
            facts = done.facts
            mine = (facts.get("name"), facts.get("rdtype")) == (self.record, self.rdtype)
            if done.action in ("zones.point", "zones.flip") and done.outcome == "done" and mine:
                at = facts.get("written_at")
                # A name that did not exist before has no TTL; resolvers may know that it does not: say so as ``ttl``.
                old_ttl_s = max(self.ttl, float(facts.get("old_ttl_s") or 0.0)) if at is None else facts["old_ttl_s"]
                return watch.Written(
                    at=ctx.clock.utc() if at is None else datetime.fromisoformat(at),
                    serial=facts.get("serial"),
                    old_ttl_s=self.ttl if old_ttl_s is None else float(old_ttl_s),
                )
        return None

    async def _look(self, ctx: Context, written: watch.Written | None, seen: dict[str, float]) -> Observation:
        """One look at everyone. ``seen`` keeps the first time each part was true over several looks."""
        zone = self.zone(ctx)
        wanted = zone.wanted(self.record, self.rdtype, ctx.site(self.site))
        servers, resolvers = await asyncio.gather(
            watch.authoritative(
                ctx, zone, wanted, serial=written.serial if written else None, may_be_gone=self.may_be_gone
            ),
            watch.cached(ctx, zone, wanted, may_be_gone=self.may_be_gone),
        )
        after_s = (ctx.clock.utc() - written.at).total_seconds() if written else 0.0
        deadline_s = written.old_ttl_s + self.slack if written else 0.0
        for part, found in (("authoritative_s", servers), ("resolvers_s", resolvers)):
            if found.open:
                seen.pop(part, None)
            else:
                seen.setdefault(part, round(after_s, 3))
        left_s = deadline_s - after_s
        waits = self.wait_out_ttl and left_s > 0
        holds = not (servers.open or resolvers.open or waits)
        expected = f"expected for {show_duration(left_s)} more" if left_s > 0 else "past the old TTL: it should be gone"
        lines = [*servers.open, *(f"{line} ({expected})" for line in resolvers.open)]
        if waits and not lines:
            lines = [f"every server and resolver has it; other resolvers may keep the old one, {expected}"]
        target = f"{self.record} {self.rdtype} {' '.join(wanted.targets)}"
        return Observation(
            holds=holds,
            summary=f"{target} is served everywhere" if holds else "; ".join(lines),
            facts={
                "authoritative_s": seen.get("authoritative_s"),
                "resolvers_s": seen.get("resolvers_s"),
                "ttl_deadline_s": round(deadline_s, 3),
                "servers": servers.facts,
                "resolvers": resolvers.facts,
                "findings": lines,
            },
        )


@action("zones.ready")
class Ready(_AtName):
    """Could the name be changed now? Credentials, reach, agreement of the servers, clocks. Changes nothing."""

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    async def observe(self, ctx: Context) -> Observation:
        zone = self.zone(ctx)
        access, answers = await asyncio.gather(
            zone.check_access(self.record, self.rdtype),
            asyncio.gather(*(zone.ask(s, self.record, self.rdtype) for s in zone.servers())),
        )
        findings = [f"{a.server}: {a.error}" for a in answers if a.error]
        findings += [f"{a.server} is not authoritative" for a in answers if not a.error and not a.authoritative]
        findings += [
            f"{a.server} has serial {a.serial}, the primary {access.serial}"
            for a in answers
            if not a.error and access.serial is not None and a.serial != access.serial
        ]
        if abs(access.skew_s) > FUDGE_S / 2:
            findings.append(f"the primary's clock differs from ours by {access.skew_s:.0f} s; TSIG takes {FUDGE_S:g}")
        facts: dict[str, Any] = {**asdict(access), "skew_s": round(access.skew_s, 1), "findings": findings}
        facts["warnings"] = list(access.warnings)
        return Observation(
            holds=not findings,
            summary="; ".join(findings) or f"{access.primary} takes changes of {self.record}; all servers agree",
            facts=facts,
        )

    async def apply(self, ctx: Context, observation: Observation) -> None:
        async def ready() -> None:
            found = await self.observe(ctx)
            if not found.holds:
                raise NotYet(found.summary, **found.facts)

        await until(ctx, ready)


def _as_fact(rrset: RRset | None) -> Facts | None:
    return None if rrset is None else {**asdict(rrset), "values": list(rrset.values)}


def _from_fact(fact: Facts | None) -> RRset | None:
    return None if fact is None else RRset(fact["name"], fact["rdtype"], fact["ttl"], tuple(fact["values"]))


def _inverse(old: RRset | None, new: RRset, *, routed: bool) -> list[str]:
    """The exact way back, for people, in the words of nsupdate, or (``routed``) as a change batch of Route 53."""
    if old is None:
        return []
    if routed:
        return [json.dumps(routing.batch((new.name, new.rdtype), (new.ttl, new.values), (old.ttl, old.values)))]
    gone = [f"update delete {new.name} {new.rdtype}"]
    return gone + [f"update add {old.name} {old.ttl} {old.rdtype} {value}" for value in old.values]
