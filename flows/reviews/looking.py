"""What the annual audit looks at outside of providers: versions, certificates, files of secrets, ports, journals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import ssl
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from flows.engine import journal, places
from flows.engine.state import FINISHED, fold
from tasks.errors import RelightError

CONNECT_S = 2.0
PORTS = {
    21: "FTP",
    23: "Telnet",
    2375: "Docker without TLS",
    5432: "PostgreSQL",
    6379: "Redis",
    9200: "Elasticsearch",
    11211: "memcached",
    27017: "MongoDB",
}
"""What should be reachable only where the system file says so. A look at a few doors, no scan."""


@dataclass(frozen=True)
class EndOfLife:
    """``checked``: when the table was copied. ``tables``: product -> version -> last day; ``sources``."""

    checked: date
    tables: dict[str, dict[str, date]]
    sources: dict[str, str]

    def of(self, product: str, version: str) -> date | None:
        """The last day of the longest version that begins ``version``; None for one that is not in the table."""
        parts = version.split(".")
        table = self.tables.get(product, {})
        return next((table[k] for n in (2, 1) if (k := ".".join(parts[:n])) in table), None)


def end_of_life() -> EndOfLife:
    """The table that ships."""
    found = tomllib.loads((files("flows.reviews") / "endoflife.toml").read_text(encoding="utf-8"))
    checked = found.pop("checked")
    sources = {name: table.pop("source") for name, table in found.items()}
    return EndOfLife(checked, found, sources)


def texts(value: Any) -> Iterator[str]:
    """Every text in settings, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def endpoints(settings: Any) -> Iterator[tuple[str, int, bool]]:
    """(host, port, TLS) of every ``host:port`` and URL in settings."""
    for text in texts(settings):
        if "://" in text:
            url = urlsplit(text)
            with contextlib.suppress(ValueError):
                if url.hostname:
                    yield url.hostname, url.port or {"https": 443, "http": 80}.get(url.scheme, 0), url.scheme == "https"
        else:
            host, _, port = text.rpartition(":")
            if host and port.isdecimal() and 0 < int(port) < 65536 and not set(host) & set(" /:$"):
                yield host, int(port), False


@dataclass(frozen=True)
class Certificate:
    """``end``: of its validity. ``names``: whom it is for. ``fits``: the host that was asked is one of them."""

    end: datetime
    names: tuple[str, ...]
    fits: bool


def read_certificate(der: bytes, host: str) -> Certificate:
    """Only subject alternative names count, and ``*`` is one whole label, the first (RFC 9525, 6.3 and 6.4)."""
    found = x509.load_der_x509_certificate(der)
    try:
        others = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Certificate(found.not_valid_after_utc, (), fits=False)
    names = [n.lower() for n in others.get_values_for_type(x509.DNSName)]
    addresses = [str(a) for a in others.get_values_for_type(x509.IPAddress)]
    asked = host.lower().rstrip(".")
    with contextlib.suppress(ValueError):
        asked = str(ipaddress.ip_address(asked))
    fits = asked in addresses or asked in names or f"*.{asked.partition('.')[2]}" in names
    return Certificate(found.not_valid_after_utc, (*names, *addresses), fits)


async def certificate(host: str, port: int) -> Certificate | str:
    """The certificate served there, or why it cannot be told. Whom it is from is not judged here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    except (OSError, TimeoutError) as e:
        return f"no TLS connection: {str(e) or type(e).__name__}"
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return read_certificate(der, host)
    finally:
        writer.close()


async def opened(host: str, port: int) -> bool:
    """Does anything accept a connection there?"""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


@dataclass(frozen=True)
class SecretFile:
    """``changed``: None where the file cannot be seen. ``open_to``: others that may read it."""

    reference: str
    changed: datetime | None
    open_to: str = ""


def secrets(settings: Any) -> Iterator[SecretFile]:
    """The secrets that are files, by their references. None is opened."""
    for text in dict.fromkeys(t for t in texts(settings) if t.startswith("file:")):
        try:
            found = Path(os.path.expandvars(text.removeprefix("file:"))).expanduser().stat()
        except OSError:
            yield SecretFile(text, None)
            continue
        others = [who for bit, who in ((stat.S_IRGRP, "its group"), (stat.S_IROTH, "everybody")) if found.st_mode & bit]
        yield SecretFile(text, datetime.fromtimestamp(found.st_mtime, UTC), " and ".join(others))


@dataclass(frozen=True)
class Ran:
    """A run that ended well. ``drill``: for practice."""

    runbook: str
    at: datetime
    drill: bool


def runs(system: str) -> Iterator[Ran]:
    """Every run of a system that ended well, by its journal in this state folder."""
    for file in (places.state_home() / "runs").glob("*/journal.jsonl"):
        with contextlib.suppress(RelightError, KeyError, ValueError, IndexError):
            records = journal.read(file).records
            head = records[0]
            if head["system"] == system and fold(records).ended in FINISHED:
                drill = str(head.get("trigger", "")).startswith("drill")
                yield Ran(head["runbook"], datetime.fromisoformat(records[-1]["at"]), drill)
