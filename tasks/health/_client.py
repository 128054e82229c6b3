"""A client of the application: resolves the public name, writes an event and reads it back.

Sources: RFC 9110 section 7.2 (Host), RFC 1034 section 5 (what a stub resolver does).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.resolver
import httpx

from tasks.clock import Clock
from tasks.contract import Facts
from tasks.errors import NotYet, Rejected
from tasks.health._probes import split


@dataclass(frozen=True)
class Receipt:
    """A write that was acknowledged and read back through one address."""

    address: str
    site: str | None
    app: str | None
    node: str | None
    write_s: float
    read_s: float

    def facts(self) -> Facts:
        return {
            "address": self.address,
            "site": self.site,
            "app": self.app,
            "node": self.node,
            "write_s": round(self.write_s, 4),
            "read_s": round(self.read_s, 4),
        }


@dataclass(frozen=True)
class Client:
    """Who writes what where.

    ``within_s`` bounds each single request, and none goes on past ``until_s`` of the clock; ``host`` goes into the
    Host header.
    """

    host: str
    port: int
    client_id: str
    write_path: str
    read_path: str
    within_s: float
    until_s: float
    clock: Clock

    async def write_and_read(self, address: str, n: int) -> Receipt:
        """Write event ``n`` and read it back, on one new connection. Raises NotYet, Rejected.

        A write whose reply is lost is NotYet as well: each event is written under a number of its own, so that
        another attempt doubles nothing.
        """
        payload = f"relight {self.client_id} {n}"
        async with httpx.AsyncClient(timeout=self.within_s, trust_env=False) as http:
            body = json.dumps({"n": n, "client": self.client_id, "payload": payload}).encode()
            started_s = self.clock.monotonic()
            written = await self._ask(http, "POST", address, self.write_path, body)
            middle_s = self.clock.monotonic()
            path = self.read_path.replace("{client}", self.client_id).replace("{n}", str(n))
            read = await self._ask(http, "GET", address, path)
        if read.get("payload") != payload:
            raise Rejected(f"{address}{path}: read back {read.get('payload')!r}, but {payload!r} was acknowledged")
        site, app, node = (_text(written, key) for key in ("site", "app", "node"))
        return Receipt(address, site, app, node, middle_s - started_s, self.clock.monotonic() - middle_s)

    async def _ask(
        self, http: httpx.AsyncClient, method: str, address: str, path: str, body: bytes | None = None
    ) -> dict[str, Any]:
        """The answer's JSON object; 5xx, 404 (not there yet) and silence are NotYet, everything else Rejected."""
        url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}{path}"
        what = f"{method} {url} as {self.host}"
        headers = {"Host": self.host if self.port == 80 else f"{self.host}:{self.port}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        within_s = max(0.0, min(self.within_s, self.until_s - self.clock.monotonic()))
        try:
            async with asyncio.timeout(within_s):
                answer = await http.request(method, url, content=body, headers=headers)
        except TimeoutError:
            raise NotYet(f"{what}: no answer within {within_s:.2g} s") from None
        except httpx.HTTPError as e:
            raise NotYet(f"{what}: {str(e) or type(e).__name__}") from e
        if answer.status_code >= 500 or answer.status_code in (404, 429):
            raise NotYet(f"{what}: HTTP {answer.status_code} {answer.text[:200].strip()}")
        if not answer.is_success:
            raise Rejected(f"{what}: HTTP {answer.status_code} {answer.text[:200].strip()}; expected 2xx")
        try:
            found = answer.json()
        except ValueError as e:
            raise Rejected(f"{what}: the answer is no JSON: {answer.text[:80]!r}") from e
        if not isinstance(found, dict):
            raise Rejected(f"{what}: expected a JSON object, got {answer.text[:80]!r}")
        return found


async def resolve(name: str, resolver: str | None, within_s: float) -> tuple[str, ...]:
    """The IPv4 addresses of ``name`` as ``resolver`` (``host:port``; None: the system's) gives them. Raises NotYet."""
    asked = resolver or "the system's resolver"
    try:
        stub = dns.asyncresolver.Resolver(configure=resolver is None)
        if resolver is not None:
            host, stub.port = split(resolver)
            stub.nameservers = [host]
        answer = await stub.resolve(name, "A", lifetime=within_s, search=False)
    except dns.exception.DNSException as e:  # NXDOMAIN, no data, SERVFAIL, no answer: all may change while DNS moves
        raise NotYet(f"{name} at {asked}: {e}") from e
    except OSError as e:
        raise NotYet(f"{name} at {asked}: {e.strerror or e}") from e
    return tuple(sorted(str(record) for record in answer))


def _text(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    return value if isinstance(value, str) else None
