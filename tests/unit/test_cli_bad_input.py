"""What people type wrong, and folders that are not as they should be: a line that says so, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli, cli_serve
from flows.engine import gameday, killswitch, places
from flows.engine.validate import validate_paths
from flows.intake.history import History
from flows.intake.inbox import FILE, Inbox
from flows.intake.listening import host_and_port
from tasks.errors import BadInput

LONG = "a" * 300
MANY = "9" * 30


def said(*words):
    """The BadInput that a command ends with."""
    done = CliRunner().invoke(cli.app, words)
    assert isinstance(done.exception, BadInput), (done.exception, done.output)
    return str(done.exception)


@pytest.fixture
def inbox():
    file = places.state_home() / FILE
    Inbox(file).close()
    return History(file)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("validate", LONG), "File name too long"),
        (("plan", "failover", "-s", LONG), "File name too long"),
        (("plan", LONG, "-s", "lab"), "File name too long"),
        (("run", "failover", "-s", "lab", "--incident-started", "0001-01-01T00:00:00+14:00"), "expected ISO 8601"),
        (("rules", "export", "-s", "lab", "--out", "/nonexistent/rules.yaml"), "cannot write /nonexistent"),
        (("rules", "export", "-s", "lab", "--every", "0s"), "--every '0s': expected more than 0s"),
        (("rules", "score", "--within", "banana"), "--within 'banana': expected a duration"),
        (("ready", "nope", "-s", "lab"), "no runbook 'nope'"),
    ],
)
def test_what_cannot_be_is_bad_input(words, says):
    assert says in said(*words)


@pytest.mark.parametrize("command", ["status", "report", "resume", "acknowledge"])
def test_a_run_id_too_long_for_a_file(command):
    (places.state_home() / "runs").mkdir(parents=True)
    assert "File name too long" in said(command, LONG)


@pytest.mark.usefixtures("inbox")
@pytest.mark.parametrize(
    "words",
    [("inbox", "show", MANY), ("inbox", "replay", MANY), ("rules", "mark", MANY, "right"), ("approve", MANY)],
)
def test_an_event_of_more_than_64_bits_is_none(words):
    assert "no event" in said(*words)


def test_no_runbook_is_called_triggers():
    told = said("plan", "nope", "-s", "lab")
    assert "failover" in told
    assert "triggers" not in told


def test_a_pause_that_cannot_be_kept_says_that_runs_go_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "file"))
    told = said("pause", "disks")
    assert told.startswith("NOT paused")
    assert "Runs go on" in told


def test_the_kill_switch_works_in_a_folder_that_was_removed(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    killswitch.check("toy")
    assert CliRunner().invoke(cli.app, ["unpause"], catch_exceptions=False).output.strip() == "not paused"


def test_unpause_says_what_is_still_paused(tmp_path):
    (tmp_path / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    runner, toy = CliRunner(), ("--system", str(tmp_path))
    runner.invoke(cli.app, ["pause", "all"])
    runner.invoke(cli.app, ["pause", "one", *toy])
    assert "everything is" in runner.invoke(cli.app, ["unpause", *toy]).output
    runner.invoke(cli.app, ["pause", "one", *toy])
    assert "relight unpause --system toy" in " ".join(runner.invoke(cli.app, ["unpause"]).output.split())
    assert runner.invoke(cli.app, ["unpause", *toy]).output.strip() == "not paused"
    killswitch.check("toy")


def test_the_brakes_as_json(tmp_path):
    (tmp_path / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    toy = ("--system", str(tmp_path))

    def found(*words):
        return json.loads(CliRunner().invoke(cli.app, [*words, "--json"], catch_exceptions=False).stdout)

    assert found("pause", "all")["system"] is None
    one = found("pause", "one", *toy)
    assert (one["paused"], one["system"], one["why"], one["store"]) == (True, "toy", "one", "")
    assert found("unpause", *toy)["paused"] is True  # everything still is
    found("pause", "one", *toy)
    assert (found("unpause")["paused"], found("unpause")["systems"]) == (False, ["toy"])
    assert found("unpause", *toy)["paused"] is False


def test_a_folder_that_may_not_be_listed_is_a_finding(tmp_path, monkeypatch):
    """It passed as empty; root may list any, so the refusal is made."""
    (tmp_path / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    (tmp_path / "closed").mkdir()
    scandir = places.os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    findings, files = validate_paths([tmp_path])
    assert [Path(f).name for f in files] == ["system.yaml"]
    assert [(f.code, Path(f.file).name, f.severity) for f in findings] == [("unreadable", "closed", "error")]


def test_the_module_is_the_command():
    """``python -m flows.cli run …`` did nothing, and ended with 0."""
    command = [sys.executable, "-m", "flows.cli", "report", "last"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "no run yet" in done.stderr) == (2, True), done.stderr


def test_without_a_standard_output(monkeypatch):
    codes = []
    monkeypatch.setattr(cli.os, "_exit", codes.append)
    monkeypatch.setattr(sys, "stdout", None)
    cli._leave(2)
    assert codes == [2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--fault", "kill-primry"), "Did you mean 'kill-primary'?"),
        (("--mode", "graceful", "--trigger", "alert"), "an alert starts no planned move"),  # it made a forced one
    ],
)
def test_a_drill_that_cannot_be_starts_nothing(monkeypatch, words, says):
    monkeypatch.setattr(gameday, "_is_up", lambda: pytest.fail("the lab was looked at"))
    assert says in said("drill", *words)


@pytest.mark.parametrize("listen", ["foo", ":8420", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999", "127.0.0.1:²"])
def test_an_address_to_listen_at_is_checked_before_anything_starts(monkeypatch, listen):
    """`relight serve` went on without its receiver, which was started again and again."""
    monkeypatch.setattr(cli_serve.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli_serve.supervisor.Supervisor, "go", lambda *_: pytest.fail("it began"))
    assert "expected HOST:PORT" in said("serve", "--no-prefect", "--listen", listen)
    assert host_and_port("[::1]:8420") == ("::1", 8420)
