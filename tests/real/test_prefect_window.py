"""A real Prefect server shows a run step by step; killed, hung or absent, it neither stops nor delays the run."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
ADDRESS = "127.0.5.42"


def answer_of(response: httpx.Response) -> Any:
    """The server's JSON. Its SQLite answers 503 while another writer holds it, which asking again gets over."""
    assert response.is_success or response.status_code == 503, f"{response.status_code}: {response.text}"
    response.raise_for_status()
    return response.json()


@dataclass
class Server:
    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}/api"

    def start(self) -> None:
        env = {
            **os.environ,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_UI_API_URL": self.url,
            "RELIGHT_STATE": "none of its own",  # what ends a test's processes goes by this
        }
        prefect = Path(sys.executable).with_name("prefect")
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [prefect, "server", "start", "--host", ADDRESS, "--port", str(self.port)],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: httpx.get(f"{self.url}/health", timeout=30).status_code == 200, 90)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def get(self, path: str) -> Any:
        return until(lambda: [answer_of(httpx.get(f"{self.url}/{path}", timeout=30))], 30)[0]

    def post(self, path: str, body: Any) -> Any:
        """As Prefect's own client: asked again after a 503."""
        return until(lambda: [answer_of(httpx.post(f"{self.url}/{path}", json=body, timeout=30))], 30)[0]

    def find(self, what: str) -> list[dict[str, Any]]:
        return list(self.post(f"{what}/filter", {}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as s:
        s.bind((ADDRESS, 0))
        port = s.getsockname()[1]
    server = Server(home, port)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Path]:
    listener = socket.create_server((ADDRESS, 0))
    address = f"{ADDRESS}:{listener.getsockname()[1]}"
    (tmp_path / "system.yaml").write_text(
        "system: toy\nsites: {west: {}, east: {}}\nobjectives: {application: {rto: 2m}}\n"
    )
    step = (
        "  - id: {}\n    action: health.tcp\n    with: {{address: '{}', times: {}}}\n    timeout: 9s\n    attempts: 2\n"
    )
    good = step.format("first", address, 1) + step.format("second", address, 2) + "    restores: application\n"
    (tmp_path / "good.yaml").write_text("runbook: good\nsteps:\n" + good)
    (tmp_path / "bad.yaml").write_text("runbook: bad\nsteps:\n" + step.format("broken", f"{ADDRESS}:1", 1))
    yield tmp_path
    listener.close()


def relight(*words: str, url: str | None = None) -> tuple[int, dict[str, Any], float]:
    env = {**os.environ, **({"PREFECT_API_URL": url} if url else {})}
    started = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).with_name("relight"), *words, "--json"],
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), time.monotonic() - started


def test_each_step_is_a_task_run_and_results_are_artifacts(server: Server, system: Path) -> None:
    code, report, _ = relight("run", "good", "-s", str(system), "--from", "west", url=server.url)
    assert (code, report["verdict"]) == (0, "succeeded")
    flow = until(lambda: next((r for r in server.find("flow_runs") if r["name"].startswith("good")), None))
    assert until(lambda: server.find("flow_runs")[0]["state"]["type"] == "COMPLETED")

    def tasks() -> dict[str, str]:
        return {r["name"]: r["state"]["name"] for r in server.find("task_runs") if r["flow_run_id"] == flow["id"]}

    assert until(lambda: tasks() == {"first": "Done", "second": "Done"}, 20)
    artifacts = {a["key"]: a for a in server.find("artifacts")}
    assert json.loads(artifacts["good-toy-rto"]["data"])[0]["verdict"] == "met"
    assert artifacts["good-toy-progress"]["data"] == 100.0
    assert report["run_id"] in artifacts["good-toy-report"]["data"]


def test_a_failed_step_fails_its_task_run_after_its_retries(server: Server, system: Path) -> None:
    code, report, _ = relight("run", "bad", "-s", str(system), "--from", "west", url=server.url)
    assert (code, report["verdict"]) == (1, "failed")
    task = until(lambda: next((r for r in server.find("task_runs") if r["name"] == "broken"), None))
    assert until(lambda: server.find("task_runs") and task["id"])
    done = until(
        lambda: [r for r in server.find("task_runs") if r["id"] == task["id"] and r["state"]["type"] == "FAILED"]
    )
    assert done[0]["run_count"] == 2


def test_a_server_that_is_not_there_does_not_stop_a_run(system: Path) -> None:
    code, report, _ = relight("run", "good", "-s", str(system), "--from", "west", url=f"http://{ADDRESS}:9/api")
    assert (code, report["verdict"]) == (0, "succeeded")


def test_a_server_that_hangs_does_not_delay_the_steps(server: Server, system: Path) -> None:
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        code, report, took = relight("run", "good", "-s", str(system), "--from", "west", url=server.url)
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert (code, report["verdict"]) == (0, "succeeded")
    assert report["objectives"]["application"]["met"] is True
    assert took < 100
    until(lambda: httpx.get(f"{server.url}/health", timeout=30).status_code == 200)


def test_a_run_started_in_the_ui_from_its_deployment(server: Server, system: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PREFECT_API_URL": server.url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with (tmp_path / "serve.log").open("wb") as log:
        serving = subprocess.Popen(
            [Path(sys.executable).with_name("relight"), "serve"],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        found = until(lambda: {d["name"]: d for d in server.find("deployments")}.get("failover"), 60)
        assert found["entrypoint"] == "flows.failover.failover"
        options = found["parameter_openapi_schema"]["definitions"]["FailoverOptions"]["properties"]
        assert options["mode"]["enum"] == ["forced", "graceful"]
        assert options["waive_loss"]["description"]
        body: dict[str, Any] = {"parameters": {"options": {"system": str(system), "runbook": "good", "leave": "west"}}}
        # as Prefect's own client: asking again after a 503 must not start a second run
        body["idempotency_key"] = str(tmp_path)
        start = f"{server.url}/deployments/{found['id']}/create_flow_run"
        run = until(lambda: answer_of(httpx.post(start, json=body, timeout=60)), 60)

        def state() -> str:
            return str(server.get(f"flow_runs/{run['id']}")["state"]["type"])

        until(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), 90)
        assert state() == "COMPLETED", (tmp_path / "serve.log").read_text()[-3000:]

        def names() -> set[str]:
            return {t["name"] for t in server.find("task_runs") if t["flow_run_id"] == run["id"]}

        assert until(lambda: names() == {"first", "second"})
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        try:
            serving.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()


# ---- a server that was away is brought up to date; a flow run that is tried again is the same run ----


@dataclass
class Gated:
    """A system whose second step waits until the test opens its gate."""

    folder: Path
    name: str
    port: int
    listeners: list[socket.socket] = field(default_factory=list)

    def open(self) -> None:
        self.listeners.append(socket.create_server((ADDRESS, self.port)))

    def runs(self) -> list[Path]:
        found = (Path(os.environ["RELIGHT_STATE"]) / "runs").glob("*/journal.jsonl")
        return sorted(p.parent for p in found if f"-{self.name}-" in p.parent.name)

    def records(self) -> list[dict[str, Any]]:
        if not self.runs():
            return []
        return [json.loads(line) for line in (self.runs()[0] / "journal.jsonl").read_bytes().split(b"\n")[:-1]]

    def count(self, kind: str) -> int:
        return sum(r["type"] == kind for r in self.records())

    def waits(self) -> bool:
        """The first step is over, and the second waits at its gate."""
        return any(r["type"] == "outcome" for r in self.records())

    def shown(self) -> dict[str, Any]:
        file = self.runs()[0] / "window.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def flow_runs(self, server: Server) -> list[dict[str, Any]]:
        return [r for r in server.find("flow_runs") if r["name"] == f"gated-{self.name}"]

    def tasks(self, server: Server, flow_run_id: str) -> list[tuple[str, str]]:
        return sorted(
            (t["name"], t["state"]["name"]) for t in server.find("task_runs") if t["flow_run_id"] == flow_run_id
        )


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Gated]:
    name = f"toy{secrets.token_hex(3)}"
    with socket.create_server((ADDRESS, 0)) as probe:
        port = probe.getsockname()[1]
    gated = Gated(tmp_path / name, name, port, [socket.create_server((ADDRESS, 0))])
    gated.folder.mkdir()
    (gated.folder / "system.yaml").write_text(
        f"system: {name}\nsites: {{west: {{}}, east: {{}}}}\nobjectives: {{application: {{rto: 10m}}}}\n"
    )
    step = "  - {{id: {}, action: health.tcp, with: {{address: '{}:{}', times: 1}}, timeout: 280s{}}}\n"
    open_port = gated.listeners[0].getsockname()[1]
    (gated.folder / "gated.yaml").write_text(
        "runbook: gated\nsteps:\n"
        + step.format("first", ADDRESS, open_port, "")
        + step.format("second", ADDRESS, port, ", restores: application")
    )
    yield gated
    for listener in gated.listeners:
        listener.close()


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes that are gone after the test, with all that they started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[Any], url: str, **options: Any) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PREFECT_API_URL": url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        with (tmp_path / "background.log").open("ab") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True, **options)
        started.append(process)
        return process

    yield start
    mark = f"RELIGHT_STATE={os.environ['RELIGHT_STATE']}".encode()
    for process in started:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


RELIGHT = Path(sys.executable).with_name("relight")
SERVE = [RELIGHT, "serve"]
OFFER = [sys.executable, "-P", "-c", "from flows import serve; serve.main()"]
"""The part of serve that needs Prefect, alone: nobody supervises."""
DONE = [("first", "Done"), ("second", "Done")]


def run_gated(gated: Gated) -> list[Any]:
    return [RELIGHT, "run", "gated", "-s", gated.folder, "--from", "west"]


def brought_up_to_date(server: Server, gated: Gated) -> dict[str, Any]:
    until(lambda: gated.shown().get("complete"), 60)
    (flow_run,) = until(lambda: gated.flow_runs(server))
    assert flow_run["state"]["type"] == "COMPLETED"
    assert flow_run["id"] == gated.shown()["flow_run_id"]
    assert until(lambda: gated.tasks(server, flow_run["id"]) == DONE)
    kinds = {a["key"]: a for a in server.find("artifacts") if a["flow_run_id"] == flow_run["id"]}
    assert gated.runs()[0].name in kinds[f"gated-{gated.name}-report"]["data"]
    assert f"gated-{gated.name}-rto" in kinds
    return flow_run


def test_a_server_killed_in_the_middle_of_a_run_shows_it_afterwards(
    server: Server, gated: Gated, background: Callable[..., Any]
) -> None:
    run = background(run_gated(gated), server.url)
    until(lambda: gated.runs() and gated.flow_runs(server) and gated.shown().get("flow_run_id"), 60)
    until(gated.waits)
    server.kill()
    try:
        gated.open()
        until(lambda: gated.count("run_ended") == 1, 30)
        assert gated.records()[-1]["verdict"] == "succeeded"
        assert run.wait(150) == 0
    finally:
        server.start()
    background(SERVE, server.url)
    brought_up_to_date(server, gated)


def test_a_server_that_was_away_all_the_time_shows_the_run_once_with_its_true_times(
    server: Server, gated: Gated, background: Callable[..., Any]
) -> None:
    gated.open()
    code, report, _ = relight("run", "gated", "-s", str(gated.folder), "--from", "west", "--offline")
    assert (code, report["verdict"]) == (0, "succeeded")
    first = background(SERVE, server.url)
    flow_run = brought_up_to_date(server, gated)
    assert abs(moment(flow_run["expected_start_time"]) - moment(report["started_at"])) < 0.001
    assert report["started_at"] in flow_run["state"]["message"]
    steps = {s["id"]: s for s in report["steps"]}
    for task in server.find("task_runs"):
        if task["flow_run_id"] == flow_run["id"]:
            assert abs(moment(task["start_time"]) - moment(steps[task["name"]]["started_at"])) < 0.001
            assert task["run_count"] == 1
    # forgotten here, it is found again there: still one flow run, and one task run a step
    first.kill()
    first.wait()
    (gated.runs()[0] / "window.json").unlink()
    background(SERVE, server.url)
    assert brought_up_to_date(server, gated)["id"] == flow_run["id"]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def started_in_the_ui(server: Server, gated: Gated) -> str:
    found = until(lambda: {d["name"]: d for d in server.find("deployments")}.get("failover"), 60)
    options = {"system": str(gated.folder), "runbook": "gated", "leave": "west"}
    body = {"name": f"gated-{gated.name}", "parameters": {"options": options}, "idempotency_key": gated.name}
    return str(server.post(f"deployments/{found['id']}/create_flow_run", body)["id"])


def state(server: Server, flow_run_id: str) -> str:
    return str(server.get(f"flow_runs/{flow_run_id}")["state"]["type"])


def try_again(server: Server, flow_run_id: str) -> None:
    """As the UI's Retry does."""
    wanted = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    server.post(f"flow_runs/{flow_run_id}/set_state", {"state": wanted, "force": True})


def kill_its_engine(gated: Gated) -> None:
    os.kill(gated.records()[0]["engine"]["pid"], signal.SIGKILL)


def test_a_crashed_flow_run_that_is_tried_again_resumes_its_run(
    server: Server, gated: Gated, background: Callable[..., Any]
) -> None:
    background(OFFER, server.url, stdin=subprocess.PIPE)
    flow_run_id = started_in_the_ui(server, gated)
    until(gated.waits, 90)
    assert gated.records()[0]["prefect_flow_run_id"] == flow_run_id
    kill_its_engine(gated)
    until(lambda: state(server, flow_run_id) == "CRASHED", 60)
    try_again(server, flow_run_id)
    until(lambda: gated.count("run_resumed") == 1, 60)
    gated.open()
    until(lambda: state(server, flow_run_id) == "COMPLETED", 60)
    assert len(gated.runs()) == 1
    assert gated.records()[-1]["verdict"] == "succeeded"
    assert until(lambda: gated.tasks(server, flow_run_id) == DONE, 30)


def test_a_crashed_flow_run_that_the_supervisor_resumed_is_followed_when_tried_again(
    server: Server, gated: Gated, background: Callable[..., Any]
) -> None:
    background(SERVE, server.url)
    flow_run_id = started_in_the_ui(server, gated)
    until(gated.waits, 90)
    kill_its_engine(gated)
    until(lambda: gated.count("run_resumed") == 1, 30)
    until(lambda: server.get(f"flow_runs/{flow_run_id}")["run_count"] == 2, 60)
    try_again(server, flow_run_id)
    until(lambda: server.get(f"flow_runs/{flow_run_id}")["run_count"] == 3, 60)
    gated.open()
    until(lambda: gated.count("run_ended") == 1, 30)
    until(lambda: state(server, flow_run_id) == "COMPLETED" and gated.shown().get("complete"), 60)
    assert len(gated.runs()) == 1
    assert gated.count("run_resumed") == 1
    assert until(lambda: gated.tasks(server, flow_run_id) == DONE, 30)


def test_a_flow_run_tried_again_after_its_run_ended_elsewhere_shows_the_result(
    server: Server, gated: Gated, background: Callable[..., Any]
) -> None:
    background(OFFER, server.url, stdin=subprocess.PIPE)
    flow_run_id = started_in_the_ui(server, gated)
    until(gated.waits, 90)
    kill_its_engine(gated)
    until(lambda: state(server, flow_run_id) == "CRASHED", 60)
    gated.open()
    code, _, _ = relight("resume", gated.runs()[0].name, "--offline")
    assert code == 0
    records = gated.records()
    try_again(server, flow_run_id)
    until(lambda: state(server, flow_run_id) == "COMPLETED", 60)
    assert gated.records() == records
    assert len(gated.runs()) == 1
