"""Single probes of a service, each bounded as a whole: a body that trickles in does not count as an answer."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import httpx
from pydantic import AfterValidator

from tasks.errors import BadInput, NotYet


def _is_address(text: str) -> str:
    split(text)
    return text


def split(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` -> both parts. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"expected host:port, got {address!r}")
    return host.strip("[]"), int(port)


def _is_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as e:
        raise ValueError(f"{text!r} is no URL: {e}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"expected http:// or https:// and a host, got {text!r}")
    if url.userinfo:
        raise ValueError("a URL in a runbook must not hold a user or password")
    return text


Address = Annotated[str, AfterValidator(_is_address)]
Url = Annotated[str, AfterValidator(_is_url)]


async def http(url: str, *, status: int, within_s: float) -> float:
    """Seconds until ``url`` answered ``status`` in full. Redirects are not followed. Raises NotYet, BadInput."""
    started_s = time.monotonic()
    try:
        async with (
            asyncio.timeout(within_s),
            httpx.AsyncClient(timeout=within_s, trust_env=False) as client,
        ):
            answer = await client.get(url)
    except httpx.InvalidURL as e:
        raise BadInput(f"{url}: {e}") from e
    except TimeoutError:
        raise NotYet(f"{url}: no answer within {within_s:g} s") from None
    except httpx.HTTPError as e:
        raise NotYet(f"{url}: {str(e) or type(e).__name__}") from e
    if answer.status_code != status:
        raise NotYet(f"{url}: HTTP {answer.status_code}, expected {status}")
    return time.monotonic() - started_s


async def tcp(address: str, *, within_s: float) -> float:
    """Seconds until ``address`` (``host:port``) accepted a connection. Raises NotYet."""
    host, port = split(address)
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        raise NotYet(f"{address}: no connection within {within_s:g} s") from None
    except OSError as e:
        raise NotYet(f"{address}: {e.strerror or e}") from e
    took_s = time.monotonic() - started_s
    writer.close()
    return took_s
