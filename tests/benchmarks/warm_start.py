"""From the POST to the first step's observe: relight's warm runners beside Prefect's stock runner and a process worker.

One Prefect server (SQLite), one toy system with one harmless step, one run after the other: what is measured is the way
there. An alert is posted to the receiver; the other figures are for ``create_flow_run`` of a deployment, which is what
the UI's button does. "shown" is when the server set the flow run to Running. Run it: ``make bench-warm``.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

RUNS = int(os.environ.get("RUNS", "40"))
STOCK = int(os.environ.get("STOCK", "5"))
P50_S, P99_S = 0.150, 0.500
LISTEN = "127.0.0.1:8433"
PORT = 4277
API = f"http://127.0.0.1:{PORT}/api"
POOL = "bench"
BIN = Path(sys.executable).parent

STOCK_RUNNER = """
from prefect import serve
from prefect.types.entrypoint import EntrypointType
from flows.failover import failover
serve(failover.to_deployment("stock", entrypoint_type=EntrypointType.MODULE_PATH), pause_on_shutdown=False)
"""
WORKER_DEPLOYMENT = """
import asyncio
from prefect.client.orchestration import get_client
from flows import offers
from flows.failover import OFFERED
async def main():
    want = offers.wanted(OFFERED[0], ())
    async with get_client() as client:
        flow = await client.create_flow_from_name(want.flow)
        await client.create_deployment(flow, "worker", work_pool_name="bench", entrypoint=want.entrypoint,
            parameter_openapi_schema=want.parameter_schema, path=".", pull_steps=[])
asyncio.run(main())
"""


def system(home: Path, port: int) -> Path:
    folder = home / "toy"
    folder.mkdir()
    (folder / "system.yaml").write_text(
        "system: toy\nsites: {west: {}, east: {}}\nobjectives: {application: {rto: 1m}}\n"
        "safety: {cool_down: 0s, velocity: {runs: 100000}}\n"
        "components: {database: {provider: database.postgresql, database: x, user: x, nodes: {"
        "w: {site: west, address: '127.0.0.1:1'}, e: {site: east, address: '127.0.0.1:2'}}}}\n"
    )
    (folder / "failover.yaml").write_text(
        "runbook: failover\nsteps:\n"
        f"  - {{id: look, action: health.tcp, with: {{address: '127.0.0.1:{port}', times: 1}}, timeout: 5s,"
        " restores: application}\n"
        # the gates want an entry check in the plan; it comes after what is measured, and does not hold
        "  - {id: check, action: health.confirm_failure, with: {patience: 0s, times: 1}, timeout: 5s,"
        " on_failure: continue}\n"
    )
    (folder / "triggers.yaml").write_text(
        "sources: {bench: {source: alertmanager, unauthenticated: true}}\n"
        "rules: [{id: down, from: [bench], match: {alertname: down}, site_label: site, run: failover, stage: auto}]\n"
        "gates: {quorum: 1, confirm: {for: 0s, probes: 0}, flap: {episodes: 100000}, fleet: {runs: 100000},"
        " cool_down: 0s, ready_within: 0s, drill_within: 0s, "
        f"references: ['127.0.0.1:{port}']}}\n"
    )
    return folder


def alert(folder: Path) -> tuple[float, Callable[[dict[str, Any]], bool]]:
    """Post one alert; when that was, and which journal's first record is its run's."""
    word = secrets.token_hex(6)
    now = datetime.now(UTC).isoformat()
    one = {
        "status": "firing", "labels": {"alertname": "down", "site": "west", "word": word}, "annotations": {},
        "startsAt": now, "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": word,
    }  # fmt: skip
    body = {
        "version": "4", "groupKey": word, "truncatedAlerts": 0, "status": "firing", "receiver": "relight",
        "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "", "alerts": [one],
    }  # fmt: skip
    began = time.time()
    answer = httpx.post(f"http://{LISTEN}/alerts/bench", json=body, timeout=10)
    if answer.status_code != 202:
        raise SystemExit(f"the receiver answered {answer.status_code}: {answer.text}")
    return began, lambda head: datetime.fromisoformat(head["detected_at"]).timestamp() >= began


def button(name: str) -> Callable[[Path], tuple[float, Callable[[dict[str, Any]], bool]]]:
    """As the UI's Run of deployment ``failover/NAME``."""
    deployment = httpx.get(f"{API}/deployments/name/failover/{name}", timeout=10).raise_for_status().json()["id"]

    def press(folder: Path) -> tuple[float, Callable[[dict[str, Any]], bool]]:
        key = secrets.token_hex(
            8
        )  # SQLite that is busy answers 503; asked again, as Prefect's client does, it is one run
        body = {"parameters": {"options": {"system": str(folder), "leave": "west"}}, "idempotency_key": key}
        url = f"{API}/deployments/{deployment}/create_flow_run"
        began = time.time()
        made = until(lambda: httpx.post(url, json=body, timeout=30).raise_for_status(), 30, "no flow run was made")
        flow_run_id = made.json()["id"]
        return began, lambda head: head.get("prefect_flow_run_id") == flow_run_id

    return press


PARTS: list[list[float]] = []
"""Of each alert: until it was received, decided about and handed over, begun, observed; each from the one before."""


def parts(began: float, head: dict[str, Any], first: dict[str, Any]) -> list[float]:
    said = (head["detected_at"], head["requested_at"], head["at"], first["at"])
    return [b - a for a, b in pairwise([began, *(datetime.fromisoformat(text).timestamp() for text in said)])]


def measured(folder: Path, state: Path, press: Any, runs: int) -> tuple[list[float], list[float]]:
    """Seconds to the first observe, and to Running on the server, of each run."""
    observed, shown, pause = [], [], threading.Event()
    for _ in range(runs):
        began, mine = press(folder)
        journal = until(lambda mine=mine: found(state, mine), 90, "no run began")
        records = [json.loads(line) for line in until(lambda j=journal: ended(j), 60, "the run did not end")]
        first = next(r for r in records if r.get("step"))
        observed.append(datetime.fromisoformat(first["at"]).timestamp() - began)
        if press is alert:
            PARTS.append(parts(began, records[0], first))
        run_id = records[0]["run_id"]
        at = until(lambda j=journal, r=run_id: running_at(j.parent, r), 60, "Prefect does not show the run")
        shown.append(at - began)
        pause.wait(0.5)  # the next runner is waiting again, as it is between two alerts
        until(lambda: waiting_runners() or None, 60, "no runner waits")
    return observed, shown


def found(state: Path, mine: Callable[[dict[str, Any]], bool]) -> Path | None:
    for file in sorted(state.glob("runs/*/journal.jsonl"), reverse=True)[:3]:
        line = file.read_bytes().split(b"\n", 1)
        if len(line) == 2 and mine(json.loads(line[0])):
            return file
    return None


def ended(journal: Path) -> list[bytes] | None:
    lines = journal.read_bytes().split(b"\n")[:-1]
    return lines if lines and json.loads(lines[-1])["type"] == "run_ended" else None


def running_at(folder: Path, run_id: str) -> float | None:
    window = folder / "window.json"
    flow_run_id = json.loads(window.read_text()).get("flow_run_id") if window.exists() else None
    if not flow_run_id:
        return None
    answer = httpx.get(f"{API}/flow_runs/{flow_run_id}", timeout=10)
    if not answer.is_success:
        return None
    run = answer.json()
    if not run["start_time"] or run["state"]["type"] not in ("COMPLETED", "FAILED") or not run["deployment_id"]:
        return None
    return datetime.fromisoformat(run["start_time"]).timestamp()


def waiting_runners() -> bool:
    """Every runner that was started has its imports behind it: it sleeps."""
    states = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"from flows import warm; warm.main()" in (entry / "cmdline").read_bytes():
                states.append((entry / "stat").read_text().rpartition(")")[2].split()[0])
        except OSError:
            continue
    return bool(states) and all(s == "S" for s in states)


def until(look: Callable[[], Any], seconds: float, failed: str) -> Any:
    end, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < end:
        try:
            got = look()
        except httpx.HTTPError:
            got = None
        if got:
            return got
        pause.wait(0.02)
    raise SystemExit(f"{failed} within {seconds:g} s; {tails()}")


@contextmanager
def beside(command: list[Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="relight-warm-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        folder, state = system(home, listener.getsockname()[1]), home / "state"
        os.environ["RELIGHT_STATE"] = str(state)
        os.environ.pop("PREFECT_API_URL", None)
        os.chdir(home)
        serve = [BIN / "relight", "serve", "--listen", LISTEN, "-s", str(folder), "--prefect-port", str(PORT)]
        began = time.time()
        with beside(serve, home / "serve.log"):
            until(lambda: "Prefect UI" in (home / "serve.log").read_text(), 60, "relight serve did not get ready")
            print(f"relight serve, with a Prefect server of its own: ready after {time.time() - began:.1f} s")
            os.environ["PREFECT_API_URL"] = API
            until(waiting_runners, 60, "no runner waits")
            figures = {"relight: an alert is posted": measured(folder, state, alert, RUNS)}
            figures["relight: the UI's button"] = measured(folder, state, button("failover"), max(STOCK, RUNS // 4))
            with beside([sys.executable, "-P", "-c", STOCK_RUNNER], home / "stock.log"):
                press = until(lambda: safely(button, "stock"), 60, "the stock runner registered nothing")
                figures["stock serve(): the UI's button"] = measured(folder, state, press, STOCK)
            subprocess.run([BIN / "prefect", "work-pool", "create", POOL, "--type", "process"], check=True,
                           capture_output=True)  # fmt: skip
            subprocess.run([sys.executable, "-P", "-c", WORKER_DEPLOYMENT], check=True)
            with beside([BIN / "prefect", "worker", "start", "--pool", POOL], home / "worker.log"):
                figures["process worker: the UI's button"] = measured(folder, state, button("worker"), STOCK)
    listener.close()
    raise SystemExit(table(figures))


def safely(make: Callable[[str], Any], name: str) -> Any:
    try:
        return make(name)
    except httpx.HTTPStatusError:
        return None


def tails() -> str:
    """The ends of the logs, for people who look for what went wrong."""
    return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in Path.cwd().glob("*.log"))


def accept(listener: socket.socket) -> None:
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


def quantile(values: list[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, max(0, -(-int(share * 1000) * len(values) // 1000) - 1))]


def table(figures: dict[str, tuple[list[float], list[float]]]) -> int:
    load = os.getloadavg()[0]
    print(f"POST to the first step's observe, and to Running in the UI; {os.cpu_count()} cores, load {load:.1f}")
    print(f"{'':34}{'runs':>5}{'p50 s':>9}{'p99 s':>9}{'worst s':>9}{'shown p50':>11}{'shown p99':>11}")
    for label, (observed, shown) in figures.items():
        numbers = (statistics.median(observed), quantile(observed, 0.99), max(observed))
        more = (statistics.median(shown), quantile(shown, 0.99))
        print(
            f"{label:34}{len(observed):5}" + "".join(f"{n:9.3f}" for n in numbers) + "".join(f"{n:11.3f}" for n in more)
        )
    split = [statistics.median(column) for column in zip(*PARTS, strict=True)]
    words = ("received", "decided and handed over", "begun (files, lease, roles)", "observed")
    print("of an alert, medians: " + ", ".join(f"{w} {s:.3f}" for w, s in zip(words, split, strict=True)))
    observed = next(iter(figures.values()))[0]
    good = statistics.median(observed) <= P50_S and quantile(observed, 0.99) <= P99_S
    print(f"limits: p50 {P50_S:.3f}, p99 {P99_S:.3f}: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    main()
