"""A system of its own whose one run asks people, driven by the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from patience import until

from flows.engine import notify

ADDRESS = "127.0.5.46"
RELIGHT = Path(sys.executable).with_name("relight")
KEYS = {f"TEST_{n.upper()}": f"the secret of {n}, long" for n in ("alice", "bob", "carol")}


class Toy:
    """A system whose one run asks people; the command line of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "state"
        self.env = {**os.environ, **KEYS, "RELIGHT_STATE": str(self.state)}
        self.env.pop("PREFECT_API_URL", None)
        self.listener = socket.create_server((ADDRESS, 0))
        self.going: list[subprocess.Popen[str]] = []

    def write(self, notify_to: str = "", timeout: str = "240s", rto: str = "10m") -> None:
        people = "\n".join(f"      {n}: {{secret: 'env:TEST_{n.upper()}'}}" for n in ("alice", "bob", "carol"))
        (self.home / "system.yaml").write_text(
            f"system: toy\nsites: {{west: {{}}, east: {{}}}}\nobjectives: {{application: {{rto: {rto}}}}}\n"
            "components:\n"
            f"  people:\n    provider: people.directory\n    approvers:\n{people}\n    notify: [{notify_to}]\n"
        )
        port = self.listener.getsockname()[1]
        check = f"action: health.tcp, with: {{address: '{ADDRESS}:{port}'}}"
        (self.home / "ask.yaml").write_text(
            "runbook: ask\nvars: {approvals: 1}\nsteps:\n"
            f"  - {{id: first, {check}}}\n"
            "  - id: approve\n    action: people.approve\n    with: {at_least: '${approvals}'}\n"
            f"    timeout: {timeout}\n"
            f"  - {{id: last, {check}, restores: application}}\n"
        )

    def start(self, *words: str) -> Path:
        command = [RELIGHT, "run", "ask", "-s", str(self.home), "--from", "west", "--json", *words]
        pipe = subprocess.PIPE
        going = subprocess.Popen(command, env=self.env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        self.going.append(going)
        return self.folder()

    def folder(self) -> Path:
        found = until(lambda: sorted((self.state / "runs").glob("*/journal.jsonl")), 30)
        return found[-1].parent

    def records(self) -> list[dict[str, Any]]:
        lines = (self.folder() / "journal.jsonl").read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def asks(self, times: int = 1) -> None:
        until(lambda: sum(r["type"] == "approval_wanted" for r in self.records()) >= times, 30)

    def ended(self) -> tuple[int, dict[str, Any]]:
        out, err = self.going[-1].communicate(timeout=150)
        assert out, err
        return self.going[-1].returncode, json.loads(out)

    def relight(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [RELIGHT, *words]
        return subprocess.run(
            command, env={**self.env, **env}, capture_output=True, text=True, check=False, timeout=150
        )

    def sent(self) -> list[dict[str, Any]]:
        return notify.sent(self.folder())

    def close(self) -> None:
        for going in self.going:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(going.pid, signal.SIGKILL)
            going.communicate()
        self.listener.close()
