"""The command line's contract: exit codes, one-line errors, help with examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from flows import cli

RELIGHT = Path(sys.executable).with_name("relight")
SYSTEM = "system: toy\nsites: {west: {}, east: {}}\n"


def relight(*words, cwd=None):
    return subprocess.run([RELIGHT, *words], capture_output=True, text=True, check=False, cwd=cwd, env=os.environ)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "system.yaml").write_text(SYSTEM)
    return tmp_path


def test_every_finding_is_printed_and_the_code_is_2(folder):
    (folder / "bad.yaml").write_text(
        "runbook: bad\nsteps:\n"
        "  - {id: a, action: database.promot, timeout: soon}\n"
        "  - {id: b, action: health.tcp, with: {address: '127.0.0.1:1'}, needs: [c]}\n"
    )
    (folder / "circle.yaml").write_text(
        "runbook: circle\nsteps:\n"
        "  - {id: a, action: health.tcp, with: {address: '127.0.0.1:1'}, needs: [b]}\n"
        "  - {id: b, action: health.tcp, with: {address: '127.0.0.1:1'}, needs: [a]}\n"
    )
    done = relight("validate", str(folder), "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)["findings"]
    assert {f["code"] for f in found} >= {"bad-value", "cycle"}
    assert all(f["line"] and f["column"] and f["file"] for f in found)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("run", "failover", "--system", "nowhere"), 2, "no system 'nowhere'"),
        (("plan", "nothing", "--system", "lab"), 2, "no runbook 'nothing'"),
        (("run", "failover", "--system", "lab", "--waive", "loss"), 2, "expected RULE=who and why"),
        (("run", "failover", "--system", "lab", "--incident-started", "yesterday"), 2, "expected ISO 8601"),
        (("run", "failover", "--system", "lab", "--mode", "maybe"), 2, "maybe"),
        (("resume", "no-such-run"), 2, "no run 'no-such-run'"),
        (("report", "last"), 2, "no run yet"),
        (("drill", "--system", "shop"), 2, "only the lab"),
        (("validate", "/no/such/folder"), 2, "no such file or folder"),
    ],
)
def test_bad_usage_is_one_clear_error_and_code_2(words, code, says):
    done = relight(*words)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_the_kill_switch_refuses_with_3(folder):
    (folder / "check.yaml").write_text(
        "runbook: check\nsteps:\n  - {id: a, action: health.tcp, with: {address: '127.0.0.1:1'}}\n"
    )
    assert relight("pause", "a test").returncode == 0
    done = relight("run", "check", "--system", str(folder), "--from", "west")
    assert (done.returncode, "paused: a test" in done.stderr) == (3, True), done.stderr
    assert relight("unpause").returncode == 0


def test_every_command_has_help_with_an_example():
    def walk(command):
        assert "Example: `relight " in (command.help or ""), command.name
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    walk(typer.main.get_command(cli.app))


def test_no_command_waits_for_what_only_some_need():
    """Each takes a tenth of a second to read, or more: at every command, on the worst day of the year."""
    heavy = {"apprise", "boto3", "cryptography.x509", "fastapi", "hypothesis", "jinja2", "pandas", "prefect", "uvicorn"}
    code = f"import flows.cli, sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
