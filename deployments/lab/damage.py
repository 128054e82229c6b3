"""The effects of the faults. Each returns the UTC moment at which it took effect."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import layout
import nodes
import registry
from links import order
from registry import LabError, Process

GONE_S = 5.0
STOPPED_S, RUNNING_S = 0.3, 0.05


def process(name: str) -> Process:
    """The record of a process that lives. Raises LabError for one that does not."""
    found = registry.find(name)
    if found is None or not registry.alive(found):
        raise LabError(f"process {name} is not running, so nothing can be done to it; see `lab.py status`")
    return found


def send(number: int, pids: Sequence[int]) -> datetime:
    """Signal processes, the first one first, all within microseconds; the moment before the first."""
    held = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            held.append(os.pidfd_open(pid))
    at = datetime.now(UTC)
    for fd in held:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        os.close(fd)
    return at


def kill(processes: Sequence[Process]) -> tuple[datetime, int]:
    """SIGKILL to all and everything they started; returns when none is left, with the count."""
    pids = [pid for one in processes for pid in registry.members(one)]
    at = send(signal.SIGKILL, pids)
    for one in processes:
        registry.destroy(one, GONE_S)  # what was being forked in that moment
    return at, len(pids)


def freeze(one: Process) -> tuple[datetime, int]:
    """SIGSTOP to a process and all it started; returns when the kernel says that every one is stopped."""
    at = send(signal.SIGSTOP, registry.members(one))
    until = time.monotonic() + GONE_S
    while running := [pid for pid in registry.members(one) if state(pid) not in "TtZX"]:
        if time.monotonic() > until:
            raise LabError(f"process {one.name}: {running} did not stop within {GONE_S:.0f} s of SIGSTOP")
        send(signal.SIGSTOP, running)  # what was forked in that moment
    return at, len(registry.members(one))


def state(pid: int) -> str:
    """One letter of proc(5): ``T`` is stopped; ``X`` also for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][0]
    except OSError:
        return "X"


def links(state: str, origin: str | None = None, destination: str | None = None, **more: Any) -> datetime:
    """Change the links of a route, or of all. Raises OSError when the links process does not answer."""
    wish: dict[str, Any] = {"state": state, **{key: value for key, value in more.items() if value is not None}}
    if origin:
        wish["from"] = origin
    if destination:
        wish["to"] = destination
    at = datetime.now(UTC)
    order(registry.home() / "links.sock", {"set": wish})
    return at


def unlink(path: Path) -> datetime:
    """Remove a file. Raises LabError when it is not there."""
    at = datetime.now(UTC)
    try:
        path.unlink()
    except FileNotFoundError as e:
        raise LabError(f"{path} is already gone; heal first") from e
    return at


def site_gone(site: str) -> tuple[datetime, int]:
    """Every process of the site at once, its hosts out of reach, its links cut. The count of processes."""
    there = [one for one in registry.all() if one.site == site and registry.alive(one)]
    if not there:
        raise LabError(f"site {site} has no running process; it is gone already")
    (registry.home() / site / "unreachable").touch()
    pids = [pid for one in there for pid in registry.members(one)]
    at = send(signal.SIGKILL, pids)
    links("cut")
    for one in there:
        registry.destroy(one, GONE_S)
    return at, len(pids)


def kill_app(site: str, app: str | None) -> tuple[datetime, str]:
    """One application server of the site: ``app``, or the first that runs."""
    servers = {}
    for pid in registry.members(process(f"{site}-supervisord")):
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if word.startswith(b"NAME="):
                    servers[word.removeprefix(b"NAME=").decode()] = pid
    name = app or min(servers, default="")
    if name not in servers:
        raise LabError(f"application server {name or 'any'} of {site} is not running; running: {sorted(servers)}")
    pid = servers[name]
    fd = os.pidfd_open(pid)
    at = send(signal.SIGKILL, [pid])
    select.select([fd], [], [], GONE_S)
    os.close(fd)
    return at, name


def data_folder(one: Process) -> Path:
    """PostgreSQL's data directory, from its command line."""
    return Path(one.argv[one.argv.index("-D") + 1])


def old_primary() -> str:
    """The dead node whose data says that it was a primary. Raises LabError unless there is exactly one."""
    dead = []
    for name in layout.NODES:
        found = registry.find(name)
        if found and not registry.alive(found) and not (data_folder(found) / "standby.signal").exists():
            dead.append(name)
    if len(dead) != 1:
        raise LabError(f"expected one dead former primary, found {dead or 'none'}; name it with --node")
    return dead[0]


def give_back(name: str) -> datetime:
    """Start a dead database node exactly as it was, and return when it answers as a primary."""
    found = registry.find(name)
    if found is None or registry.alive(found):
        raise LabError(f"{name} is not a dead node of this lab; nothing to give back")
    if (data_folder(found) / "standby.signal").exists():
        raise LabError(f"{name} was a replica when it died; expected a former primary")
    node = next(n for n in nodes.nodes() if n.name == name)
    registry.restart(found)
    until = time.monotonic() + 20
    while nodes.is_primary(node) is None:
        again = registry.find(name)
        if time.monotonic() > until or again is None or not registry.alive(again):
            raise LabError(f"{name} did not come back; see {found.log}")
        time.sleep(0.02)
    return datetime.now(UTC)


def stop_standby(name: str) -> datetime:
    """A fast shutdown of a replica. Raises LabError when the node is no replica at this moment."""
    one = process(name)
    node = next(n for n in nodes.nodes() if n.name == name)
    if nodes.is_primary(node) is not False:
        raise LabError(f"{name} does not answer as a replica; stop-standby leaves it alone")
    at = datetime.now(UTC)
    registry.stop(one, 10, signal.SIGINT)
    return at


def slow(one: Process) -> datetime:
    """Start the process that stops and continues ``one`` in turn; ``heal`` ends it."""
    script = Path(__file__).with_name("faults.py")
    registry.start(f"slow-{one.name}", "ops", [sys.executable, str(script), "duty", one.name], env={})
    until = time.monotonic() + GONE_S
    while state(one.pid) != "T":
        if time.monotonic() > until:
            raise LabError(f"{one.name} was not slowed within {GONE_S:.0f} s; see the log of slow-{one.name}")
        time.sleep(0.002)
    return datetime.now(UTC)


def duty(name: str) -> None:
    """Stop node ``name`` 300 ms, let it run 50 ms, and so on until SIGTERM; leaves it running."""
    one = process(name)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    pids: tuple[int, ...] = ()
    try:
        while registry.alive(one) and not ending.is_set():
            pids = registry.members(one)
            send(signal.SIGSTOP, pids)
            ending.wait(STOPPED_S)
            send(signal.SIGCONT, pids)
            ending.wait(RUNNING_S)
    finally:
        send(signal.SIGCONT, registry.members(one))
