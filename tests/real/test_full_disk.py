"""A state folder on a file system that is really full (tmpfs): the run stops before its next effect, resume ends it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import lease_backends as backends
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
RELIGHT = Path(sys.executable).with_name("relight")
GATE = ("127.0.9.71", 7001)
CHECKS = 16
"""A file's last page has room left: so many more records fill it, before the step that changes something."""


class Disk:
    """A tmpfs of 512 kB in a mount namespace of its own, and commands that run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = f"mount -t tmpfs -o size=512k none {folder} && echo ready && exec cat"
        for program in ("unshare", "nsenter"):
            backends.need(program)
        self.holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        inside = ["nsenter", "-t", str(self.holder.pid), "--user", "--mount", "--preserve-credentials", *words]
        env = {**os.environ, "RELIGHT_STATE": str(self.folder)}
        return subprocess.Popen(inside, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def do(self, *words: str | Path) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    def journal(self) -> list[dict[str, Any]]:
        _, out, _ = self.do("sh", "-c", f"cat {self.folder}/runs/*/journal.jsonl")
        return [json.loads(line) for line in out.split("\n")[:-1]]

    def close(self) -> None:
        self.holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    one = Disk(tmp_path / "state")
    yield one
    one.close()


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[backends.S3]:
    with backends.s3(tmp_path_factory.mktemp("s3")) as backend:
        for name in ("toy-west", "toy-east"):
            backend.client.create_bucket(Bucket=name)
        yield backend
        backend.link.cut()


def toy(folder: Path, s3: backends.S3) -> Path:
    keys = f"access_key: 'file:{s3.folder}/access'\n    secret_key: 'file:{s3.folder}/secret'"
    endpoint = f"http://{backends.STORE[0]}:{backends.STORE[1]}"
    (folder / "system.yaml").write_text(
        "system: toy\nsites: {west: {}, east: {}}\n"
        f"components:\n  storage:\n    provider: storage.s3\n    {keys}\n    sites:\n"
        f"      west: {{endpoint: '{endpoint}', bucket: toy-west}}\n"
        f"      east: {{endpoint: '{endpoint}', bucket: toy-east}}\n"
    )
    check = "  - {{id: check-{}, action: health.tcp, with: {{address: '{}:{}', times: 1}}, timeout: 300s}}\n"
    (folder / "copy.yaml").write_text(
        "runbook: copy\nsteps:\n"
        + "".join(check.format(n, *GATE) for n in range(CHECKS))
        + "  - {id: copy, action: storage.copy_from, with: {site: east, from: west}}\n"
    )
    return folder


def source(s3: backends.S3) -> str | None:
    try:
        found = s3.client.get_bucket_tagging(Bucket="toy-east")["TagSet"]
    except s3.client.exceptions.ClientError:
        return None
    return next((t["Value"] for t in found if t["Key"] == "relight-source"), None)


def test_a_full_disk_stops_the_run_before_its_next_effect(disk: Disk, s3: backends.S3, tmp_path: Path) -> None:
    folder = toy(tmp_path, s3)
    run = disk.start(RELIGHT, "run", "copy", "-s", folder, "--from", "west", "--offline", "--json")
    until(disk.journal)
    disk.do("sh", "-c", f"cat /dev/zero > {disk.folder}/filler")  # until there is no room
    with socket.create_server(GATE):
        _, err = run.communicate(timeout=180)
        assert run.returncode == 1, err
        assert "No space left on device" in err
        assert "the run stops before its next effect" in err
        assert "Traceback" not in err
        assert source(s3) is None
        code, _, err = disk.do(RELIGHT, "resume", "last", "--offline", "--json")
        assert code == 1, "still full: " + err
        assert "No space left on device" in err
        assert source(s3) is None
        disk.do("rm", disk.folder / "filler")
        code, out, err = disk.do(RELIGHT, "resume", "last", "--offline", "--json")
    assert code == 0, err
    assert json.loads(out)["verdict"] == "succeeded"
    assert source(s3) == "west"
    assert disk.do(RELIGHT, "journal", "verify", "last")[0] == 0


def test_a_disk_that_is_full_before_the_run_refuses_to_start_it(disk: Disk, s3: backends.S3, tmp_path: Path) -> None:
    folder = toy(tmp_path, s3)
    disk.do("sh", "-c", f"cat /dev/zero > {disk.folder}/filler")
    code, _, err = disk.do(RELIGHT, "run", "copy", "-s", folder, "--from", "west", "--offline", "--json")
    assert code == 1
    assert "No space left on device" in err
    assert "no run may start" in err
    assert source(s3) is None
