"""``relight serve`` where no Prefect is configured: its own server, its deployments, and a warm runner for each run."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from served import ADDRESS, Serve, Toy, free_port

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def module_toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    toy = Toy(tmp_path_factory.mktemp("systems") / "alpha").write()
    yield toy
    toy.shut()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, module_toy: Toy) -> Iterator[Serve]:
    port = free_port("127.0.0.1")
    served = Serve(tmp_path_factory.mktemp("state"), ("-s", str(module_toy.folder), "--prefect-port", str(port)))
    try:
        served.start()
        yield served
    finally:
        served.stop()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    toy = Toy(tmp_path / f"toy{secrets.token_hex(3)}").write()
    yield toy
    toy.shut()


def test_one_command_gives_the_ui_and_every_deployment(serve: Serve, module_toy: Toy) -> None:
    assert f"Prefect UI: {serve.api.removesuffix('/api')}" in serve.said()
    assert "after the start" in serve.said()
    ui = httpx.get(serve.api.removesuffix("/api") + "/ui-settings", timeout=30).json()
    assert ui["api_url"] == serve.api
    assert serve.api.startswith("http://127.0.0.1:")
    assert httpx.get(serve.api.removesuffix("/api"), timeout=30, follow_redirects=True).is_success
    assert (serve.state / "prefect" / "prefect.db").exists()
    names = {d["name"] for d in serve.post("deployments/filter", {})}
    assert {"failover", "failback", "drill", "readiness", "update", "migrate", "pg-minor"} <= names
    settings = serve.get("admin/settings")
    assert settings["server"]["analytics_enabled"] is False
    readiness = serve.deployment("readiness/readiness")
    (schedule,) = readiness["schedules"]
    assert schedule["slug"] == "alpha"
    assert schedule["schedule"]["cron"] == "*/30 * * * *"
    assert schedule["parameters"]["options"]["system"] == str(module_toy.folder)
    assert "**every step of every runbook**" in readiness["description"]


def test_another_shell_finds_the_server_unless_it_is_told_not_to(serve: Serve, toy: Toy) -> None:
    toy.open()
    words = ("run", "gated", "-s", str(toy.folder), "--from", "west", "--json")
    done = serve.relight(*words)
    assert done.returncode == 0, done.stderr
    assert "in Prefect: " in done.stderr
    flow_run = serve.shown(serve.runs(toy.folder.name)[0])
    assert flow_run["state"]["type"] == "COMPLETED"
    assert flow_run["deployment_id"] == serve.deployment("failover/failover")["id"]
    done = serve.relight(*words, "--offline")
    assert done.returncode == 0, done.stderr
    assert "in Prefect: " not in done.stderr
    # it is shown all the same, and not by whoever ran it
    assert "recorded here afterwards" in serve.shown(serve.runs(toy.folder.name)[1])["state"]["message"]


def test_a_server_file_whose_server_is_gone_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "server.json").write_text('{"api": "http://127.0.0.1:9/api"}')
    (tmp_path / "prefect" / "server.lock").touch()
    done = Serve(tmp_path).relight("deploy")
    assert done.returncode == 2
    assert "no Prefect server" in done.stderr


def test_a_run_from_the_ui_is_taken_at_once_by_a_warm_runner(serve: Serve, toy: Toy) -> None:
    toy.open()
    flow_run = serve.press("failover/failover", {"system": str(toy.folder), "runbook": "gated", "leave": "west"})
    until(lambda: serve.state_of(flow_run)[0] == "COMPLETED", 60)
    (folder,) = serve.runs(toy.folder.name)
    head = serve.records(folder)[0]
    assert head["prefect_flow_run_id"] == flow_run
    until(lambda: not (serve.state / "flow-runs" / flow_run).exists(), 30)  # its process ends a moment later


def test_cancel_in_the_ui_stops_the_engine_between_two_effects(serve: Serve, toy: Toy) -> None:
    flow_run = serve.press("failover/failover", {"system": str(toy.folder), "runbook": "gated", "leave": "west"})
    folder = serve.begun(toy)
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    assert serve.post(f"flow_runs/{flow_run}/set_state", body)["status"] == "ACCEPT"
    until(lambda: serve.state_of(flow_run)[0] == "CANCELLED", 150)
    assert serve.records(folder)[-1]["verdict"] == "interrupted"
    # what the supervisor and the catch-up do afterwards leaves it so
    until(lambda: json.loads((folder / "window.json").read_text())["complete"], 60)
    assert serve.state_of(flow_run)[0] == "CANCELLED"
    assert len(serve.runs(toy.folder.name)) == 1


def test_a_runner_that_crashes_takes_nobody_with_it(serve: Serve, toy: Toy, tmp_path: Path) -> None:
    flow_run = serve.press("failover/failover", {"system": str(toy.folder), "runbook": "gated", "leave": "west"})
    folder = serve.begun(toy)
    other = Toy(tmp_path / f"toy{secrets.token_hex(3)}").write()
    try:
        second = serve.press("failover/failover", {"system": str(other.folder), "runbook": "gated", "leave": "west"})
        untouched = serve.begun(other)
        os.kill(serve.records(folder)[0]["engine"]["pid"], signal.SIGSEGV)
        until(lambda: "run_resumed" in [r["type"] for r in serve.records(folder)], 60)  # by the supervisor
        assert httpx.get(f"http://{serve.listen}/healthz", timeout=30).json()["ok"]
        toy.open()
        until(lambda: serve.state_of(flow_run)[0] == "COMPLETED", 60)
        other.open()
        until(lambda: serve.state_of(second)[0] == "COMPLETED", 60)
        assert "run_resumed" not in [r["type"] for r in serve.records(untouched)]
    finally:
        other.shut()


def alert(serve: Serve, toy: Toy, name: str = "down") -> int:
    word = secrets.token_hex(6)
    one = {
        "status": "firing", "labels": {"alertname": name, "site": "west", "word": word}, "annotations": {},
        "startsAt": datetime.now(UTC).isoformat(), "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "",
        "fingerprint": word,
    }  # fmt: skip
    body: dict[str, Any] = {
        "version": "4", "groupKey": word, "truncatedAlerts": 0, "status": "firing", "receiver": "relight",
        "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "", "alerts": [one],
    }  # fmt: skip
    return httpx.post(f"http://{serve.listen}/alerts/{toy.name}", json=body, timeout=30).status_code


def test_a_run_of_an_alert_is_a_run_of_its_deployment_and_its_crash_stops_no_receiver(
    serve: Serve, module_toy: Toy
) -> None:
    assert alert(serve, module_toy) == 202
    folder = serve.begun(module_toy)
    flow_run = until(lambda: json.loads((folder / "window.json").read_text())["flow_run_id"], 60)
    until(lambda: serve.state_of(flow_run)[0] == "RUNNING", 60)
    shown = serve.get(f"flow_runs/{flow_run}")
    assert shown["deployment_id"] == serve.deployment("failover/failover")["id"]
    assert shown["idempotency_key"] == f"relight-{folder.name}"
    os.kill(serve.records(folder)[0]["engine"]["pid"], signal.SIGSEGV)
    assert alert(serve, module_toy, "of-no-rule") == 202
    until(lambda: "run_resumed" in [r["type"] for r in serve.records(folder)], 60)  # by the supervisor
    module_toy.open_once()
    until(lambda: serve.records(folder)[-1]["type"] == "run_ended", 60)
    until(lambda: serve.state_of(flow_run)[0] in ("COMPLETED", "FAILED"), 60)
    # and the next alert finds a runner
    serve.free(module_toy)  # one run a system
    before = len(serve.runs(module_toy.folder.name))
    assert alert(serve, module_toy) == 202
    until(lambda: len(serve.runs(module_toy.folder.name)) > before, 60)


def test_an_alert_starts_its_run_also_while_prefects_server_hangs(serve: Serve, module_toy: Toy) -> None:
    module_toy.open_once()
    serve.free(module_toy)  # one run a system
    before = serve.runs(module_toy.folder.name)
    server = json.loads((serve.state / "prefect" / "server.json").read_text())["pid"]
    os.kill(server, signal.SIGSTOP)
    try:
        assert alert(serve, module_toy) == 202
        folder = until(lambda: next((f for f in serve.runs(module_toy.folder.name) if f not in before), None), 60)
        until(lambda: serve.records(folder)[-1]["type"] == "run_ended", 60)
    finally:
        os.kill(server, signal.SIGCONT)
    until(lambda: json.loads((folder / "window.json").read_text()).get("complete"), 120)
    flow_run = json.loads((folder / "window.json").read_text())["flow_run_id"]
    assert serve.state_of(flow_run)[0] in ("COMPLETED", "FAILED")


class Asked:
    """The flow run that asks in the UI about an alert of the rule ``ask``, once its form is there."""

    def __init__(self, serve: Serve, toy: Toy) -> None:
        assert alert(serve, toy, "ask") == 202
        self.serve = serve
        self.event = until(lambda: next(e["id"] for e in self.events() if e["outcome"] == "ask"), 60)
        body = {"flow_runs": {"name": {"any_": [f"alert-{self.event}"]}}}
        self.flow_run = until(lambda: [r["id"] for r in serve.post("flow_runs/filter", body)], 60)[0]
        until(self.paused, 60)
        self.schema = serve.get(f"flow_runs/{self.flow_run}/input/{self.paused()}")

    def events(self) -> list[dict[str, Any]]:
        return list(json.loads(self.serve.relight("inbox", "list", "--json").stdout))

    def paused(self) -> str:
        state = self.serve.get(f"flow_runs/{self.flow_run}")["state"]
        return str((state["state_details"].get("run_input_keyset") or {}).get("schema", ""))

    def outcome(self) -> dict[str, Any]:
        return dict(json.loads(self.serve.relight("inbox", "show", str(self.event), "--json").stdout))

    def resume(self, **given: str) -> None:
        answer = self.serve.post(f"flow_runs/{self.flow_run}/resume", {"run_input": given})
        assert answer["status"] == "ACCEPT", answer
        self.ended()

    def ended(self) -> None:
        until(lambda: self.serve.state_of(self.flow_run)[0] == "COMPLETED", 60)


def test_an_alert_that_waits_for_a_person_is_answered_in_the_ui(serve: Serve, module_toy: Toy) -> None:
    module_toy.open_once()
    serve.free(module_toy)  # one run a system
    before = serve.runs(module_toy.folder.name)
    yes = Asked(serve, module_toy)
    assert yes.schema["properties"]["decision"]["enum"] == ["approve", "reject"]
    yes.resume(decision="approve", name="dana")
    folder = next(f for f in serve.runs(module_toy.folder.name) if f not in before)
    assert serve.records(folder)[0]["cause"]["decision"]["approved_by"] == "dana"
    assert yes.outcome()["run_id"] == folder.name
    assert serve.state_of(yes.flow_run)[1] == f"dana approved; run {folder.name}"
    serve.free(module_toy)

    no = Asked(serve, module_toy)
    no.resume(decision="reject", name="dana", comment="it is the cable")
    assert (no.outcome()["outcome"], no.outcome()["run_id"]) == ("not approved", "")
    assert no.outcome()["decision"]["why"] == "dana said no: it is the cable"

    # answered elsewhere, the form goes
    elsewhere = Asked(serve, module_toy)
    assert serve.relight("approve", str(elsewhere.event), "--as", "bob", "--no").returncode == 0
    elsewhere.ended()
    assert "waits for nobody: not approved (bob said no)" in serve.state_of(elsewhere.flow_run)[1]
    again = serve.relight("approve", str(elsewhere.event), "--as", "bob")
    assert (again.returncode, "does not wait" in again.stderr) == (2, True)
    assert serve.runs(module_toy.folder.name) == sorted([*before, folder])


def test_readiness_says_of_each_step_what_is_so(serve: Serve, toy: Toy) -> None:
    options = {"system": str(toy.folder), "runbooks": ["gated"], "mode": "forced"}
    toy.open()
    flow_run = serve.press("readiness/readiness", options)
    until(lambda: serve.state_of(flow_run)[0] in ("COMPLETED", "FAILED"), 60)
    body = {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
    tables = {t["key"].endswith("-checks"): json.loads(t["data"]) for t in serve.post("artifacts/filter", body)}
    rows = tables[False]
    assert {"engine", "notification"} <= {f["check"] for f in tables[True]}
    # nobody names the sites, and nothing of this system answers: that is what it has to say
    assert serve.state_of(flow_run)[0] == "FAILED"
    assert rows[0]["now"] == "cannot be told"
    assert "Name it: --from SITE" in rows[0]["says"]
    assert serve.runs(toy.folder.name) == []


def test_a_failback_that_a_schedule_starts_is_refused(serve: Serve, toy: Toy) -> None:
    deployment = serve.deployment("failback/failback")["id"]
    options = {"system": str(toy.folder)}
    schedule = {
        "active": True, "slug": "by-hand", "parameters": {"options": options},
        "schedule": {"interval": 3600, "anchor_date": datetime.now(UTC).isoformat()},
    }  # fmt: skip
    made = serve.post(f"deployments/{deployment}/schedules", [schedule])
    try:
        filtered = {
            "flow_runs": {"deployment_id": {"any_": [deployment]}},
            "limit": 1,
            "sort": "EXPECTED_START_TIME_ASC",
        }
        run = until(lambda: serve.post("flow_runs/filter", filtered), 90)[0]
        assert run["auto_scheduled"]
        now = {
            "type": "SCHEDULED",
            "name": "Scheduled",
            "state_details": {"scheduled_time": datetime.now(UTC).isoformat()},
        }
        serve.post(f"flow_runs/{run['id']}/set_state", {"state": now, "force": True})
        until(lambda: serve.state_of(run["id"])[0] == "FAILED", 60)
        assert "never automatic" in serve.state_of(run["id"])[1]
        assert serve.runs(toy.folder.name) == []
    finally:
        httpx.delete(f"{serve.api}/deployments/{deployment}/schedules/{made[0]['id']}", timeout=30)


def test_deploy_twice_changes_nothing_and_leaves_to_people_what_is_theirs(serve: Serve, module_toy: Toy) -> None:
    words = ("deploy", "-s", str(module_toy.folder), "--json")
    serve.relight(*words)
    before = serve.deployment("readiness/readiness")
    schedule = before["schedules"][0]
    # an operator pauses the schedule, and somebody has a deployment of their own
    where = f"{serve.api}/deployments/{before['id']}/schedules/{schedule['id']}"
    until(lambda: httpx.patch(where, json={"active": False}, timeout=30).is_success)  # 503 while SQLite is busy
    theirs = serve.post("deployments/", {"name": "theirs", "flow_id": before["flow_id"]})["id"]
    dry = json.loads(serve.relight(*words, "--timezone", "Europe/Berlin", "--dry-run").stdout)
    assert {d["key"]: d["changed"] for d in dry["deployments"]}["readiness/readiness"] == ["schedule alpha"]
    assert serve.deployment("readiness/readiness")["schedules"][0]["schedule"]["timezone"] == "UTC"
    changed = json.loads(serve.relight(*words, "--timezone", "Europe/Berlin").stdout)["deployments"]
    touched = {d["key"] for d in changed if d["did"] == "changed"}
    assert "readiness/readiness" in touched
    assert all(serve.deployment(key)["schedules"] for key in touched), "only what has a schedule has a time zone"
    again = json.loads(serve.relight(*words).stdout)["deployments"]
    assert {d["did"] for d in again} == {"unchanged"}
    after = serve.deployment("readiness/readiness")
    assert after["id"] == before["id"]
    (kept,) = after["schedules"]
    assert (kept["id"], kept["active"]) == (schedule["id"], False)
    assert kept["schedule"]["timezone"] == "Europe/Berlin"
    assert serve.get(f"deployments/{theirs}")["name"] == "theirs"


def test_deploy_refuses_a_time_zone_that_is_none_before_it_writes(serve: Serve, module_toy: Toy) -> None:
    done = serve.relight("deploy", "-s", str(module_toy.folder), "--timezone", "Europe/Atlantis")
    assert done.returncode == 2
    assert "Europe/Atlantis" in done.stderr


def test_the_forms_have_choices_and_texts(serve: Serve) -> None:
    for key, model, field_, choices in (
        ("failover/failover", "FailoverOptions", "act", ["execute", "plan"]),
        ("failback/failback", "FailbackOptions", "act", ["execute", "plan"]),
        ("drill/drill", "DrillOptions", "mode", ["forced", "graceful"]),
        ("update/update", "UpdateOptions", "act", ["execute", "plan"]),
        ("migrate/migrate", "MigrateOptions", "phase", ["expand", "contract"]),
        ("pg-minor/pg-minor", "PgMinorOptions", "restart", ["outdated", "all"]),
        ("readiness/readiness", "ReadinessOptions", "mode", ["forced", "graceful"]),
    ):
        found = serve.deployment(key)
        properties = found["parameter_openapi_schema"]["definitions"][model]["properties"]
        assert properties[field_]["enum"] == choices
        assert all(p["description"] for p in properties.values()), key
        assert set(found["parameters"]["options"]) == set(properties)
        assert found["enforce_parameter_schema"]
        assert "relight" in found["tags"]
        assert found["concurrency_limit"] is None  # the lease decides; see docs/serve.md


def test_prefect_deploy_takes_the_shipped_file(serve: Serve, tmp_path: Path) -> None:
    from flows import offers  # noqa: PLC0415 - Prefect takes over a second
    from flows.engine import places  # noqa: PLC0415

    file = places.data("deployments") / "prefect.yaml"
    assert file.read_text() == offers.prefect_yaml(), "write it again: python -m flows.offers"
    env = {**serve.env, "PREFECT_API_URL": serve.api, "RELIGHT_WORK_POOL": "many"}
    prefect = Path(sys.executable).with_name("prefect")
    run = lambda *words: subprocess.run(  # noqa: E731
        [prefect, "--no-prompt", *words],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run("work-pool", "create", "many", "--type", "process").returncode == 0
    copy = tmp_path / "prefect.yaml"
    copy.write_text(file.read_text().replace("  - name: ", "  - name: pool-"))  # beside those of serve
    done = run("deploy", "--all", "--prefect-file", str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    found = serve.deployment("readiness/pool-readiness")
    assert found["work_pool_name"] == "many"
    assert found["entrypoint"] == "flows.readiness.readiness"
    assert [(s["slug"], s["active"]) for s in found["schedules"]] == [("lab", False)]


def test_a_port_that_is_taken_is_said_or_passed_over(tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Serve(tmp_path / "one").relight(
            "serve", "--listen", f"{ADDRESS}:{free_port()}", "--prefect-port", str(port)
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port} is taken" in done.stderr


def test_without_prefect_nothing_of_it_is_started(tmp_path: Path) -> None:
    served = Serve(tmp_path / "state", ("--no-prefect",)).start(ready=False)
    try:
        until(lambda: "supervising the runs" in served.said(), 30)
        assert "--no-prefect" in served.said()
        assert not (served.state / "prefect").exists()
    finally:
        served.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_serve_leaves_no_process_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    port = free_port("127.0.0.1")
    served = Serve(tmp_path / "state", ("--prefect-port", str(port))).start()
    try:
        assert "Prefect UI" in served.said(), served.said()
        assert len(served.processes()) >= 3
        assert served.process is not None
        served.process.send_signal(how)
        served.process.wait(60)
        until(lambda: not served.processes(), 30)
        # the same folder again: its runs and deployments are still there
        if how == signal.SIGKILL:
            served.log.unlink()
            served.start()
            assert served.deployment("failover/failover")
    finally:
        served.stop()
