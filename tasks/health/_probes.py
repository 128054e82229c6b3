"""Single probes of a service, each bounded as a whole: a body that trickles in does not count as an answer."""

from __future__ import annotations

from typing import Annotated

import httpx
from pydantic import AfterValidator

from tasks.clock import Clock
from tasks.errors import NotYet, Unreachable
from tasks.network import Ask, Network, split


def _is_address(text: str) -> str:
    split(text)
    return text


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


async def http(network: Network, clock: Clock, ask: Ask, *, status: int, within_s: float) -> float:
    """Seconds until ``ask`` was answered ``status`` in full. Redirects are not followed. Raises NotYet, BadInput."""
    started_s = clock.monotonic()
    try:
        answer = await network.http(ask, within_s=within_s)
    except Unreachable as e:
        raise NotYet(f"{ask.url}: {e.message}") from e
    if answer.status != status:
        raise NotYet(f"{ask.url}: HTTP {answer.status}, expected {status}")
    return clock.monotonic() - started_s


async def tcp(network: Network, clock: Clock, address: str, *, within_s: float) -> float:
    """Seconds until ``address`` (``host:port``) accepted a connection. Raises NotYet."""
    started_s = clock.monotonic()
    try:
        await network.tcp(address, within_s=within_s)
    except Unreachable as e:
        raise NotYet(f"{address}: {e.message}") from e
    return clock.monotonic() - started_s
