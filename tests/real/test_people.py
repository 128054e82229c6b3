"""People are told and asked for real: a receiver over HTTP, the command line in mid-run, tokens made elsewhere."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from asking_toy import ADDRESS, KEYS, Toy
from patience import until

from flows.engine import notify

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


class Receiver:
    """Takes what apprise's json:// posts; ``deaf`` never answers."""

    def __init__(self, *, deaf: bool = False, status: int = 200) -> None:
        self.got: list[dict[str, Any]] = []
        released = self.released = threading.Event()
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if deaf:
                    released.wait(60)
                    return
                got.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer((ADDRESS, 0), Handler)
        self.server.daemon_threads = True
        self.url = f"json://{ADDRESS}:{self.server.server_address[1]}/path-that-is-secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def titles(self) -> list[str]:
        return [m["title"] for m in self.got]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(**how: Any) -> Receiver:
        made.append(Receiver(**how))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    one = Toy(tmp_path)
    yield one
    one.close()


def test_one_of_the_command_line_and_one_signed_elsewhere_let_it_go_on(toy: Toy, tmp_path: Path) -> None:
    toy.write()
    folder = toy.start("--var", "approvals=2")
    toy.asks()
    said = toy.relight("status", "last", "--json", "--no-observe")
    (open_,) = json.loads(said.stdout)["approvals"]
    assert (open_["step"], open_["at_least"], open_["who"]) == ("approve", 2, ["alice", "bob", "carol"])
    assert "waits for people" in toy.relight("status", "last", "--no-observe").stdout
    assert toy.relight("approve", "last", "--as", "mallory").returncode == 2
    one = toy.relight("approve", "last", "--as", "alice", "--why", "seen it")
    assert one.returncode == 0, one.stderr
    assert "alice said yes; 1 of 2 so far" in one.stdout
    again = toy.relight("approve", "last", "--as", "alice")
    assert again.returncode == 3
    assert "has answered already" in again.stderr
    # bob is on another machine: no state folder, only his secret
    key = tmp_path / "bob.key"
    key.write_text(KEYS["TEST_BOB"])
    words = ("approve", folder.name, "--step", "approve", "--as", "bob", "--sign", "--secret", f"file:{key}")
    signed = toy.relight(*words, RELIGHT_STATE=str(tmp_path / "elsewhere"))
    assert signed.returncode == 0, signed.stderr
    assert toy.relight("approve", folder.name, "--token", signed.stdout[:-5]).returncode in (2, 3)
    before = time.monotonic()
    handed = toy.relight("approve", folder.name, "--token", signed.stdout.strip(), "--json")
    assert handed.returncode == 0, handed.stderr
    assert json.loads(handed.stdout)["counted"] is True
    code, report = toy.ended()
    assert (code, report["verdict"]) == (0, "succeeded")
    assert time.monotonic() - before < 100
    step = next(s for s in report["steps"] if s["id"] == "approve")
    assert [(a["by"], a["comment"]) for a in step["evidence"]["approved"]] == [("alice", "seen it"), ("bob", "")]
    assert report["phases"]["approve_s"] > 0.5
    refused = [r for r in toy.records() if r["type"] == "approval" and not r["counted"]]
    assert "has answered already" in refused[0]["against"]
    late = toy.relight("approve", folder.name, "--as", "carol")
    assert (late.returncode, "asks nobody now" in late.stderr) == (2, True)
    assert not any(k in (folder / "journal.jsonl").read_text() for k in KEYS.values())


def test_silence_is_refused_and_counted_as_waiting(toy: Toy) -> None:
    toy.write(timeout="12s")
    toy.start()
    code, report = toy.ended()
    assert (code, report["verdict"]) == (3, "refused")
    assert "not approved" in report["reason"]
    assert 3 < report["phases"]["approve_s"] < 12


def test_a_killed_engine_is_resumed_and_counts_what_was_said_meanwhile(toy: Toy) -> None:
    toy.write()
    folder = toy.start()
    toy.asks()
    os.killpg(toy.going[-1].pid, signal.SIGKILL)
    toy.going[-1].wait()
    kept = toy.relight("approve", folder.name, "--as", "carol")
    assert (kept.returncode, "relight resume" in kept.stdout) == (0, True), kept.stderr
    done = toy.relight("resume", folder.name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "succeeded"


def test_people_are_told_and_what_hangs_or_fails_delays_nothing(toy: Toy, receiver: Callable[..., Receiver]) -> None:
    good, deaf, broken = receiver(), receiver(deaf=True), receiver(status=500)
    toy.env |= {"TO_GOOD": good.url, "TO_DEAF": deaf.url, "TO_BROKEN": broken.url}
    toy.write(
        "{secret_url: 'env:TO_DEAF', timeout: 2s}, {secret_url: 'env:TO_GOOD'},"
        " {secret_url: 'env:TO_BROKEN', events: [end]}, {secret_url: 'env:TO_NOBODY', events: [start]}",
        rto="4s",
    )
    toy.start()
    toy.asks()
    until(lambda: "ask of toy waits for you" in good.titles())
    body = next(m["message"] for m in good.got if "waits" in m["title"])
    assert "1 of alice, bob, carol must say yes" in body
    assert "--step approve" in body
    until(lambda: "ask of toy: objective of application missed" in good.titles())
    assert toy.relight("approve", "last", "--as", "alice").returncode == 0
    code, report = toy.ended()
    assert (code, report["verdict"]) == (1, "objective_missed")
    last = next(r for r in toy.records() if r["type"] == "outcome" and r["step"] == "last")
    assert last["duration_s"] < 2
    until(lambda: good.titles()[-1:] == ["ask of toy: objective missed"])
    assert len([t for t in good.titles() if "objective of" in t]) == 3
    assert good.titles()[0] == "ask of toy began (forced): west → east"

    def why(name: str) -> set[str]:
        return {s["why"] for s in toy.sent() if s["to"] == f"env:{name}"}

    until(lambda: len([s for s in toy.sent() if s["to"] == "env:TO_DEAF"]) == 6)
    assert why("TO_DEAF") == {"no answer within 2 s"}
    until(lambda: why("TO_BROKEN"))
    assert why("TO_BROKEN") == {"the receiver did not take it"}
    assert why("TO_NOBODY") == {"secret env:TO_NOBODY is not set or empty. Set it where the engine runs."}
    assert why("TO_GOOD") == {""}
    status = toy.relight("status", "last", "--no-observe").stdout
    assert "not told: end to env:TO_BROKEN: the receiver did not take it" in status
    everything = "".join(f.read_text() for f in toy.folder().iterdir() if f.is_file()) + status
    assert "path-that-is-secret" not in everything


def test_the_death_of_an_engine_is_told_and_its_resume_too(toy: Toy, receiver: Callable[..., Receiver]) -> None:
    good = receiver()
    toy.env["TO_GOOD"] = good.url
    toy.write("{secret_url: 'env:TO_GOOD', events: [start, end]}")
    folder = toy.start()
    toy.asks()
    until(lambda: len(good.got) == 1)
    os.killpg(toy.going[-1].pid, signal.SIGKILL)
    toy.going[-1].wait()
    until(lambda: good.titles()[1:] == ["ask of toy: its engine died"], 40)
    assert toy.relight("approve", folder.name, "--as", "bob").returncode == 0
    assert toy.relight("resume", folder.name).returncode == 0
    until(lambda: good.titles()[2:] == ["ask of toy goes on after an interruption", "ask of toy: succeeded"], 40)


def test_an_alert_without_a_run_is_told(
    toy: Toy, receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other, deaf = receiver(), receiver(), receiver(deaf=True)
    toy.write(
        "{secret_url: 'env:TO_GOOD', events: [alert]}, {secret_url: 'env:TO_OTHER', events: [end]},"
        " {secret_url: 'env:TO_DEAF', events: [alert], timeout: 40s}"
    )
    monkeypatch.setenv("TO_DEAF", deaf.url)
    monkeypatch.setenv("TO_GOOD", good.url)
    monkeypatch.setenv("TO_OTHER", other.url)
    monkeypatch.setenv("RELIGHT_STATE", str(toy.state))
    toy.state.mkdir()
    before = time.monotonic()
    notify.alert(toy.home, "toy: signals disagree", "Prometheus says down, the replicas say up")
    assert time.monotonic() - before < 10, "it waits for nobody"
    until(lambda: good.titles() == ["toy: signals disagree"])
    until(lambda: notify.sent(toy.state))
    assert other.got == []
    deaf.released.set()
    until(lambda: all(c.poll() is not None for c in notify._children))
