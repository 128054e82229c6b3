"""A client of the application: resolves the public name, writes an event and reads it back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tasks.clock import Clock
from tasks.contract import Facts
from tasks.errors import NotYet, Rejected, Unreachable
from tasks.network import Ask, Network


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

    ``scheme``: ``http`` or ``https``, where the certificate must be ``host``'s, whatever the address is called.
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
    network: Network
    scheme: str = "http"

    async def write_and_read(self, address: str, n: int) -> Receipt:
        """Write event ``n`` and read it back, each on a connection of its own. Raises NotYet, Rejected.

        A write whose reply is lost is NotYet as well: each event is written under a number of its own, so that
        another attempt doubles nothing.
        """
        payload = f"relight {self.client_id} {n}"
        body = json.dumps({"n": n, "client": self.client_id, "payload": payload}).encode()
        started_s = self.clock.monotonic()
        written = await self._ask("POST", address, self.write_path, body)
        middle_s = self.clock.monotonic()
        path = self.read_path.replace("{client}", self.client_id).replace("{n}", str(n))
        read = await self._ask("GET", address, path)
        if read.get("payload") != payload:
            raise Rejected(f"{address}{path}: read back {read.get('payload')!r}, but {payload!r} was acknowledged")
        site, app, node = (_text(written, key) for key in ("site", "app", "node"))
        return Receipt(address, site, app, node, middle_s - started_s, self.clock.monotonic() - middle_s)

    async def _ask(self, method: str, address: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The answer's JSON object; 5xx, 404 (not there yet) and silence are NotYet, everything else Rejected."""
        url = f"{self.scheme}://{f'[{address}]' if ':' in address else address}:{self.port}{path}"
        what = f"{method} {url} as {self.host}"
        host = self.host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{self.host}:{self.port}"
        headers = {} if body is None else {"Content-Type": "application/json"}
        within_s = max(0.0, min(self.within_s, self.until_s - self.clock.monotonic()))
        try:
            answer = await self.network.http(Ask(method, url, host, headers, body), within_s=within_s)
        except Unreachable as e:
            raise NotYet(f"{what}: {e.message}") from e
        said = answer.text[:200].strip()
        if answer.status >= 500 or answer.status in (404, 429):
            raise NotYet(f"{what}: HTTP {answer.status} {said}")
        if not answer.good:
            raise Rejected(f"{what}: HTTP {answer.status} {said}; expected 2xx")
        try:
            found = json.loads(answer.text)
        except ValueError as e:
            raise Rejected(f"{what}: the answer is no JSON: {answer.text[:80]!r}") from e
        if not isinstance(found, dict):
            raise Rejected(f"{what}: expected a JSON object, got {answer.text[:80]!r}")
        return found


async def resolve(network: Network, name: str, resolver: str | None, within_s: float) -> tuple[str, ...]:
    """The IPv4 addresses of ``name`` as ``resolver`` (``host:port``; None: the system's) gives them. Raises NotYet."""
    try:
        return await network.lookup(name, resolver, within_s=within_s)
    except Unreachable as e:  # NXDOMAIN, no data, SERVFAIL, no answer: all may change while DNS moves
        raise NotYet(f"{name} at {resolver or 'the system resolver'}: {e.message}") from e


def _text(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    return value if isinstance(value, str) else None
