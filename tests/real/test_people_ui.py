"""A run that asks pauses in a real Prefect server with a form; what is submitted there counts."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent))
from asking_toy import ADDRESS, Toy
from patience import until

from flows.approval import answer_of, form
from flows.drill import DrillOptions
from flows.engine import windowfile
from flows.engine.asking import Asking
from flows.failover import FailoverOptions
from tasks import tokens

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server; its API's URL."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as s:
        s.bind((ADDRESS, 0))
        port = s.getsockname()[1]
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    env.pop("PREFECT_API_URL", None)
    prefect = Path(sys.executable).with_name("prefect")
    with (home / "log").open("wb") as log:
        words = [prefect, "server", "start", "--host", ADDRESS, "--port", str(port)]
        server = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://{ADDRESS}:{port}/api"
    try:
        until(lambda: answers(f"{url}/health"), 90)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=30).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def toy(tmp_path: Path, api: str) -> Iterator[Shown]:
    one = Shown(tmp_path / secrets.token_hex(3), api)
    yield one
    one.close()


class Shown(Toy):
    """The toy, shown in Prefect."""

    def __init__(self, home: Path, api: str) -> None:
        home.mkdir()
        super().__init__(home)
        self.api = api
        self.env["PREFECT_API_URL"] = api

    def call(self, method: str, path: str, body: Any = None) -> Any:
        def once() -> Any:
            try:
                answer = httpx.request(method, f"{self.api}/{path}", json=body, timeout=30)
            except httpx.HTTPError:
                return None
            return None if answer.status_code == 503 else answer

        answer = until(once, 30)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def flow_run(self) -> dict[str, Any]:
        return self.call("GET", f"flow_runs/{self.window().flow_run_id}")

    def window(self) -> windowfile.Window:
        def known() -> Any:
            found = windowfile.load(self.folder())
            return found if found.flow_run_id else None

        return until(known, 60)

    def paused(self, other_than: str = "") -> dict[str, Any]:
        def pause() -> Any:
            state = self.flow_run()["state"]
            keys = state["state_details"].get("run_input_keyset")
            if state["type"] != "PAUSED" or not keys or keys["schema"] == other_than:
                return None
            # Prefect keeps the one after the other, once it is paused
            return keys if self.has_input(keys["schema"]) and self.has_input(keys["description"]) else None

        return until(pause, 60)

    def has_input(self, key: str) -> bool:
        return httpx.get(f"{self.api}/flow_runs/{self.flow_run()['id']}/input/{key}", timeout=30).status_code == 200

    def input(self, key: str) -> Any:
        return self.call("GET", f"flow_runs/{self.flow_run()['id']}/input/{key}")

    def resume(self, **given: str) -> dict[str, Any]:
        return self.call("POST", f"flow_runs/{self.flow_run()['id']}/resume", {"run_input": given})

    def shown_as(self) -> str:
        return self.flow_run()["state"]["type"]


def test_a_signed_answer_in_the_form_lets_the_run_go_on(toy: Shown) -> None:
    toy.write()
    folder = toy.start()
    keys = toy.paused()
    schema = toy.input(keys["schema"])["properties"]
    assert schema["decision"]["enum"] == ["approve", "reject"]
    assert schema["name"]["enum"] == ["alice", "bob", "carol"]
    text = toy.input(keys["description"])
    assert "1 of alice, bob, carol must say yes" in text
    assert "objective of application" in text
    assert "an abort would put back" in text
    # what the form itself refuses leaves it paused
    assert toy.resume(decision="maybe", name="alice", token="relight1.x.y")["status"] == "REJECT"
    assert toy.resume(decision="approve", name="alice")["status"] == "REJECT"
    assert toy.shown_as() == "PAUSED"
    # so does what is well formed and does not count; the form says why
    words = ("approve", folder.name, "--step", "approve", "--as", "alice", "--sign")
    forged = toy.relight(*words, "--secret", "env:TEST_BOB")
    assert toy.resume(decision="approve", name="alice", token=forged.stdout.strip())["status"] == "ACCEPT"
    again = toy.paused(other_than=keys["schema"])
    assert "not signed with the secret of alice" in toy.input(again["description"])
    assert not any(r["type"] == "outcome" and r["step"] == "approve" for r in toy.records())
    signed = toy.relight(*words, "--why", "ok")
    assert toy.resume(decision="approve", name="alice", token=signed.stdout.strip())["status"] == "ACCEPT"
    code, report = toy.ended()
    assert (code, report["verdict"]) == (0, "succeeded")
    (yes,) = next(s for s in report["steps"] if s["id"] == "approve")["evidence"]["approved"]
    assert (yes["by"], yes["via"], yes["signed"], yes["comment"]) == ("alice", "ui", True, "ok")
    until(lambda: toy.shown_as() == "COMPLETED", 60)


def test_an_answer_by_the_command_line_ends_the_pause(toy: Shown) -> None:
    toy.write()
    toy.start()
    toy.paused()
    done = toy.relight("approve", "last", "--as", "bob")
    assert done.returncode == 0, done.stderr
    code, report = toy.ended()
    assert (code, report["verdict"]) == (0, "succeeded")
    until(lambda: toy.shown_as() == "COMPLETED", 60)


def test_a_name_alone_counts_where_the_directory_says_so_and_a_no_refuses(toy: Shown) -> None:
    toy.write()
    file = toy.home / "system.yaml"
    file.write_text(file.read_text().replace("    approvers:\n", "    ui: true\n    approvers:\n"))
    toy.start()
    keys = toy.paused()
    assert "token" not in toy.input(keys["schema"])["properties"]
    assert toy.resume(decision="reject", name="carol", comment="it is the switch")["status"] == "ACCEPT"
    code, report = toy.ended()
    assert (code, report["verdict"]) == (3, "refused")
    assert "carol said no: it is the switch" in report["reason"]
    until(lambda: toy.shown_as() == "FAILED", 60)


def test_the_forms_of_the_flows_set_the_variable_and_zero_leaves_it() -> None:
    assert FailoverOptions(approvals=2).request("prefect").vars == {"approvals": "2"}
    assert FailoverOptions().request("prefect").vars == {}
    head = {"files": {"system": "s", "runbook": "r"}, "mode": "forced", "roles": {}, "waivers": {}}
    assert FailoverOptions.of_head(head).approvals == 0
    assert FailoverOptions.of_head({**head, "vars": {"approvals": "3"}}).approvals == 3
    assert DrillOptions().approvals == 0


def test_a_form_whose_parts_contradict_each_other_is_no_answer() -> None:
    now = datetime.now(UTC)
    found = Asking(
        "approve", 1, ("alice", "bob"), ui=False, asked_at=now.isoformat(), until=now.isoformat(), figures={}
    )
    wish = tokens.Wish("run-1", "approve", "approve", "alice", now + timedelta(minutes=1))
    token = tokens.mint(wish, SecretStr("a secret of alice"))
    shown = form(found)
    good = shown(decision="approve", name="alice", token=token)
    assert answer_of("run-1", found, good, now) == ({"token": token}, "")
    for other in ({"decision": "reject"}, {"name": "bob"}):
        _, why = answer_of("run-1", found, good.model_copy(update=other), now)
        assert why.startswith("the token says approve by alice, the form")
