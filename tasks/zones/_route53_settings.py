"""What the system file says about a hosted zone of Route 53."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

import dns.name
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasks.aws import Account
from tasks.errors import BadInput
from tasks.quantities import Duration
from tasks.zones._records import absolute
from tasks.zones._rfc2136_settings import RDTYPES, DomainName
from tasks.zones._routing import ALIAS_TTL_S, Alias, Member, texts
from tasks.zones.protocol import RRset


class AliasTo(BaseModel):
    """An AWS resource, or another name of the same zone. ``hosted_zone`` is the target's own (a load balancer's)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosted_zone: str = Field(pattern=r"^[A-Z0-9]{1,32}$")
    name: DomainName
    evaluate_target_health: bool = True


class SiteRecord(BaseModel):
    """What one site has at a name: values, or an alias. A list of values alone is short for ``{values: […]}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[str, ...] = ()
    alias: AliasTo | None = None
    identifier: str = Field(default="", max_length=128)
    """Of a weighted or failover record set; default: the site's name."""
    health_check: str = Field(default="", max_length=64)

    @model_validator(mode="after")
    def _one_of_two(self) -> SiteRecord:
        if bool(self.values) == bool(self.alias):
            raise ValueError("expected values or an alias, and not both: a name must never lose its last record")
        return self


def _short(given: Any) -> Any:
    return {"values": given} if isinstance(given, list | tuple) else given


Sites = dict[str, Annotated[SiteRecord, BeforeValidator(_short)]]


class RoutedName(BaseModel):
    """One name: its TTL in seconds, how Route 53 chooses between its record sets, and what each site has.

    ``simple``: the name has the record set of one site. ``weighted``: it has one of each site, and all the weight is on
    one. ``failover``: two sites, of which one is PRIMARY; Route 53 itself changes to the other while it is unhealthy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl: int = Field(default=ALIAS_TTL_S, ge=1, le=86400)
    routing: Literal["simple", "weighted", "failover"] = "simple"
    weight: int = Field(default=100, ge=1, le=255)
    """Of the site that the name points at; the others have 0."""
    A: Sites = Field(default_factory=dict)
    AAAA: Sites = Field(default_factory=dict)
    CNAME: Sites = Field(default_factory=dict)

    @model_validator(mode="after")
    def _values_fit(self) -> RoutedName:
        families = {"A": ipaddress.IPv4Address, "AAAA": ipaddress.IPv6Address, "CNAME": absolute}
        for rdtype, check in families.items():
            sites: Sites = getattr(self, rdtype)
            for site, record in sites.items():
                if rdtype == "CNAME" and len(record.values) > 1:
                    raise ValueError(f"CNAME of site {site!r} has {len(record.values)} values; a name can have one")
                for value in record.values:
                    check(value)  # its error is a ValueError that quotes the value
                if self.routing == "simple" and (record.identifier or record.health_check):
                    raise ValueError(f"{rdtype} of site {site!r}: identifier and health_check need routing")
            self._routing_fits(rdtype, sites)
        if not (self.A or self.AAAA or self.CNAME):
            raise ValueError(f"expected at least one of {', '.join(RDTYPES)}")
        if self.CNAME and (self.A or self.AAAA):
            raise ValueError("a name with a CNAME can have no A or AAAA (RFC 1034 section 3.6.2)")
        return self

    def _routing_fits(self, rdtype: str, sites: Sites) -> None:
        if self.routing == "simple" or not sites:
            return
        names = [r.identifier or site for site, r in sites.items()]
        if len(set(names)) < len(names):
            raise ValueError(f"{rdtype}: two sites have the same identifier ({', '.join(names)})")
        if self.routing == "failover":
            if len(sites) != 2:
                raise ValueError(f"{rdtype}: failover is between two sites, here are {len(sites)}")
            blind = [
                s for s, r in sites.items() if not (r.health_check or (r.alias and r.alias.evaluate_target_health))
            ]
            if blind:
                raise ValueError(
                    f"{rdtype} of {', '.join(blind)}: a failover needs a health_check, or an alias that evaluates its"
                    " target's health: a record without one counts as healthy for ever"
                )

    def members(self, rdtype: str, site: str) -> tuple[Member, ...]:
        """The record sets that point this name at ``site``, which must be listed for ``rdtype``."""
        sites: Sites = getattr(self, rdtype)
        if self.routing == "simple":
            return (self._member(sites[site], {}),)
        found = []
        for other, record in sites.items():
            role: dict[str, Any] = {"identifier": record.identifier or other, "health": record.health_check}
            if self.routing == "weighted":
                role["weight"] = self.weight if other == site else 0
            else:
                role["failover"] = "PRIMARY" if other == site else "SECONDARY"
            found.append(self._member(record, role))
        return tuple(found)

    def _member(self, record: SiteRecord, role: dict[str, Any]) -> Member:
        if record.alias is None:
            values = tuple(sorted(_canonical(v) for v in record.values))
            return Member(values=values, ttl=self.ttl, **role)
        to = record.alias
        return Member(alias=Alias(to.hosted_zone, to.name, to.evaluate_target_health), **role)


def _canonical(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return absolute(value)


class ZoneSettings(Account):
    """Of ``zones.route53``.

    Attributes:
        hosted_zone: its id, as ``aws route53 list-hosted-zones`` prints it after ``/hostedzone/``.
        zone: its name; checked against what Route 53 says of the id before anything is changed.
        region: the only one that Route 53's control plane is in (us-east-1; us-gov-west-1, cn-northwest-1 elsewhere).
        servers: the zone's name servers (its delegation set) as ``host:port``, to verify at.
        private: the zone is private: there are no servers to ask, so resolvers of the VPC are needed.
        requests_per_s: how many requests Route 53 takes from one account.
        poll: the shortest pause between two looks at a change that is on its way; the longest is 2.5 times as long.
        patience: how long requests that are slowed down are sent again, before the step's own attempts take over.
    """

    hosted_zone: str = Field(pattern=r"^[A-Z0-9]{1,32}$")
    zone: DomainName
    region: str = "us-east-1"
    servers: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    private: bool = False
    names: dict[DomainName, RoutedName] = Field(min_length=1)
    dns_timeout: Duration = 2.0
    requests_per_s: int = Field(default=5, ge=1)
    poll: Duration = Field(default=2.0, gt=0)
    patience: Duration = 15.0

    @model_validator(mode="after")
    def _names_are_in_zone(self) -> ZoneSettings:
        zone = dns.name.from_text(self.zone)
        for name in self.names:
            if not dns.name.from_text(name).is_subdomain(zone):
                raise ValueError(f"{name} is not in zone {self.zone}")
        if self.private and not self.resolvers:
            raise ValueError("a private zone has no name servers to ask: expected resolvers of its VPC")
        if not self.private and not self.servers:
            raise ValueError("expected servers: the zone's four name servers (aws route53 get-hosted-zone)")
        if not self.resolvers and any(
            r.alias for n in self.names.values() for t in RDTYPES for r in getattr(n, t).values()
        ):
            raise ValueError("an alias is verified by looking up its target: expected resolvers")
        return self

    def wanted(self, name: str, rdtype: str, site: str) -> RRset:
        """The record set that points ``name`` at ``site``. Raises BadInput for what is not listed."""
        sites = self.allowed(name, rdtype)
        if site not in sites:
            raise BadInput(
                f"{name} {rdtype} has no values for site {site!r}; it has them for {', '.join(sites)}. Add them under"
                " names in the system file."
            )
        ttl, values = texts(self.names[name].members(rdtype, site))
        return RRset(name, rdtype, ttl, values)

    def allowed(self, name: str, rdtype: str) -> Sites:
        """Site -> what ``name`` may have. Raises BadInput for a name or type that is not listed."""
        if name not in self.names:
            raise BadInput(f"{name} is not among the names that may be changed: {', '.join(self.names)}")
        by_site: Sites = getattr(self.names[name], rdtype) if rdtype in RDTYPES else {}
        if not by_site:
            raise BadInput(f"{name} may not be changed for type {rdtype}; see names in the system file")
        return by_site
