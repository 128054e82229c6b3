"""Questions that tell whether a lab process answers for real. Each raises OSError or NotReady until it does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import psycopg
from layout import DATABASE, PG_PORT, NotReady, net, node_host, secret

TIMEOUT_S = 2.0


async def http(address: str, path: str, method: str = "GET", body: bytes = b"", host: str = "") -> tuple[int, bytes]:
    """One HTTP exchange with ``host:port``; status and body. Raises OSError or NotReady."""
    name, _, port = address.rpartition(":")
    # HTTP/1.0, because its answers come in one piece: the body ends where the connection does (RFC 1945, 7.2.2).
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(name, int(port))
            try:
                head = (
                    f"{method} {path} HTTP/1.0\r\nHost: {host or address}\r\nContent-Length: {len(body)}\r\n"
                    "Content-Type: application/json\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                answer = await reader.read()
            finally:
                writer.close()
    except TimeoutError as e:
        raise NotReady(f"http://{address}{path}: no answer within {TIMEOUT_S:g} s") from e
    first, _, rest = answer.partition(b"\r\n")
    if not first.startswith(b"HTTP/1."):
        raise NotReady(f"http://{address}{path}: closed without an answer")
    return int(first.split()[1]), rest.partition(b"\r\n\r\n")[2]


async def http_ok(address: str, path: str, want: bytes = b"") -> None:
    """Status 200 and ``want`` somewhere in the body."""
    status, body = await http(address, path)
    if status != 200 or want not in body:
        raise NotReady(f"http://{address}{path}: status {status}, expected 200 with {want.decode()!r}")


async def sql(  # noqa: PLR0913  where, what and as whom
    host: str, port: int, query: str, user: str = "postgres", database: str = DATABASE, *, password_of: str = ""
) -> list[tuple[Any, ...]]:
    """Rows of one query; ``password_of``: the name of the secret, where it is not the user's. Raises NotReady for
    every failure to connect or to answer.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            connection = await psycopg.AsyncConnection.connect(
                host=host,
                port=port,
                dbname=database,
                user=user,
                password=secret(password_of or user),
                autocommit=True,
                prepare_threshold=None,
            )
            async with connection:
                cursor = await connection.execute(query)
                return await cursor.fetchall()
    except (psycopg.Error, TimeoutError) as e:
        raise NotReady(f"postgresql {host}:{port} {database}: {type(e).__name__} {str(e).strip()}") from e


async def node(name: str) -> None:
    """The PostgreSQL node accepts queries."""
    await sql(node_host(name), PG_PORT, "SELECT 1")


async def standbys(primary: str, expected: dict[str, str]) -> None:
    """``expected``: application_name -> sync_state; all of them stream from ``primary``, each through its slot."""
    rows = await sql(
        node_host(primary),
        PG_PORT,
        "SELECT application_name, sync_state FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid "
        "WHERE state = 'streaming'",
    )
    if dict(rows) != expected:
        raise NotReady(f"{primary} streams to {dict(rows)}; expected {expected}")


async def listening(address: str) -> None:
    """A TCP connection can be made."""
    name, _, port = address.rpartition(":")
    _, writer = await asyncio.wait_for(asyncio.open_connection(name, int(port)), TIMEOUT_S)
    writer.close()


async def unix(path: Path, send: bytes = b"") -> bytes:
    """A Unix socket accepts; what it answers to ``send`` until it closes."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(send)
                return await reader.read() if send else b""
            finally:
                writer.close()
    except TimeoutError as e:
        raise NotReady(f"{path}: no answer within {TIMEOUT_S:g} s") from e


async def dns_answer(server: str, name: str, rdtype: str, want: str) -> None:
    """``server`` (``host:port``, UDP) answers ``name`` with a record set that holds ``want``."""
    host, _, port = server.rpartition(":")
    query = dns.message.make_query(name, rdtype)
    try:
        answer = await dns.asyncquery.udp(query, host, timeout=0.3, port=int(port))
    except (dns.exception.DNSException, OSError) as e:
        raise NotReady(f"dns {server} {name} {rdtype}: {type(e).__name__} {e}") from e
    text = [rdata.to_text() for rrset in answer.answer for rdata in rrset]
    if want not in text:
        raise NotReady(f"dns {server} {name} {rdtype}: {dns.rcode.to_text(answer.rcode())} {text}, expected {want}")


async def targets(address: str, jobs: dict[str, int]) -> None:
    """Prometheus at ``address`` scrapes at least so many healthy targets of each job."""
    _, body = await http(address, "/api/v1/targets?state=active")
    active = json.loads(body or b"{}").get("data", {}).get("activeTargets", [])
    healthy = {job: sum(t["health"] == "up" and t["labels"]["job"] == job for t in active) for job in jobs}
    if any(healthy[job] < least for job, least in jobs.items()):
        raise NotReady(f"prometheus: healthy targets {healthy}; expected at least {jobs}")


def haproxy(site: str) -> str:
    """Address of a site's HTTP front end."""
    return f"{net(site)}.10:8080"
