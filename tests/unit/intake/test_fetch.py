"""What is read from outside is bounded: addresses, redirects, size, time, how many at once. By a real TLS server."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from flows.intake import fetch
from flows.intake.event import Unavailable
from flows.intake.fetch import AT_ONCE, MOST_BYTES, Outside, public


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(file of certificate and key for ``localhost``, a context that trusts it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    pem = builder.add_extension(names, critical=False).sign(key, SHA256()).public_bytes(Encoding.PEM)
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file, ssl.create_default_context(cadata=pem.decode())


class Server:
    """Answers every request with what it was given; counts those that are open."""

    def __init__(self, answer):
        self.answer, self.asked, self.open, self.most_open = answer, [], 0, 0

    async def serve(self, reader, writer):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await self.answer(writer)
            await writer.drain()
        self.open -= 1
        writer.close()


def says(status="200 OK", body=b"hello", extra=""):
    async def answer(writer):
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        writer.write(head.encode() + body)

    return answer


def against(certificate, answer, ask, *, private=True):
    """Serve, ask ``ask(outside, port)``, and say what came of it, and the server."""
    file, trust = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = Server(answer)

    async def play():
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context) as listening:
            port = listening.sockets[0].getsockname()[1]
            return await ask(Outside(private=private, trust=trust), f"https://localhost:{port}/key.pem")

    return asyncio.run(play()), server


def refused(certificate, answer, **more):
    async def ask(outside, url):
        with pytest.raises(Unavailable) as e:
            await outside.get(url)
        return str(e.value)

    return against(certificate, answer, ask, **more)


def test_a_document_is_read_once_an_hour(certificate):
    async def ask(outside, url):
        return [await outside.kept(url), await outside.kept(url), await outside.kept(url, 0.0)]

    found, server = against(certificate, says(), ask)
    assert found == [b"hello"] * 3
    assert len(server.asked) == 2
    assert server.asked[0].startswith("GET /key.pem HTTP/1.1\r\n")
    assert "localhost" in server.asked[0]


def test_a_name_that_leads_to_a_private_address_is_not_connected_to(certificate):
    why, server = refused(certificate, says(), private=False)
    assert "not public" in why
    assert server.asked == []
    assert server.most_open == 0


def test_a_redirect_is_not_followed(certificate):
    why, server = refused(certificate, says("302 Found", extra="Location: https://localhost/other\r\n"))
    assert "302" in why
    assert len(server.asked) == 1


def test_a_document_without_end_is_not_read_to_its_end(certificate):
    async def endless(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    assert "more than" in refused(certificate, endless)[0]
    assert "more than" in refused(certificate, says(body=b"x" * (MOST_BYTES + 1)))[0]


def test_a_server_that_says_nothing_is_left(certificate, monkeypatch):
    monkeypatch.setattr(fetch, "SECONDS", 0.2)

    async def silent(writer):
        await asyncio.Event().wait()

    assert "did not answer" in refused(certificate, silent)[0]

    async def trickling(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    assert "did not answer" in refused(certificate, trickling)[0]


def test_what_is_not_http_or_another_certificate(certificate, monkeypatch):
    async def nonsense(writer):
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    assert "cannot be read" in refused(certificate, nonsense)[0]

    async def ask(_outside, url):
        with pytest.raises(Unavailable, match="cannot be read"):
            await Outside(private=True).get(url)  # trusts only the authorities of the internet
        with pytest.raises(Unavailable, match="not https"):
            await Outside(private=True).get(url.replace("https", "http"))
        with pytest.raises(Unavailable, match="cannot be read"):
            await Outside(private=True).get("https://no-such-name.invalid/")

    against(certificate, says(), ask)


def test_only_so_many_are_asked_at_once(certificate):
    arrived = asyncio.Event()
    count = 0

    async def together(writer):
        """Answers once as many as may be are there."""
        nonlocal count
        count += 1
        if count >= AT_ONCE:
            arrived.set()
        await arrived.wait()
        await says()(writer)

    async def ask(outside, url):
        return await asyncio.gather(*(outside.get(f"{url}?{n}") for n in range(3 * AT_ONCE)))

    found, server = against(certificate, together, ask)
    assert found == [b"hello"] * 3 * AT_ONCE
    assert len(server.asked) == 3 * AT_ONCE
    assert server.most_open == AT_ONCE


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("52.94.1.1", True),
        ("2600:1f18::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - an address
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::345e:101", True),
        ("2002:7f00:1::", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_what_is_public(address, is_public):
    assert public(address) is is_public
