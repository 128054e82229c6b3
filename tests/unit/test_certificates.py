"""The audit's look at certificates, as real TLS servers on loopback serve them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flows.reviews import annual, looking

NOW = datetime(2026, 11, 26, 6, tzinfo=UTC)
HOST = "127.0.0.1"
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    monkeypatch.setattr(looking, "CONNECT_S", 60.0)


def made(days, *names):
    """A certificate that ends so many days from now, for ``names`` (addresses too)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])  # which counts for nothing any more
    building = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
    building = building.serial_number(x509.random_serial_number()).not_valid_before(NOW - timedelta(days=400))
    building = building.not_valid_after(NOW + timedelta(days=days, hours=1))
    if names:
        others = [x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
        building = building.add_extension(x509.SubjectAlternativeName(others), critical=False)
    return building.sign(KEY, hashes.SHA256())


def context(folder, certificate):
    file = folder / "server.pem"
    private = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(file)
    return found


def audited(serving, host=HOST):
    """(rows, findings by key without the port) of one server of the system file."""

    async def silent(reader, writer):
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async def main():
        server = await asyncio.start_server(silent, HOST, 0, ssl=serving)
        port = server.sockets[0].getsockname()[1]
        component = SimpleNamespace(settings={"check": f"https://{host}:{port}/healthz"})
        async with server:
            rows, findings = await annual._certificates(SimpleNamespace(components={"cdn": component}), NOW)
        return rows, {f.key.replace(f":{port}", ""): f for f in findings}

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("days", "severity", "title", "evidence"),
    [
        (-3, "critical", "ended on 2026-11-23", "2 days ago"),
        (13, "critical", "ends on 2026-12-09", "13 days are left"),
        (59, "warning", "ends on 2027-01-24", "59 days are left"),
    ],
)
def test_one_that_ended_or_will_soon(tmp_path, days, severity, title, evidence):
    rows, found = audited(context(tmp_path, made(days, HOST)))
    (only,) = found.values()
    assert (only.severity, title in only.title, only.evidence) == (severity, True, evidence)
    assert rows[0][1] == (NOW + timedelta(days=days)).date().isoformat()


def test_one_that_is_fine_is_no_finding(tmp_path):
    rows, found = audited(context(tmp_path, made(90, HOST, "venue.example")))
    assert (found, rows[0][1]) == ({}, "2027-02-24")
    assert audited(context(tmp_path, made(90, "localhost")), "localhost")[1] == {}


@pytest.mark.parametrize(("names", "said"), [(("other.example",), "it is for other.example"), ((), "it is for nobody")])
def test_one_for_another_name_is_a_warning_beside_its_end(tmp_path, names, said):
    _, found = audited(context(tmp_path, made(2, *names)))
    assert found[f"certificate {HOST}"].severity == "critical"
    assert found[f"certificate {HOST} name"].severity == "warning"
    assert said in found[f"certificate {HOST} name"].evidence


def test_a_star_is_one_label():
    def fits(host, *names):
        return looking.read_certificate(made(9, *names).public_bytes(serialization.Encoding.DER), host).fits

    assert fits("www.venue.example", "*.venue.example")
    assert fits("WWW.Venue.example.", "www.venue.example")
    assert not fits("a.www.venue.example", "*.venue.example")
    assert not fits("venue.example", "*.venue.example")
    assert not fits("127.0.0.2", HOST)


def test_a_server_without_tls_one_that_is_gone_and_one_that_never_answers_are_unknown(monkeypatch):
    monkeypatch.setattr(looking, "CONNECT_S", 0.3)
    rows, found = audited(None)  # takes the connection, and never says a word
    assert found[f"certificate {HOST}"].severity == "unknown"
    assert rows[0][1].startswith("no TLS connection")

    async def gone():
        server = await asyncio.start_server(lambda _r, w: w.close(), HOST, 0)
        port = server.sockets[0].getsockname()[1]
        closed = await looking.certificate(HOST, port)
        server.close()
        await server.wait_closed()
        return closed, await looking.certificate(HOST, port)

    assert all(isinstance(why, str) and why.startswith("no TLS connection") for why in asyncio.run(gone()))
