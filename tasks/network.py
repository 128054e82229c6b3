"""What an action may ask of the network besides its providers: a URL, a port, a name. As a client does it.

Sources: RFC 9110 section 7.2 (Host), RFC 6066 section 3 (server name), RFC 1034 section 5 (what a stub resolver does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import dns.asyncresolver
import dns.exception
import dns.resolver
import httpx

from tasks import trust
from tasks.errors import BadInput, Unreachable


@dataclass(frozen=True)
class Ask:
    """One HTTP request. ``host``: for the Host header and the TLS server name, where the URL has an address."""

    method: str
    url: str
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Reply:
    """Status and body of an answer that came in full."""

    status: int
    text: str

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


class Network(Protocol):
    """A client's view of the network. Every call makes a connection of its own and ends within ``within_s``."""

    async def http(self, ask: Ask, *, within_s: float) -> Reply:
        """Redirects are not followed. Raises Unreachable without a full answer, BadInput for what is no URL."""
        ...

    async def tcp(self, address: str, *, within_s: float) -> None:
        """Connect to ``host:port`` and close. Raises Unreachable."""
        ...

    async def lookup(self, name: str, resolver: str | None, *, within_s: float) -> tuple[str, ...]:
        """IPv4 addresses of ``name``, sorted. ``resolver``: ``host:port``; None: the system's. Raises Unreachable."""
        ...


def split(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` -> both parts. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"expected host:port, got {address!r}")
    return host.strip("[]"), int(port)


class Sockets:
    """The real network of this machine."""

    async def http(self, ask: Ask, *, within_s: float) -> Reply:
        headers = {**({"Host": ask.host} if ask.host else {}), **ask.headers}
        safe = ask.url.startswith("https:")
        try:
            async with (
                asyncio.timeout(within_s),
                httpx.AsyncClient(verify=trust.verify(ask.url), timeout=None, trust_env=False) as client,  # noqa: S113 - bounded here
            ):
                sni = {"sni_hostname": ask.host.partition(":")[0]} if ask.host and safe else {}
                answer = await client.request(ask.method, ask.url, content=ask.body, headers=headers, extensions=sni)
        except httpx.InvalidURL as e:
            raise BadInput(f"{ask.url}: {e}") from e
        except TimeoutError:
            raise Unreachable(f"no answer within {within_s:.3g} s") from None
        except (httpx.HTTPError, OSError) as e:
            raise Unreachable(str(e) or type(e).__name__) from e
        return Reply(answer.status_code, answer.text)

    async def tcp(self, address: str, *, within_s: float) -> None:
        host, port = split(address)
        try:
            async with asyncio.timeout(within_s):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            raise Unreachable(f"no connection within {within_s:.3g} s") from None
        except OSError as e:
            raise Unreachable(e.strerror or str(e)) from e
        writer.close()

    async def lookup(self, name: str, resolver: str | None, *, within_s: float) -> tuple[str, ...]:
        try:
            stub = dns.asyncresolver.Resolver(configure=resolver is None)
            if resolver is not None:
                host, stub.port = split(resolver)
                stub.nameservers = [host]
            answer = await stub.resolve(name, "A", lifetime=within_s, search=False)
        except (dns.exception.DNSException, OSError) as e:
            raise Unreachable(str(e) or type(e).__name__) from e
        return tuple(sorted(str(record) for record in answer))
