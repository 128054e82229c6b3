"""Who is called: every connection, datagram and command of one piece of work, heard as it begins.

Python tells of its own sockets and processes by audit events (PEP 578; docs.python.org/3/library/audit_events.html:
``socket.connect``, ``socket.sendto``, ``subprocess.Popen``); libpq is C and opens its sockets itself, so
``tasks.database._session`` tells of those. For AWS, which is known by region, see ``HEARD``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

LISTEN: ContextVar[Callable[[str], None] | None] = ContextVar("listen", default=None)
"""Hears each address (``host:port``, a path, or a command line) of this context right before it is called; what it
raises (an OSError) is what the caller gets: so one finds out who can do without.
"""


def reaching(address: str) -> None:
    """Tell of an address that is about to be called."""
    listen = LISTEN.get()
    if listen is not None:
        listen(address)


@cache
def install() -> None:
    """Begin to hear what Python tells. There is no way back, and it costs next to nothing where nobody listens."""
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto", "subprocess.Popen") or LISTEN.get() is None:
        return
    if event == "subprocess.Popen":
        reaching(" ".join(map(str, args[1])) if isinstance(args[1], list | tuple) else str(args[0]))
        return
    where = args[1]
    if isinstance(where, tuple) and len(where) > 1:
        reaching(f"{where[0]}:{where[1]}")
    elif isinstance(where, str):
        reaching(where)


@dataclass(frozen=True)
class Call:
    """One request that went out: which operation of which service, to which host of which region."""

    service: str
    operation: str
    region: str
    host: str


HEARD: ContextVar[Callable[[Call], None] | None] = ContextVar("heard", default=None)
"""Hears of each call of this context, in whatever thread it is made: for the dependency audit, and for IAM tests."""
