"""Traffic moved at a real HAProxy in front of small real servers."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import patience
import pytest
from hanging import hang

from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo, Surroundings
from tasks.database.protocol import Database, NodeView
from tasks.errors import (
    BadInput,
    Contradiction,
    EffectUnknown,
    LeaseHeld,
    NotYet,
    Rejected,
    SafetyRefusal,
    UnhealthyTarget,
    Unreachable,
)
from tasks.traffic import actions
from tasks.traffic.haproxy import PROVIDER
from tasks.waiting import until

FRONT = "127.0.7.90"
APPS = {"west-app1": "127.0.7.91", "west-app2": "127.0.7.92", "east-app1": "127.0.7.93", "east-app2": "127.0.7.94"}
NODES = {"west-pg1": "127.0.7.95", "west-pg2": "127.0.7.96", "east-pg1": "127.0.7.97"}

pytestmark = pytest.mark.real


def need(program):
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


def listening(host, port):
    with contextlib.suppress(OSError), socket.create_connection((host, port), 0.2):
        return True
    return False


class App(BaseHTTPRequestHandler):
    """Says who it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.server.server_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        """Quiet."""


class Echo(socketserver.BaseRequestHandler):
    """Keeps a connection open for as long as the client does."""

    def handle(self):
        with contextlib.suppress(OSError):
            while data := self.request.recv(100):
                self.request.sendall(self.server.server_address[0].encode() + b" " + data)


class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A health check that HAProxy cut short is no news."""


@dataclass
class Site:
    folder: Path
    backends: dict = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def start_backend(self, name):
        host = APPS.get(name) or NODES[name]
        server = Http((host, 8000), App) if name in APPS else Tcp((host, 8000), Echo)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.backends[name] = (server, thread)

    def stop_backend(self, name):
        server, thread = self.backends.pop(name)
        server.shutdown()
        thread.join()
        server.server_close()

    def start(self):
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [need("haproxy"), "-db", "-f", self.folder / "cfg"], stdout=log, stderr=subprocess.STDOUT
            )
        patience.until(lambda: listening(FRONT, 8090) and self.answers(), what="HAProxy")

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def answers(self):
        with contextlib.suppress(OSError):
            return "west-app1" in self.admin("show servers state app")
        return False

    def admin(self, line):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.folder / "admin.sock"))
            s.sendall(line.encode() + b"\n")
            with s.makefile("rb") as answer:
                return answer.read().decode()

    def hang(self):
        hang(self.process.pid)


@pytest.fixture
def site(tmp_path):
    app = "\n".join(f"  server {n} {a}:8000{' disabled' * n.startswith('east')}" for n, a in APPS.items())
    db = "\n".join(f"  server {n} {a}:8000{' disabled' * (n != 'west-pg1')}" for n, a in NODES.items())
    (tmp_path / "cfg").write_text(f"""
global
  stats socket {tmp_path}/admin.sock mode 600 level admin
  stats socket {tmp_path}/user.sock mode 600 level user
  stats socket ipv4@{FRONT}:8091 level admin
  server-state-file {tmp_path}/state
defaults
  load-server-state-from-file global
  timeout connect 10s
  timeout client 1m
  timeout server 1m
  timeout check 15s
  default-server check inter 100ms fall 2 rise 1
frontend app
  mode http
  bind {FRONT}:8090
  default_backend app
backend app
  mode http
  option httpchk GET /readyz
{app}
listen db
  mode tcp
  bind {FRONT}:5490
{db}
""")
    found = Site(tmp_path)
    try:
        for name in (*APPS, *NODES):
            found.start_backend(name)
        found.start()
        yield found
    finally:
        found.stop()
        for name in list(found.backends):
            found.stop_backend(name)


class Nodes:
    """A database that is as the test says; the balancer is what is tested here."""

    def __init__(self, *views):
        self.views = {v.node: v for v in views}

    def nodes(self, _site=None):
        return tuple(self.views)

    async def view(self, node, _vantage=None):
        return self.views[node]


for missing in set(dir(Database)) - set(dir(Nodes)):
    if not missing.startswith("_"):
        setattr(Nodes, missing, lambda *_: None)


def node(name, **more):
    return NodeView(name, name[:4], "answers", **{"in_recovery": True, "timeline": 1, **more})


def primary_is(name, **more):
    return Nodes(*(node(n, **({"in_recovery": False, "read_only": False} | more if n == name else {})) for n in NODES))


def provider(folder, **changes):
    settings = {
        "timeout": "15s",
        "sites": {
            "west": {"socket": f"{folder}/admin.sock", "state_file": f"{folder}/state"},
            "east": {"socket": f"{folder}/nothing.sock", "state_file": f"{folder}/nothing"},
        },
    }
    around = Surroundings("test", "traffic", ("west", "east"), LoopClock(), lambda _n: None)
    return PROVIDER(PROVIDER.Settings.model_validate({**settings, **changes}), around)


def context(balancer, database=None, left_s=60.0, guard=lambda: None):
    clock = LoopClock()
    run = RunInfo("r1", "test", "failover", "forced", 1, "2026-01-01T00:00:00+00:00")
    components = {"traffic": balancer, "database": database}
    roles = {"west": "west", "east": "east", "failed": "west", "target": "east"}
    return Context(run, clock, roles, components.__getitem__, clock.monotonic() + left_s, guard=guard)


async def admins(balancer, pool="app"):
    return {s.name: s.admin for s in await balancer.servers("west", pool)}


async def seen(balancer, pool, condition):
    async def look():
        if not condition(await balancer.servers("west", pool)):
            raise NotYet("not yet")

    await until(context(balancer), look)


async def proven(balancer, pool="app"):
    """Wait until HAProxy has checked the servers that it starts with."""
    await seen(balancer, pool, lambda servers: all(s.up for s in servers if s.admin == "ready"))


async def clients(requests):
    """Requests through the front, one connection each: who answered, and how often nobody did."""
    answered = {}
    for _ in range(requests):
        async with httpx.AsyncClient(timeout=60, verify=False, trust_env=False) as client:  # noqa: S501 - plain HTTP
            answer = await client.get(f"http://{FRONT}:8090/")
        key = answer.text if answer.is_success else answer.status_code
        answered[key] = answered.get(key, 0) + 1
    return answered


def test_servers_as_they_are(site):
    async def body():
        balancer = provider(site.folder)
        await proven(balancer)
        found = {s.name: s for s in await balancer.servers("west", "app")}
        assert {n: (s.site, s.admin, s.up) for n, s in found.items()} == {
            "west-app1": ("west", "ready", True),
            "west-app2": ("west", "ready", True),
            "east-app1": ("east", "maint", False),
            "east-app2": ("east", "maint", False),
        }
        assert found["west-app1"].address == "127.0.7.91:8000"
        await balancer.set_weight("west", "app", "west-app1", 7)
        await balancer.set_admin("west", "app", "west-app2", "drain")
        found = {s.name: s for s in await balancer.servers("west", "app")}
        assert (found["west-app1"].weight, found["west-app2"].admin) == (7, "drain")
        over_tcp = provider(site.folder, sites={"west": {"socket": f"{FRONT}:8091"}})
        assert await over_tcp.servers("west", "app") == await balancer.servers("west", "app")

    asyncio.run(body())


def test_a_server_out_of_maintenance_is_not_up_before_its_check_passed(site):
    async def body():
        balancer = provider(site.folder)
        await asyncio.to_thread(site.stop_backend, "east-app1")
        said = site.admin("set server app/east-app1 state ready;show stat -1 4 -1")
        (server,) = [s for s in await balancer.servers("west", "app") if s.name == "east-app1"]
        assert ",UP" in said.split("east-app1")[1][:60], "HAProxy itself believes it"
        assert (server.admin, server.up) == ("ready", False)

    asyncio.run(body())


def test_refusals(site):
    async def body():
        balancer = provider(site.folder)
        with pytest.raises(BadInput, match="Can't find backend"):
            await balancer.servers("west", "nope")
        with pytest.raises(BadInput, match="No such server"):
            await balancer.set_admin("west", "app", "nope", "ready")
        with pytest.raises(BadInput, match="No such backend"):
            await balancer.close_sessions("west", "nope", "x")
        with pytest.raises(BadInput, match="admin state"):
            await balancer.set_admin("west", "app", "west-app1", "off")
        with pytest.raises(BadInput, match="is no name"):
            await balancer.set_admin("west", "app", "x;disable frontend app", "ready")
        with pytest.raises(Rejected, match="weight can only"):
            await balancer.set_weight("west", "app", "west-app1", 999)
        with pytest.raises(BadInput, match="no balancer in site 'north'"):
            await balancer.servers("north", "app")
        user = provider(site.folder, sites={"west": {"socket": f"{site.folder}/user.sock"}})
        with pytest.raises(Rejected, match="level admin"):
            await user.set_admin("west", "app", "west-app1", "drain")
        with pytest.raises(BadInput, match=r"\$NOT_SET_ANYWHERE"):
            await provider(site.folder, sites={"west": {"socket": "$NOT_SET_ANYWHERE/x"}}).servers("west", "app")

    asyncio.run(body())


def test_down_and_hung(site):
    async def body():
        balancer = provider(site.folder, timeout="1s")
        with pytest.raises(Unreachable, match=r"nothing\.sock.*no such socket.*down"):
            await balancer.servers("east", "app")
        site.hang()
        with pytest.raises(Unreachable, match="does not answer"):
            await balancer.servers("west", "app")
        with pytest.raises(EffectUnknown):
            await balancer.set_admin("west", "app", "west-app1", "drain")
        with pytest.raises(Unreachable):
            await actions.Shift(at="west", to="east").observe(context(balancer))
        site.process.kill()
        site.process.wait(10)
        with pytest.raises(Unreachable, match="down"):
            await balancer.set_admin("west", "app", "west-app1", "drain")
        gone = await actions.Shift(at="west", to="east", may_be_gone=True).observe(context(balancer))
        assert gone.holds
        assert gone.facts["gone"]
        assert "west's balancer does not answer" in gone.summary

    asyncio.run(body())


def test_shift_and_back_without_a_lost_request_and_over_a_reload(site):
    async def body():
        balancer, guarded = provider(site.folder), []
        await proven(balancer)
        ctx = context(balancer, guard=lambda: guarded.append(1))
        step = actions.Shift(at="failed", to="target", keep_minimum=2)
        before = await step.observe(ctx)
        assert not before.holds
        load = asyncio.create_task(clients(100))
        facts = before.facts | await step.apply(ctx, before)
        answered = await load
        assert set(answered) <= set(APPS.values()), f"a client saw an error: {answered}"
        assert facts["persisted"]
        assert len(guarded) == 6  # two to drain and to ready, two west ones to drain
        assert (await step.confirm(ctx)).holds
        assert set(await clients(20)) == {APPS["east-app1"], APPS["east-app2"]}

        await asyncio.to_thread(site.stop)
        await asyncio.to_thread(site.start)
        assert await admins(balancer) == {n: "ready" if n[:4] == "east" else "drain" for n in APPS}
        await proven(balancer)
        assert set(await clients(20)) == {APPS["east-app1"], APPS["east-app2"]}

        await step.undo(ctx, facts)
        assert await admins(balancer) == {n: "ready" if n[:4] == "west" else "maint" for n in APPS}
        await step.undo(ctx, facts)

    asyncio.run(body())


def test_shift_drains_nothing_when_the_other_side_is_not_healthy(site):
    async def body():
        balancer = provider(site.folder)
        await proven(balancer)
        await asyncio.to_thread(site.stop_backend, "east-app1")
        step, ctx = actions.Shift(at="west", to="east", keep_minimum=2), context(balancer, left_s=6)
        was = await admins(balancer)
        load = asyncio.create_task(clients(100))
        with pytest.raises(UnhealthyTarget, match=r"1 of the 2 needed.*Nothing was drained"):
            await step.apply(ctx, await step.observe(ctx))
        assert await admins(balancer) == was
        assert set(await load) == {APPS["west-app1"], APPS["west-app2"]}, "nobody was sent to a server that is not up"
        with pytest.raises(BadInput, match="fewer than keep_minimum"):
            await actions.Shift(at="west", to="east", keep_minimum=3).observe(context(balancer))

    asyncio.run(body())


def test_shift_when_nobody_serves_does_not_wait(site):
    async def body():
        balancer = provider(site.folder)
        for name in ("west-app1", "west-app2"):
            await asyncio.to_thread(site.stop_backend, name)
        await seen(balancer, "app", lambda servers: not any(s.up for s in servers))
        ctx, step = context(balancer), actions.Shift(at="west", to="east")
        await step.apply(ctx, await step.observe(ctx))
        assert (await step.confirm(ctx)).holds
        assert not {503} & set(await clients(20))

    asyncio.run(body())


def test_a_stale_run_changes_nothing(site):
    async def body():
        balancer = provider(site.folder)
        await proven(balancer)

        def stale():
            raise LeaseHeld("a newer run holds the system")

        was, ctx = await admins(balancer), context(balancer, primary_is("east-pg1"), guard=stale)
        for step in (
            actions.Shift(at="west", to="east"),
            actions.Drain(at="west", site="west", may_empty=True),
            actions.RoutePrimary(at="west"),
        ):
            with pytest.raises(LeaseHeld):
                await step.apply(ctx, await step.observe(ctx))
        assert await admins(balancer) == was

    asyncio.run(body())


async def held(data=b"x"):
    """A session that stays open; returns it and who serves it."""
    reader, writer = await asyncio.open_connection(FRONT, 5490)
    writer.write(data)
    return reader, writer, (await asyncio.wait_for(reader.read(100), 30)).split()[0].decode()


def test_route_primary_moves_sessions_and_comes_back_only_to_the_primary(site):
    async def body():
        balancer = provider(site.folder)
        await proven(balancer, "db")
        reader, writer, who = await held()
        assert who == NODES["west-pg1"]
        step = actions.RoutePrimary(at="west")
        assert (await step.observe(context(balancer, primary_is("west-pg1")))).summary.startswith("pool db at west")
        ctx = context(balancer, primary_is("east-pg1", timeline=2))
        before = await step.observe(ctx)
        assert before.changes == (
            "west-pg1: ready -> maint",
            "west-pg1: close 1 sessions",
            "east-pg1: maint -> ready",
        )
        facts = before.facts | await step.apply(ctx, before)
        assert facts["closed"] == ["west-pg1"]
        assert await asyncio.wait_for(reader.read(), 30) == b"", "the old session was cut"
        writer.close()
        assert (await step.confirm(ctx)).holds
        assert await admins(balancer, "db") == {"west-pg1": "maint", "west-pg2": "maint", "east-pg1": "ready"}
        _, writer, who = await held()
        assert who == NODES["east-pg1"]
        with pytest.raises(SafetyRefusal, match="primary is east-pg1"):
            await step.undo(ctx, facts)
        assert (await admins(balancer, "db"))["east-pg1"] == "ready"
        await step.undo(context(balancer, primary_is("west-pg1")), facts)
        assert await admins(balancer, "db") == {"west-pg1": "ready", "west-pg2": "maint", "east-pg1": "maint"}
        writer.close()

    asyncio.run(body())


def test_route_primary_does_not_choose_between_contradicting_nodes(site):
    async def body():
        balancer, step = provider(site.folder), actions.RoutePrimary(at="west")
        was = await admins(balancer, "db")
        writes = {"in_recovery": False, "read_only": False}
        for database, error, says in (
            (Nodes(node("west-pg1", **writes), node("east-pg1", **writes)), Contradiction, "west-pg1 and east-pg1"),
            (Nodes(node("west-pg1", **writes), node("east-pg1", timeline=2)), Contradiction, "timeline"),
            (Nodes(node("west-pg1", in_recovery=False, read_only=True), node("east-pg1")), NotYet, "no node"),
            (primary_is("east-pg1"), None, ""),
            (Nodes(node("north-pg1", **writes)), BadInput, "no server named north-pg1"),
        ):
            if error is None:
                assert not (await step.observe(context(balancer, database))).holds
                continue
            with pytest.raises(error, match=says):
                await step.observe(context(balancer, database))
            if error is not BadInput:
                with pytest.raises(error):
                    await step.apply(context(balancer, database), None)
        assert await admins(balancer, "db") == was

    asyncio.run(body())


def test_route_primary_says_when_the_way_to_it_is_broken(site):
    async def body():
        balancer, step = provider(site.folder), actions.RoutePrimary(at="west")
        await asyncio.to_thread(site.stop_backend, "east-pg1")
        with pytest.raises(UnhealthyTarget, match="east-pg1 is the primary"):
            await step.apply(context(balancer, primary_is("east-pg1"), left_s=1), None)

    asyncio.run(body())


def test_drain_waits_then_closes_and_quiet_sees_it(site):
    async def body():
        balancer = provider(site.folder)
        await proven(balancer, "db")
        step = actions.Drain.model_validate({"at": "west", "site": "west", "pool": "db", "within": "1s"})
        ctx = context(balancer)
        with pytest.raises(UnhealthyTarget, match="no healthy server but those of west"):
            await step.apply(ctx, await step.observe(ctx))
        assert (await admins(balancer, "db"))["west-pg1"] == "ready"

        await balancer.set_admin("west", "db", "east-pg1", "ready")
        await proven(balancer, "db")
        sessions = [await held() for _ in range(4)]
        quiet = actions.Quiet(at="west", pool="db", site="west")
        assert not (await quiet.observe(ctx)).holds
        with pytest.raises(NotYet, match="west/west-pg1 has"):
            await quiet.apply(context(balancer, left_s=0.3), await quiet.observe(ctx))
        began, before = time.monotonic(), await step.observe(ctx)
        facts = before.facts | await step.apply(ctx, before)
        assert time.monotonic() - began >= 0.7, "open sessions get their time"
        assert facts["closed"] == {"west-pg1": sum(who == NODES["west-pg1"] for _, _, who in sessions)}
        assert (await step.confirm(ctx)).holds
        assert (await quiet.observe(ctx)).holds
        for _, writer, _ in sessions:
            writer.close()
        with pytest.raises(Unreachable):  # all balancers: the one of east has no socket
            await actions.Quiet(pool="db", site="west").observe(ctx)
        assert (await actions.Quiet(pool="db", site="west", may_be_gone=True).observe(ctx)).facts["gone"] == ["east"]
        await step.undo(ctx, facts)
        assert (await admins(balancer, "db"))["west-pg1"] == "ready"

    asyncio.run(body())


def test_persist_says_what_a_reload_would_lose(site):
    async def body():
        balancer = provider(
            site.folder, sites={"west": {"socket": f"{site.folder}/admin.sock", "state_file": "/proc/none/state"}}
        )
        await proven(balancer)
        with pytest.raises(Rejected, match="reload would undo"):
            await balancer.persist("west")
        step, ctx = actions.Shift(at="west", to="east"), context(balancer)
        facts = await step.apply(ctx, await step.observe(ctx))
        assert (facts["persisted"], (await step.observe(ctx)).holds) == (False, True)

    asyncio.run(body())
