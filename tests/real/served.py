"""A ``relight serve`` with Prefect's own server, and a system whose second step waits at a gate; for real tests."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from patience import until

from flows.engine import alive

ADDRESS = "127.0.5.45"
RELIGHT = Path(sys.executable).with_name("relight")


def free_port(address: str = ADDRESS) -> int:
    with socket.socket() as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])


@dataclass
class Toy:
    """Two steps: the first finds its port open, the second waits until the gate is opened."""

    folder: Path
    name: str = field(default_factory=lambda: f"toy{secrets.token_hex(3)}")
    gate: int = field(default_factory=free_port)
    listeners: list[socket.socket] = field(default_factory=list)

    def write(self) -> Toy:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.listeners.append(socket.create_server((ADDRESS, 0), backlog=1000))
        port = self.listeners[0].getsockname()[1]
        (self.folder / "system.yaml").write_text(
            f"system: {self.name}\nsites: {{west: {{}}, east: {{}}}}\nobjectives: {{application: {{rto: 10m}}}}\n"
            "safety: {cool_down: 0s, velocity: {runs: 1000}}\n"
            "components: {database: {provider: database.postgresql, database: x, user: x, nodes: {"
            "w: {site: west, address: '127.0.0.1:1'}, e: {site: east, address: '127.0.0.1:2'}}}}\n"
        )
        step = "  - {{id: {}, action: health.tcp, with: {{address: '{}:{}', times: 1}}, timeout: 240s{}}}\n"
        steps = step.format("first", ADDRESS, port, "") + step.format("second", ADDRESS, self.gate, "")
        (self.folder / "gated.yaml").write_text("runbook: gated\nsteps:\n" + steps)
        check = (
            "  - {id: check, action: health.confirm_failure, with: {patience: 0s, times: 1}, timeout: 5s,"
            " on_failure: continue}\n"
        )
        (self.folder / "alerted.yaml").write_text("runbook: alerted\nsteps:\n" + steps + check)
        (self.folder / "triggers.yaml").write_text(
            f"sources: {{{self.name}: {{source: alertmanager, unauthenticated: true}}}}\n"
            f"rules: [{{id: down, from: [{self.name}], match: {{alertname: down}}, site_label: site, run: alerted,"
            " stage: auto},"
            f" {{id: ask, from: [{self.name}], match: {{alertname: ask}}, site_label: site, run: alerted,"
            " stage: approve}]\n"
            "gates: {quorum: 1, confirm: {for: 0s, probes: 0}, flap: {episodes: 1000}, fleet: {runs: 1000},"
            " cool_down: 0s, ready_within: 0s, drill_within: 0s,"
            f" references: ['{ADDRESS}:{port}']}}\n"
        )
        return self

    def open(self) -> None:
        self.listeners.append(socket.create_server((ADDRESS, self.gate), backlog=1000))

    def open_once(self) -> None:
        """Open it, unless it is."""
        if not any(one.getsockname()[1] == self.gate for one in self.listeners):
            self.open()

    def shut(self) -> None:
        for listener in self.listeners:
            listener.close()


@dataclass
class Serve:
    """The command as a user starts it, with a state folder of its own."""

    state: Path
    words: tuple[str, ...] = ()
    folder: Path | None = None
    more: dict[str, str] = field(default_factory=dict)
    log: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self.log = self.state / "serve.log"

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        return {**env, **self.more, "RELIGHT_STATE": str(self.state), "PREFECT_HOME": str(self.state / "none")}

    def start(self, *, ready: bool = True) -> Serve:
        command = [RELIGHT, "serve", "--listen", f"{ADDRESS}:{free_port()}", *self.words]
        self.listen = command[3]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        if ready:
            self.ready()
        return self

    def ready(self) -> None:
        """Wait until the deployments are offered, or the command ended."""
        until(lambda: "Prefect UI" in self.said() or self.process is None or self.process.poll() is not None, 120)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def api(self) -> str:
        return str(json.loads((self.state / "prefect" / "server.json").read_text())["api"])

    def relight(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RELIGHT, *words], env={**self.env, **env}, capture_output=True, text=True, timeout=120, check=False
        )

    def get(self, path: str) -> Any:
        return until(lambda: httpx.get(f"{self.api}/{path}", timeout=30).raise_for_status().json(), 30)

    def post(self, path: str, body: Any) -> Any:
        return until(lambda: httpx.post(f"{self.api}/{path}", json=body, timeout=30).raise_for_status(), 30).json()

    def deployment(self, key: str) -> dict[str, Any]:
        return dict(self.get(f"deployments/name/{key}"))

    def press(self, key: str, options: dict[str, Any]) -> str:
        """Run, in the UI."""
        body = {"parameters": {"options": options}, "idempotency_key": secrets.token_hex(8)}
        return str(self.post(f"deployments/{self.deployment(key)['id']}/create_flow_run", body)["id"])

    def state_of(self, flow_run_id: str) -> tuple[str, str]:
        found = self.get(f"flow_runs/{flow_run_id}")["state"]
        return str(found["type"]), str(found["message"] or "")

    def shown(self, folder: Path) -> dict[str, Any]:
        """The flow run of the ended run in ``folder``, once Prefect shows all of it."""
        window = until(lambda: (w := json.loads((folder / "window.json").read_text()))["complete"] and w, 60)
        return dict(self.get(f"flow_runs/{window['flow_run_id']}"))

    def runs(self, name: str) -> list[Path]:
        return sorted(p.parent for p in self.state.glob("runs/*/journal.jsonl") if f"-{name}-" in p.parent.name)

    def records(self, folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]]

    def waits(self, folder: Path) -> bool:
        """The first step is over, so the second waits at the gate."""
        return any(r["type"] == "outcome" for r in self.records(folder))

    def begun(self, toy: Toy) -> Path:
        """The one run of ``toy``, once it waits at its gate."""
        return Path(until(lambda: next((f for f in self.runs(toy.folder.name) if self.waits(f)), None), 90))

    def free(self, toy: Toy) -> None:
        """Wait until every run of ``toy`` ended and its lease is given up, which is a moment after the last record."""
        system = self.state / "systems" / toy.name

        def over() -> bool:
            ended = (self.records(f)[-1]["type"] == "run_ended" for f in self.runs(toy.folder.name))
            return all(ended) and not alive.alive(system, "lease.lock")

        until(over, 60)

    def processes(self) -> list[int]:
        """Everything that was started with this state folder and lives."""
        mark, found = f"RELIGHT_STATE={self.state}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def stop(self) -> None:
        """In good order; whatever is left is killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
