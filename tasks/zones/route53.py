"""A hosted zone of Route 53, each change a compare-and-set on the record set and on its epoch TXT.

One change batch DELETEs exactly the old record sets and the old epoch TXT and CREATEs the new ones; Route 53 applies
all of a batch or nothing, and refuses a DELETE whose values, TTL, weight or identifier differ from what is there (API
reference, *ChangeResourceRecordSets*). So an engine that was overtaken changes nothing. UPSERT, which overwrites
blindly, is not used. The epoch TXT of ``app.example.`` is ``_relight.app.example.``, as with ``zones.rfc2136``.

Changes go through Route 53's control plane, which is in one region; answers come from name servers all over the world,
which do not need it. ``zones.flip`` moves traffic without the control plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel

from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, LeaseHeld, LostCompare, NotYet, Rejected, RelightError, Unreachable
from tasks.variables import expand
from tasks.zones import _records as records
from tasks.zones import _routing as routing
from tasks.zones._asking import Asking, asked
from tasks.zones._rfc2136_settings import RDTYPES
from tasks.zones._route53_calls import Route53Api
from tasks.zones._route53_settings import ZoneSettings
from tasks.zones.protocol import Access, Answer, Owned, RRset, Served

COMPARE_LOST = {"InvalidChangeBatch", "InvalidInput"}
"""Codes of a batch that did not fit what is there. Route 53 says the first, moto 5.2 the second."""
MOST_RECORDS, MOST_CHARACTERS = 1000, 32000
"""Of one batch: ResourceRecord elements, and characters of all their values (developer guide, *Quotas*)."""


@dataclass(frozen=True)
class _Found:
    """What is at a name now: as boto3 has it, and in our words."""

    raw: tuple[dict[str, Any], ...]
    raw_epoch: tuple[dict[str, Any], ...]
    owned: Owned


class Route53:
    """Fulfils ``tasks.zones.protocol.Zone``."""

    Settings: ClassVar[type[BaseModel]] = ZoneSettings

    def __init__(self, settings: ZoneSettings, around: Surroundings) -> None:
        self._settings, self._component, self._clock = settings, around.component, around.clock
        self._api = Route53Api(settings, around.component, around.clock)
        self._label = f"{around.component}: hosted zone {settings.hosted_zone} ({settings.zone})"
        self._known = False
        self._changes: dict[str, str] = {}
        """name -> id of the change that this process last made there and has not seen in sync."""

    def servers(self) -> tuple[str, ...]:
        return tuple(expand(s) for s in self._settings.servers)

    def resolvers(self) -> tuple[str, ...]:
        return tuple(expand(s) for s in self._settings.resolvers)

    def names(self) -> tuple[tuple[str, str], ...]:
        return tuple((n, t) for n, routed in self._settings.names.items() for t in RDTYPES if getattr(routed, t))

    def control_plane(self) -> str:
        return f"route53 ({self._settings.region})"

    def wanted(self, name: str, rdtype: str, site: str) -> RRset:
        return self._settings.wanted(records.domain_name(name), rdtype, site)

    async def read(self, name: str, rdtype: str) -> Owned:
        return (await self._found(records.domain_name(name), rdtype)).owned

    async def swap(self, old: Owned, new: RRset, epoch: int) -> None:
        name = records.domain_name(new.name)
        self._settings.allowed(name, new.rdtype)
        if not new.values:
            raise BadInput(f"{self._component}: refusing to leave {name} {new.rdtype} without a record")
        if old.epoch is not None and old.epoch > epoch:
            raise self._newer(name, old.epoch, epoch)
        created = self._created(new, epoch)
        before = await self._found(name, new.rdtype)
        if not _same(before.owned, old):
            return self._settled(before.owned, new, epoch, lambda: self._lost(old, before.owned, "compared"))
        self._refuse_what_cannot_return(before)
        gone = [{"Action": "DELETE", "ResourceRecordSet": r} for r in (*before.raw, *before.raw_epoch)]
        await self._send(old, new, epoch, [*gone, *created])
        return None

    async def _send(self, old: Owned, new: RRset, epoch: int, changes: list[dict[str, Any]]) -> None:
        self._need_within_limits(new, changes)
        name = new.name
        batch = {"Comment": f"relight epoch {epoch}", "Changes": changes}
        try:
            self._changes[name] = await self._api.change(f"changing {name} {new.rdtype}", batch)
        except Rejected as e:
            if e.facts.get("code") not in COMPARE_LOST:
                raise
            now, said = await self._now(new), e
            if _same(now, old):
                raise Rejected(f"{self._label} changed nothing: {said}", code=said.facts["code"]) from e
            self._settled(now, new, epoch, lambda: self._lost(old, now, str(said.facts["code"])))
        except EffectUnknown as e:
            now, lost = await self._now(new), e
            self._settled(now, new, epoch, lambda: EffectUnknown(f"{lost}; {records.shown(now)}"))

    async def in_sync(self, name: str, within_s: float) -> None:
        """See ``Zone``. A change whose reply was lost has no id: then only the servers can be asked."""
        change = self._changes.get(records.domain_name(name))
        end = self._clock.monotonic() + within_s
        while change is not None:
            if await self._api.in_sync(change):
                self._changes.pop(records.domain_name(name), None)
                return
            if self._clock.monotonic() + 2.5 * self._settings.poll >= end:
                raise NotYet(f"{self._label}: change {change} of {name} is PENDING", change=change)
            await self._api.pause()

    async def served(self, rrset: RRset) -> Served:
        active = [m for m in routing.members(rrset.values, rrset.ttl) if m.gets_traffic]
        aliases = sorted({m.alias.name for m in active if m.alias})
        if not aliases:
            return Served(tuple(tuple(sorted(m.values)) for m in active), rrset.ttl)
        answers = await asyncio.gather(*(self.ask(s, a, rrset.rdtype) for s in self.resolvers() for a in aliases))
        behind = {v for a in answers if a.rrset for v in a.rrset.values}
        plain = {v for m in active if not m.alias for v in m.values}
        if not behind:
            why = "; ".join(f"{a.server}: {a.error or a.rcode}" for a in answers)
            raise Unreachable(f"{self._label}: {' '.join(aliases)}, to which {rrset.name} leads, is unknown ({why})")
        return Served((tuple(sorted(behind | plain)),), None, part=True)

    async def check_access(self, name: str, rdtype: str) -> Access:
        """A batch that deletes what never exists is refused as a whole, and only by those who may change the names."""
        name = records.domain_name(name)
        self._settings.allowed(name, rdtype)
        zone = await self._api.hosted_zone()
        values = {(name, rdtype): records.HELD_BY_NO_NAME[rdtype], (records.epoch_name(name), "TXT"): '"never"'}
        gone = (
            {"Name": n, "Type": t, "TTL": 1, "ResourceRecords": [{"Value": value}]} for (n, t), value in values.items()
        )
        batch = {"Changes": [{"Action": "DELETE", "ResourceRecordSet": record} for record in gone]}
        try:
            await self._api.change(f"checking access to {name}", batch)
        except Rejected as e:
            if e.facts.get("code") not in COMPARE_LOST:
                raise
        else:
            raise Rejected(f"{self._label} took a change that could not happen: is {self._component} really Route 53?")
        return Access(
            primary=self.control_plane(),
            mname=zone.servers[0] if zone.servers else "",
            serial=None,
            skew_s=zone.skew_s,
            warnings=self._warnings(zone.private, zone.recovery, zone.servers),
        )

    def _warnings(self, private: bool, recovery: str, servers: tuple[str, ...]) -> tuple[str, ...]:
        plane = self.control_plane()
        found = [
            f"control plane: {plane}: while that region is impaired no record can be changed; zones.flip needs none"
        ]
        if not private and recovery != "ENABLED":
            said = recovery or "not reported"
            found.append(f"accelerated recovery is {said}: enable it now, it cannot be enabled during an outage")
        if private != self._settings.private:
            found.append(
                f"the zone is {'private' if private else 'public'}, the system file says otherwise: see private"
            )
        named = {s.rpartition(":")[0].lower().rstrip(".") + "." for s in self.servers()}
        unknown = named - set(servers)
        if servers and any(c.isalpha() for c in "".join(named)) and unknown:
            found.append(f"{', '.join(sorted(unknown))} is not among the zone's name servers ({', '.join(servers)})")
        return tuple(found)

    async def ask(self, server: str, name: str, rdtype: str) -> Answer:
        zone = self._settings.zone if server in self.servers() else None
        return await asked(server, records.domain_name(name), rdtype, Asking(zone, self._settings.dns_timeout))

    async def aclose(self) -> None:
        await self._api.aclose()

    # ---- what is there ----

    async def _found(self, name: str, rdtype: str) -> _Found:
        if not self._known:
            await self._api.hosted_zone()  # it is the zone that the settings name, or nothing is read from it
            self._known = True
        mine = (name, rdtype) in self.names()
        # The epoch first: were it to move before the record set is read, the compare of both would be lost.
        epochs = await self._api.records(records.epoch_name(name), "TXT") if mine else []
        raw = [r for r in await self._api.records(name) if r["Type"] == rdtype]
        rrset = None
        if raw:
            ttl, values = routing.texts(tuple(routing.member_of(r) for r in raw))
            rrset = RRset(name, rdtype, ttl, values)
        owned = Owned(rrset, self._epoch(name, epochs), None)
        return _Found(tuple(raw), tuple(epochs), owned)

    def _epoch(self, name: str, epochs: list[dict[str, Any]]) -> int | None:
        if not epochs:
            return None
        values = [r["Value"] for e in epochs for r in e.get("ResourceRecords", ())]
        return records.epoch_of(records.epoch_name(name), values)

    async def _now(self, new: RRset) -> Owned:
        """What is true after an answer that does not tell."""
        try:
            return (await self._found(new.name, new.rdtype)).owned
        except (Unreachable, Rejected, NotYet) as e:
            wanted = records.values_shown(new)
            raise EffectUnknown(f"{self._label}: cannot tell whether {wanted} is in: {e}") from e

    def _settled(self, now: Owned, new: RRset, epoch: int, otherwise: Callable[[], RelightError]) -> None:
        """Return when our change is in; else raise."""
        if now.epoch == epoch and now.rrset == new:
            return
        if now.epoch is not None and now.epoch > epoch:
            raise self._newer(new.name, now.epoch, epoch)
        raise otherwise()

    # ---- what is sent ----

    def _created(self, new: RRset, epoch: int) -> list[dict[str, Any]]:
        try:
            batch = routing.batch((new.name, new.rdtype), None, (new.ttl, new.values))
        except ValueError as e:
            raise BadInput(f"{self._component}: {e}") from e
        mark = {
            "Name": records.epoch_name(new.name),
            "Type": "TXT",
            "TTL": new.ttl,
            "ResourceRecords": [{"Value": records.epoch_text(epoch)}],
        }
        changes: list[dict[str, Any]] = batch["Changes"]
        return [*changes, {"Action": "CREATE", "ResourceRecordSet": mark}]

    def _refuse_what_cannot_return(self, before: _Found) -> None:
        for raw in before.raw:
            other = routing.member_of(raw).other
            if other:
                raise Rejected(
                    f"{self._label}: {raw['Name']} {raw['Type']} has {other}, which relight does not know how to put"
                    " back; point that name by hand, or make its record sets plain, weighted or failover"
                )

    def _need_within_limits(self, new: RRset, changes: list[dict[str, Any]]) -> None:
        values = [r["Value"] for c in changes for r in c["ResourceRecordSet"].get("ResourceRecords", ())]
        characters = sum(map(len, values))
        if len(values) > MOST_RECORDS or characters > MOST_CHARACTERS:
            raise BadInput(
                f"{self._label}: changing {new.name} {new.rdtype} takes {len(values)} records with {characters}"
                f" characters in one batch; Route 53 takes {MOST_RECORDS} and {MOST_CHARACTERS}. Give it fewer records."
            )

    def _lost(self, old: Owned, now: Owned, said: str) -> LostCompare:
        return LostCompare(
            f"{self._label} changed nothing ({said}): expected to find {records.shown(old)}, found"
            f" {records.shown(now)}. Somebody else wrote in between. Find out who, then run again.",
            code=said,
            found=list(now.rrset.values) if now.rrset else [],
            found_epoch=now.epoch,
        )

    def _newer(self, name: str, zone_epoch: int, epoch: int) -> LeaseHeld:
        return LeaseHeld(
            f"{self._component}: {name} was last written by epoch {zone_epoch}; this run is epoch {epoch}, no"
            " longer the newest. Look for the newer run.",
            zone_epoch=zone_epoch,
            epoch=epoch,
        )


def _same(one: Owned, other: Owned) -> bool:
    """Values and epoch; as everywhere, a TTL alone is no difference (RFC 2136 section 2.4.2 ignores it)."""
    values = [o.rrset.values if o.rrset else None for o in (one, other)]
    return values[0] == values[1] and one.epoch == other.epoch


PROVIDER = Route53
