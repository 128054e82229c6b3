"""What Prefect's window costs a run: its critical path with no server, a good one, a hung one, and one that is gone.

A toy runbook of steps that wait for nothing, so that all of it is overhead. The critical path is, by the run's own
clock, from ``requested_at`` to ``run_ended``; the whole command is measured beside it. Run it: ``make bench-window``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx

ADDRESS = "127.0.5.44"
RUNS = int(os.environ.get("RUNS", "5"))
STEPS = 12
LIMIT_S = 1.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind((ADDRESS, 0))
        return int(s.getsockname()[1])


def server(home: Path, port: int) -> subprocess.Popen[bytes]:
    url = f"http://{ADDRESS}:{port}/api"
    env = {**os.environ, "PREFECT_HOME": str(home / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    prefect = Path(sys.executable).with_name("prefect")
    with (home / "server.log").open("wb") as log:
        started = subprocess.Popen(
            [prefect, "server", "start", "--host", ADDRESS, "--port", str(port)],
            env={**env, "DO_NOT_TRACK": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    waiting = threading.Event()
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health", timeout=2).is_success:
                return started
        except httpx.HTTPError:
            waiting.wait(0.2)
    raise SystemExit(f"the Prefect server did not come up; see {home}/server.log")


def system(home: Path, port: int) -> Path:
    (home / "system.yaml").write_text(
        "system: toy\nsites: {west: {}, east: {}}\nobjectives: {application: {rto: 1m}}\n"
    )
    step = "  - {{id: s{}, action: health.tcp, with: {{address: '{}:{}', times: 1}}, timeout: 5s{}}}\n"
    steps = [
        step.format(n, ADDRESS, port, ", restores: application" if n == STEPS else "") for n in range(1, STEPS + 1)
    ]
    (home / "toy.yaml").write_text("runbook: toy\nsteps:\n" + "".join(steps))
    return home


def one(folder: Path, url: str | None) -> tuple[float, float]:
    """Seconds of the critical path, and of the whole command."""
    state = tempfile.mkdtemp(dir=folder)
    env = {**os.environ, "RELIGHT_STATE": state}
    env.pop("PREFECT_API_URL", None)
    if url:
        env["PREFECT_API_URL"] = url
    command = [Path(sys.executable).with_name("relight"), "run", "toy", "-s", str(folder), "--from", "west", "--json"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *([] if url else ["--offline"])], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the run failed: {done.stdout}{done.stderr}")
    took_s = time.monotonic() - began
    report = json.loads(done.stdout)
    first = json.loads(Path(report["journal"]["path"]).read_text(encoding="utf-8").split("\n", 1)[0])
    path = datetime.fromisoformat(report["ended_at"]) - datetime.fromisoformat(first["requested_at"])
    return path.total_seconds(), took_s


def accept(listener: socket.socket) -> None:
    """Take every connection, so that none has to wait in a full queue."""
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


def main() -> None:
    listener = socket.create_server((ADDRESS, 0))
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="relight-window-") as name:
        home = Path(name)
        folder = system(home, listener.getsockname()[1])
        port = free_port()
        url = f"http://{ADDRESS}:{port}/api"
        process = server(home, port)
        try:
            figures = {"offline": measured(folder, None), "server up": measured(folder, url)}
            os.killpg(process.pid, signal.SIGSTOP)
            figures["server hung (SIGSTOP)"] = measured(folder, url)
            os.killpg(process.pid, signal.SIGCONT)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        figures["server gone"] = measured(folder, url)
    listener.close()
    base = statistics.median(path for path, _ in figures["offline"])
    print(f"{STEPS} steps, median of {RUNS} runs; critical path from the request to the end of the run")
    print(f"{'':24}{'path s':>9}{'more s':>9}{'ratio':>8}{'worst s':>9}{'command s':>11}")
    worst = 0.0
    for label, runs in figures.items():
        path = statistics.median(p for p, _ in runs)
        worst = max(worst, path - base)
        command = statistics.median(c for _, c in runs)
        print(f"{label:24}{path:9.3f}{path - base:9.3f}{path / base:8.2f}{max(p for p, _ in runs):9.3f}{command:11.2f}")
    print(f"the window costs at most {worst:.3f} s (limit {LIMIT_S:g} s)")
    raise SystemExit(0 if worst < LIMIT_S else 1)


def measured(folder: Path, url: str | None) -> list[tuple[float, float]]:
    return [one(folder, url) for _ in range(RUNS)]


if __name__ == "__main__":
    main()
