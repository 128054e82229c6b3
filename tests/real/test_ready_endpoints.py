"""Endpoints as the world has them, over real TLS: certificates that end or that nobody trusts, wrong clocks."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel

from tasks.clock import LoopClock
from tasks.health import readiness
from tasks.network import Sockets
from tasks.readiness import Asked, Finding, Part

pytestmark = pytest.mark.real

DAY = dt.timedelta(days=1)


class Settings(BaseModel):
    """As a provider's."""

    sites: dict[str, dict[str, str]]


def certificate(folder: Path, days: float) -> tuple[Path, Path]:
    """A self-signed certificate for localhost that ends in ``days``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - 400 * DAY).not_valid_after(now + days * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


@contextlib.asynccontextmanager
async def served(tls: tuple[Path, Path] | None, off: dt.timedelta = dt.timedelta()) -> AsyncIterator[int]:
    """A server that answers every request with its own idea of the time; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            date = format_datetime(dt.datetime.now(dt.UTC) + off, usegmt=True)
            writer.write(f"HTTP/1.1 204 No Content\r\nDate: {date}\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    server = await asyncio.start_server(answer, "localhost", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def found(url: str, check: object) -> list[Finding]:
    asked = Asked("west", "east", LoopClock(), Sockets(), within_s=60.0)
    part = Part("storage", object(), Settings(sites={"east": {"endpoint": url}}))
    answer: list[Finding] = await check(asked, part)  # type: ignore[operator]
    return answer


@pytest.mark.parametrize(
    ("days", "trusted", "expected"),
    [
        (-1, True, ("failing", "ended")),
        (5, True, ("warning", "good for")),
        (200, True, ("ok", "good for")),
        (200, False, ("failing", "not trusted")),
    ],
)
def test_a_certificate_is_told_by_its_end_and_by_who_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float, trusted: bool, expected: tuple[str, str]
) -> None:
    tls = certificate(tmp_path, days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[0]))

    async def ask() -> list[Finding]:
        async with served(tls) as port:
            return await found(f"https://localhost:{port}", readiness.certificates)

    (one,) = asyncio.run(ask())
    level, says = expected
    assert (one.level, one.site, says in one.says) == (level, "east", True), one


def test_no_certificate_is_unknown() -> None:
    (one,) = asyncio.run(found("https://localhost:9", readiness.certificates))
    assert one.level == "unknown"


@pytest.mark.parametrize(("off_s", "level"), [(0, "ok"), (600, "failing"), (-600, "failing")])
def test_a_clock_is_told_by_the_date_of_an_answer(off_s: int, level: str) -> None:
    async def ask() -> list[Finding]:
        async with served(None, dt.timedelta(seconds=off_s)) as port:
            return await found(f"http://localhost:{port}", readiness.endpoints)

    (one,) = asyncio.run(ask())
    assert one.level == level, one


def test_an_endpoint_of_the_target_that_is_silent_fails() -> None:
    (one,) = asyncio.run(found("http://localhost:9", readiness.endpoints))
    assert (one.level, one.site) == ("failing", "east")
