"""Record sets and updates as data: no network here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.update

from tasks.errors import BadInput, Rejected
from tasks.zones.protocol import Owned, RRset

HELD_BY_NO_NAME = {"A": "0.0.0.0", "AAAA": "::", "CNAME": "invalid."}  # noqa: S104 - a record's value, not a bind
_EPOCH = re.compile(r'"epoch=(\d{1,18}) owner=relight"', re.ASCII)


def absolute(text: str) -> str:
    """A domain name in lower case with the trailing dot. Raises ValueError; a wildcard is one too."""
    try:
        name = dns.name.from_text(text)
    except dns.exception.DNSException as e:
        raise ValueError(f"expected a domain name, got {text!r}: {e}") from None
    if name.is_wild():
        raise ValueError(f"{text!r} is a wildcard: its epoch record would not protect the names below it")
    return name.to_text().lower()


def domain_name(text: str) -> str:
    """As ``absolute``, for what a caller gives. Raises BadInput."""
    try:
        return absolute(text)
    except ValueError as e:
        raise BadInput(str(e)) from None


def epoch_name(name: str) -> str:
    """Where the epoch TXT of ``name`` lives."""
    return "_relight." + name


def epoch_text(epoch: int) -> str:
    """The epoch TXT in presentation form."""
    return f'"epoch={epoch} owner=relight"'


def canonical(name: str, rdtype: str, ttl: int, values: tuple[str, ...]) -> RRset:
    """The record set in the form that ``rrset_in`` yields too, so that the two compare. Raises BadInput."""
    try:
        rdatas = [dns.rdata.from_text("IN", rdtype, v, origin=dns.name.root) for v in values]
    except dns.exception.DNSException as e:
        raise BadInput(f"{name} {rdtype} {' '.join(values)}: {e}") from e
    return RRset(name, rdtype, ttl, tuple(sorted({r.to_text().lower() for r in rdatas})))


def rrset_in(reply: dns.message.Message, rdtype: str, name: str | None = None) -> RRset | None:
    """The record set of ``rdtype`` in an answer: that of ``name``, or (None) whatever the question's alias led to."""
    wanted = dns.rdatatype.from_text(rdtype)
    for rrset in reply.answer:
        owner = rrset.name.to_text().lower()
        if rrset.rdtype == wanted and name in (None, owner):
            values = (r.to_text() if rdtype == "TXT" else r.to_text().lower() for r in rrset)
            return RRset(owner, rdtype, rrset.ttl, tuple(sorted(values)))
    return None


def serial_in(reply: dns.message.Message) -> int | None:
    """The SOA serial of an answer."""
    for rrset in reply.answer:
        if rrset.rdtype == dns.rdatatype.SOA:
            return int(rrset[0].serial)
    return None


def epoch_in(reply: dns.message.Message, name: str) -> int | None:
    """Raises Rejected for a record that is not ours: relight never overwrites what it does not understand."""
    rrset = rrset_in(reply, "TXT", name)
    return None if rrset is None else epoch_of(name, rrset.values)


def epoch_of(name: str, values: Sequence[str]) -> int:
    """The epoch that the TXT values at ``name`` say. Raises Rejected for what relight did not write."""
    match = _EPOCH.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or epoch_text(int(match[1])) != values[0]:
        raise Rejected(
            f'{name} TXT: expected one record "epoch=N owner=relight", found {" ".join(values)}. It was not'
            " written by relight; find out by whom, and remove it if nobody needs it."
        )
    return int(match[1])


def fill_swap(update: dns.update.UpdateMessage, old: Owned, new: RRset, epoch: int) -> None:
    """Make ``update`` replace exactly ``old`` by ``new`` and its epoch TXT by ``epoch`` (RFC 2136 section 2.4)."""
    name, epochs = dns.name.from_text(new.name), dns.name.from_text(epoch_name(new.name))
    if old.rrset is not None:
        update.present(name, _rdataset(old.rrset, ttl=0))
    elif new.rdtype != "CNAME":
        update.absent(name, new.rdtype)
    # A CNAME beside other data, or other data beside a CNAME, is dropped without a word (section 3.4.2.2).
    if new.rdtype != "CNAME":
        update.absent(name, "CNAME")
    elif old.rrset is None:
        update.absent(name)
    if old.epoch is None:
        update.absent(epochs, "TXT")
    else:
        update.present(epochs, "TXT", epoch_text(old.epoch))
    update.replace(name, _rdataset(new, ttl=new.ttl))
    update.replace(epochs, new.ttl, "TXT", epoch_text(epoch))


def values_shown(rrset: RRset | None) -> str:
    """For messages: ``app.example. 60 A 192.0.2.1``."""
    return f"{rrset.name} {rrset.ttl} {rrset.rdtype} {' '.join(rrset.values)}" if rrset else "no record"


def shown(owned: Owned) -> str:
    """``values_shown`` with the epoch."""
    return f"{values_shown(owned.rrset)} (epoch {'none' if owned.epoch is None else owned.epoch})"


def _rdataset(rrset: RRset, *, ttl: int) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(rrset.name, ttl, "IN", rrset.rdtype, list(rrset.values))
