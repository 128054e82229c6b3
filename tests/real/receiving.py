"""``relight serve`` with its receiver, as a process of its own, over a toy system; for the tests beside this file."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patience import until

from flows.intake import alertdrill

RELIGHT = Path(sys.executable).with_name("relight")
TOKEN = "a-token-of-this-test"
TRIGGERS = """
sources:
  am: {source: alertmanager, tokens: ["env:TOY_TOKEN"]}
rules:
  - {id: down, from: [am], match: {alertname: Down}, run: wait, stage: observe}
gates: {quorum: 1, confirm: {for: 0s, probes: 0}, ready_within: 0s, drill_within: 0s}
"""
BOOK = """
runbook: wait
steps:
  - {id: look, action: health.tcp, with: {address: "127.0.0.1:1"}}
"""


def toy(folder: Path, triggers: str = TRIGGERS) -> Path:
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    (folder / "toy" / "wait.yaml").write_text(BOOK)
    (folder / "toy" / "triggers.yaml").write_text(triggers)
    return folder / "toy"


@contextlib.contextmanager
def of_the_lab(env: dict[str, str], log: Path, *more: str) -> Iterator[None]:
    """A ``relight serve`` where the lab's Alertmanager posts to."""
    words = [RELIGHT, "serve", "--listen", alertdrill.LISTEN, "-s", "lab", *more]
    with log.open("wb") as output:
        serve = subprocess.Popen(words, env=env, stdout=output, stderr=output)
        try:
            yield
        finally:
            serve.terminate()
            serve.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def alert(number: int, name: str = "Down", status: str = "firing") -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    one = {
        "status": status,
        "labels": {"alertname": name, "n": str(number)},
        "startsAt": now,
        "fingerprint": f"{number:x}",
    }
    return {"version": "4", "status": status, "alerts": [one]}


@dataclass
class Serve:
    """``relight serve`` that is killed and started again at will. ``prefix``: words before the command."""

    state: Path
    system: Path
    port: int = field(default_factory=free_port)
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, "RELIGHT_STATE": str(self.state), "TOY_TOKEN": TOKEN}
        env.pop("PREFECT_API_URL", None)
        words = [*self.prefix, RELIGHT, "serve", "--listen", f"127.0.0.1:{self.port}", "--system", str(self.system)]
        log = (self.system.parent / "serve.log").open("ab")
        with log:
            self.process = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            until(self.healthy, 60)
        except AssertionError:
            self.stop()
            raise

    def healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", "/healthz")[0] == 200
        return False

    def receiver(self) -> int:
        """Process id of the receiver, a child of the supervisor."""
        assert self.process is not None
        words = ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)]

        def found() -> int:
            lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
            return next(int(line.split()[0]) for line in lines if "flows.intake" in line)

        return int(until(found, 60, "a receiver"))

    def kill(self) -> None:
        """kill -9, the receiver first; nothing is given time to tidy up."""
        os.kill(self.receiver(), signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(60)
            self.process = None

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/alerts/am", **headers: str) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, said = self.ask("POST", path, raw, headers)
        return status, json.loads(said) if said else None

    @contextlib.contextmanager
    def inbox(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(f"file:{self.state}/inbox.sqlite3?mode=ro", uri=True)) as db:
            yield db
