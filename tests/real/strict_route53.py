"""Route 53 as its documentation has it, before moto's server, which takes what Route 53 refuses.

Record sets are kept here, hosted zones and health checks are moto's. A change batch is applied whole or not at all; a
DELETE must name exactly what is there; a CREATE of what is there is refused; a change is PENDING until the name servers
have it; five requests a second are taken. The name servers are here too, and answer over UDP.
Sources: API reference, *ChangeResourceRecordSets*, *ListResourceRecordSets*, *GetChange*; developer guide, *Quotas*.
"""

from __future__ import annotations

import contextlib
import json
import random
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from aws import Moto
from aws_conformance import Front, Refused, front

Records = dict[tuple[str, str, str], dict[str, Any]]
"""(name, type, identifier) -> ResourceRecordSet."""


def dotted(name: str) -> str:
    return name.lower().rstrip(".") + "."


def escaped(name: str) -> str:
    return name.replace("*", "\\052")


def order(key: tuple[str, str, str]) -> tuple[list[str], str, str]:
    """ASCII order with the labels reversed, as lists come."""
    return [*reversed(key[0].rstrip(".").split("."))], key[1], key[2]


def exact(record: dict[str, Any]) -> str:
    """Everything that a DELETE must have right."""
    kept = {**record, "Name": dotted(record["Name"])}
    if "ResourceRecords" in kept:
        kept["ResourceRecords"] = sorted(r["Value"] for r in kept["ResourceRecords"])
    if "AliasTarget" in kept:
        kept["AliasTarget"] = {**kept["AliasTarget"], "DNSName": dotted(kept["AliasTarget"]["DNSName"])}
    return json.dumps(kept, sort_keys=True)


@dataclass
class Strict:
    """The state behind the front. What a test may set is without an underscore."""

    moto: Moto
    front: Front
    sync_s: float = 0.2
    """From a change to INSYNC. The first name server has it after a third of that, the others at its end."""
    busy_s: float = 0.0
    """After a change, the next one of the same zone is refused for so long: PriorRequestNotComplete."""
    per_s: float = 1000.0
    """Requests that are taken in a second; Route 53's own limit is 5."""
    page: int = 300
    unhealthy: set[str] = field(default_factory=set)
    """Health checks that fail."""
    watches: Callable[[str], bool] = lambda _check: True
    """What a health check sees now: it is healthy."""
    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of load balancers -> their addresses."""
    throttled: int = 0
    servers: tuple[str, ...] = ()
    _zones: dict[str, Records] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _changes: dict[str, float] = field(default_factory=dict)
    _history: dict[str, list[tuple[float, float, Records]]] = field(default_factory=dict)
    _busy_until: dict[str, float] = field(default_factory=dict)
    _taken: list[float] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.front.before = self._before
        self.front.handlers |= {
            "ChangeResourceRecordSets": self._change,
            "ListResourceRecordSets": self._list,
            "GetChange": self._get_change,
        }

    # ---- what a test does ----

    def zone(self, name: str, *records: dict[str, Any]) -> str:
        """A new hosted zone with ``records``, in sync, instead of one that has its name. Returns its id."""
        made = self.moto.client("route53").create_hosted_zone(Name=name, CallerReference=str(time.monotonic_ns()))
        identifier = str(made["HostedZone"]["Id"]).rpartition("/")[2]
        name = dotted(name)
        soa = {
            "Name": name,
            "Type": "SOA",
            "TTL": 900,
            "ResourceRecords": [{"Value": "ns1. root. 1 7200 900 1209600 60"}],
        }
        ns = {"Name": name, "Type": "NS", "TTL": 172800, "ResourceRecords": [{"Value": "ns1.example."}]}
        with self._lock:
            for other in [z for z, n in self._names.items() if n == name]:
                del self._names[other], self._zones[other]
            self._names[identifier] = name
            self._zones[identifier] = {}
            for record in (soa, ns, *records):
                self._create(identifier, self._zones[identifier], record)
            self._history[identifier] = [(0.0, 0.0, dict(self._zones[identifier]))]
        return identifier

    def by_hand(self, identifier: str, *changes: tuple[str, dict[str, Any]]) -> None:
        """As somebody else's request: (action, record set)."""
        batch = {"Changes": [{"Action": a, "ResourceRecordSet": r} for a, r in changes]}
        self._change({"HostedZoneId": identifier, "ChangeBatch": batch})

    def holds(self, identifier: str, name: str, rdtype: str) -> list[dict[str, Any]]:
        """The record sets at a name and type now."""
        with self._lock:
            return [r for (n, t, _), r in sorted(self._zones[identifier].items()) if (n, t) == (dotted(name), rdtype)]

    # ---- the API ----

    def _before(self, operation: str, params: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            self._taken = [t for t in self._taken if t > now - 1]
            if len(self._taken) >= self.per_s:
                self.throttled += 1
                raise Refused("Throttling", "Rate exceeded")
            self._taken.append(now)
            zone = str(params.get("HostedZoneId", "")).rpartition("/")[2]
            if operation == "ChangeResourceRecordSets" and now < self._busy_until.get(zone, 0):
                raise Refused("PriorRequestNotComplete", "The request was rejected because Route 53 was still busy")

    def _change(self, params: dict[str, Any]) -> dict[str, Any]:
        zone, changes = self._known(params["HostedZoneId"]), params["ChangeBatch"]["Changes"]
        with self._lock:
            wanted, wrong = dict(self._zones[zone]), list[str]()
            self._limits(changes)
            for change in changes:
                why = self._apply(zone, wanted, change["Action"], change["ResourceRecordSet"])
                wrong += [why] if why else []
            if wrong:
                raise Refused("InvalidChangeBatch", f"[{'; '.join(wrong)}]", messages=wrong)
            self._zones[zone] = wanted
            now = time.monotonic()
            change_id = f"/change/C{len(self._changes):013d}"
            self._changes[change_id] = now + self.sync_s
            self._history[zone].append((now + self.sync_s / 3, now + self.sync_s, wanted))
            self._busy_until[zone] = now + self.busy_s
        return {"ChangeInfo": {"Id": change_id, "Status": "PENDING", "SubmittedAt": datetime.now(UTC)}}

    def _limits(self, changes: list[dict[str, Any]]) -> None:
        values = [
            r["Value"]
            for c in changes
            for r in c["ResourceRecordSet"].get("ResourceRecords", ()) * (1 + (c["Action"] == "UPSERT"))
        ]
        if len(values) > 1000 or sum(map(len, values)) > 32000:
            raise Refused("InvalidChangeBatch", "Number of records or characters limit exceeded", messages=["limit"])

    def _apply(self, zone: str, records: Records, action: str, record: dict[str, Any]) -> str:
        name, rdtype = dotted(record["Name"]), record["Type"]
        key = (name, rdtype, record.get("SetIdentifier", ""))
        if action == "DELETE":
            found = records.get(key)
            if found is None:
                return f"Tried to delete resource record set [name='{name}', type='{rdtype}'] but it was not found"
            if exact(found) != exact(record):
                return (
                    f"Tried to delete resource record set [name='{name}', type='{rdtype}'] but the values provided do"
                    " not match the current values"
                )
            del records[key]
            return ""
        if action == "CREATE" and key in records:
            return f"Tried to create resource record set [name='{name}', type='{rdtype}'] but it already exists"
        try:
            records.pop(key, None)
            self._create(zone, records, record)
        except ValueError as e:
            return str(e)
        return ""

    def _create(self, zone: str, records: Records, record: dict[str, Any]) -> None:
        name, rdtype, identifier = dotted(record["Name"]), record["Type"], record.get("SetIdentifier", "")
        if not (name == self._names[zone] or name.endswith("." + self._names[zone])):
            raise ValueError(f"RRSet with DNS name {name} is not permitted in zone {self._names[zone]}")
        if ("AliasTarget" in record) == ("TTL" in record and "ResourceRecords" in record):
            raise ValueError("Expected exactly one of [AliasTarget, all of [TTL, and ResourceRecords]]")
        beside = [(t, i, r) for (n, t, i), r in records.items() if n == name]
        if any((t == "CNAME") != (rdtype == "CNAME") for t, _, _ in beside):
            raise ValueError(f"RRSet of type {rdtype} with DNS name {name} conflicts with a CNAME")
        same = [(i, r) for t, i, r in beside if t == rdtype]
        if any(bool(i) != bool(identifier) for i, _ in same):
            raise ValueError(f"{name} {rdtype}: a simple record set and one with an identifier cannot be at one name")
        if bool(identifier) != bool({"Weight", "Failover", "Region", "GeoLocation"} & record.keys()):
            raise ValueError(f"{name} {rdtype}: an identifier needs a routing policy, and the other way round")
        if any(r.get("Failover") == record.get("Failover") for _, r in same if "Failover" in record):
            raise ValueError(f"{name} {rdtype}: two record sets are {record['Failover']}")
        if any(
            r.get("TTL") != record.get("TTL") for _, r in same if "Weight" in record and "TTL" in r and "TTL" in record
        ):
            raise ValueError(f"{name} {rdtype}: the record sets of a weighted set have one TTL")
        records[name, rdtype, identifier] = {**record, "Name": name}

    def _list(self, params: dict[str, Any]) -> dict[str, Any]:
        zone = self._known(params["HostedZoneId"])
        with self._lock:
            rows = sorted(self._zones[zone].items(), key=lambda row: order(row[0]))
        if "StartRecordName" in params:
            name = dotted(params["StartRecordName"]).replace("\\052", "*")
            start = (name, params.get("StartRecordType", ""), params.get("StartRecordIdentifier", ""))
            rows = [row for row in rows if order(row[0]) >= order(start)]
        size = min(int(params.get("MaxItems", 300)), self.page)
        more = rows[size : size + 1]
        answer: dict[str, Any] = {
            "ResourceRecordSets": [{**r, "Name": escaped(r["Name"])} for _, r in rows[:size]],
            "IsTruncated": bool(more),
            "MaxItems": str(size),
        }
        if more:
            name, rdtype, identifier = more[0][0]
            answer |= {"NextRecordName": escaped(name), "NextRecordType": rdtype}
            answer |= {"NextRecordIdentifier": identifier} if identifier else {}
        return answer

    def _get_change(self, params: dict[str, Any]) -> dict[str, Any]:
        name = "/change/" + params["Id"].rpartition("/")[2]
        if name not in self._changes:
            raise Refused("NoSuchChange", f"no such change {name}")
        status = "INSYNC" if time.monotonic() >= self._changes[name] else "PENDING"
        return {"ChangeInfo": {"Id": name, "Status": status, "SubmittedAt": datetime.now(UTC)}}

    def _known(self, zone: str) -> str:
        found = zone.rpartition("/")[2]
        if found not in self._zones:
            raise Refused("NoSuchHostedZone", f"No hosted zone found with ID: {found}")
        return found

    # ---- the name servers ----

    def answer(self, wire: bytes, server: int) -> bytes:
        """What name server ``server`` says."""
        query = dns.message.from_wire(wire)
        reply = dns.message.make_response(query)
        question = query.question[0]
        name, rdtype = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        reply.flags |= dns.flags.AA
        if name in self.addresses:
            values = [a for a in self.addresses[name] if (":" in a) == (rdtype == "AAAA")]
            if values and rdtype in ("A", "AAAA"):
                reply.answer.append(dns.rrset.from_text(name, 60, "IN", rdtype, *random.sample(values, len(values))))
            return reply.to_wire()
        zone = next((z for z, n in self._names.items() if name == n or name.endswith("." + n)), None)
        if zone is None:
            reply.set_rcode(dns.rcode.REFUSED)
            return reply.to_wire()
        records = self._published(zone, server)
        there = {t for n, t, _ in records if n == name}
        if not there and not any(n.endswith("." + name) for n, _, _ in records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        found = self._chosen(records, name, rdtype) or self._chosen(records, name, "CNAME")
        if found is not None:
            reply.answer.append(found)
        else:
            soa = self._chosen(records, self._names[zone], "SOA")
            assert soa is not None
            reply.authority.append(soa)
        return reply.to_wire()

    def _published(self, zone: str, server: int) -> Records:
        now = time.monotonic()
        with self._lock:
            return next(r for first, last, r in reversed(self._history[zone]) if now >= (last if server else first))

    def _chosen(self, records: Records, name: str, rdtype: str) -> dns.rrset.RRset | None:
        found = [r for (n, t, _), r in records.items() if (n, t) == (name, rdtype)]
        healthy = [r for r in found if self._healthy(r)] or found
        if any("Failover" in r for r in found):
            primary = [r for r in healthy if r["Failover"] == "PRIMARY"]
            healthy = primary or healthy
        weights = [r.get("Weight", 1) for r in healthy]
        if not healthy:
            return None
        record = random.choices(healthy, weights if any(weights) else None)[0]
        if "AliasTarget" not in record:
            values = [r["Value"] for r in record["ResourceRecords"]]
            return dns.rrset.from_text(name, record["TTL"], "IN", rdtype, *values)
        target = dotted(record["AliasTarget"]["DNSName"])
        if target in self.addresses:
            return dns.rrset.from_text(name, 60, "IN", rdtype, *self.addresses[target])
        inner = self._chosen(records, target, rdtype)
        return inner and dns.rrset.from_text(name, inner.ttl, "IN", rdtype, *(r.to_text() for r in inner))

    def _healthy(self, record: dict[str, Any]) -> bool:
        check = record.get("HealthCheckId")
        return check is None or (check not in self.unhealthy and self.watches(check))


@contextlib.contextmanager
def name_server(strict: Strict, host: str, number: int) -> Iterator[str]:
    """``host:port`` of one of the zone's name servers."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, sock = self.request
            sock.sendto(strict.answer(wire, number), self.client_address)

    with socketserver.ThreadingUDPServer((host, 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)


@contextlib.contextmanager
def strict_route53(moto: Moto, host: str = "127.0.0.1") -> Iterator[Strict]:
    """Route 53 in front of moto, with two name servers; boto3's environment points at it."""
    with front("route53", moto.url) as door:
        strict = Strict(moto, door)
        with name_server(strict, host, 0) as first, name_server(strict, host, 1) as second:
            strict.servers = (first, second)
            yield strict
