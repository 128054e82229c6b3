"""The lab made unready in one way after the other: each is found, named, and gone once it is put right."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from patience import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

WEST_PG1 = "127.0.1.31"
EAST = ("east-pg1", "east-pg2")


def looked(lab: Any, *words: str) -> dict[str, Any]:
    done = lab.relight("ready", "failover", "--system", "lab", "--json", *words)
    assert done.code in (0, 1), done.err
    found: dict[str, Any] = done.json
    assert found["ready"] is (done.code == 0)
    assert found["ready"] is not bool(found["reasons"])
    return found


def failing(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(f["component"], f["check"]) for f in found["findings"] if f["level"] == "failing"}


@contextlib.contextmanager
def set_as_superuser(lab: Any, statement: str, back: str) -> Iterator[None]:
    """A setting of west-pg1, by its superuser; put back."""
    password = (lab.home() / "secrets" / "postgres").read_text().strip()
    with psycopg.connect(
        host=WEST_PG1, user="postgres", password=password, dbname="venue", autocommit=True
    ) as connection:
        name = statement.split()[3]

        def now() -> Any:
            return connection.execute(f"SHOW {name}".encode()).fetchone()

        def reload(line: str) -> None:
            """Say it, and wait until the server has taken it in."""
            before = now()
            for one in (line, "SELECT pg_reload_conf()"):
                connection.execute(one.encode())
            until(lambda: now() != before)

        reload(statement)
        try:
            yield
        finally:
            reload(back)


def ttl(lab: Any, seconds: int) -> None:
    key = (lab.home() / "secrets" / "tsig").read_text().strip()
    lines = (
        "server 127.0.0.1 5331", "zone venue.test.", f"key hmac-sha256:relight-lab. {key}",
        "update delete app.venue.test. A", f"update add app.venue.test. {seconds} A 127.0.1.10", "send",
    )  # fmt: skip
    subprocess.run(["nsupdate"], input="\n".join(lines) + "\n", text=True, check=True)


def host(lab: Any, command: str, node: str) -> None:
    subprocess.run([lab.home() / "bin" / "host", command, node], env={**os.environ, **lab.env}, check=True)


@pytest.fixture(scope="module")
def ready(lab: Any, until: Any) -> dict[str, Any]:
    """The lab as it comes up."""
    found = looked(lab)
    assert found["ready"], found["reasons"]
    return found


def test_a_lab_that_is_well_is_ready_with_a_score_for_each_objective(ready: dict[str, Any]) -> None:
    assert set(ready["scores"]) == {"application", "database", "storage"}
    assert all(50 <= points < 100 for points in ready["scores"].values()), "backups are unknown: not 100"
    levels = {(f["component"], f["check"]): f["level"] for f in ready["findings"]}
    assert levels[("database", "backups")] == "unknown"
    assert levels[("", "dependencies")] == "ok"
    assert levels[("", "proof")] == "warning"
    calls = ready["calls"]["failover/promote"]
    assert "127.0.2.31:5432 (east)" in calls, "libpq is heard"
    assert any("haproxy/admin.sock (east)" in c for c in ready["calls"]["failover/shift"]), "so are Unix sockets"
    assert any("bin/host status west-pg1 (west)" in c for c in ready["calls"]["failover/fence"]), "and commands"
    assert any(c.startswith("s3:") for c in ready["calls"]["failover/storage"]), "and AWS calls"


def test_settings_that_lose_data_and_a_secret_that_is_missing(lab: Any, ready: dict[str, Any]) -> None:
    secret = lab.home() / "secrets" / "tsig"
    kept = secret.with_suffix(".away")
    with set_as_superuser(lab, "ALTER SYSTEM SET fsync = off", "ALTER SYSTEM RESET fsync"):
        secret.rename(kept)
        try:
            found = looked(lab)
        finally:
            kept.rename(secret)
    assert {("database", "durability"), ("dns", "secrets")} <= failing(found), found["reasons"]
    assert any("west-pg1: fsync is off" in r for r in found["reasons"])
    assert found["trend"] == "worse"
    assert found["scores"]["database"] < 50


def test_a_ttl_above_the_rto(lab: Any, ready: dict[str, Any]) -> None:
    ttl(lab, 3600)
    try:
        found = looked(lab)
    finally:
        ttl(lab, 5)
    assert failing(found) == {("dns", "ttl")}, found["reasons"]
    assert "1h" in " ".join(found["reasons"])


def test_a_target_without_replicas(lab: Any, ready: dict[str, Any], until: Any) -> None:
    with set_as_superuser(
        lab, "ALTER SYSTEM SET synchronous_standby_names = ''", "ALTER SYSTEM RESET synchronous_standby_names"
    ):
        for node in EAST:
            host(lab, "stop", node)
        found = looked(lab)
        for node in EAST:
            host(lab, "start", node)
    assert {("database", "replicas"), ("database", "durability")} <= failing(found), found["reasons"]
    until(lambda: all(lab.roles()[n] == "replica" for n in EAST), 30)


def test_a_step_that_needs_the_site_that_is_left(lab: Any, ready: dict[str, Any], tmp_path: Path) -> None:
    """Somebody wrote the wrong socket: all is well, until west is gone."""
    folder = tmp_path / "lab"
    shutil.copytree(Path(__file__).parents[2] / "runbooks" / "lab", folder)
    file = folder / "system.yaml"
    text = file.read_text()
    wrong = text.replace('east: {socket: "$RELIGHT_LAB/east/haproxy', 'east: {socket: "$RELIGHT_LAB/west/haproxy')
    assert wrong != text
    file.write_text(wrong)
    done = lab.relight("ready", "failover", "--system", str(folder), "--json")
    found = done.json
    assert ("", "dependencies") in failing(found), found["findings"]
    assert any("shift needs" in r and "west/haproxy/admin.sock" in r for r in found["reasons"]), found["reasons"]


def test_it_is_ready_again_and_its_history_says_so(lab: Any, ready: dict[str, Any], until: Any) -> None:
    until(lambda: looked(lab)["ready"], 60)
    done = lab.relight("ready", "--system", "lab", "--history", "--json")
    assert done.code == 0
    states = [r["ready"] for r in done.json]
    assert states[0] is True
    assert False in states
    assert states[-1] is True
    noted = json.loads((Path(lab.env["RELIGHT_STATE"]) / "systems" / "lab" / "ready-failover.json").read_text())
    assert noted["ready"] is True, "gate 12 reads it"
