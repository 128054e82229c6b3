"""The links between the sites, carrying real connections to a real (threaded) TCP server."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import until

LAB = Path(__file__).resolve().parents[2] / "deployments" / "lab"
sys.path.insert(0, str(LAB))

import links  # noqa: E402  a sibling of the lab's scripts, not of a package

pytestmark = pytest.mark.real

NEAR, FAR = ("127.0.9.101", 7101), ("127.0.9.1", 7101)
BACK_NEAR, BACK_FAR = ("127.0.9.102", 7102), ("127.0.9.2", 7102)


class Echo:
    """A server that answers with what it gets."""

    def __init__(self, address):
        self.listener = socket.create_server(address, reuse_port=False)
        self.open = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.open.append(sock)
                threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock):
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.close()

    def die(self):
        """As a killed process: the kernel closes everything."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self.thread.join(30)


def reach(address=NEAR, within=10.0):
    """``answers``, ``refused``, ``reset``, or ``silent`` for so many seconds."""
    try:
        with socket.create_connection(address, timeout=within) as sock:
            sock.sendall(b"hello")
            return "answers" if sock.recv(5) == b"hello" else "ended"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionError:
        return "reset"
    except TimeoutError:
        return "silent"


def received_within(seconds, sock):
    got, end = 0, time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        with contextlib.suppress(TimeoutError):
            got += len(sock.recv(65536))
    return got


@pytest.fixture
def server():
    echo = Echo(FAR)
    yield echo
    with contextlib.suppress(OSError):
        echo.die()


@pytest.fixture
def network(tmp_path, server):
    control = tmp_path / "links.sock"
    one = ",".join(("east", "west", f"{NEAR[0]}:{NEAR[1]}", f"{FAR[0]}:{FAR[1]}"))
    other = ",".join(("west", "east", f"{BACK_NEAR[0]}:{BACK_NEAR[1]}", f"{BACK_FAR[0]}:{BACK_FAR[1]}"))
    process = subprocess.Popen(
        [sys.executable, str(LAB / "links.py"), "--control", str(control), "--link", one, "--link", other],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONDEVMODE": "1"},
    )

    def serving():
        assert process.poll() is None, process.stderr.read()
        return control.exists() and reach() == "answers"

    def change(state, **more):
        return links.order(control, {"set": {"from": "east", "to": "west", "state": state, **more}})

    change.control = control
    try:
        until(serving)
        yield change
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors, errors.decode()
    assert not control.exists()


def test_open_carries_bytes_and_the_end_of_the_stream(network):
    sent = os.urandom(3_000_000)
    got = bytearray()
    with socket.create_connection(NEAR, timeout=30) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        while data := sock.recv(65536):
            got += data
        sender.join()
    assert bytes(got) == sent


def test_cut_resets_what_is_open_and_refuses_what_is_new_until_opened(network):
    with socket.create_connection(NEAR, timeout=30) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        network("cut")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert reach() == "refused"
    network("open")
    until(lambda: reach() == "answers")


def test_deaf_keeps_connections_open_but_passes_nothing_then_delivers(network):
    with socket.create_connection(NEAR, timeout=30) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        network("deaf")
        sock.sendall(b"b")
        sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert reach(within=0.4) == "silent"
        network("open")
        sock.settimeout(30)
        assert sock.recv(1) == b"b"


def test_deaf_hides_even_the_death_of_the_other_side(network, server):
    with socket.create_connection(NEAR, timeout=30) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        network("deaf")
        server.die()
        sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        network("open")
        sock.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_slow_delays_each_way_and_not_the_throughput(network):
    with socket.create_connection(NEAR, timeout=30) as sock:
        network("slow", delay_ms=100)
        began = time.monotonic()
        for _ in range(20):
            sock.sendall(b"x")
            time.sleep(0.005)
        got = b""
        while len(got) < 20:
            got += sock.recv(20)
        took = time.monotonic() - began
    assert took >= 0.2


def test_a_rate_lets_short_questions_pass_while_a_stream_falls_behind(network):
    with socket.create_connection(NEAR, timeout=30) as stream:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        network("slow", bytes_per_s=1000)
        began, got = time.monotonic(), 0
        stream.sendall(b"y" * 60_000)
        while got <= 16_000:
            got += received_within(1.0, stream)
        assert got < 17_500 + 1000 * (time.monotonic() - began)
        assert reach() == "answers"
        network("open")
        stream.settimeout(30)
        while got < 60_000:
            got += len(stream.recv(65536))


def test_a_dead_server_looks_refused_through_the_link_as_it_does_directly(network, server):
    with socket.create_connection(NEAR, timeout=30) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        server.die()
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    until(lambda: reach() == "refused", 10)
    again = Echo(FAR)
    until(lambda: reach() == "answers", 10)
    again.die()


def test_one_direction_does_not_touch_the_other(network):
    back = Echo(BACK_FAR)
    until(lambda: reach(BACK_NEAR) == "answers")
    network("cut")
    assert (reach(), reach(BACK_NEAR)) == ("refused", "answers")
    links.order(network.control, {"set": {"state": "cut"}})
    until(lambda: reach(BACK_NEAR) == "refused")
    back.die()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"set": {"state": "gone"}}, "expected one of open, cut, deaf, slow"),
        ({"set": {"from": "north", "state": "cut"}}, "no links from 'north'"),
        ({"set": {"state": "slow", "bytes_per_s": 0}}, "expected more than 0"),
        ({"what": 1}, "expected"),
        ({"set": 5}, "TypeError"),
    ],
)
def test_a_bad_order_is_answered_and_changes_nothing(network, message, why):
    with pytest.raises(ValueError, match=why):
        links.order(network.control, message)
    assert {link["state"] for link in links.order(network.control, {"get": True})["links"]} == {"open"}


def test_an_address_in_use_ends_it_with_one_line(tmp_path, server):
    taken = f"{FAR[0]}:{FAR[1]}"
    ended = subprocess.run(
        [sys.executable, str(LAB / "links.py"), "--control", str(tmp_path / "s"), "--link", f"a,b,{taken},{taken}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("links: ")
    assert "in use" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
