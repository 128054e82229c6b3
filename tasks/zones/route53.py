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
from typing import ClassVar

from pydantic import BaseModel

from tasks.contract import Surroundings
from tasks.errors import BadInput, NotYet, Rejected, Unreachable
from tasks.variables import expand
from tasks.zones import _records as records
from tasks.zones import _routing as routing
from tasks.zones._asking import Asking, asked
from tasks.zones._rfc2136_settings import RDTYPES
from tasks.zones._route53_by_hand import ByHand
from tasks.zones._route53_calls import HostedZone, Paces, Route53Api
from tasks.zones._route53_changes import COMPARE_LOST, Changes
from tasks.zones._route53_settings import ZoneSettings
from tasks.zones._swapping import Swap
from tasks.zones.protocol import Access, Answer, Owned, RRset, Served


class Route53(ByHand, Paces):
    """Fulfils ``Zone`` and ``Paced`` of ``tasks.zones.protocol``."""

    Settings: ClassVar[type[BaseModel]] = ZoneSettings

    def __init__(self, settings: ZoneSettings, around: Surroundings) -> None:
        self._settings, self._component, self._clock = settings, around.component, around.clock
        self._api = Route53Api(settings, around.component, around.clock)
        self._changes = Changes(settings, around.component, self._api, frozenset(self.names()))
        self._pending: dict[str, str] = {}
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
        return (await self._changes.found(records.domain_name(name), rdtype)).owned

    async def swap(self, old: Owned, new: RRset, epoch: int) -> None:
        name = records.domain_name(new.name)
        self._settings.allowed(name, new.rdtype)
        if not new.values:
            raise BadInput(f"{self._component}: refusing to leave {name} {new.rdtype} without a record")
        change = await self._changes.send(Swap(self._component, self._changes.label, old, new, epoch))
        if change:
            self._pending[name] = change

    async def in_sync(self, name: str, within_s: float) -> None:
        """See ``Zone``. A change whose reply was lost has no id: then only the servers can be asked."""
        name = records.domain_name(name)
        change, end = self._pending.get(name), self._clock.monotonic() + within_s
        while change is not None:
            if await self._api.in_sync(change):
                self._pending.pop(name, None)
                return
            if self._clock.monotonic() + 2.5 * self._settings.poll >= end:
                raise NotYet(f"{self._changes.label}: change {change} of {name} is PENDING", change=change)
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
            raise Unreachable(
                f"{self._changes.label}: {' '.join(aliases)}, to which {rrset.name} leads, is unknown ({why})"
            )
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
            raise Rejected(
                f"{self._changes.label} took a change that could not happen: is {self._component} really Route 53?"
            )
        return Access(
            primary=self.control_plane(),
            mname=zone.servers[0] if zone.servers else "",
            serial=None,
            skew_s=zone.skew_s,
            warnings=_warnings(self._settings, zone, self.control_plane()),
        )

    async def ask(self, server: str, name: str, rdtype: str) -> Answer:
        zone = self._settings.zone if server in self.servers() else None
        return await asked(server, records.domain_name(name), rdtype, Asking(zone, self._settings.dns_timeout))

    async def aclose(self) -> None:
        await self._api.aclose()


def _warnings(settings: ZoneSettings, zone: HostedZone, plane: str) -> tuple[str, ...]:
    found = [f"control plane: {plane}: while that region is impaired no record can be changed; zones.flip needs none"]
    if not zone.private and zone.recovery != "ENABLED":
        said = zone.recovery or "not reported"
        found.append(f"accelerated recovery is {said}: enable it now, it cannot be enabled during an outage")
    if zone.private != settings.private:
        found.append(f"the zone is {'private' if zone.private else 'public'}, the system file says otherwise")
    named = {expand(s).rpartition(":")[0].lower().rstrip(".") + "." for s in settings.servers}
    unknown = {n for n in named if any(c.isalpha() for c in n)} - set(zone.servers)
    if zone.servers and unknown:
        found.append(f"{', '.join(sorted(unknown))} is not among the zone's name servers ({', '.join(zone.servers)})")
    return tuple(found)


PROVIDER = Route53
