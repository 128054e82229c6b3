"""A connection that never blocks longer than its time-outs, whatever the other side does.

psycopg answers a cancelled query with a cancel request of its own and waits up to 5 s for each half of it, which a
server that was stopped (SIGSTOP) never ends. So a query is never cancelled here: the socket is shut down, the read
ends at once, and the server notices the loss by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.rows import dict_row

from tasks.errors import BadInput, EffectUnknown, RelightError, Unreachable
from tasks.reached import reaching
from tasks.secrets import redact, resolved

T = TypeVar("T")
Row = dict[str, Any]
Connection = AsyncConnection[Row]

_HANG_UP_S = 0.5
"""A read on a socket that was shut down ends in the same turn of the loop; this only guards against a surprise."""


@dataclass(frozen=True)
class Server:
    """Where and how to connect. ``label`` is how errors name it; ``password`` is a reference, resolved at use."""

    label: str
    address: str
    database: str
    user: str
    password: str | None
    connect_timeout_s: float
    query_timeout_s: float
    sslmode: str = "prefer"
    application_name: str = "relight"
    options: str = ""
    """Server settings of the session (``-c name=value``); a pooler takes none."""


class NoConnection(Unreachable):
    """``reach`` says what the failure proves: a refusal by the host, an answer of the server, or nothing (silent)."""

    def __init__(self, message: str, reach: Literal["answers", "refused", "silent"], why: str) -> None:
        super().__init__(message, reach=reach)
        self.reach, self.why = reach, why


class Broken(EffectUnknown):
    """The connection was lost, or the answer did not come in time, after something was sent."""


POLL_S = 0.01


async def poll(probe: Callable[[], Awaitable[T]], good: Callable[[T], bool], limit_s: float) -> T:
    """Ask ``probe`` again until what it finds is ``good``; after ``limit_s`` seconds the last finding, good or not."""
    clock = asyncio.get_running_loop()
    until = clock.time() + limit_s
    while True:
        found = await probe()
        if good(found) or clock.time() >= until:
            return found
        await asyncio.sleep(POLL_S)


def endpoint(address: str) -> tuple[str, int]:
    """``host:port`` -> both. Raises BadInput."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(f"expected host:port, got {address!r}")
    return host.strip("[]"), int(port)


async def ask(server: Server, work: Callable[[Connection], Awaitable[T]], *, timeout_s: float | None = None) -> T:
    """Connect, do ``work`` with the connection (autocommit) and close; all of it within its time-outs.

    Args:
        server: where.
        work: awaits nothing but the connection. Errors that the server reports pass through as psycopg.Error.
        timeout_s: of the work; the server's ``query_timeout_s`` when None.

    Raises:
        NoConnection: nothing was sent.
        Broken: the connection was lost or the time is up; what was sent may have taken effect.
    """
    limit_s = server.query_timeout_s if timeout_s is None else timeout_s
    connection = await _connect(server, limit_s)
    task = asyncio.ensure_future(work(connection))
    try:
        done, _ = await asyncio.wait({task}, timeout=limit_s)
        if not done:
            await _hang_up(connection, task)
            raise Broken(f"{server.label} did not answer within {limit_s:g} s")
        return task.result()
    except asyncio.CancelledError:
        await _hang_up(connection, task)
        raise
    except psycopg.OperationalError as e:
        # The server's own errors carry an SQLSTATE; those of the class 57P mean that it ends this connection.
        if e.sqlstate is None or e.sqlstate.startswith("57P"):
            raise Broken(f"{server.label}: the connection was lost: {said(e)}") from e
        raise
    finally:
        connection.pgconn.finish()


async def _connect(server: Server, query_timeout_s: float) -> Connection:
    host, port = endpoint(server.address)
    password = None if server.password is None else (await resolved(server.password)).get_secret_value()
    try:
        reaching(server.address)
    except OSError as e:
        raise NoConnection(f"{server.label}: {e}", "silent", str(e)) from e
    try:
        async with asyncio.timeout(server.connect_timeout_s):
            return await AsyncConnection.connect(
                host=host,
                port=port,
                dbname=server.database,
                user=server.user,
                password=password,
                application_name=server.application_name,
                sslmode=server.sslmode,
                options=server.options,
                gssencmode="disable",
                keepalives_idle=2,
                keepalives_interval=1,
                keepalives_count=3,
                tcp_user_timeout=max(1, round(1000 * (server.connect_timeout_s + query_timeout_s))),
                autocommit=True,
                prepare_threshold=None,
                row_factory=dict_row,
            )
    except TimeoutError:
        why = f"no answer within {server.connect_timeout_s:g} s"
        raise NoConnection(f"{server.label}: {why}", "silent", why) from None
    except psycopg.OperationalError as e:
        why = said(e)
        reach: Literal["answers", "refused", "silent"]
        # "FATAL" comes from a server (starting up, shutting down, too many clients, wrong password): it is there.
        # An lc_messages that translates the word makes it "silent", which claims less and is therefore safe.
        if "FATAL:" in str(e):
            reach = "answers"
        else:
            reach = "refused" if await _refused(host, port, server.connect_timeout_s) else "silent"
        raise NoConnection(f"{server.label}: {why}", reach, why) from e


async def _refused(host: str, port: int, timeout_s: float) -> bool:
    """Asks the kernel itself: only an ECONNREFUSED (RFC 9293 section 3.5.2, RST in answer to SYN) counts."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return False


async def _hang_up(connection: Connection, task: asyncio.Future[Any]) -> None:
    """End the wait of ``task`` for the server by closing the way to it."""
    if connection.pgconn.status != pq.ConnStatus.BAD:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as way:
            way.shutdown(socket.SHUT_RDWR)
    done, _ = await asyncio.wait({task}, timeout=_HANG_UP_S)
    if not done:
        task.cancel()
    elif not task.cancelled():
        task.exception()  # retrieved: what it says is only that the connection is gone


def said(error: psycopg.Error | RelightError) -> str:
    """The last line of an error, without the addresses that libpq puts before it and without secrets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if "failed:" in line or "FATAL" in line), lines[0] if lines else "")
    return redact(text.rpartition("failed: ")[2].replace("FATAL:", "").strip() or type(error).__name__)
