"""Whom TLS trusts: read once in a process, and only where something is asked over TLS."""

from __future__ import annotations

import functools
import ssl
from typing import Literal

import httpx


@functools.cache
def authorities() -> ssl.SSLContext:
    """Httpx's own context (certifi's list), which clients may share: reading it takes longer than most requests."""
    return httpx.create_ssl_context(trust_env=False)


def verify(url: str) -> ssl.SSLContext | Literal[False]:
    """What httpx's ``verify`` gets for requests to ``url``: plain HTTP has nothing to verify."""
    return False if url.startswith("http:") else authorities()
