"""Record sets that are more than values, as text: aliases, weights, failover. Pure; no network, no boto3.

A value of a record set is either a plain one (``192.0.2.1``) or describes one of Route 53's resource record sets::

    alias Z32O12XQLNTSW2 lb-west.example. evaluate
    id=west weight=100 ttl=60 192.0.2.1 192.0.2.2
    id=west failover=PRIMARY health=HEALTHCHECK alias Z32O12XQLNTSW2 lb-west.example.

Only the second kind has spaces in it: a name in presentation form has none (RFC 1035 section 5.1). Two such texts are
equal exactly where the record sets are, so that a comparison of texts is a comparison of everything.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

ALIAS_TTL_S = 60
"""What clients see of an alias that has no TTL of its own: that of load balancers and CloudFront (Route 53 developer
guide, *Choosing between alias and non-alias records*)."""
_KNOWN = {
    "Name", "Type", "TTL", "ResourceRecords", "AliasTarget", "SetIdentifier", "Weight", "Failover", "HealthCheckId",
}  # fmt: skip


Values = tuple[str, ...]


_WORDS = {"id": "identifier", "failover": "failover", "health": "health", "other": "other"}


@dataclass(frozen=True)
class Alias:
    """``hosted_zone``: that of the target (a load balancer's own), not ours. ``name`` absolute, lower case."""

    hosted_zone: str
    name: str
    evaluate: bool


@dataclass(frozen=True)
class Member:
    """One of Route 53's resource record sets at a name and type; several share them where they have an identifier.

    ``other``: what it has that relight does not know how to put back (geolocation, latency, a traffic policy …).
    """

    values: tuple[str, ...] = ()
    alias: Alias | None = None
    ttl: int | None = None
    identifier: str = ""
    weight: int | None = None
    failover: str = ""
    health: str = ""
    other: str = ""

    @property
    def plain(self) -> bool:
        """Nothing but values."""
        return not (self.alias or self.identifier or self.health or self.other)

    @property
    def leads_to(self) -> tuple[str, ...]:
        """Its addresses, or the name of its target."""
        return (self.alias.name,) if self.alias else self.values

    @property
    def gets_traffic(self) -> bool:
        """It is answered with while it is healthy: it has a weight, or is the first choice."""
        return self.weight != 0 and self.failover != "SECONDARY"

    def text(self) -> str:
        """As one value of a record set. Not for a plain one."""
        words = [f"id={quote(self.identifier, safe='')}"] if self.identifier else []
        words += [f"weight={self.weight}"] if self.weight is not None else []
        words += [f"failover={self.failover}"] if self.failover else []
        words += [f"health={quote(self.health, safe='')}"] if self.health else []
        words += [f"other={quote(self.other, safe='')}"] if self.other else []
        if self.alias:
            words += ["alias", self.alias.hosted_zone, self.alias.name]
            words += ["evaluate"] if self.alias.evaluate else []
        else:
            words += [f"ttl={self.ttl}", *sorted(self.values)]
        return " ".join(words)


def members(values: tuple[str, ...], ttl: int) -> tuple[Member, ...]:
    """What ``values`` of a record set describe. Raises ValueError for a text that ``Member.text`` did not write."""
    if not any(" " in value for value in values):
        return (Member(values=values, ttl=ttl),)
    return tuple(_parsed(value) for value in values)


def targets(values: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses or names that clients are led to: those with a weight, and the first choice of a failover."""
    found = {t for m in members(values, 0) if m.gets_traffic for t in m.leads_to}
    return tuple(sorted(found))


def texts(found: tuple[Member, ...]) -> tuple[int, tuple[str, ...]]:
    """(TTL that a cache may hold it for, values) of the record sets at one name and type."""
    ttl_s = max(ALIAS_TTL_S if m.ttl is None else m.ttl for m in found)
    if len(found) == 1 and found[0].plain:
        return ttl_s, tuple(sorted(found[0].values))
    return ttl_s, tuple(sorted(m.text() for m in found))


def member_of(record: dict[str, Any]) -> Member:
    """boto3's ``ResourceRecordSet`` as a member; names in lower case."""
    target = record.get("AliasTarget")
    return Member(
        values=tuple(_canonical(record["Type"], r["Value"]) for r in record.get("ResourceRecords", ())),
        alias=Alias(target["HostedZoneId"], _dotted(target["DNSName"]), target["EvaluateTargetHealth"])
        if target
        else None,
        ttl=record.get("TTL"),
        identifier=record.get("SetIdentifier", ""),
        weight=record.get("Weight"),
        failover=record.get("Failover", ""),
        health=record.get("HealthCheckId", ""),
        other=" ".join(f"{k}={v}" for k, v in sorted(record.items()) if k not in _KNOWN),
    )


def record_of(name: str, rdtype: str, member: Member) -> dict[str, Any]:
    """A member as boto3's ``ResourceRecordSet``. Raises ValueError for one with ``other``."""
    if member.other:
        raise ValueError(f"{name} {rdtype} has {member.other}, which relight could not put back")
    record: dict[str, Any] = {"Name": name, "Type": rdtype}
    if member.identifier:
        record["SetIdentifier"] = member.identifier
    if member.weight is not None:
        record["Weight"] = member.weight
    if member.failover:
        record["Failover"] = member.failover
    if member.alias:
        record["AliasTarget"] = {
            "HostedZoneId": member.alias.hosted_zone,
            "DNSName": member.alias.name,
            "EvaluateTargetHealth": member.alias.evaluate,
        }
    else:
        record |= {"TTL": member.ttl, "ResourceRecords": [{"Value": v} for v in member.values]}
    if member.health:
        record["HealthCheckId"] = member.health
    return record


def batch(where: tuple[str, str], old: tuple[int, Values] | None, new: tuple[int, Values]) -> dict[str, Any]:
    """The change batch that replaces exactly ``old`` by ``new`` at ``where`` (name, type); each (TTL, values).

    Raises ValueError for what could not be put back.
    """
    changes = []
    for action, part in (("DELETE", old), ("CREATE", new)):
        found = members(part[1], part[0]) if part else ()
        changes += [{"Action": action, "ResourceRecordSet": record_of(*where, m)} for m in found]
    return {"Changes": changes}


def _parsed(text: str) -> Member:
    found = Member()
    words = text.split(" ")
    for n, word in enumerate(words):
        key, equals, value = word.partition("=")
        if word == "alias" and len(words) - n in (3, 4) and words[n + 3 :] in ([], ["evaluate"]):
            return replace(found, alias=Alias(words[n + 1], words[n + 2], evaluate=bool(words[n + 3 :])))
        if key == "ttl" and words[n + 1 :]:
            return replace(found, ttl=int(value), values=tuple(words[n + 1 :]))
        if key == "weight":
            found = replace(found, weight=int(value))
        elif equals and key in _WORDS:
            word_of: dict[str, Any] = {_WORDS[key]: unquote(value)}
            found = replace(found, **word_of)
        else:
            break
    raise ValueError(f"expected an alias, or a record set with an identifier, got {text!r}")


def _canonical(rdtype: str, value: str) -> str:
    if rdtype == "CNAME":
        return _dotted(value)
    return str(ipaddress.ip_address(value)) if rdtype in ("A", "AAAA") else value


def _dotted(name: str) -> str:
    return name.lower().rstrip(".") + "."
