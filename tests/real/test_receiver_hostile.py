"""Bodies and connections that want to hurt, against the running receiver: refused with the right answer, never 429 or
500, and whoever else delivers meanwhile is not kept waiting.
"""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from receiving import TOKEN, Serve, alert, toy

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    folder = tmp_path_factory.mktemp("hostile")
    one = Serve(folder / "state", toy(folder))
    one.start()
    yield one
    one.stop()


def kept(serve: Serve) -> int:
    with serve.inbox() as db:
        return int(db.execute("SELECT count(*) FROM deliveries").fetchone()[0])


GOOD = json.dumps(alert(1)).encode()


@pytest.mark.parametrize(
    ("what", "raw", "headers", "status"),
    [
        ("not UTF-8", b'{"alerts": "\xff"}', {}, 400),
        ("UTF-16", GOOD.decode().encode("utf-16"), {}, 400),
        ("a key twice", GOOD.replace(b'"version"', b'"alerts": [], "version"'), {}, 400),
        ("too deep", b'{"alerts":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400),
        ("NaN", b'{"alerts": [], "version": NaN}', {}, 400),
        ("a huge number", b'{"alerts": [], "version": ' + b"9" * 100_000 + b"}", {}, 400),
        ("no JSON", b"alert!", {}, 400),
        ("nothing", b"", {}, 400),
        ("over 1 MiB", b" " * ((1 << 20) + 1), {}, 413),
        ("a gzip bomb", gzip.compress(b" " * (200 << 20)), {"Content-Encoding": "gzip"}, 413),
        (
            "a gzip bomb in a gzip bomb",
            gzip.compress(gzip.compress(b" " * (200 << 20))),
            {"Content-Encoding": "gzip"},
            400,
        ),
        ("broken gzip", gzip.compress(GOOD)[:40], {"Content-Encoding": "gzip"}, 400),
        ("brotli", GOOD, {"Content-Encoding": "br"}, 415),
        ("a lying Content-Length", GOOD, {"Content-Length": "abc"}, 400),
        ("somebody else's", json.dumps({"hello": "world"}).encode(), {}, 400),
        ("alerts of alerts", json.dumps({"version": "4", "alerts": [[], 1, None]}).encode(), {}, 400),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_not_taken(serve: Serve, what: str, raw: bytes, headers: dict[str, str], status: int) -> None:
    before = kept(serve)
    began = time.monotonic()
    assert serve.ask("POST", "/alerts/am", raw, headers)[0] == status, what
    assert time.monotonic() - began < 20
    assert kept(serve) == before
    assert serve.healthy()


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        ("/alerts/am", "", 401),
        ("/alerts/am", "Bearer wrong", 403),
        ("/alerts/am", f"Bearer {TOKEN} ", 202),
        ("/alerts/am/wrong", "", 403),
        ("/alerts/else", f"Bearer {TOKEN}", 404),
        ("/alerts/../healthz", "", 404),
    ],
)
def test_who_may_deliver(serve: Serve, path: str, authorization: str, status: int) -> None:
    raw = json.dumps(alert(time.monotonic_ns())).encode()
    assert serve.ask("POST", path, raw, {"Authorization": authorization})[0] == status


def ended(one: socket.socket) -> bool:
    """The other side has closed it."""
    one.setblocking(False)  # noqa: FBT003 - the socket's own word
    try:
        while one.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_slow_senders_are_cut_off_and_hold_up_nobody(serve: Serve) -> None:
    """Slow loris, of heads and of bodies: each connection ends by itself, and a good delivery passes meanwhile."""
    head = f"POST /alerts/am HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    slow = [socket.create_connection(("127.0.0.1", serve.port), timeout=30) for _ in range(60)]
    for number, one in enumerate(slow):
        one.sendall(head.encode() + (b"Content-Length: 1000\r\n\r\n{" if number % 2 else b""))
    over = threading.Event()

    def drip() -> None:
        while not over.wait(1.0):
            for number, one in enumerate(slow):
                try:
                    one.sendall(b" " if number % 2 else b"X-A: b\r\n")
                except OSError:
                    continue

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    assert serve.post(alert(time.monotonic_ns()))[0] == 202
    assert not all(map(ended, slow)), "it waited until the last of them was cut off"

    until(lambda: all(map(ended, slow)), 30)
    over.set()
    dripping.join()
    for one in slow:
        one.close()
    assert serve.healthy()


def test_no_token_is_in_what_is_logged_or_stored(serve: Serve) -> None:
    body = {**alert(time.monotonic_ns()), "secret": TOKEN}
    assert serve.ask("POST", f"/alerts/am/{TOKEN}", json.dumps(body).encode(), {"Authorization": ""})[0] == 202
    assert serve.ask("POST", f"/alerts/am/{TOKEN}", b"{", {"Authorization": ""})[0] == 400
    assert TOKEN not in (serve.system.parent / "serve.log").read_text()
    for file in serve.state.glob("inbox.sqlite3*"):
        assert TOKEN.encode() not in file.read_bytes()


def test_figures_and_what_is_served_are_there(serve: Serve) -> None:
    status, headers, text = serve.ask("GET", "/metrics", headers={"Authorization": ""})
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    until(lambda: b'relight_events{outcome="shadow"}' in serve.ask("GET", "/metrics")[2])
    for name in (
        b"relight_deliveries_total",
        b"relight_gates_total",
        b"relight_events",
        b"relight_watchdog_age_seconds",
    ):
        assert name in serve.ask("GET", "/metrics")[2], text
    assert serve.ask("GET", "/openapi.json")[0] == 200
