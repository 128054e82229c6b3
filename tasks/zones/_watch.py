"""What servers and resolvers say about a name now, and who else writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from tasks.contract import Facts
from tasks.zones.protocol import Answer, RRset, Zone


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


async def authoritative(zone: Zone, wanted: RRset, *, serial: int | None, may_be_gone: bool) -> Found:
    """Ask every authoritative server for the record set, TTL included, and its serial."""
    answers = await _ask_all(zone, zone.servers(), wanted)
    return _found(answers, lambda a: _why_not_served(a, wanted, serial), may_be_gone=may_be_gone)


async def cached(zone: Zone, wanted: RRset, *, may_be_gone: bool) -> Found:
    """Ask every resolver for the record set; its TTL is what is left of it there."""
    answers = await _ask_all(zone, zone.resolvers(), wanted)
    return _found(answers, lambda a: _why_not_cached(a, wanted), may_be_gone=may_be_gone)


async def beside(zone: Zone, wanted: RRset) -> Beside:
    """Look for controllers by the records they leave, and for siblings of the name, at the primary.

    Controllers: external-dns (TXT ``heritage=external-dns`` at the name, or at ``a-NAME`` in its newer format) and
    octoDNS (its ownership processor: TXT ``_owner.TYPE.NAME``).
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
            who = "octoDNS" if where.startswith("_owner.") else "external-dns"
            refusals.append(f"{name} is also written by {who} (TXT at {where}), which would change it back")
    return Beside(tuple(refusals), tuple(warnings))


async def _ask_all(zone: Zone, servers: tuple[str, ...], wanted: RRset) -> list[Answer]:
    return await asyncio.gather(*(zone.ask(s, wanted.name, wanted.rdtype) for s in servers))


def _found(answers: list[Answer], why_not: Callable[[Answer], str], *, may_be_gone: bool) -> Found:
    lines, facts = [], Facts()
    for answer in answers:
        gone = bool(answer.error) and not answer.rcode
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
    if answers and all(a.error and not a.rcode for a in answers) and not lines:
        lines = [f"{a.server}: {a.error}" for a in answers]
    return Found(tuple(lines), facts)


def _why_not_served(answer: Answer, wanted: RRset, serial: int | None) -> str:
    if not answer.authoritative:
        return "is not authoritative for the zone"
    if answer.rrset is None or (answer.rrset.ttl, answer.rrset.values) != (wanted.ttl, wanted.values):
        old = f"{answer.rrset.ttl} {' '.join(answer.rrset.values)}" if answer.rrset else f"nothing ({answer.rcode})"
        return f"serves {old}, expected {wanted.ttl} {' '.join(wanted.values)}"
    if serial is not None and (answer.serial is None or not serial_reached(answer.serial, serial)):
        return f"has serial {answer.serial}, the change is in {serial}"
    return ""


def _why_not_cached(answer: Answer, wanted: RRset) -> str:
    if answer.rrset is None:
        return f"knows nothing ({answer.rcode}), expected {' '.join(wanted.values)}"
    if answer.rrset.values != wanted.values:
        return f"still answers {' '.join(answer.rrset.values)} for {answer.rrset.ttl} s more"
    return ""
