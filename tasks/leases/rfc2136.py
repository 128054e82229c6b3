"""The lease as one TXT record of a zone, changed by dynamic update (RFC 2136) under TSIG (RFC 8945).

Each update carries the whole old record by value as its prerequisite (RFC 2136 section 2.4.2), or that there is none
(section 2.4.3), and replaces it; the server applies both or nothing. A zone has no clock: whether a holder lives is
told by watching its record.
"""

from __future__ import annotations

from typing import ClassVar

import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
from dns.rdtypes.ANY.TXT import TXT
from pydantic import BaseModel, Field, model_validator

from tasks.contract import Surroundings
from tasks.errors import EffectUnknown, LostCompare, Rejected, Unreachable
from tasks.leases.protocol import Held
from tasks.quantities import Duration
from tasks.zones._rfc2136_settings import DomainName, KeyedZone
from tasks.zones._wire import LostReply, Primary

_COMPARE_LOST = {dns.rcode.NXRRSET, dns.rcode.YXRRSET, dns.rcode.YXDOMAIN, dns.rcode.NXDOMAIN}
_PIECE = 255
"""Bytes that one character-string of a TXT can hold (RFC 1035 section 3.3)."""


class ZoneLeaseSettings(KeyedZone):
    """As in ``docs/leases.md``. The primary belongs in neither of the sites that a run moves between."""

    name: DomainName | None = None
    """Of the record; ``_relight-lease-SYSTEM.ZONE`` by default: one label, so that no name comes to be above it."""
    ttl: Duration = Field(default=10.0, ge=1.0)

    @model_validator(mode="after")
    def _name_is_in_zone(self) -> ZoneLeaseSettings:
        if self.name and not dns.name.from_text(self.name).is_subdomain(dns.name.from_text(self.zone)):
            raise ValueError(f"{self.name} is not in zone {self.zone}")
        return self


class ZoneLease:
    """Fulfils ``tasks.leases.protocol.LeaseStore``."""

    Settings: ClassVar[type[BaseModel]] = ZoneLeaseSettings

    def __init__(self, settings: ZoneLeaseSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component
        self._name = settings.name or f"_relight-lease-{around.system}.{settings.zone}"
        self._primary = Primary(settings, around.component)

    @property
    def ttl_s(self) -> float:
        return self._settings.ttl

    @property
    def where(self) -> str:
        return f"{self._component}: {self._name} TXT at {self._primary.address}"

    async def read(self) -> tuple[Held | None, float | None]:
        primary = self._primary
        try:
            (reply,) = await primary.transact(primary.question(self._name, "TXT"))
        except LostReply as e:
            raise Unreachable(f"{self.where}: {e}") from e
        primary.check_answer(reply)
        name = dns.name.from_text(self._name)
        found = reply.get_rrset(reply.answer, name, dns.rdataclass.IN, dns.rdatatype.TXT)
        if found is None:
            return None, None
        if len(found) != 1:
            raise Rejected(f"{self.where}: expected one record, found {len(found)}. Remove what relight did not write.")
        return Held.decode(b"".join(found[0].strings).decode("ascii", "replace"), self.where), None

    async def swap(self, old: Held | None, new: Held) -> None:
        primary, name = self._primary, dns.name.from_text(self._name)
        update = primary.update()
        if old is None:
            update.absent(name, "TXT")
        else:
            update.present(name, _txt(old, 0))  # a prerequisite's TTL must be zero (section 2.4.2)
        update.replace(name, _txt(new, 1))
        try:
            (reply,) = await primary.transact(update)
        except LostReply as e:
            raise EffectUnknown(f"{self.where}: {e} after an update") from e
        code = reply.rcode()
        if code in _COMPARE_LOST:
            raise LostCompare(f"{self.where} is not what it was ({dns.rcode.to_text(code)}); it was written in between")
        if code == dns.rcode.SERVFAIL:
            # The server undoes what it began before it says SERVFAIL (section 3.5), but looking is better.
            raise EffectUnknown(f"{self.where}: the primary failed (SERVFAIL); look at its log")
        if code != dns.rcode.NOERROR:
            raise primary.refused(dns.rcode.to_text(code))

    async def aclose(self) -> None:
        """Nothing is held open between calls."""


def _txt(held: Held, ttl: int) -> dns.rdataset.Rdataset:
    data = held.encode().encode("ascii")
    pieces = [data[i : i + _PIECE] for i in range(0, len(data), _PIECE)]
    return dns.rdataset.from_rdata(ttl, TXT(dns.rdataclass.IN, dns.rdatatype.TXT, pieces))


PROVIDER = ZoneLease
