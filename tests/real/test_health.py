"""Health checks against real HTTP servers, a real name server (BIND) and real sockets on 127.0.6.x."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import LeaseHeld, NotYet, Rejected, Unreachable
from tasks.health._client import resolve
from tasks.health.actions import Http, Tcp, Verify
from tasks.health.http import PROVIDER
from tasks.network import Sockets
from tasks.zones import rfc2136

pytestmark = pytest.mark.real

PORT = 8080


class Site:
    """What one site's application answers, and what it was asked."""

    def __init__(self, site: str, host: str) -> None:
        self.site, self.host = site, host
        self.events: dict[str, object] = {}
        self.hosts: set[str] = set()
        self.refusals = 0  # of the next writes
        self.forgets = False
        self.garbles = False
        self.vantage: bytes = b"{}"
        self.delay_s = 0.0


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that gave up is what these tests are about; its traceback is not."""


@contextmanager
def serving(site: Site, port: int = PORT):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: object) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            time.sleep(site.delay_s)
            if self.path in ("/readyz", "/vantage"):
                self.answer(200, site.vantage)
            elif self.path in site.events:
                payload = "other" if site.garbles else site.events[self.path]
                self.answer(200, {"payload": payload, "site": site.site})
            else:
                self.answer(404, {})

        def do_POST(self):
            site.hosts.add(self.headers["Host"])
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if site.refusals:
                site.refusals -= 1
                self.answer(503, {"state": "refused", "reason": "read-only"})
                return
            if not site.forgets:
                site.events[f"/events/{body['client']}/{body['n']}"] = body["payload"]
            self.answer(
                201, {"n": body["n"], "node": f"{site.site}-pg1", "site": site.site, "app": f"{site.site}-app1"}
            )

        def log_message(self, *_):
            pass

    server = Quiet((site.host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def east():
    with serving(Site("east", "127.0.6.10")) as site:
        yield site


@pytest.fixture(scope="module")
def bind(tmp_path_factory):
    """A name server of its own; BIND listens only on addresses of an interface, so on 127.0.0.1."""
    binary = shutil.which("named", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])
    if binary is None:
        reason = "named is not installed (apt-get install bind9)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("bind")
    (folder / "zone").write_text(
        "$TTL 5\n@ SOA ns hostmaster 1 60 60 60 5\n@ NS ns\nns A 127.0.6.53\n"
        "app A 127.0.6.10\nalias CNAME app\nempty TXT x\n"
    )
    (folder / "named.conf").write_text(
        f'options {{ directory "{folder}"; listen-on port 5396 {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n'
        "recursion no; pid-file none; lock-file none; session-keyfile none; };\n"
        'controls { };\nzone "health.test" { type master; file "zone"; };\n'
    )
    with (folder / "log").open("wb") as log:
        named = subprocess.Popen([binary, "-g", "-c", str(folder / "named.conf")], stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while True:
        try:
            asyncio.run(resolve(Sockets(), "app.health.test.", "127.0.0.1:5396", 0.2))
            break
        except NotYet:
            time.sleep(0.02)
        if named.poll() is not None or time.monotonic() > deadline:
            named.kill()
            named.wait(10)
            pytest.fail(f"named does not answer: {(folder / 'log').read_text()}")
        time.sleep(0.02)
    yield "127.0.0.1:5396"
    named.kill()
    named.wait(10)


def context(*, seconds: float = 60, guard=lambda: None, **components) -> Context:
    clock = LoopClock()
    run = RunInfo("20260101/run 1", "t", "failover", "forced", 1, "2026-01-01T00:00:00+00:00")
    roles = {"west": "west", "east": "east", "target": "east"}
    return Context(run, clock, roles, components.__getitem__, clock.monotonic() + seconds, guard=guard)


async def run(ctx: Context, step):
    seen = await step.observe(ctx)
    facts = await step.apply(ctx, seen)
    return seen, facts, await step.confirm(ctx)


def verify(**more) -> Verify:
    return Verify.model_validate({"name": "app.health.test.", "port": PORT, "within": "10s", **more})


def test_verify_through_the_name_writes_reads_and_tells_who_answered(east, bind):
    async def main():
        ctx = context()
        step = verify(resolver=bind, site="target")
        seen = await step.observe(ctx)
        assert not seen.holds
        assert seen.facts == {"addresses": ["127.0.6.10"], "ready": {"127.0.6.10": "ready"}, "through_name": True}
        assert not east.events, "observe wrote something"
        began = ctx.clock.utc().isoformat()
        facts = await step.apply(ctx, seen)
        assert (facts["site"], facts["app"], facts["node"]) == ("east", "east-app1", "east-pg1")
        assert began <= facts["first_success_at"] <= ctx.clock.utc().isoformat()
        assert facts["first_success_at"].endswith("+00:00")
        assert len(east.events) == len(facts["writes"]) == 3
        assert (await step.confirm(ctx)).holds
        assert len(east.events) == 4
        assert east.hosts == {"app.health.test:8080"}
        assert all(path.startswith("/events/relight-verify-20260101-run-1/") for path in east.events)

    asyncio.run(main())


def test_verify_before_dns_by_address_and_by_zone(east):
    # The zone's name servers are not asked: where the name would point is in its settings.
    settings = {
        "zone": "health.test.",
        "primary": "127.0.6.1:53",
        "servers": ["127.0.6.1:53"],
        "key_name": "k.",
        "key_secret": "env:UNUSED",
        "names": {"app.health.test.": {"ttl": 5, "A": {"east": ["127.0.6.10"]}}},
    }

    async def main():
        for more in ({"address": "127.0.6.10"}, {"zone": "dns", "site": "target"}):
            zone = rfc2136.PROVIDER(
                rfc2136.PROVIDER.Settings.model_validate(settings),
                SimpleNamespace(system="t", component="dns", clock=LoopClock()),
            )
            seen, facts, after = await run(context(dns=zone), verify(times=1, **more))
            await zone.aclose()
            assert seen.facts["through_name"] is False
            assert facts["addresses"] == ["127.0.6.10"]
            assert after.holds

    asyncio.run(main())


def test_verify_waits_out_refused_writes(east):
    async def main():
        east.refusals = 3
        ctx = context()
        step = verify(address="127.0.6.10", times=2)
        facts = await step.apply(ctx, await step.observe(ctx))
        assert len(facts["writes"]) == 2
        assert east.refusals == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"refusals": 10_000}, r"POST http://127\.0\.6\.10:8080/events .*HTTP 503 .*read-only"),
        ({"forgets": True}, r"GET .*HTTP 404"),
        ({"site": "west"}, "site west answered, expected east"),
        ({"delay_s": 0.4}, "no answer within 0"),
    ],
)
def test_verify_says_at_the_deadline_what_was_missing(east, broken, message):
    async def main():
        for name, value in broken.items():
            setattr(east, name, value)
        within = "200ms" if east.delay_s else "1s"
        for _ in range(3):  # a machine that stands still at the very end looks like a step that was cut off
            ctx = context(seconds=2.0)
            step = verify(address="127.0.6.10", site="target", within=within)
            seen = await step.observe(ctx)
            with pytest.raises(NotYet, match=message):
                await step.apply(ctx, seen)
            if ctx.left_s() > 0:
                return
        pytest.fail("the runner would have cut it off and called the effect unknown")

    asyncio.run(main())


def test_verify_is_not_answered_by_the_deadline_itself(east):
    async def main():
        east.refusals = 10_000
        step = verify(address="127.0.6.10")
        seen = await step.observe(context())
        with pytest.raises(NotYet, match="HTTP 503"):  # its last tries have no time left at all
            await step.apply(context(seconds=3.0), seen)

    asyncio.run(main())


def test_verify_never_takes_another_payload_or_a_held_lease(east):
    async def main():
        east.garbles = True
        step = verify(address="127.0.6.10")
        ctx = context()
        seen = await step.observe(ctx)
        with pytest.raises(Rejected, match=r"read back 'other', but 'relight .*' was acknowledged"):
            await step.apply(ctx, seen)

        def held():
            raise LeaseHeld("epoch moved")

        east.events.clear()
        with pytest.raises(LeaseHeld):
            await step.apply(context(guard=held), seen)
        assert not east.events

    asyncio.run(main())


def test_names_that_do_not_resolve(bind):
    async def main():
        assert await resolve(Sockets(), "alias.health.test.", bind, 30) == ("127.0.6.10",)
        for name in ("nowhere.health.test.", "empty.health.test."):
            with pytest.raises(NotYet, match=f"{name} at 127.0.0.1:5396: "):
                await resolve(Sockets(), name, bind, 30)
        with pytest.raises(NotYet, match=r"127\.0\.6\.54:5300"):
            await resolve(Sockets(), "app.health.test.", "127.0.6.54:5300", 0.3)
        ctx = context()
        seen = await verify(name="nowhere.health.test.", resolver=bind).observe(ctx)
        assert not seen.holds
        assert "nowhere.health.test." in seen.summary

    asyncio.run(main())


def test_http_check_waits_until_it_answers_and_names_the_status(east):
    async def main():
        step = Http(url="http://127.0.6.10:8080/readyz", times=2, within=30)
        assert (await step.observe(context())).holds
        wrong = Http(url="http://127.0.6.10:8080/nothing", within=30)
        seen = await wrong.observe(context())
        assert seen.summary == "http://127.0.6.10:8080/nothing: HTTP 404, expected 200"
        with pytest.raises(NotYet, match="HTTP 404, expected 200"):
            await wrong.apply(context(seconds=0.3), seen)
        assert (await Http(url="http://127.0.6.10:8080/nothing", status=404, within=30).observe(context())).holds
        east.delay_s = 0.3
        slow = Http(url="http://127.0.6.10:8080/readyz", within="100ms")
        assert "no answer within 0.1 s" in (await slow.observe(context())).summary

    asyncio.run(main())


def test_tcp_check_waits_for_the_listener():
    async def main():
        step = Tcp(address="127.0.6.11:8081", within=30)
        ctx = context()
        seen = await step.observe(ctx)
        assert not seen.holds
        assert seen.summary.startswith("127.0.6.11:8081: ")
        applying = asyncio.create_task(step.apply(ctx, seen))
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.6.11", 8081)
        async with server:
            await applying
            assert (await step.confirm(ctx)).holds

    asyncio.run(main())


def test_agents_tell_what_they_see(east):
    async def main():
        urls = {"east": "http://127.0.6.10:8080/vantage", "west": "http://127.0.6.12:8080/vantage"}
        settings = PROVIDER.Settings.model_validate({"urls": urls, "timeout": "30s"})
        agents = PROVIDER(settings, SimpleNamespace(component="agents"))
        assert agents.places() == ("east", "west")
        nodes = {
            "west-pg1": {"reach": "refused", "detail": "ECONNREFUSED"},
            "east-pg1": {"reach": "answers", "in_recovery": True, "timeline": 1, "detail": "", "news": 1},
        }
        east.vantage = json.dumps({"site": "east", "at": "x", "nodes": nodes}).encode()
        first, second = await agents.look("east")
        assert (first.node, first.reach, first.in_recovery, first.timeline) == ("east-pg1", "answers", True, 1)
        assert (second.node, second.reach, second.why) == ("west-pg1", "refused", "ECONNREFUSED")
        with pytest.raises(Unreachable, match="agent of west"):
            await agents.look("west")
        for body, message in ((b'{"nodes": {"a": {"reach": "maybe"}}}', r"nodes\.a\.reach"), (b"<html>", "JSON")):
            east.vantage = body
            with pytest.raises(Rejected, match=message):
                await agents.look("east")

    asyncio.run(main())
