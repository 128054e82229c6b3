"""What the system file says about a zone that is changed by dynamic update."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

import dns.name
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.errors import BadInput
from tasks.quantities import Duration
from tasks.secrets import SecretRef
from tasks.zones._records import absolute

RDTYPES = ("A", "AAAA", "CNAME")
Algorithm = Literal["hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"]


DomainName = Annotated[str, AfterValidator(absolute)]
"""Absolute, lower case, with the trailing dot."""


class Pointing(BaseModel):
    """One name: its TTL in seconds and, by type and site, the values it may have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl: int = Field(ge=1, le=86400)
    A: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    AAAA: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    CNAME: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _values_fit(self) -> Pointing:
        for rdtype, family in (("A", ipaddress.IPv4Address), ("AAAA", ipaddress.IPv6Address), ("CNAME", absolute)):
            for site, values in getattr(self, rdtype).items():
                if not values:
                    raise ValueError(f"{rdtype} of site {site!r} is empty: a name must never lose its last record")
                if rdtype == "CNAME" and len(values) > 1:
                    raise ValueError(f"CNAME of site {site!r} has {len(values)} values; a name can have one")
                for value in values:
                    family(value)  # its error is a ValueError that quotes the value
        if not (self.A or self.AAAA or self.CNAME):
            raise ValueError(f"expected at least one of {', '.join(RDTYPES)}")
        if self.CNAME and (self.A or self.AAAA):
            raise ValueError("a name with a CNAME can have no A or AAAA (RFC 1034 section 3.6.2)")
        return self


class KeyedZone(BaseModel):
    """A zone's primary, and the key that signs what is sent to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zone: DomainName
    primary: str
    key_name: DomainName
    key_secret: SecretRef
    key_algorithm: Algorithm = "hmac-sha256"
    """hmac-md5 is not among them on purpose; hmac-sha1 is warned about by ``zones.ready``."""
    timeout: Duration = 2.0
    """Of each connection and of each question."""


class ZoneSettings(KeyedZone):
    """As in ``runbooks/lab/system.yaml``, component ``dns``."""

    servers: tuple[str, ...] = Field(min_length=1)
    resolvers: tuple[str, ...] = ()
    names: dict[DomainName, Pointing] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_in_zone(self) -> ZoneSettings:
        zone = dns.name.from_text(self.zone)
        for name in self.names:
            if not dns.name.from_text(name).is_subdomain(zone):
                raise ValueError(f"{name} is not in zone {self.zone}")
        return self

    def allowed(self, name: str, rdtype: str) -> dict[str, tuple[str, ...]]:
        """Site -> values that ``name`` may have. Raises BadInput for a name or type that is not listed."""
        if name not in self.names:
            raise BadInput(f"{name} is not among the names that may be changed: {', '.join(self.names)}")
        by_site: dict[str, tuple[str, ...]] = getattr(self.names[name], rdtype) if rdtype in RDTYPES else {}
        if not by_site:
            raise BadInput(f"{name} may not be changed for type {rdtype}; see names in the system file")
        return by_site
