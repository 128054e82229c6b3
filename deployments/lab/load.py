"""The load client: numbered writes through the public name, all the time, and a record of what became of each.

    load.py run --for 30s          write until the time is up or SIGTERM comes; summary on stdout and beside the record
    load.py start | stop           the same in the background (process "load" of the lab)
    load.py count [--acks FILE]    hold the record against the current primary

A number is never sent twice: where no usable answer came it stays unknown. Half of the workers move to another
address as soon as the TTL of the old answer ran out; the other half stay on their kept-alive connection until it
breaks, as browsers and connection pools do. A failed connection makes both resolve again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rdatatype
import httpx
import psycopg
import registry
import tally
from nodes import Node, connect, primary

# Never sent, so never written. Anything else that goes wrong after this leaves the write unknown.
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class NoAddress(Exception):
    """The public name does not resolve."""


@dataclass(frozen=True)
class Plan:
    """What to do: ``rate`` in writes a second over all ``workers``, durations in seconds (``for_s`` None: no end)."""

    acks: Path
    client: str
    name: str
    resolver: tuple[str, int]
    port: int
    rate: float
    workers: int
    for_s: float | None
    timeout_s: float


class PublicName:
    """The public DNS name through the lab's caching resolver, kept for the TTL of its answer and no longer."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._address = ""
        self._failed: NoAddress | None = None
        self._ended_at = 0.0
        self._until = 0.0
        self._asking = asyncio.Lock()

    async def address(self, *, again: bool = False) -> str:
        """Raises NoAddress. ``again`` asks the resolver although the TTL has not run out."""
        wanted_at = time.monotonic()
        async with self._asking:
            # Another worker may have asked while this one waited for the lock: its answer, good or bad, will do.
            if self._ended_at < wanted_at and (again or wanted_at >= self._until):
                self._failed = None
                try:
                    await self._ask()
                except NoAddress as e:
                    self._failed, self._until = e, 0.0
                self._ended_at = time.monotonic()
            if self._failed is not None:
                raise self._failed
            return self._address

    async def _ask(self) -> None:
        host, port = self._plan.resolver
        question = dns.message.make_query(self._plan.name, dns.rdatatype.A)
        try:
            answer = await dns.asyncquery.udp(question, host, port=port, timeout=1.0)
        except (dns.exception.DNSException, OSError) as e:
            raise NoAddress(f"{self._plan.name} at {host}:{port}: {type(e).__name__}") from e
        found = [(rrset.ttl, item.address) for rrset in answer.answer for item in rrset if item.rdtype == 1]
        if not found:
            raise NoAddress(f"{self._plan.name} at {host}:{port}: {answer.rcode().name}, no address")
        ttl, self._address = found[0]
        self._until = time.monotonic() + ttl


class Load:
    """The workers, and the record they share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stopping = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._name = PublicName(plan)
        self._n = 0
        # One for all: httpx would load the certificates once a worker, though nothing here is https.
        self._tls = ssl.create_default_context()
        self._next_at = time.monotonic()
        # Anchored once: a step of the wall clock must not make a gap between acknowledgements.
        self._anchor = datetime.now(UTC) - timedelta(seconds=time.monotonic())
        self._file = os.open(plan.acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)
        self._write({"client": plan.client, "started_at": self._now(), "rate": plan.rate, "workers": plan.workers})

    def _now(self) -> str:
        return (self._anchor + timedelta(seconds=time.monotonic())).isoformat()

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")

    async def run(self) -> dict[str, Any]:
        """Writes until ``stopping`` is set or the time is up; returns the summary."""
        async with asyncio.TaskGroup() as workers:
            for number in range(self.plan.workers):
                workers.create_task(self._work(stays=number % 2 == 1))
            if self.plan.for_s is not None:
                workers.create_task(self._end_after(self.plan.for_s))
        os.close(self._file)
        record = tally.read(self.plan.acks)
        return {
            "client": self.plan.client,
            "acks": str(self.plan.acks),
            "written": self._n,
            **tally.outcomes(record.attempts),
            "reasons": dict(self.reasons.most_common(10)),
            **tally.outage(record),
        }

    async def _end_after(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            self.stopping.set()

    async def _turn(self) -> bool:
        """Waits for this worker's turn; False when the run ends. What was missed is not made up for in a burst."""
        now = time.monotonic()
        self._next_at = max(self._next_at + 1 / self.plan.rate, now)
        try:
            await asyncio.wait_for(self.stopping.wait(), self._next_at - now)
        except TimeoutError:
            return True
        return False

    async def _work(self, *, stays: bool) -> None:
        timeout = httpx.Timeout(self.plan.timeout_s, connect=1.0)
        limits = httpx.Limits(max_connections=1, keepalive_expiry=60)
        address, again = "", False
        async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False, verify=self._tls) as client:
            while await self._turn():
                self._n += 1
                line: dict[str, Any] = {"n": self._n, "sent_at": self._now()}
                try:
                    if again or not stays or not address:
                        address = await self._name.address(again=again)
                    again = False
                    line |= await self._post(client, address, line["n"])
                except (NoAddress, *NOT_SENT) as e:
                    line |= {"outcome": "refused", "reason": f"{type(e).__name__}: {e}"}
                    again = True
                except httpx.TransportError as e:
                    line |= {"outcome": "unknown", "reason": f"{type(e).__name__}: {e}"}
                    again = True
                line["answered_at"] = self._now()
                self.outcomes[line["outcome"]] += 1
                if "reason" in line:
                    self.reasons[line["reason"][:120]] += 1
                self._write(line)

    async def _post(self, client: httpx.AsyncClient, address: str, n: int) -> dict[str, Any]:
        response = await client.post(
            f"http://{address}:{self.plan.port}/events",
            headers={"host": self.plan.name.rstrip(".")},
            json={"n": n, "client": self.plan.client, "payload": {"via": address}},
        )
        try:
            body = response.json()
        except ValueError:
            body = {}
        line = {"status": response.status_code, "via": address}
        line |= {key: body[key] for key in ("node", "site", "app") if key in body}
        if response.status_code == 201:
            return {**line, "outcome": "acked"}
        # The balancer's own 503 (no JSON) says that no server could be reached; its 502 and 504 come after sending.
        state = body.get("state", "refused" if response.status_code in (400, 503) else "unknown")
        reason = f"{response.status_code}: {body.get('reason', response.reason_phrase)}"
        return {**line, "outcome": state, "reason": reason}


def count(acks: Path, since: datetime | None, node: Node | None = None) -> dict[str, Any]:
    """The tally against the current primary. Raises LabError when there is not exactly one."""
    where = node or primary()
    record = tally.read(acks)
    with connect(where) as connection:
        rows = connection.execute(
            "SELECT n, count(*) FROM events WHERE client = %s GROUP BY n", (record.client,)
        ).fetchall()
    return {**tally.compare(record, {int(n): int(c) for n, c in rows}), **tally.outage(record, since), "at": where.name}


def start(arguments: Sequence[str]) -> Path:
    """Start the load in the background; returns its record. Raises LabError when it already runs."""
    acks = _new_record()
    registry.start(
        "load", "ops", [sys.executable, str(Path(__file__).resolve()), "run", "--acks", str(acks), *arguments], env={}
    )
    latest = acks.parent / "latest.jsonl"
    part = latest.with_suffix(".part")
    part.unlink(missing_ok=True)
    part.symlink_to(acks.name)
    part.replace(latest)
    return acks


def stop(timeout_s: float = 10.0) -> dict[str, Any]:
    """End the load in the background and return its summary. Raises LabError when there is none."""
    process = registry.find("load")
    if process is None:
        raise registry.LabError("no load was started here; start it with: load.py start")
    registry.stop(process, timeout_s, signal.SIGTERM)
    registry.forget(process)
    acks = Path(process.argv[process.argv.index("--acks") + 1])
    summary = acks.with_suffix(".summary.json")
    if not summary.exists():
        raise registry.LabError(f"the load ended without a summary; see {process.log}")
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return found


def _new_record() -> Path:
    folder = registry.home() / "load"
    folder.mkdir(mode=0o711, exist_ok=True)
    return folder / f"load-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.jsonl"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a duration such as 500ms, 30s, 5m")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def _rate(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/s)?", text)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}; expected writes a second such as 100/s")
    return float(match[1])


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected ISO 8601 with its offset, such as …T10:00:00+00:00")
    return found


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The load client of the lab.")
    commands = parser.add_subparsers(dest="command", required=True)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--rate", type=_rate, default=100.0, metavar="100/s")
    options.add_argument("--workers", type=int, default=8)
    options.add_argument("--for", dest="for_s", type=_seconds, metavar="30s", help="default: until SIGTERM")
    options.add_argument("--timeout", type=_seconds, default=5.0, metavar="5s", help="for one answer")
    options.add_argument("--name", default="app.venue.test.")
    options.add_argument("--resolver", type=_endpoint, default=("127.0.3.55", 5300), metavar="HOST:PORT")
    options.add_argument("--port", type=int, default=8080)
    run = commands.add_parser("run", parents=[options], help="write until the time is up or SIGTERM comes")
    run.add_argument("--acks", type=Path, help="the record to create")
    commands.add_parser("start", parents=[options], help="run in the background")
    commands.add_parser("stop", help="end it and print its summary")
    counting = commands.add_parser("count", help="hold the record against the current primary")
    counting.add_argument("--acks", type=Path, help="default: the newest that load.py start made")
    counting.add_argument("--since", type=_moment, metavar="ISO", help="when the fault came")
    counting.add_argument("--node", metavar="NAME=HOST:PORT", help="count there instead of at the lab's primary")
    counting.add_argument("--json", action="store_true", help="on one line")
    return parser.parse_args(argv)


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    acks = arguments.acks or _new_record()
    keys = ("name", "resolver", "port", "rate", "workers", "for_s")
    plan = Plan(
        acks=acks, client=acks.stem, timeout_s=arguments.timeout, **{key: getattr(arguments, key) for key in keys}
    )
    load = Load(plan)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, load.stopping.set)
    return await load.run()


def _node(text: str | None) -> Node | None:
    if text is None:
        return None
    name, _, address = text.partition("=")
    return Node(name, "", *_endpoint(address))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 with one line on stderr when the lab cannot do what was asked."""
    arguments = _arguments(argv)
    try:
        match arguments.command:
            case "run":
                found = asyncio.run(_run(arguments))
                text = json.dumps(found, indent=2)
                summary = Path(found["acks"]).with_suffix(".summary.json")
                summary.write_text(text + "\n", encoding="utf-8")
            case "start":
                given = list(argv if argv is not None else sys.argv[1:])
                text = str(start(given[given.index("start") + 1 :]))
            case "stop":
                text = json.dumps(stop(), indent=2)
            case _:
                acks = arguments.acks or registry.home() / "load" / "latest.jsonl"
                text = json.dumps(
                    count(acks, arguments.since, _node(arguments.node)), indent=None if arguments.json else 2
                )
    except (registry.LabError, psycopg.OperationalError, OSError) as e:
        print(f"load: {e}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
