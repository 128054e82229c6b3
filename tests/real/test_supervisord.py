"""The supervisord provider and the capacity actions against a real supervisord and real small HTTP servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hanging import hang

from tasks.capacity.actions import Ensure, Replace
from tasks.capacity.supervisord import PROVIDER
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import BadInput, EffectUnknown, LeaseHeld, NotYet, Rejected, Unreachable

pytestmark = pytest.mark.real

SERVER = """
import http.server, pathlib, sys
address, folder = sys.argv[1], pathlib.Path(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if (folder / ("sick-" + address)).exists() else 200)
        self.end_headers()
    def log_message(self, *a): pass
if (folder / ("broken-" + address)).exists():
    sys.exit(1)
http.server.ThreadingHTTPServer((address, 3000), Handler).serve_forever()
"""

CONFIG = """
[supervisord]
nodaemon=true
directory={folder}
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
{user}
[unix_http_server]
file={folder}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
PROGRAM = """
[program:app{n}]
command={folder}/python{n} {folder}/server.py {network}.{octet} {folder}
autostart=false
autorestart=false
startsecs=1
startretries=0
stopwaitsecs=2
"""


class Supervised:
    """A real supervisord with five application servers on ``network``.21 … .25."""

    def __init__(self, folder: Path, network: str) -> None:
        self.folder, self.network = folder, network
        folder.mkdir()
        (folder / "server.py").write_text(SERVER)
        for n in range(1, 6):  # a command of its own each, so that one can be taken away
            script = folder / f"python{n}"
            script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
            script.chmod(0o755)
        names = ",".join(f"app{n}" for n in range(1, 6))
        user = "user=root" if os.geteuid() == 0 else ""
        config = CONFIG.format(folder=folder, user=user) + "".join(
            PROGRAM.format(n=n, folder=folder, network=network, octet=20 + n) for n in range(1, 6)
        )
        (folder / "supervisord.conf").write_text(config + f"[group:app]\nprograms={names}\n")
        binary = shutil.which("supervisord", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if binary is None:
            reason = "supervisord is not installed (pip install supervisor)"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        self.process = subprocess.Popen(
            [binary, "-c", str(folder / "supervisord.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 90
        while not self._answers():
            assert time.monotonic() < deadline, (folder / "supervisord.log").read_text()
            assert self.process.poll() is None
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(str(self.folder / "supervisor.sock")) == 0

    def settings(self, **more: object) -> dict[str, object]:
        site = {"socket": "$SUPERVISED/supervisor.sock", "first_address": f"{self.network}.21:3000"}
        base = {"timeout": "20s", "group": "app", "sites": {"east": site}, "minimum": 2, "maximum": 4}
        return {**base, "ready_path": "/readyz", **more}

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(60)


@pytest.fixture
def east(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERVISED", str(tmp_path / "east"))
    supervised = Supervised(tmp_path / "east", "127.0.6")
    yield supervised
    supervised.stop()


def provider(settings: dict[str, object]):
    around = SimpleNamespace(system="t", component="capacity", sites=("west", "east"), clock=None, components=None)
    return PROVIDER(PROVIDER.Settings.model_validate(settings), around)


def context(capacity, *, seconds: float = 90, guard=lambda: None, others=None) -> Context:
    clock = LoopClock()
    parts = {"capacity": capacity, **(others or {})}
    run = RunInfo("r1", "t", "failover", "forced", 1, "2026-01-01T00:00:00+00:00")
    roles = {"east": "east", "target": "east"}
    return Context(run, clock, roles, parts.__getitem__, clock.monotonic() + seconds, guard=guard)


async def count(capacity) -> tuple[int, int]:
    found = await capacity.instances("east")
    return sum(i.running for i in found), sum(i.ready for i in found)


async def ready(capacity, wanted: int) -> None:
    """Until so many are ready, and no other one runs."""
    deadline = time.monotonic() + 90
    while await count(capacity) != (wanted, wanted):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def test_ensure_starts_confirms_and_undo_stops_again(east):
    async def main():
        capacity = provider(east.settings())
        ctx = context(capacity)
        step = Ensure(site="target")
        seen = await step.observe(ctx)
        assert not seen.holds
        assert seen.facts["running"] == 0
        assert seen.changes == ("start 2 instances at east, to 2 (the minimum of the system file)",)
        assert await count(capacity) == (0, 0), "observe changed something"
        assert (await step.apply(ctx, seen))["ready_after"] == 2
        after = await step.confirm(ctx)
        assert after.holds
        assert sorted(after.facts["instances"]) == ["east-app1", "east-app2"]
        assert after.facts["instances"]["east-app2"]["address"] == "127.0.6.22:3000"
        more = Ensure(site="east", count=4)
        before = await more.observe(ctx)
        await more.apply(ctx, before)
        assert await count(capacity) == (4, 4)
        await more.undo(ctx, before.facts)
        await ready(capacity, 2)
        await more.undo(ctx, before.facts)
        assert [i.name for i in await capacity.instances("east") if i.running] == ["east-app1", "east-app2"]

    asyncio.run(main())


def test_scale_is_repeatable_and_keeps_to_the_limits(east):
    async def main():
        capacity = provider(east.settings())
        for _ in range(2):
            await capacity.scale("east", 3)
        assert (await count(capacity))[0] == 3
        with pytest.raises(BadInput, match="5 instances at east asked for; allowed are 2 to 4"):
            await capacity.scale("east", 5)
        with pytest.raises(BadInput, match="no site 'north'"):
            await capacity.scale("north", 2)
        with pytest.raises(BadInput, match="no numbered process in group 'web'; its groups: app"):
            await provider(east.settings(group="web")).instances("east")

    asyncio.run(main())


def test_one_instance_is_stopped_and_started_by_itself(east):
    async def main():
        capacity = provider(east.settings())
        await capacity.scale("east", 2)
        await ready(capacity, 2)
        for _ in range(2):  # asked again, it is no error
            await capacity.stop("east", "east-app2")
        deadline = time.monotonic() + 90
        while True:
            try:
                await capacity.start("east", "east-app2")
                break
            except NotYet:  # it is still stopping
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        await ready(capacity, 2)
        await capacity.start("east", "east-app2")
        assert await count(capacity) == (2, 2)
        with pytest.raises(BadInput, match="no instance 'east-app9' at east; there are east-app1"):
            await capacity.stop("east", "east-app9")

    asyncio.run(main())


def test_dead_instance_is_replaced_also_by_the_next_one(east):
    async def main():
        capacity = provider(east.settings())
        ctx = context(capacity)
        step = Replace(site="east")
        assert not (await step.observe(ctx)).holds
        await step.apply(ctx, await step.observe(ctx))
        await ready(capacity, 2)
        (east.folder / "broken-127.0.6.21").touch()  # app1 will die at each start from now on
        pid = await capacity._call("east", "getProcessInfo", "app:app1")
        os.kill(pid["pid"], signal.SIGKILL)
        await ready(capacity, 1)
        before = await step.observe(ctx)
        assert before.changes == ("start 1 instances at east",)
        await step.apply(ctx, before)
        assert (await step.confirm(ctx)).holds
        running = [i.name for i in await capacity.instances("east") if i.running]
        assert running == ["east-app2", "east-app3"]

    asyncio.run(main())


def test_sick_instance_gets_one_beside_it_after_patience(east):
    async def main():
        capacity = provider(east.settings(maximum=3))  # one slower than this patience would get one beside it, too
        ctx = context(capacity)
        (east.folder / "sick-127.0.6.22").touch()
        step = Replace(site="east", patience="300ms")
        await step.apply(ctx, await step.observe(ctx))
        assert await count(capacity) == (3, 2)

    asyncio.run(main())


def test_never_ready_says_which_and_scales_no_further(east):
    async def main():
        capacity = provider(east.settings())
        for octet in range(21, 26):
            (east.folder / f"sick-127.0.6.{octet}").touch()
        ctx = context(capacity, seconds=5)
        with pytest.raises(NotYet, match=r"0 of 2 running .* not: east-app1 at 127\.0\.6\.21:3000"):
            await Replace(site="east", patience="100ms").apply(ctx, await Replace(site="east").observe(ctx))
        assert (await count(capacity))[0] == 2, "more instances do not heal what all of them lack"

    asyncio.run(main())


def test_process_that_cannot_start_is_passed_over_until_none_is_left(east):
    async def main():
        capacity = provider(east.settings(maximum=5))
        (east.folder / "python1").unlink()
        await capacity.scale("east", 2)
        assert [i.name for i in await capacity.instances("east") if i.running] == ["east-app2", "east-app3"]
        with pytest.raises(Rejected, match=r"no process left to start, 1 short \(app1 STOPPED.*; app1: NO_FILE"):
            await capacity.scale("east", 5)

    asyncio.run(main())


def test_guard_stops_before_anything_is_started(east):
    async def main():
        def held():
            raise LeaseHeld("epoch moved")

        capacity = provider(east.settings())
        ctx = context(capacity, guard=held)
        step = Ensure(site="east")
        with pytest.raises(LeaseHeld):
            await step.apply(ctx, await step.observe(ctx))
        assert await count(capacity) == (0, 0)

    asyncio.run(main())


def test_hung_and_absent_supervisord(east):
    async def main():
        capacity = provider(east.settings(timeout="300ms"))
        processes = await capacity._processes("east")
        hang(east.process.pid)
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"no answer to getAllProcessInfo within 0\.3 s"):
            await capacity.instances("east")
        with pytest.raises(EffectUnknown, match="no answer to startProcess"):
            await capacity._start("east", processes, 1)
        assert time.monotonic() - began < 15
        east.stop()
        with pytest.raises(Unreachable, match="no connection"):
            await capacity.instances("east")

    asyncio.run(main())


def test_undefined_variable_in_the_socket(east, monkeypatch):
    monkeypatch.delenv("SUPERVISED")
    with pytest.raises(BadInput, match=r"\$SUPERVISED in .* is not set"):
        asyncio.run(provider(east.settings()).instances("east"))
