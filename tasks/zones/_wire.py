"""Signed DNS messages over one TCP connection to a primary (RFC 7766, TSIG of RFC 8945), errors in our words."""

from __future__ import annotations

import binascii
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.tsig
import dns.update
from dns._asyncbackend import StreamSocket

from tasks.errors import BadInput, Rejected, Unreachable
from tasks.secrets import resolve
from tasks.variables import expand
from tasks.zones._rfc2136_settings import KeyedZone

_UNSIGNED_REFUSALS = {dns.rcode.REFUSED, dns.rcode.NOTAUTH, dns.rcode.NOTZONE, dns.rcode.FORMERR, dns.rcode.NOTIMP}


class LostReply(Exception):
    """The request was sent and no usable, signed answer came. Never leaves this package."""


def endpoint(text: str) -> tuple[str, int]:
    """``host:port`` with a literal address (``[::1]:53`` for IPv6), variables expanded. Raises BadInput."""
    written = expand(text)
    host, _, port = written.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        raise BadInput(f"DNS server {written!r}: expected address:port, such as 192.0.2.53:53") from None
    if not 0 < number < 65536:
        raise BadInput(f"DNS server {written!r}: port {number} is not between 1 and 65535")
    return host, number


def tsig_key(name: str, secret: str, algorithm: str) -> dns.tsig.Key:
    """The key behind a secret reference (base64, as ``tsig-keygen`` prints it). Raises MissingSecret, BadInput."""
    value = resolve(secret).get_secret_value()
    try:
        return dns.tsig.Key(name, value, algorithm)
    except binascii.Error:
        # The cause is dropped on purpose: it may quote the secret.
        raise BadInput(f"secret {secret}: expected a TSIG secret in base64, as tsig-keygen prints it") from None


@asynccontextmanager
async def connection(server: str, timeout_s: float) -> AsyncIterator[StreamSocket]:
    """A TCP connection to ``address:port``. Raises Unreachable."""
    host, port = endpoint(server)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    backend: Any = dns.asyncbackend.get_backend("asyncio")  # its make_socket carries no types
    try:
        sock = await backend.make_socket(family, socket.SOCK_STREAM, 0, None, (host, port), timeout_s)
    except dns.exception.Timeout:
        raise Unreachable(f"DNS server {host}:{port} did not take a TCP connection in {timeout_s:g} s") from None
    except OSError as e:
        raise Unreachable(
            f"DNS server {host}:{port}: {e.strerror or e}. Is it running, and is TCP to it open from here?"
        ) from e
    try:
        yield sock
    finally:
        await sock.close()


async def exchange(sock: StreamSocket, request: dns.message.Message, timeout_s: float) -> dns.message.Message:
    """Send a signed ``request`` and return the answer, which is signed too or a refusal.

    Raises Rejected when the server does not take our signature, LostReply when there is no usable answer.
    """
    key = request.keyring
    try:
        reply = await dns.asyncquery.tcp(request, "", timeout=timeout_s, sock=sock)
    except dns.tsig.PeerBadKey:
        raise Rejected(
            f"the primary does not know TSIG key {key.name} with {key.algorithm} (BADKEY). Check key_name and"
            " key_algorithm in the system file against the key statement of the server.",
            tsig="BADKEY",
        ) from None
    except dns.tsig.PeerBadSignature:
        raise Rejected(
            f"the primary refused the signature of TSIG key {key.name} (BADSIG): the secret differs from the"
            " server's. Check key_secret.",
            tsig="BADSIG",
        ) from None
    except dns.tsig.PeerBadTime:
        raise Rejected(
            f"the primary refused the time of our TSIG signature (BADTIME): the clocks differ by more than"
            f" {request.tsig[0].fudge if request.tsig else 300} s. Check NTP on both machines.",
            tsig="BADTIME",
        ) from None
    except dns.tsig.PeerError as e:
        raise Rejected(f"the primary refused TSIG key {key.name}: {e}. Check key_algorithm.", tsig=str(e)) from None
    except dns.exception.Timeout:
        raise LostReply(f"no answer within {timeout_s:g} s") from None
    except (dns.exception.DNSException, OSError, EOFError) as e:
        raise LostReply(str(e) or type(e).__name__) from e
    if not reply.had_tsig and reply.rcode() not in _UNSIGNED_REFUSALS:
        raise LostReply(f"the answer ({dns.rcode.to_text(reply.rcode())}) is not signed and cannot be trusted")
    return reply


class Primary:
    """The zone's primary as the settings have it. The secret is read anew for each message."""

    def __init__(self, settings: KeyedZone, component: str) -> None:
        self._settings = settings
        self._component = component

    @property
    def address(self) -> str:
        return expand(self._settings.primary)

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self._component}: primary {self.address}"

    def question(self, name: str, rdtype: str) -> dns.message.Message:
        """A signed, non-recursive question."""
        return self._signed(dns.message.make_query(name, rdtype, flags=dns.flags.Flag(0)))

    def update(self) -> dns.update.UpdateMessage:
        """An empty, signed update of the zone."""
        message = dns.update.UpdateMessage(self._settings.zone)
        self._signed(message)
        return message

    async def transact(self, *messages: dns.message.Message) -> list[dns.message.Message]:
        """Send one after the other over one connection. Raises Unreachable, Rejected, LostReply."""
        timeout_s = self._settings.timeout
        async with connection(self._settings.primary, timeout_s) as sock:
            return [await exchange(sock, message, timeout_s) for message in messages]

    def check_answer(self, reply: dns.message.Message) -> None:
        """Raises Unreachable or Rejected unless ``reply`` is an authoritative answer, be it "no such name"."""
        code = reply.rcode()
        if code == dns.rcode.SERVFAIL:
            raise Unreachable(f"{self.label} failed (SERVFAIL): is zone {self._settings.zone} loaded there?")
        if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise self.refused(dns.rcode.to_text(code))
        if not reply.flags & dns.flags.AA:
            raise self.refused("NOTAUTH")

    def refused(self, rcode: str) -> Rejected:
        """The error for an rcode that says no, with what to check."""
        settings = self._settings
        hint = {
            "REFUSED": f"refuses key {settings.key_name}: check allow-update, update-policy and allow-query there",
            "NOTAUTH": f"is not authoritative for zone {settings.zone} or did not take the TSIG key: check primary,"
            " zone, key_name, key_algorithm and the clocks",
            "NOTZONE": f"says the name is not in zone {settings.zone}: check zone and names",
        }.get(rcode, "did not take the request: look at its log")
        return Rejected(f"{self.label} {hint} ({rcode})", rcode=rcode)

    def _signed(self, message: dns.message.Message) -> dns.message.Message:
        settings = self._settings
        message.use_tsig(tsig_key(settings.key_name, settings.key_secret, settings.key_algorithm))
        return message
