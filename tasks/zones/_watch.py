"""What servers and resolvers say about a name now, and who else writes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tasks.contract import Context, Facts
from tasks.errors import Unreachable
from tasks.waiting import insisted
from tasks.zones.protocol import Answer, RRset, Served, Zone


@dataclass(frozen=True)
class Written:
    """The change that is being verified: when (aware UTC), its serial, and the TTL of what was cached before."""

    at: datetime
    serial: int | None
    old_ttl_s: float


@dataclass(frozen=True)
class Found:
    """``open``: one line for each that does not say it yet. ``facts``: server -> what it says."""

    open: tuple[str, ...]
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """What stands beside a record set: reasons not to touch the name at all, and records a change leaves behind."""

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def serial_reached(serial: int, wanted: int) -> bool:
    """``serial`` is ``wanted`` or newer, in the arithmetic of RFC 1982 (it wraps at 2**32)."""
    return (serial - wanted) % 2**32 < 2**31


async def authoritative(ctx: Context, zone: Zone, wanted: RRset, *, serial: int | None, may_be_gone: bool) -> Found:
    """Ask every authoritative server for the record set, TTL included, and its serial."""
    served = await zone.served(wanted)
    return await _looked(
        ctx, zone, zone.servers(), _Wish(wanted, lambda a: _why_not_served(a, served, serial), may_be_gone)
    )


async def cached(ctx: Context, zone: Zone, wanted: RRset, *, may_be_gone: bool) -> Found:
    """Ask every resolver for the record set; its TTL is what is left of it there."""
    served = await zone.served(wanted)
    wish = _Wish(wanted, lambda a: _why_not_cached(a, served), may_be_gone)
    return await _looked(ctx, zone, zone.resolvers(), wish)


Controller = Literal["external-dns", "octoDNS"]


async def beside(zone: Zone, wanted: RRset, taken_from: tuple[Controller, ...] = ()) -> Beside:
    """Look for controllers by the records they leave, and for siblings of the name, at the primary.

    Controllers: external-dns (TXT ``heritage=external-dns`` at the name, or at ``a-NAME`` in its newer format) and
    octoDNS (its ownership processor: TXT ``_owner.TYPE.NAME``). Those of ``taken_from`` are only warned about.
    """
    name, rdtype = wanted.name, wanted.rdtype
    marks = (name, f"{rdtype.lower()}-{name}", f"_owner.{rdtype.lower()}.{name}")
    siblings = [t for t in ("A", "AAAA", "CNAME", "HTTPS", "SVCB") if t != rdtype]
    questions = [*((mark, "TXT") for mark in marks), *((name, sibling) for sibling in siblings)]
    found = await asyncio.gather(*(zone.read(*question) for question in questions))
    refusals, warnings = [], []
    for (where, kind), owned in zip(questions, found, strict=True):
        if owned.rrset is None:
            continue
        text = " ".join(owned.rrset.values)
        if kind == "CNAME":
            refusals.append(f"{name} is a CNAME of {text}, beside which no {rdtype} can be: point that name instead")
        elif kind != "TXT":
            warnings.append(f"{name} also has {kind} {text}, which stays as it is")
        elif where.startswith("_owner.") or "heritage=external-dns" in text.lower():
            who: Controller = "octoDNS" if where.startswith("_owner.") else "external-dns"
            if who in taken_from:
                warnings.append(f"{name} still has the mark of {who} (TXT at {where}), from which it was taken")
            else:
                refusals.append(
                    f"{name} is also written by {who} (TXT at {where}), which would change it back; make it leave the"
                    f" name alone, and then say taken_from: [{who}]"
                )
    return Beside(tuple(refusals), tuple(warnings))


@dataclass(frozen=True)
class _Wish:
    """What servers should answer, and why an answer is not it."""

    wanted: RRset
    why_not: Callable[[Answer], str]
    may_be_gone: bool


async def _looked(ctx: Context, zone: Zone, servers: tuple[str, ...], wish: _Wish) -> Found:
    """Every server asked at once. One is taken for gone only when it stays silent: datagrams are lost."""
    answers = list(await asyncio.gather(*(zone.ask(s, wish.wanted.name, wish.wanted.rdtype) for s in servers)))
    found = _found(answers, wish.why_not, may_be_gone=wish.may_be_gone)
    if found.open or not any(_silent(a) for a in answers):
        return found
    answers = list(await asyncio.gather(*(_again(ctx, zone, a, wish.wanted) for a in answers)))
    return _found(answers, wish.why_not, may_be_gone=wish.may_be_gone)


async def _again(ctx: Context, zone: Zone, before: Answer, wanted: RRset) -> Answer:
    latest = before

    async def ask() -> Answer:
        nonlocal latest
        latest = await zone.ask(before.server, wanted.name, wanted.rdtype)
        if _silent(latest):
            raise Unreachable(latest.error)
        return latest

    if not _silent(before):
        return before
    with contextlib.suppress(Unreachable):
        await insisted(ctx, ask)
    return latest


def _silent(answer: Answer) -> bool:
    return bool(answer.error) and not answer.rcode


def _found(answers: list[Answer], why_not: Callable[[Answer], str], *, may_be_gone: bool) -> Found:
    lines, facts = [], Facts()
    for answer in answers:
        gone = _silent(answer)
        why = answer.error or why_not(answer)
        if why and not (gone and may_be_gone):
            lines.append(f"{answer.server}: {why}{f' ({answer.note})' if answer.note else ''}")
        facts[answer.server] = {
            "values": list(answer.rrset.values) if answer.rrset else [],
            "ttl_s": answer.rrset.ttl if answer.rrset else None,
            "serial": answer.serial,
            "why_not": why,
        }
    # Silence everywhere is no proof of anything, whoever may be gone.
    if answers and all(_silent(a) for a in answers) and not lines:
        lines = [f"{a.server}: {a.error}" for a in answers]
    return Found(tuple(lines), facts)


def _why_not_served(answer: Answer, served: Served, serial: int | None) -> str:
    if not answer.authoritative:
        return "is not authoritative for the zone"
    rrset = answer.rrset
    if rrset is None or not served.fits(rrset.values) or served.ttl not in (None, rrset.ttl):
        old = f"{rrset.ttl} {' '.join(rrset.values)}" if rrset else f"nothing ({answer.rcode})"
        return f"serves {old}, expected {'' if served.ttl is None else f'{served.ttl} '}{served}"
    if serial is not None and (answer.serial is None or not serial_reached(answer.serial, serial)):
        return f"has serial {answer.serial}, the change is in {serial}"
    return ""


def _why_not_cached(answer: Answer, served: Served) -> str:
    if answer.rrset is None:
        return f"knows nothing ({answer.rcode}), expected {served}"
    if not served.fits(answer.rrset.values):
        return f"still answers {' '.join(answer.rrset.values)} for {answer.rrset.ttl} s more"
    return ""
