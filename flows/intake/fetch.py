"""What a source must read from the internet before it can believe a delivery: certificates and keys. Bounded in all.

A sender names the address, so a request may not be led to a place that only this machine reaches: the host is checked
by the source, redirects are not followed, and an address that is not public is refused when the connection is made,
after the name was resolved (a check before that could be answered twice, differently). No proxy is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from flows.intake.event import Unavailable

MOST_BYTES = 64 << 10
SECONDS = 4.0
"""For one document, waiting for a turn included: the most hasty sender that needs one gives up after 5 s."""
KEPT_S = 3600.0
AT_ONCE = 4
MOST_KEPT = 32

_NETWORK = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    OSError,
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Outside:
    """GET over HTTPS. For tests: ``private`` addresses too, and other authorities to ``trust``."""

    def __init__(self, *, private: bool = False, trust: ssl.SSLContext | None = None) -> None:
        self._backend = _Public(private=private)
        self._trust = trust
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._kept: dict[str, tuple[float, bytes]] = {}

    async def kept(self, url: str, fresh_s: float = KEPT_S) -> bytes:
        """The document at ``url``, at most ``fresh_s`` old. Raises Unavailable."""
        now = asyncio.get_running_loop().time()
        found = self._kept.get(url)
        if found is None or now - found[0] > fresh_s:
            found = (now, await self.get(url))
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[url] = found
        return found[1]

    async def get(self, url: str) -> bytes:
        """The document at ``url`` now. Raises Unavailable, so that the sender sends again."""
        try:
            async with asyncio.timeout(SECONDS), self._turn:
                return await self._get(url)
        except TimeoutError:
            raise Unavailable(f"{url} did not answer within {SECONDS:g} s", retry_s=30) from None
        except _NETWORK as e:
            raise Unavailable(f"{url} cannot be read: {str(e) or type(e).__name__}", retry_s=30) from e

    async def _get(self, url: str) -> bytes:
        if not url.startswith("https://"):
            raise Unavailable(f"{url} is not https")
        found = bytearray()
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._trust, network_backend=self._backend) as pool,
            pool.stream("GET", url, headers={"Accept": "*/*", "Accept-Encoding": "identity"}) as response,
        ):
            if response.status != 200:
                raise Unavailable(f"{url} answered {response.status}; redirects are not followed", retry_s=30)
            async for piece in response.aiter_stream():
                found += piece
                if len(found) > MOST_BYTES:
                    raise Unavailable(f"{url} has more than {MOST_BYTES} bytes", retry_s=300)
        return bytes(found)


class _Public(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - of the interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises ConnectError where the name leads nowhere public."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        refused = [] if self._private else [a for a in addresses if not public(a)]
        if refused:  # all of them: a name with a private address among public ones is somebody's attempt
            raise httpcore.ConnectError(f"{host} leads to {', '.join(refused)}, which is not public")
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                failed = e
        raise failed

    async def connect_unix_socket(self, path: str, *_a: Any, **_k: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError(f"{path} is no public address")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def public(address: str) -> bool:
    """Is it an address of the internet (also behind the forms of IPv6 that carry one of IPv4)?"""
    try:
        found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        carried = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            carried = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = carried or found
    return found.is_global and not found.is_multicast
