"""A zone changed by dynamic update (RFC 2136) under TSIG (RFC 8945), each change a compare-and-set.

One UPDATE carries, as prerequisites, the whole old record set by value and the whole old epoch TXT by value, and
replaces both; the server applies all or nothing (RFC 2136 sections 2.4.2, 3.2.5, 3.7). Prerequisites ignore the TTL.
The epoch TXT of ``app.example.`` is ``_relight.app.example.`` with the text ``epoch=N owner=relight``.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
from pydantic import BaseModel

from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, Unreachable
from tasks.variables import expand
from tasks.zones import _records as records
from tasks.zones._asking import Asking, asked
from tasks.zones._rfc2136_by_hand import ByHand
from tasks.zones._rfc2136_settings import RDTYPES, ZoneSettings
from tasks.zones._swapping import Swap
from tasks.zones._wire import LostReply, Primary
from tasks.zones.protocol import Access, Answer, Owned, RRset, Served

_COMPARE_LOST = {dns.rcode.NXRRSET, dns.rcode.YXRRSET, dns.rcode.YXDOMAIN, dns.rcode.NXDOMAIN}


class Rfc2136(ByHand):
    """Fulfils ``tasks.zones.protocol.Zone``."""

    Settings: ClassVar[type[BaseModel]] = ZoneSettings

    def __init__(self, settings: ZoneSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component
        self._clock = around.clock
        self._primary = Primary(settings, around.component)

    def servers(self) -> tuple[str, ...]:
        return tuple(expand(s) for s in self._settings.servers)

    def resolvers(self) -> tuple[str, ...]:
        return tuple(expand(s) for s in self._settings.resolvers)

    def names(self) -> tuple[tuple[str, str], ...]:
        return tuple((n, t) for n, pointing in self._settings.names.items() for t in RDTYPES if getattr(pointing, t))

    def wanted(self, name: str, rdtype: str, site: str) -> RRset:
        name = records.domain_name(name)
        by_site = self._settings.allowed(name, rdtype)
        if site not in by_site:
            raise BadInput(
                f"{self._component}: {name} {rdtype} has no values for site {site!r}; it has them for"
                f" {', '.join(by_site)}. Add them under names in the system file."
            )
        return records.canonical(name, rdtype, self._settings.names[name].ttl, by_site[site])

    async def read(self, name: str, rdtype: str) -> Owned:
        name = records.domain_name(name)
        epoch_name = records.epoch_name(name)
        # The epoch first: were it to move before the record set is read, the compare of both would be lost.
        questions = ((epoch_name, "TXT"), (name, rdtype), (self._settings.zone, "SOA"))
        primary = self._primary
        try:
            epoch, record, soa = await primary.transact(*(primary.question(n, t) for n, t in questions))
        except LostReply as e:
            raise Unreachable(f"{primary.label}: {e} when asked for {name} {rdtype}") from e
        for reply in (epoch, record, soa):
            primary.check_answer(reply)
        return Owned(
            rrset=records.rrset_in(record, rdtype, name),
            epoch=records.epoch_in(epoch, epoch_name),
            serial=records.serial_in(soa) or 0,
        )

    async def swap(self, old: Owned, new: RRset, epoch: int) -> None:
        name = records.domain_name(new.name)
        self._settings.allowed(name, new.rdtype)
        if not new.values:
            raise BadInput(f"{self._component}: refusing to leave {name} {new.rdtype} without a record")
        primary = self._primary
        new = records.canonical(name, new.rdtype, new.ttl, new.values)
        swap = Swap(self._component, primary.label, old, new, epoch)
        swap.check_epoch()
        update = primary.update()
        records.fill_swap(update, old, new, epoch)
        read = partial(self.read, name, new.rdtype)
        try:
            (reply,) = await primary.transact(update)
        except LostReply as lost:
            why = str(lost)
            await swap.settle(
                read, lambda now: EffectUnknown(f"{primary.label}: {why} after an update; {records.shown(now)}")
            )
            return
        code = reply.rcode()
        said = dns.rcode.to_text(code)
        if code in _COMPARE_LOST:
            await swap.settle(read, lambda now: swap.lost(now, said))
        elif code == dns.rcode.SERVFAIL:
            # The server undoes what it began before it says SERVFAIL (RFC 2136 section 3.5); looking is still better.
            await swap.settle(read, lambda now: Unreachable(f"{primary.label} failed (SERVFAIL): {records.shown(now)}"))
        elif code != dns.rcode.NOERROR:
            raise primary.refused(said)

    async def check_access(self, name: str, rdtype: str) -> Access:
        name = records.domain_name(name)
        self._settings.allowed(name, rdtype)
        primary, zone = self._primary, dns.name.from_text(self._settings.zone)
        update = primary.update()
        # The prerequisite is never true, so nothing can change; the deletions (of records that do not exist) are there
        # because servers may look up the permission of each (update-policy) before the prerequisites.
        update.present(dns.name.from_text("_relight-never", zone), "TXT", '"never"')
        update.delete(dns.name.from_text(name), rdtype, records.HELD_BY_NO_NAME[rdtype])
        update.delete(dns.name.from_text(records.epoch_name(name)), "TXT", '"never"')
        try:
            soa, reply = await primary.transact(primary.question(self._settings.zone, "SOA"), update)
        except LostReply as e:
            raise Unreachable(f"{primary.label}: {e} at a check of access") from e
        primary.check_answer(soa)
        if reply.rcode() == dns.rcode.SERVFAIL:
            raise Unreachable(f"{primary.label} failed (SERVFAIL) at a check of access; look at its log")
        if reply.rcode() not in _COMPARE_LOST or not reply.tsig:
            raise primary.refused(dns.rcode.to_text(reply.rcode()))
        found = soa.get_rrset(soa.answer, zone, dns.rdataclass.IN, dns.rdatatype.SOA)
        weak = self._settings.key_algorithm == "hmac-sha1"
        return Access(
            primary=primary.address,
            mname=found[0].mname.to_text().lower() if found else "",
            serial=records.serial_in(soa) or 0,
            skew_s=reply.tsig[0].time_signed - self._clock.utc().timestamp(),
            warnings=("key_algorithm hmac-sha1 is weak: make a key with hmac-sha256",) if weak else (),
        )

    async def ask(self, server: str, name: str, rdtype: str) -> Answer:
        """Over UDP, by TCP when truncated, as clients ask. Only authoritative servers are asked for a serial."""
        zone = self._settings.zone if server in self.servers() else None
        return await asked(server, records.domain_name(name), rdtype, Asking(zone, self._settings.timeout))

    async def in_sync(self, name: str, within_s: float) -> None:
        """Servers are asked themselves."""

    async def served(self, rrset: RRset) -> Served:
        return Served((rrset.values,), rrset.ttl)

    def control_plane(self) -> str:
        return ""

    async def aclose(self) -> None:
        """Nothing is held open between calls."""


PROVIDER = Rfc2136
