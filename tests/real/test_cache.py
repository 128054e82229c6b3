"""One suite for every cache: a real Redis, a real Varnish, and the simulated twin."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

import aws as ground
import pytest
import redis as redis_py
import strict
from hanging import hang

from flows.engine.virtualtime import VirtualLoop
from tasks.cache import actions, http, redis
from tasks.cache.twin import CacheTwin
from tasks.errors import (
    BadInput,
    EffectUnknown,
    LeaseHeld,
    MissingSecret,
    NotYet,
    Rejected,
    SafetyRefusal,
    Unreachable,
)
from tasks.simulation import Process, Simulation, enter
from tasks.world import World

pytestmark = pytest.mark.real
KEYS = tuple(f"/venue/{n}" for n in range(12))

VCL = """\
vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "%d"; .first_byte_timeout = 60s; }
sub vcl_recv {
    if (req.method == "BAN") { ban("obj.status != 0"); return (synth(200, "banned")); }
}
sub vcl_deliver {
    if (obj.hits > 0) { set resp.http.X-Cache = "HIT"; } else { set resp.http.X-Cache = "MISS"; }
}
"""


def program(name):
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"{name} is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


class Origin(ThreadingHTTPServer):
    """The application: counts what it is asked, fills Redis as an application does, breaks some keys."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.most = self.now = 0
        self.lock = threading.Lock()
        self.fills = None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.asked.append(self.path)
            server.now += 1
            server.most = max(server.most, server.now)
        key = unquote(self.path)
        broken = key in server.broken
        if server.fills is not None and not broken:
            server.fills.set(key, "kept")
        with server.lock:
            server.now -= 1
        self.send_response(503 if broken else 200)
        self.send_header("Content-Length", "2")
        self.send_header("Cache-Control", "no-store" if broken else "max-age=600")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_words):
        pass


@pytest.fixture(scope="module")
def origin():
    server = Origin()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(60)


@pytest.fixture(scope="module")
def real_redis(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("redis"), ground.free_port()
    argv = [program("redis-server"), "--port", str(port), "--save", "", "--dir", str(folder), "--requirepass", "s3cr3t"]
    server = ground.Server([*argv, "--bind", "127.0.0.1"], ("127.0.0.1", port), folder / "log")
    client = redis_py.Redis(port=port, password="s3cr3t", decode_responses=True)
    try:
        server.wait()
        yield SimpleNamespace(port=port, client=client, server=server)
    finally:
        client.close()
        server.stop()


@pytest.fixture(scope="module")
def varnish(tmp_path_factory, origin):
    folder, port = tmp_path_factory.mktemp("varnish"), ground.free_port()
    vcl = folder / "v.vcl"
    vcl.write_text(VCL % origin.server_address[1])
    argv = [program("varnishd"), "-F", "-j", "none", "-a", f"127.0.0.1:{port}", "-f", str(vcl)]
    argv += ["-n", str(folder), "-s", "malloc,16m", "-p", "thread_pool_min=10"]
    server = ground.Server(argv, ("127.0.0.1", port), folder / "log")
    try:
        server.wait()
        yield SimpleNamespace(port=port, server=server)
    finally:
        server.process.terminate()
        server.process.wait(60)


class Way:
    """How a test reaches one kind of cache."""

    def __init__(self, request, tmp_path):
        self.request, self.tmp_path = request, tmp_path


class ByRedis(Way):
    def prepare(self, origin):
        self.redis = self.request.getfixturevalue("real_redis")
        self.redis.client.flushall()
        self.redis.client.set("relight:system", "venue")
        origin.fills = self.redis.client
        (self.tmp_path / "secret").write_text("s3cr3t")
        self.fill = f"http://127.0.0.1:{origin.server_address[1]}{{key}}"

    def settings(self, **more):
        site = {"address": f"127.0.0.1:{self.redis.port}", "fill": self.fill}
        password = f"file:{self.tmp_path}/secret"
        return {"timeout": "20s", "password": password, "sites": {"west": site, "east": site}, **more}

    def tell(self, test, **more):
        strict.with_provider(redis.PROVIDER, self.settings(**more), "cache", test)


class ByVarnish(Way):
    def prepare(self, origin):
        origin.fills = None
        self.varnish = self.request.getfixturevalue("varnish")

    def tell(self, test):
        site = {"url": f"http://127.0.0.1:{self.varnish.port}"}
        settings = {"timeout": "20s", "hit_header": "X-Cache", "sites": {"west": site, "east": site}}

        async def clean(cache):
            await cache.flush("east", "before")
            await test(cache)

        strict.with_provider(http.PROVIDER, settings, "cache", clean)


class ByTwin(Way):
    def prepare(self, origin):
        pass

    def tell(self, test):
        async def main():
            enter(Process("test"))
            real = SimpleNamespace(sites=lambda: strict.SITES)
            await test(CacheTwin(real, strict.around("cache"), World(strict.SITES), Simulation()))

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())


@pytest.fixture(params=[ByRedis, ByVarnish, ByTwin])
def way(request, tmp_path, origin):
    return fresh(request.param(request, tmp_path), origin)


@pytest.fixture
def by_redis(request, tmp_path, origin):
    return fresh(ByRedis(request, tmp_path), origin)


@pytest.fixture
def by_varnish(request, tmp_path, origin):
    return fresh(ByVarnish(request, tmp_path), origin)


def fresh(way, origin):
    origin.asked.clear()
    origin.broken.clear()
    origin.most = 0
    way.prepare(origin)
    return way


async def take(step, ctx):
    seen = await step.observe(ctx)
    facts = await step.apply(ctx, seen)
    return seen, facts, await step.confirm(ctx)


FLUSH = actions.Flush(site="target")
WARM = actions.Warm(site="target", keys=KEYS, concurrency=4)


# ---- what every cache does ----


def test_keys_are_fetched_and_are_hits_and_a_second_time_nothing_is(way, origin):
    async def test(cache):
        ctx = strict.context({"cache": cache})
        _, facts, after = await take(WARM, ctx)
        assert (facts["hits"], after.holds) == (12, True)
        origin.asked.clear()
        assert (await WARM.observe(ctx)).holds
        assert (await WARM.apply(ctx, after))["fetched"] == 0
        assert origin.asked == [], "the application was asked again"

    way.tell(test)


def test_a_flush_forgets_everything_once_a_run(way):
    async def test(cache):
        ctx = strict.context({"cache": cache})
        await take(WARM, ctx)
        seen, _, after = await take(FLUSH, ctx)
        assert (seen.holds, after.holds) == (False, True)
        assert (await FLUSH.observe(ctx)).holds
        assert not await cache.has("east", KEYS[3])
        other = strict.context({"cache": cache}, run_id="run-2")
        assert not (await FLUSH.observe(other)).holds

    way.tell(test)


def test_the_guard_stands_before_every_change(way):
    def held():
        raise LeaseHeld("epoch moved")

    async def test(cache):
        ctx = strict.context({"cache": cache}, guard=held)
        observed = await WARM.observe(strict.context({"cache": cache}))
        await cache.flush("east", "another")
        with pytest.raises(LeaseHeld):
            await FLUSH.apply(ctx, await FLUSH.observe(ctx))
        with pytest.raises(LeaseHeld):
            await actions.Warm(site="target", keys=("/x",)).apply(ctx, observed)
        assert await cache.flushed_by("east") == "another"

    way.tell(test)


# ---- Redis and Varnish ----


@pytest.mark.parametrize("which", ["by_redis", "by_varnish"])
def test_one_broken_key_does_not_stop_the_others(which, request, origin):
    way = request.getfixturevalue(which)
    origin.broken.add(KEYS[5])

    async def test(cache):
        ctx = strict.context({"cache": cache}, left_s=2.0)
        with pytest.raises(NotYet, match=r"11 of 12 keys are in the cache of east, 12 wanted; not /venue/5"):
            await WARM.apply(ctx, await WARM.observe(ctx))
        most = WARM.model_copy(update={"least": 90.0})
        assert (await take(most, strict.context({"cache": cache})))[2].holds
        assert origin.most <= 4 + 1, "more at a time than concurrency says"

    way.tell(test)


def test_redis_keeps_what_is_not_under_its_prefix_and_takes_over_a_thousand_keys(by_redis):
    client = by_redis.redis.client
    with client.pipeline() as many:
        for n in range(2500):
            many.set(f"ca*he:{n}", "x")
        many.execute()
    client.set("session:1", "kept")
    client.set("cache:1", "kept, as * is a letter here")

    async def test(cache):
        assert await cache.has("east", "7")
        ctx = strict.context({"cache": cache})
        assert (await take(FLUSH, ctx))[2].holds
        assert not await cache.has("east", "7")
        assert sorted(client.keys()) == ["cache:1", "relight:flushed", "relight:system", "session:1"]

    by_redis.tell(test, prefix="ca*he:")


def test_redis_stays_marked_after_a_flush(by_redis):
    async def test(cache):
        await take(FLUSH, strict.context({"cache": cache}))
        assert by_redis.redis.client.get("relight:system") == "venue"

    by_redis.tell(test)


@pytest.mark.parametrize("owner", [None, "another"])
def test_redis_that_is_not_marked_is_refused(by_redis, owner):
    client = by_redis.redis.client
    client.delete("relight:system")
    client.set("precious", "1")
    if owner:
        client.set("relight:system", owner)

    async def test(cache):
        ctx = strict.context({"cache": cache})
        with pytest.raises(SafetyRefusal, match="not marked as a part of system venue"):
            await FLUSH.observe(ctx)
        with pytest.raises(SafetyRefusal):
            await cache.flush("east", "r")
        assert client.get("precious") == "1"

    by_redis.tell(test)


def test_a_redis_replica_is_not_flushed(by_redis):
    client = by_redis.redis.client
    client.replicaof("127.0.0.1", "9")

    async def test(cache):
        with pytest.raises(Rejected, match="is a slave, not a master; nothing was flushed"):
            await cache.flush("east", "r")

    try:
        by_redis.tell(test)
    finally:
        client.replicaof("NO", "ONE")


def test_redis_hung_gone_and_shut(by_redis, tmp_path):
    async def hung(cache):
        with pytest.raises(Unreachable, match="no connection for flushing"):
            await cache.flush("east", "r")

    hang(by_redis.redis.server.process.pid)
    try:
        by_redis.tell(hung, timeout="300ms")
    finally:
        by_redis.redis.server.process.send_signal(signal.SIGCONT)
    (tmp_path / "secret").write_text("wrong-secret")

    async def shut(cache):
        with pytest.raises(Rejected, match="lets this user not in") as e:
            await cache.has("east", "k")
        assert "wrong-secret" not in str(e.value)
        (tmp_path / "secret").unlink()
        with pytest.raises(MissingSecret):
            await cache.has("east", "k")
        with pytest.raises(BadInput, match="no cache in site 'north'"):
            await cache.has("north", "k")

    by_redis.tell(shut)
    gone = {"east": {"address": "127.0.0.1:9"}}
    (tmp_path / "secret").write_text("s3cr3t")

    async def nobody(cache):
        with pytest.raises(Unreachable, match="no connection for looking"):
            await cache.has("east", "k")
        with pytest.raises(BadInput, match="nothing is known that fills 'k'"):
            await cache.warm("east", "k")

    by_redis.tell(nobody, sites=gone)


class Deaf:
    """Passes what comes to a real server on until it hears ``word``, then never answers again."""

    def __init__(self, port, word):
        self.port, self.word = port, word

    async def serve(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        deaf = False

        async def answers():
            while data := await there.read(65536):
                if not deaf:
                    writer.write(data)

        going = asyncio.create_task(answers())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                deaf = deaf or self.word in data
                back.write(data)
        back.close()
        going.cancel()
        writer.close()


def test_a_lost_reply_to_a_flush_is_unknown_and_the_next_look_knows(by_redis):
    async def test(cache):
        server = await asyncio.start_server(Deaf(by_redis.redis.port, b"FLUSHDB").serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sites = {"east": {"address": f"127.0.0.1:{port}"}}
        settings = redis.PROVIDER.Settings.model_validate(by_redis.settings(sites=sites, timeout="2s"))
        through = redis.PROVIDER(settings, strict.around("cache"))
        ctx = strict.context({"cache": through})
        with pytest.raises(EffectUnknown, match="no answer to flushing"):
            await FLUSH.apply(ctx, await FLUSH.observe(ctx))
        assert (await FLUSH.observe(strict.context({"cache": cache}))).holds, "it had happened"
        server.close()

    by_redis.tell(test)


def test_varnish_that_refuses_hangs_or_is_gone(by_varnish):
    port = by_varnish.varnish.port
    site = {"url": f"http://127.0.0.1:{port}"}

    async def refused(cache):
        with pytest.raises(Rejected, match="let the cache take PURGEALL"):
            await cache.flush("east", "r")
        with pytest.raises(BadInput, match="expected a path that starts with /"):
            await cache.has("east", "venue")

    strict.with_provider(
        http.PROVIDER, {"flush_method": "PURGEALL", "timeout": "20s", "sites": {"east": site}}, "cache", refused
    )

    async def gone(cache):
        with pytest.raises(Unreachable, match="no connection"):
            await cache.flush("east", "r")

    strict.with_provider(http.PROVIDER, {"sites": {"east": {"url": "http://127.0.0.1:9"}}}, "cache", gone)
    with socket.create_server(("127.0.0.1", 0)) as deaf:

        async def hung(cache):
            with pytest.raises(EffectUnknown, match="no answer within"):
                await cache.flush("east", "r")
            with pytest.raises(Unreachable, match="no answer within"):
                await cache.has("east", "/")

        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        strict.with_provider(http.PROVIDER, {"timeout": "200ms", "sites": {"east": {"url": url}}}, "cache", hung)


@pytest.mark.parametrize(
    ("headers", "hit"),
    [
        ({"cache-status": "shield; fwd=miss, edge; hit; ttl=3"}, True),
        ({"cache-status": "shield; hit, edge; fwd=miss"}, False),
        ({"age": "3"}, True),
        ({"age": "0"}, False),
        ({}, False),
    ],
)
def test_a_hit_is_told_by_the_headers_of_the_standards(headers, hit):
    settings = http.PROVIDER.Settings.model_validate({"sites": {"east": {"url": "http://127.0.0.1:1"}}})
    assert http.PROVIDER(settings, strict.around("cache"))._hit(headers) is hit
