"""Real `relight` processes that want one system: at the same moment, standing still past their lease, automatic."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import lease_backends as backends
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
RELIGHT = Path(sys.executable).with_name("relight")
GATE = ("127.0.9.70", 7001)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[backends.S3]:
    with backends.s3(tmp_path_factory.mktemp("s3")) as backend:
        backend.link.start()
        yield backend
        backend.link.cut()


BOOK = f"""
runbook: copy
steps:
  - id: gate
    action: health.tcp
    with: {{address: "{GATE[0]}:{GATE[1]}"}}
    timeout: 150s
  - id: copy
    action: storage.copy_from
    with: {{site: east, from: west}}
"""


@dataclass
class Toy:
    """A system of two buckets. Its runbook waits for the gate to open, then has one copied from the other."""

    folder: Path
    state: Path
    s3: backends.S3
    where: str
    gate: socket.socket | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, ttl: str) -> None:
        """``ttl``: of the lease. A busy machine stands still for seconds, and who does so for longer is taken over."""
        keys = f"access_key: 'file:{self.s3.folder}/access'\n    secret_key: 'file:{self.s3.folder}/secret'"
        endpoint = f"http://{backends.STORE[0]}:{backends.STORE[1]}"
        store = {"provider": "leases.s3", **self.s3.settings(), "timeout": "10s", "ttl": ttl}
        lease = f"  lease: {json.dumps(store)}\n" if self.where == "s3" else ""
        (self.folder / "system.yaml").write_text(
            f"system: toy\nsites: {{west: {{}}, east: {{}}}}\n"
            f"safety: {{lease_ttl: {ttl}, velocity: {{runs: 2, per: 1h}}}}\n"
            f"components:\n{lease}  storage:\n    provider: storage.s3\n    timeout: 20s\n    {keys}\n    sites:\n"
            f"      west: {{endpoint: '{endpoint}', bucket: toy-west}}\n"
            f"      east: {{endpoint: '{endpoint}', bucket: toy-east}}\n"
        )
        (self.folder / "copy.yaml").write_text(BOOK)

    def start(self, *words: str) -> subprocess.Popen[str]:
        env = {**os.environ, "RELIGHT_STATE": str(self.state)}
        argv = [str(RELIGHT), *words]
        one = subprocess.Popen(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.started.append(one)
        return one

    def run(self, *more: str) -> subprocess.Popen[str]:
        return self.start("run", "copy", "-s", str(self.folder), "--from", "west", "--offline", "--json", *more)

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def do(self, *words: str) -> tuple[int, str, str]:
        return self.ended(self.start(*words))

    def open(self) -> None:
        self.gate = socket.create_server(GATE)

    def journals(self) -> dict[str, list[dict[str, Any]]]:
        """run id -> records, as far as they are whole."""
        return {
            p.parent.name: [json.loads(line) for line in p.read_bytes().split(b"\n")[:-1]]
            for p in sorted(self.state.glob("runs/*/journal.jsonl"))
        }

    def running(self) -> str:
        """The run that has begun and waits at the gate."""
        return until(lambda: next((run for run, records in self.journals().items() if records), ""))

    def source(self, value: str | None = "unread") -> str | None:
        """The tag of the east bucket; set by hand where a value is given."""
        if value != "unread":
            tags = [{"Key": "relight-source", "Value": value}] if value else []
            self.s3.client.put_bucket_tagging(
                Bucket="toy-east", Tagging={"TagSet": [*tags, {"Key": "k", "Value": "v"}]}
            )
        found = self.s3.client.get_bucket_tagging(Bucket="toy-east")["TagSet"]
        return next((t["Value"] for t in found if t["Key"] == "relight-source"), None)


@pytest.fixture(params=["file", "s3"])
def toy(request: pytest.FixtureRequest, tmp_path: Path, s3: backends.S3) -> Iterator[Toy]:
    s3.fresh()
    have = {b["Name"] for b in s3.client.list_buckets()["Buckets"]}
    for name in {"toy-west", "toy-east"} - have:
        s3.client.create_bucket(Bucket=name)
    found = Toy(tmp_path, tmp_path / "state", s3, request.param)
    found.write("120s")
    found.source(None)
    yield found
    for one in found.started:
        one.kill()  # nothing where it has ended
        if one.stdout and not one.stdout.closed:
            one.communicate()
    if found.gate:
        found.gate.close()


def test_two_at_the_same_moment(toy: Toy) -> None:
    both = [toy.run(), toy.run()]
    loser = until(lambda: next((p for p in both if p.poll() is not None), None), 60)
    (winner,) = [p for p in both if p is not loser]
    code, _, err = toy.ended(loser)
    run_id = toy.running()
    assert code == 3, err
    assert f"system toy already has a run: {run_id}" in err
    assert f"process {winner.pid} on {socket.gethostname()}, since 20" in err
    until(lambda: toy.journals()[run_id])
    code, _, err = toy.ended(toy.run())
    assert (code, f"already has a run: {run_id}" in err, "at its start" in err) == (3, True, True), err
    toy.open()
    code, out, err = toy.ended(winner)
    assert (code, json.loads(out)["verdict"], json.loads(out)["run_id"]) == (0, "succeeded", run_id), err
    assert list(toy.journals()) == [run_id]  # who was refused left nothing
    assert toy.source() == "west"
    assert toy.ended(toy.run())[0] == 0  # the lease was given up


@pytest.mark.parametrize("how", ["resume", "run"])
def test_one_that_stood_still_wakes_up_fenced(toy: Toy, how: str) -> None:
    toy.write("1s" if toy.where == "file" else "10s")
    first = toy.run()
    run_id = toy.running()
    first.send_signal(signal.SIGSTOP)
    try:

        def taken() -> subprocess.Popen[str] | None:
            second = toy.start("resume", run_id, "--offline", "--json") if how == "resume" else toy.run()
            until(lambda: second.poll() is not None or _begun(toy, run_id, how))
            return second if second.poll() is None else None

        second = until(taken, 60)
        toy.open()
        code, out, err = toy.ended(second)
        assert (code, json.loads(out)["verdict"]) == (0, "succeeded"), err
        newer = json.loads(out)["run_id"]
        assert (newer == run_id) == (how == "resume")
        assert toy.source() == "west"
        toy.source(None)  # whoever wakes up now must not change it again
        before = toy.journals()
    finally:
        first.send_signal(signal.SIGCONT)
    code, _, err = toy.ended(first)
    assert code == 3, err
    assert "is at epoch" in err
    assert f": {newer} (process {second.pid} on" in err
    assert "Traceback" not in err
    assert toy.source() is None
    assert toy.journals() == before
    assert toy.do("journal", "verify", run_id)[0] == 0


def _begun(toy: Toy, run_id: str, how: str) -> bool:
    journals = toy.journals()
    if how == "resume":
        return any(r["type"] == "run_resumed" for r in journals[run_id])
    return any(run != run_id and records for run, records in journals.items())


def test_automatic_runs_cool_down_until_a_person_acknowledges(toy: Toy) -> None:
    toy.open()
    code, out, err = toy.ended(toy.run("--automatic"))
    assert code == 0, err
    run_id = json.loads(out)["run_id"]
    toy.source(None)
    code, _, err = toy.ended(toy.run("--automatic"))
    assert code == 3
    assert f"no automatic run of system toy now: {run_id} ended succeeded" in err
    assert f"relight acknowledge {run_id}" in err
    assert toy.source() is None
    assert len(toy.journals()) == 1
    assert toy.do("acknowledge", "no-such-run")[0] == 2
    code, out, err = toy.do("acknowledge", run_id, "--who", "J. Doe")
    assert (code, f"{run_id} was acknowledged by J. Doe" in out) == (0, True), err
    code, out, err = toy.ended(toy.run("--automatic"))
    assert code == 0, err
    assert toy.source() == "west"
    # by name, the cool-down can be waived; the cap on automatic runs cannot
    code, _, err = toy.ended(toy.run("--automatic", "--waive", "cool-down=J. Doe, watching"))
    assert (code, "2 automatic runs were started" in err, "the cap is 2" in err) == (3, True, True), err
    code, out, err = toy.ended(toy.run())
    assert code == 0, "a person is not gated: " + err
