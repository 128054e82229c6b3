"""A real Prefect server shows a run step by step; killed, hung or absent, it neither stops nor delays the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.real
ADDRESS = "127.0.5.42"


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    waiting = threading.Event()
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except httpx.HTTPError as e:
            last = e
        waiting.wait(0.1)
    raise AssertionError(f"not true within {seconds} s; last error: {last}")


def answer_of(response: httpx.Response) -> Any:
    """The server's JSON. Its SQLite answers 503 while another writer holds it, which asking again gets over."""
    assert response.is_success or response.status_code == 503, f"{response.status_code}: {response.text}"
    response.raise_for_status()
    return response.json()


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str

    def find(self, what: str) -> list[dict[str, Any]]:
        return answer_of(httpx.post(f"{self.url}/{what}/filter", json={}, timeout=10))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as s:
        s.bind((ADDRESS, 0))
        port = s.getsockname()[1]
    url = f"http://{ADDRESS}:{port}/api"
    env = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_API_URL": url,
    }
    prefect = Path(sys.executable).with_name("prefect")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [prefect, "server", "start", "--host", ADDRESS, "--port", str(port)],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until(lambda: httpx.get(f"{url}/health", timeout=2).status_code == 200, 90)
            yield Server(process, url)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Path]:
    listener = socket.create_server((ADDRESS, 0))
    address = f"{ADDRESS}:{listener.getsockname()[1]}"
    (tmp_path / "system.yaml").write_text(
        "system: toy\nsites: {west: {}, east: {}}\nobjectives: {application: {rto: 1m}}\n"
    )
    step = (
        "  - id: {}\n    action: health.tcp\n    with: {{address: '{}', times: {}}}\n    timeout: 3s\n    attempts: 2\n"
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
        timeout=120,
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
    assert took < 60
    until(lambda: httpx.get(f"{server.url}/health", timeout=2).status_code == 200)


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
        run = until(lambda: answer_of(httpx.post(start, json=body, timeout=10)), 30)

        def state() -> str:
            return answer_of(httpx.get(f"{server.url}/flow_runs/{run['id']}", timeout=10))["state"]["type"]

        until(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), 90)
        assert state() == "COMPLETED", (tmp_path / "serve.log").read_text()[-3000:]
        names = {t["name"] for t in server.find("task_runs") if t["flow_run_id"] == run["id"]}
        assert names == {"first", "second"}
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        try:
            serving.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()
