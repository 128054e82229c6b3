"""Every HTTP endpoint that the system file names: does it answer, is its certificate good for long, is its clock right.

Sources: RFC 9110 section 6.6.1 (Date), RFC 5280 section 4.1.2.5 (validity), RFC 9525 (names in certificates).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit

import httpx
from cryptography import x509

from tasks.quantities import show_duration
from tasks.readiness import Asked, Check, Finding, Part, texts

EXPIRES_S = 21 * 86400.0
"""Less than that left is a warning: certificates are renewed 30 days before their end."""
CLOCK_S = 30.0
"""A Date header has whole seconds and may be of a cache; S3 refuses requests that differ by 15 min."""


def _urls(part: Part) -> dict[str, str]:
    """``scheme://host:port`` -> site it belongs to (empty where that cannot be told)."""
    found: dict[str, str] = {}
    for where, text in texts(part.settings):
        if text.startswith(("http://", "https://")):
            parts = urlsplit(text)
            if parts.hostname:
                site = next((where[i + 1] for i, key in enumerate(where[:-1]) if key == "sites"), "")
                found.setdefault(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", site)
    return found


async def endpoints(asked: Asked, part: Part) -> list[Finding]:
    """Reach and clock of each, one HEAD request."""
    answers = await asyncio.gather(*(_head(asked, part, url, site) for url, site in _urls(part).items()))
    return [f for found in answers for f in found]


async def _head(asked: Asked, part: Part, url: str, site: str) -> list[Finding]:
    try:
        # any answer will do, and the certificate has a check of its own
        async with httpx.AsyncClient(timeout=asked.within_s, trust_env=False, verify=False) as client:  # noqa: S501
            began = asked.clock.utc()
            answer = await client.head(url)
    except httpx.HTTPError as e:
        level = "failing" if site == asked.target or not site else "warning"
        says = f"{url} does not answer: {str(e) or type(e).__name__}"
        return [part.found("endpoints", "failing" if level == "failing" else "warning", says, "bring it up", site)]
    with contextlib.suppress(ValueError, KeyError):
        off_s = _off_s(parsedate_to_datetime(answer.headers["date"]), began, asked.clock.utc())
        if off_s > CLOCK_S:
            says = f"the clock of {url} differs from ours by {off_s:.0f} s"
            return [part.found("clock", "failing", says, "run NTP on both", site)]
    return [part.found("endpoints", "ok", f"{url} answers", site=site)]


def _off_s(date: datetime, began: datetime, ended: datetime) -> float:
    return max((began - date).total_seconds() - 1.0, (date - ended).total_seconds(), 0.0)


async def certificates(asked: Asked, part: Part) -> list[Finding]:
    """Of each https endpoint: when it ends, and whether a client would trust it."""
    urls = [(urlsplit(url), site) for url, site in _urls(part).items() if url.startswith("https:")]
    return list(await asyncio.gather(*(_certificate(asked, part, url, site) for url, site in urls)))


async def _certificate(asked: Asked, part: Part, url: SplitResult, site: str) -> Finding:
    host, port = url.hostname or "", url.port or 443
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE  # to read one that is not trusted, too
    try:
        async with _tls(host, port, blind, asked.within_s) as der:
            end = x509.load_der_x509_certificate(der).not_valid_after_utc
        left_s = (end - asked.clock.utc()).total_seconds()
        async with _tls(host, port, ssl.create_default_context(), asked.within_s):
            trusted = ""
    except ssl.SSLCertVerificationError as e:
        trusted = e.verify_message
    except (OSError, TimeoutError, ValueError) as e:
        says = f"no certificate of {host}:{port}: {str(e) or type(e).__name__}"
        return part.found("certificates", "unknown", says, "bring it up", site)
    if left_s <= 0:
        says = f"the certificate of {host}:{port} ended {end:%Y-%m-%d}"
        return part.found("certificates", "failing", says, "renew it", site)
    if trusted:
        says = f"the certificate of {host}:{port} is not trusted here: {trusted}"
        return part.found("certificates", "failing", says, "name its authority in SSL_CERT_FILE, or renew it", site)
    says = f"the certificate of {host}:{port} is good for {show_duration(left_s)}"
    low = left_s < EXPIRES_S
    return part.found("certificates", "warning" if low else "ok", says, "renew it" if low else "", site)


@contextlib.asynccontextmanager
async def _tls(host: str, port: int, context: ssl.SSLContext, within_s: float) -> AsyncIterator[bytes]:
    async with asyncio.timeout(within_s):
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        try:
            yield writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        finally:
            writer.close()


CHECKS: tuple[Check, ...] = (endpoints, certificates)
