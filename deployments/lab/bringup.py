"""Starts all of the lab at the same time, waits until it answers for real, and ends it without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import database
import domains
import layout
import monitoring
import ports
import prefect_ui
import probes
import registry
import staging
import storage
import traffic
from layout import NotReady, Options, Part
from registry import LabError

PART_S = 90.0
SYSTEM_S = 60.0
AGAIN_S = 0.03

Say = Callable[[str, str, float], None]
"""(name, address, seconds): one process or condition came true."""


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One ``up`` or ``down`` at a time; the next waits. The kernel lets go of it when the holder dies: flock(2)."""
    with (registry.home() / "lab.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parts(options: Options, template: Path | None = None, staged: Path | None = None) -> list[Part]:
    """Everything that ``options`` ask for; writes their configuration. ``staged``: the template for staging."""
    found = [
        *(database.parts(template) if template else []),
        traffic.links(),
        *storage.parts(),
        *traffic.parts(),
        *domains.parts(),
        *staging.parts(staged),
    ]
    if options.monitoring:
        found += monitoring.parts()
    if options.prefect:
        found.append(prefect_ui.part())
    return found


def up(options: Options, say: Say) -> bool:
    """Bring the lab up. False when it was up already. Raises LabError; then nothing of it is left running."""
    with lock():
        if is_up(options):
            return False
        clean()
        _fresh()
        layout.make_secrets()
        database.configure(options)
        with ThreadPoolExecutor(2) as threads:  # each takes a second where it is not there yet
            everything = parts(options, *threads.map(lambda make: make(), (database.template, staging.template)))
        ports.check_free((part.name, address) for part in everything for address in part.listens)
        try:
            asyncio.run(_start(everything, options, say))
        except* LabError as failed:
            clean()
            raise LabError("\n".join(_messages(failed))) from None
        document = {"options": asdict(options), "processes": [part.name for part in everything]}
        layout.write(registry.home() / "options.json", json.dumps(document))
        return True


def is_up(options: Options) -> bool:
    """The lab was brought up with these options, every process of it still runs, and what others rest on answers.

    Roles do not matter: a lab after a failover is up. One with a fault still in it is not.
    """
    try:
        recorded = json.loads((registry.home() / "options.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    processes = [registry.find(name) for name in recorded["processes"]]
    if recorded["options"] != asdict(options) or not all(p is not None and registry.alive(p) for p in processes):
        return False
    return asyncio.run(_answers())


async def _answers() -> bool:
    asked = [
        *(probes.node(node) for node in layout.NODES),
        *(probes.http_ok(f"{layout.net(site)}.10:8404", "/metrics") for site in layout.SITES),
        staging.serves(),
        *(probes.dns_answer(f"127.0.0.1:{port}", layout.ZONE, "NS", f"ns1.{layout.ZONE}") for port in (5331, 5332)),
    ]
    found = await asyncio.gather(*asked, return_exceptions=True)
    unexpected = [e for e in found if isinstance(e, BaseException) and not isinstance(e, (OSError, NotReady))]
    if unexpected:
        raise unexpected[0]
    return not any(isinstance(e, BaseException) for e in found)


def clean() -> list[str]:
    """End every process of the lab, also what a crashed starter left; names of those that still lived.

    Raises LabError when something is left after SIGKILL.
    """
    (registry.home() / "options.json").unlink(missing_ok=True)
    processes = registry.all()
    with ThreadPoolExecutor(max(1, len(processes))) as threads:
        lived = [p.name for p, was in zip(processes, threads.map(_end, processes), strict=True) if was]
    for pid in registry.strays():
        lived.append(f"unrecorded process {pid}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 5
    while left := registry.strays():
        if time.monotonic() > until:
            raise LabError(f"processes {left} of the lab are still there 5 s after SIGKILL; look at them")
        time.sleep(AGAIN_S)
    return lived


def _end(process: registry.Process) -> bool:
    lived = bool(registry.members(process))
    if lived:
        # The data is made anew by the next `up`, so the database need not write a checkpoint: SIGQUIT.
        quick = process.name in (*layout.NODES, staging.NODE)
        registry.stop(process, 4, signal.SIGQUIT if quick else signal.SIGTERM)
    registry.forget(process)
    return lived


def _fresh() -> None:
    home, kept = registry.home(), (*layout.NODES, staging.NODE)
    for site in (*layout.SITES, layout.STAGING, "ops"):
        for path in layout.folder(site).iterdir():
            # What the nodes hold is put right by copying what differs from the template.
            for old in (p for p in path.iterdir() if p.name != "data") if path.name in kept else (path,):
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    previous = home / "logs.previous"
    shutil.rmtree(previous, ignore_errors=True)
    if (home / "logs").exists():
        (home / "logs").rename(previous)
    layout.folder("logs")
    layout.folder("bin")
    text = f"#!/bin/sh\nRELIGHT_LAB='{home}' exec '{sys.executable}' '{layout.HERE / 'host.py'}' \"$@\"\n"
    layout.write(home / "bin" / "host", text, 0o755)


async def _start(everything: list[Part], options: Options, say: Say) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(everything)))
    began = time.monotonic()
    async with asyncio.TaskGroup() as starting:
        # Prometheus takes its first look 5 s after its start, and Prefect takes longer than the rest: these go first.
        rest = []
        for part in everything:
            if part.name in ("prometheus", "prefect"):
                starting.create_task(_one(part, began, say))
            else:
                rest.append(part)
        # Copies before processes: on two processors the database would get its turn last, and all wait for it.
        await asyncio.gather(*(asyncio.to_thread(part.prepare) for part in rest))
        async with asyncio.TaskGroup() as first:
            going: dict[str, asyncio.Task[None]] = {}
            for part in rest:
                going[part.name] = first.create_task(_one(part, began, say, going.get(part.after)))
        async with asyncio.TaskGroup() as settling:
            for name, ready in _conditions(options).items():
                settling.create_task(_condition(name, ready, began, say))


async def _one(part: Part, began: float, say: Say, before: asyncio.Task[None] | None = None) -> None:
    if before is not None:
        await before
    start = partial(registry.start, part.name, part.site, part.argv, env=part.env, user=part.user, cwd=part.cwd)
    process = await asyncio.to_thread(start)
    ended = asyncio.Event()
    fd = os.pidfd_open(process.pid)
    asyncio.get_running_loop().add_reader(fd, ended.set)
    try:
        why = await _until(part.ready, ended, PART_S)
    finally:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
    if why is not None:
        what = "ended" if ended.is_set() else f"is not ready after {PART_S:.0f} s"
        raise LabError(f"process {part.name} {what}: {why}\n  log {process.log}, last lines:\n{_tail(process.log)}")
    say(part.name, part.listens[0] if part.listens else "", time.monotonic() - began)


async def _condition(name: str, ready: Callable[[], Awaitable[None]], began: float, say: Say) -> None:
    why = await _until(ready, asyncio.Event(), SYSTEM_S)
    if why is not None:
        raise LabError(f"{name}: not true after {SYSTEM_S:.0f} s: {why}\n  logs are in {registry.home()}/logs")
    say(name, "", time.monotonic() - began)


async def _until(ready: Callable[[], Awaitable[None]], ended: asyncio.Event, limit_s: float) -> Exception | None:
    """Ask until it is ready (None), or ``ended``, or ``limit_s`` seconds are over: then the last reason why not."""
    until = time.monotonic() + limit_s
    while True:
        try:
            await ready()
        except (OSError, NotReady) as e:
            why: Exception = e
        else:
            return None
        if ended.is_set() or time.monotonic() > until:
            return why
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), AGAIN_S)


def _conditions(options: Options) -> dict[str, Callable[[], Awaitable[None]]]:
    """What must be true of the whole, once every process answers."""
    return {
        "standbys stream": partial(probes.standbys, "west-pg1", database.expected_standbys(options)),
        "west serves": partial(traffic.serves, "west"),
        "east serves": partial(traffic.serves, "east"),
        "staging serves": staging.serves,
        "name resolves": partial(probes.dns_answer, "127.0.3.55:5300", f"app.{layout.ZONE}", "A", "127.0.1.10"),
    }


def _messages(failed: BaseExceptionGroup[LabError]) -> Iterator[str]:
    for one in failed.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _messages(one)
        else:
            yield str(one)


def _tail(log: str, lines: int = 12) -> str:
    text = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)


def reload_haproxy(site: str) -> registry.Process:
    """A real reload: a new HAProxy takes the listeners over, the old one finishes its connections.

    (Management guide, 4.) Nothing is saved here: what survives is what was written to the server state file before.
    """
    old = registry.find(f"{site}-haproxy")
    if old is None or not registry.alive(old):
        raise LabError(f"process {site}-haproxy is not running; start the lab with `lab.py up`")
    registry.record(replace(old, name=f"{site}-haproxy-old"))
    registry.forget(old)
    argv = (*old.argv, "-sf", str(old.pid))
    new = registry.start(old.name, site, argv, env=old.env, user=old.user, cwd=Path(old.cwd))
    new = replace(new, argv=old.argv)  # so that a later restart does not signal a process id of today
    registry.record(new)
    old = replace(old, name=f"{site}-haproxy-old")
    if not registry.wait_gone(old, 12):
        raise LabError(f"HAProxy {old.pid} of {site} did not give way to {new.pid} within 12 s; see {new.log}")
    registry.forget(old)
    if not registry.alive(new):
        raise LabError(f"the new HAProxy of {site} ended:\n{_tail(new.log)}")
    return new
