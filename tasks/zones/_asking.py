"""One question to one server, over UDP and by TCP when truncated, as clients ask."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import dns.asyncquery
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode

from tasks.errors import BadInput
from tasks.variables import expand
from tasks.zones import _records as records
from tasks.zones._wire import endpoint
from tasks.zones.protocol import Answer


@dataclass(frozen=True)
class Asking:
    """``zone``: the server is one of its own, asked without recursion, and for its serial; None: a resolver."""

    zone: str | None
    timeout_s: float


async def asked(server: str, name: str, rdtype: str, how: Asking) -> Answer:
    """What ``server`` (``host:port``; host a literal address, or a name) says. Never raises for one that is down."""
    flags = dns.flags.RD if how.zone is None else dns.flags.Flag(0)
    questions = [(name, rdtype)] + ([] if how.zone is None else [(how.zone, "SOA")])
    try:
        async with asyncio.timeout(how.timeout_s):
            host, port = await _located(server)
            queries = (dns.message.make_query(n, t, use_edns=0, flags=flags) for n, t in questions)
            replies = await asyncio.gather(
                *(dns.asyncquery.udp_with_fallback(q, host, timeout=how.timeout_s, port=port) for q in queries)
            )
    except (TimeoutError, dns.exception.Timeout):
        return Answer(server, "", None, error=f"no answer within {how.timeout_s:g} s")
    except (dns.exception.DNSException, OSError, EOFError, BadInput) as e:
        return Answer(server, "", None, error=str(e) or type(e).__name__)
    reply = replies[0][0]
    rcode = dns.rcode.to_text(reply.rcode())
    usable = reply.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
    return Answer(
        server=server,
        rcode=rcode,
        rrset=records.rrset_in(reply, rdtype) if usable else None,
        serial=None if how.zone is None else records.serial_in(replies[1][0]),
        authoritative=bool(reply.flags & dns.flags.AA),
        error="" if usable else f"answered {rcode}",
        note="; ".join(o.to_text() for o in reply.options if o.otype == dns.edns.OptionType.EDE),
    )


async def _located(server: str) -> tuple[str, int]:
    """Raises BadInput for what is no server, OSError for a name that does not resolve."""
    try:
        return endpoint(server)
    except BadInput:
        host, _, port = expand(server).rpartition(":")
        if not (host and port.isdecimal() and any(c.isalpha() for c in host) and ":" not in host):
            raise
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
    return str(found[0][4][0]), int(port)
