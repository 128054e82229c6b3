"""Two API servers, PostgreSQL, Redis, two machines with workers: killed in the middle of a run, which goes on."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from many_machines import PG, POOL, ROOT, Machine, Plant, need
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
GATE = ("127.0.11.40", 7001)
TTL_S = 8.0
BOOK = f"""
runbook: move
steps:
  - id: app
    action: traffic.shift
    with: {{at: east, to: target, pool: app}}
    timeout: 60s
  - id: gate
    action: health.tcp
    with: {{address: "{GATE[0]}:{GATE[1]}", times: 1}}
    timeout: 280s
  - id: admin
    action: traffic.shift
    with: {{at: east, to: target, pool: admin}}
    timeout: 60s
    restores: application
"""
STEPS = ("app", "gate", "admin")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    for program in ("unshare", "redis-server", "haproxy", "initdb"):
        need(program)
    plant = Plant(tmp_path_factory.mktemp("plant"))
    try:
        plant.start()
        plant.prefect("--no-prompt", "work-pool", "create", POOL, "--type", "process", PREFECT_API_URL=plant.url)
        file = str(ROOT / "deployments" / "prefect.yaml")
        with_pool = {"PREFECT_API_URL": plant.url, "RELIGHT_WORK_POOL": POOL}
        plant.prefect("--no-prompt", "deploy", "--prefect-file", file, "--name", "failover", **with_pool)
        yield plant
    finally:
        plant.close()


@dataclass
class Shop:
    """A system whose runbook moves the application, waits at a gate, then moves the admin pages. Two machines care."""

    name: str
    plant: Plant
    folder: Path
    machines: dict[str, Machine]
    listeners: list[socket.socket] = field(default_factory=list)
    flow_run: str = ""

    def begin(self) -> Machine:
        """Start it by its deployment, as the UI does; the machine that took it, once the first step is over."""
        found = self.plant.ask("GET", "deployments/name/failover/failover")
        asked = {"system": str(self.folder), "runbook": "move", "leave": "west", "to": "east"}
        body = {"parameters": {"options": asked}, "idempotency_key": self.name}
        self.flow_run = self.plant.ask("POST", f"deployments/{found['id']}/create_flow_run", body)["id"]
        where = until(
            lambda: [m for m in self.machines.values() if self.count(m, "outcome")], 90, "the first step is over"
        )
        assert len(where) == 1
        return where[0]

    def other(self, machine: Machine) -> Machine:
        return next(m for m in self.machines.values() if m is not machine)

    def records(self, machine: Machine) -> list[dict[str, Any]]:
        """Of its newest run of this system."""
        runs = machine.runs(self.name)
        return runs[max(runs)] if runs else []

    def count(self, machine: Machine, kind: str, **more: str) -> int:
        return sum(r["type"] == kind and all(r[k] == v for k, v in more.items()) for r in self.records(machine))

    def intents(self) -> dict[str, int]:
        """Step -> effects that were begun, over all runs of all machines."""
        every = [r for m in self.machines.values() for records in m.runs(self.name).values() for r in records]
        return {step: sum(r["type"] == "intent" and r["step"] == step for r in every) for step in ("app", "admin")}

    def open(self) -> None:
        self.listeners.append(socket.create_server(GATE))

    def state(self) -> str:
        return self.plant.ask("GET", f"flow_runs/{self.flow_run}")["state"]["type"]

    def tasks(self) -> dict[str, str]:
        found = self.plant.ask("POST", "task_runs/filter", {"flow_runs": {"id": {"any_": [self.flow_run]}}})
        return {t["name"]: t["state"]["type"] for t in found}

    def retry(self) -> None:
        """As the UI's button."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        self.plant.ask("POST", f"flow_runs/{self.flow_run}/set_state", {"state": state, "force": True})

    def lease_age_s(self) -> float:
        query = "SELECT system, extract(epoch FROM clock_timestamp() - written_at) FROM relight_lease"
        return float(dict(self.plant.sql(query, "relight"))[self.name])

    def shown_whole(self) -> None:
        """Prefect has one flow run of it, with every step and the report."""
        until(lambda: self.state() == "COMPLETED", 60, "Prefect shows the end")
        until(lambda: self.tasks() == dict.fromkeys(STEPS, "COMPLETED"), 60, "Prefect shows every step")
        by_run = {"artifacts": {"flow_run_id": {"any_": [self.flow_run]}}}
        wanted = {f"move-{self.name}-report", f"move-{self.name}-rto"}

        def shown() -> bool:
            return wanted <= {a["key"] for a in self.plant.ask("POST", "artifacts/filter", by_run)}

        until(shown, 60, "Prefect shows the results")
        named = {"flow_runs": {"name": {"like_": self.name}}}
        found = self.plant.ask("POST", "flow_runs/filter", named)
        # twice an hour there is one of the schedule of readiness, too
        assert {r["id"] for r in found if not r["auto_scheduled"]} <= {self.flow_run}


@pytest.fixture
def shop(plant: Plant, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    name = f"shop{abs(hash(request.node.name)) % 10**6}"
    folder = tmp_path / name
    folder.mkdir()
    socket_file = f"{plant.folder}/haproxy/admin.sock"
    lease = {
        "provider": "leases.postgresql",
        "address": f"{PG[0]}:{PG[1]}",
        "database": "relight",
        "password": f"file:{plant.folder}/lease_password",
    }
    (folder / "system.yaml").write_text(
        f"system: {name}\nsites: {{west: {{}}, east: {{}}}}\nobjectives: {{application: {{rto: 10m}}}}\ncomponents:\n"
        f"  lease: {json.dumps({**lease, 'ttl': f'{TTL_S:g}s'})}\n"
        f"  traffic:\n    provider: traffic.haproxy\n    timeout: 15s\n    sites:\n"
        f"      west: {{socket: '{socket_file}', state_file: '{plant.folder}/haproxy/state'}}\n"
        f"      east: {{socket: '{socket_file}', state_file: '{plant.folder}/haproxy/state'}}\n"
    )
    (folder / "move.yaml").write_text(BOOK)
    shop = Shop(name, plant, folder, {m: Machine(m, tmp_path / m, plant, folder) for m in ("west", "east")})
    try:
        for server in ("app", "admin"):
            command = f"set server {server}/west-{server}1 state ready; set server {server}/east-{server}1 state drain"
            plant.haproxy(command)
        for machine in shop.machines.values():
            machine.start()
        online = {"work_pool": POOL}
        for name in shop.machines:
            until(lambda name=name: name in workers(plant, **online), 120, f"worker {name} is online")
        yield shop
    finally:
        for machine in shop.machines.values():
            machine.kill()
        for listener in shop.listeners:
            listener.close()


def workers(plant: Plant, work_pool: str) -> set[str]:
    found = plant.ask("POST", f"work_pools/{work_pool}/workers/filter", {})
    return {w["name"] for w in found if w["status"] == "ONLINE"}


def test_a_server_and_the_worker_of_the_run_are_killed_and_the_engine_goes_on(plant: Plant, shop: Shop) -> None:
    machine = shop.begin()
    plant.kill("api1")
    machine.kill_worker()
    try:
        shop.open()
        until(lambda: shop.count(machine, "run_ended"), 60, "the run ends")
        assert shop.records(machine)[-1]["verdict"] == "succeeded"
        assert (len(machine.runs(shop.name)), len(shop.other(machine).runs(shop.name))) == (1, 0)
        assert shop.intents() == {"app": 1, "admin": 1}
        shop.shown_whole()
    finally:
        plant.api("api1")


def test_a_machine_and_a_server_are_lost_and_the_other_machine_goes_on(plant: Plant, shop: Shop) -> None:
    lost = shop.begin()
    head = shop.records(lost)[0]
    heir = shop.other(lost)
    until(lambda: shop.tasks().get("app") == "COMPLETED", 30, "Prefect shows the first step")
    plant.kill("api2")
    lost.kill()
    try:
        until(lambda: shop.count(heir, "outcome"), 60, "the other machine goes on")
        began = shop.records(heir)[0]
        assert began["cause"]["takes_over"] == head["run_id"]
        assert began["epoch"] > head["epoch"]
        assert (began["roles"], began["prefect_flow_run_id"]) == (head["roles"], shop.flow_run)
        assert [began[k] for k in ("incident_started_at", "detected_at")] == [
            head[k] for k in ("incident_started_at", "detected_at")
        ]
        assert shop.count(heir, "outcome", step="app", outcome="already") == 1
        shop.open()
        until(lambda: shop.count(heir, "run_ended"), 60, "the run ends")
        assert shop.records(heir)[-1]["verdict"] == "succeeded"
        assert shop.intents() == {"app": 1, "admin": 1}
        shop.shown_whole()
        report = json.loads(until(lambda: next((heir.folder / "state" / "runs").glob("*/report.json"))).read_text())
        since_s = moment(shop.records(heir)[-1]["at"]) - moment(head["incident_started_at"])
        assert TTL_S < report["objectives"]["application"]["actual_s"] <= since_s
        # the machine comes back, with a run that never ended: it is not gone on with a second time
        lost.start()
        told = ("GIVING UP", "began on another machine")
        until(lambda: all(word in lost.log() for word in told), 90, "the lost machine leaves its run alone")
        assert not shop.count(lost, "run_resumed")
        assert shop.intents() == {"app": 1, "admin": 1}
    finally:
        plant.api("api2")


def test_retry_of_a_flow_run_on_the_other_machine_goes_on_with_its_run(plant: Plant, shop: Shop) -> None:
    """Nobody watches there: a person presses Retry, before the lease ran out and after."""
    lost = shop.begin()
    head = shop.records(lost)[0]
    heir = shop.other(lost)
    heir.kill_serve()
    lost.kill()
    shop.open()
    shop.retry()
    until(lambda: shop.state() in ("FAILED", "COMPLETED"), 60, "the first Retry ends")
    if shop.state() == "FAILED":  # it was within the ttl
        assert "already has a run" in shop.plant.ask("GET", f"flow_runs/{shop.flow_run}")["state"]["message"]
        assert not shop.records(heir)
        until(lambda: shop.lease_age_s() > TTL_S, 30, "the lease has run out")
        shop.retry()
    until(lambda: shop.count(heir, "run_ended"), 60, "the run ends")
    began = shop.records(heir)[0]
    assert (began["cause"]["takes_over"], began["roles"]) == (head["run_id"], head["roles"])
    assert began["incident_started_at"] == head["incident_started_at"]
    assert shop.records(heir)[-1]["verdict"] == "succeeded"
    assert shop.intents() == {"app": 1, "admin": 1}
    until(lambda: shop.state() == "COMPLETED", 60, "Prefect shows the end")


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
