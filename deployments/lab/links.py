"""The network between the sites: TCP links that can be cut, made deaf or slowed, all in one process.

Each link listens at an address of the one site and carries to an address of the other. It is transparent: while
nothing listens at the far end nothing listens at the near end either, so a dead server looks "refused" through a
link as it does directly. States, which apply at once to existing and to new connections of a route (from, to):

    open   carries
    cut    existing connections are reset, new ones are refused (a firewall that rejects)
    deaf   nothing is closed and new connections are accepted, but no byte passes, nor the end of a stream (a
           firewall that drops)
    slow   ``delay_ms`` later, and at most ``bytes_per_s`` a connection and direction; the first 16 KiB are free,
           so that short questions still pass while a stream of WAL falls behind

Control: a line of JSON on ``$RELIGHT_LAB/links.sock``, answered by one: ``{"get": true}`` or
``{"set": {"from": "east", "to": "west", "state": "slow", "delay_ms": 200, "bytes_per_s": null}}``; without ``from``
or ``to`` it means every site.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routes import STATES, Allowance, Route

Address = tuple[str, int]

CHUNK = 65536
LOOK_S = 0.03
CONNECT_S = 5.0

LAB = (
    ("east", "west", "127.0.2.131:5432", "127.0.1.31:5432"),
    ("east", "west", "127.0.2.132:5432", "127.0.1.32:5432"),
    ("west", "east", "127.0.1.131:5432", "127.0.2.31:5432"),
    ("west", "east", "127.0.1.132:5432", "127.0.2.32:5432"),
    ("east", "west", "127.0.2.180:9000", "127.0.1.80:9000"),
    ("west", "east", "127.0.1.180:9000", "127.0.2.80:9000"),
)


class Link:
    """One listening address and where it leads."""

    def __init__(self, route: Route, near: Address, far: Address) -> None:
        self.route, self.near, self.far = route, near, far
        self.carried = 0
        self.listener: socket.socket | None = None
        self.connections: set[asyncio.Task[None]] = set()

    def tend(self, listening: frozenset[Address]) -> None:
        """Bring the near end in line with the state of the route and with what listens at the far end."""
        state = self.route.state
        if state == "cut":
            self.cut()
        elif state == "deaf" or self.far in listening or ("0.0.0.0", self.far[1]) in listening:  # noqa: S104  compared, not bound
            self._listen()
        else:
            self._close()

    def cut(self) -> None:
        """Refuse from now on, and end what is open in a reset."""
        self._close()
        for task in self.connections:
            task.cancel()

    async def _connect(self) -> socket.socket:
        sock = _tcp()
        try:
            async with asyncio.timeout(CONNECT_S):  # wait_for of Python 3.11 can swallow a cancellation
                await asyncio.get_running_loop().sock_connect(sock, self.far)
        except BaseException:
            sock.close()
            raise
        return sock

    def _listen(self) -> None:
        if self.listener is not None:
            return
        listener = _tcp()  # TCP_NODELAY passes on to what it accepts
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.near)
        listener.listen(128)
        self.listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _close(self) -> None:
        if self.listener is not None:
            asyncio.get_running_loop().remove_reader(self.listener)
            self.listener.close()
            self.listener = None

    def _accept(self, listener: socket.socket) -> None:
        # Not loop.sock_accept: cancelled at the wrong moment it forgets a connection that it has accepted.
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            near, _ = listener.accept()
            near.settimeout(0)
            task = asyncio.ensure_future(self._carry(near))
            self.connections.add(task)
            task.add_done_callback(self.connections.discard)

    async def _carry(self, near: socket.socket) -> None:
        """One connection, from accept to end. Ends in a reset unless both sides closed in order."""
        far: socket.socket | None = None
        orderly = False
        try:
            await self.route.passes()
            far = await self._connect()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(near, far))
                both.create_task(self._pump(far, near))
            orderly = True
        except* OSError:  # reset, refused or timed out: passed on to both sides below
            pass
        finally:
            for sock in (near, far):
                if sock is not None:
                    _end(sock, orderly=orderly)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Carries one direction until its end of stream, which is passed on too."""
        loop = asyncio.get_running_loop()
        allowance = Allowance(self.route)
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=16)

        async def receive() -> None:
            data = b"-"
            while data:
                await self.route.passes()
                data = await loop.sock_recv(source, CHUNK)
                await way.put((loop.time(), data))

        async def deliver() -> None:
            while True:
                sent_at, data = await way.get()
                await self.route.delivered(sent_at)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                rest = memoryview(data)
                while rest:
                    count = await _send_some(sink, rest[: await allowance.take(len(rest))])
                    self.carried += count
                    rest = rest[count:]

        async with asyncio.TaskGroup() as both:
            both.create_task(receive())
            both.create_task(deliver())

    def status(self) -> dict[str, Any]:
        return {
            "from": self.route.origin,
            "to": self.route.destination,
            "near": self.near,
            "far": self.far,
            "state": self.route.state,
            "delay_ms": round(self.route.delay_s * 1000),
            "bytes_per_s": self.route.bytes_per_s,
            "listening": self.listener is not None,
            "connections": len(self.connections),
            "carried_bytes": self.carried,
        }


class Network:
    """All links, and the control over them."""

    def __init__(self, links: Sequence[tuple[str, str, str, str]]) -> None:
        self.routes: dict[tuple[str, str], Route] = {}
        self.links: list[Link] = []
        for origin, destination, near, far in links:
            route = self.routes.setdefault((origin, destination), Route(origin, destination))
            self.links.append(Link(route, _address(near), _address(far)))

    async def run(self, control: socket.socket) -> None:
        """Serves until cancelled. Raises OSError when an address cannot be bound."""
        server = await asyncio.start_unix_server(self._serve, sock=control)
        try:
            while True:
                self.tend()
                await asyncio.sleep(LOOK_S)
        finally:
            server.close()
            open_ones = [task for link in self.links for task in link.connections]
            for link in self.links:
                link.cut()
            await asyncio.gather(*open_ones, return_exceptions=True)

    def tend(self) -> None:
        there = listening()
        for link in self.links:
            link.tend(there)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    answer = self.obey(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError) as e:
                    answer = {"error": f"{type(e).__name__}: {e}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carries out one control message and returns the state of every link. Raises ValueError for a bad one."""
        if "set" in order:
            wish = order["set"]
            if wish["state"] not in STATES:
                raise ValueError(f"state {wish['state']!r}; expected one of {', '.join(STATES)}")
            meant = [r for (o, d), r in self.routes.items() if wish.get("from", o) == o and wish.get("to", d) == d]
            if not meant:
                known = ", ".join(f"{o} to {d}" for o, d in self.routes)
                raise ValueError(f"no links from {wish.get('from')!r} to {wish.get('to')!r}; there are {known}")
            rate = wish.get("bytes_per_s")
            if rate is not None and rate <= 0:
                raise ValueError("bytes_per_s: expected more than 0, or null for no limit")
            for route in meant:
                route.change(wish["state"], float(wish.get("delay_ms") or 0) / 1000, rate)
            self.tend()  # before the order is answered
        elif "get" not in order:
            raise ValueError('expected {"set": {…}} or {"get": true}')
        return {"links": [link.status() for link in self.links]}


def order(control: Path, message: dict[str, Any], timeout_s: float = 2.0) -> dict[str, Any]:
    """Send one control message to a running links process. Raises OSError when none answers, ValueError for its no."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(control))
        sock.sendall(json.dumps(message).encode() + b"\n")
        with sock.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer


def listening() -> frozenset[Address]:
    """Every IPv4 address that something on this machine listens at: proc(5), ``/proc/net/tcp``.

    Asked of the kernel and not by connecting: PostgreSQL forks for every connection, and one that comes while it
    shuts down holds the shutdown up.
    """
    found = set()
    with Path("/proc/net/tcp").open(encoding="ascii") as table:
        next(table)
        for line in table:  # those that listen (state 0A) come first
            _, local, _, state, *_ = line.split(maxsplit=4)
            if state != "0A":
                break
            host, port = local.split(":")
            found.add((socket.inet_ntoa(struct.pack("=I", int(host, 16))), int(port, 16)))
    return frozenset(found)


async def _send_some(sock: socket.socket, data: memoryview) -> int:
    """Send what fits now; when nothing does, 0 once something may. Unlike sendall it heeds a route gone deaf."""
    try:
        return sock.send(data)
    except BlockingIOError:
        free = asyncio.Event()
        asyncio.get_running_loop().add_writer(sock, free.set)
        try:
            await free.wait()
        finally:
            asyncio.get_running_loop().remove_writer(sock)
        return 0


def _tcp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _end(sock: socket.socket, *, orderly: bool) -> None:
    if not orderly:  # SO_LINGER of zero seconds makes close send RST: socket(7)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The network between the sites of the lab.")
    parser.add_argument("--control", type=Path, default=Path(os.environ.get("RELIGHT_LAB", ".")) / "links.sock")
    parser.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="FROM,TO,NEAR,FAR",
        help="east,west,127.0.2.131:5432,127.0.1.31:5432 instead of the lab's own links; may be repeated",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM; exit status 1 when an address cannot be bound."""
    arguments = _arguments(argv)
    links = [tuple(one.split(",")) for one in arguments.link] or LAB

    async def run(control: socket.socket) -> None:
        task = asyncio.ensure_future(Network(links).run(control))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    path: Path = arguments.control
    path.unlink(missing_ok=True)
    status = 0
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(path))
        path.chmod(0o600)
        try:
            asyncio.run(run(control))
        except OSError as failed:
            print(f"links: {failed}", file=sys.stderr)
            status = 1
    path.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
