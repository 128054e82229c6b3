"""The last border: every error is a line and a code, whatever its text and however full the disk."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows import cli
from flows.engine import launch, places, report, view
from tasks.errors import BadInput
from tasks.secrets import resolve


def full(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


def ended(monkeypatch, error):
    """What ``main`` says of ``error``, and its exit code."""
    told, codes = io.StringIO(), []

    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "_leave", codes.append)
    monkeypatch.setattr(cli.err, "file", told)
    cli.main()
    return told.getvalue(), codes


def test_a_report_that_cannot_be_written_is_still_returned(tmp_path, monkeypatch):
    made = object()
    monkeypatch.setattr(report, "build", lambda _path: made)
    monkeypatch.setattr(launch, "_write", full)
    assert launch.write_report(tmp_path) is made


def test_a_traceback_that_cannot_be_kept_is_told_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "state_home", lambda: tmp_path)
    monkeypatch.setenv("FULL_DISK_SECRET", "correct horse battery")
    resolve("env:FULL_DISK_SECRET")
    assert "the traceback is in" in cli._kept("x")
    monkeypatch.setattr(Path, "write_text", full)
    told = cli._kept("KeyError: correct horse battery")
    assert "No space left" in told
    assert "KeyError: ***" in told


@pytest.mark.parametrize("text", ["[/x]", "[bold]", "no [::1]:53, no [link=x]"])
def test_brackets_in_an_error_are_text_not_markup(monkeypatch, text):
    """``relight run failover --system '[/x]'`` ended with a traceback and 1 instead of 2."""
    told, codes = ended(monkeypatch, BadInput(f"no system {text!r}"))
    assert codes == [2]
    assert text in told


def test_brackets_in_what_a_step_waits_for_do_not_end_the_run():
    console = Console(file=io.StringIO(), force_terminal=True, highlight=False, markup=cli.err._markup)
    progress = view.Progress(console)
    step = {"id": "a", "action": "x.y", "irreversible": False, "summary": ""}
    progress.record(
        {
            "type": "run_started",
            "run_id": "r1",
            "runbook": "b",
            "system": "s",
            "mode": "forced",
            "roles": {"failed": "w", "target": "e"},
            "incident_started_at": "2026-01-01T00:00:00+00:00",
            "at": "2026-01-01T00:00:00+00:00",
            "plan": {"steps": [step]},
        }
    )
    progress.began("a", 1)
    progress.line("a", "the server said [/nonsense]")
    progress.close()


def test_an_output_that_takes_no_more_is_no_bug(monkeypatch):
    """``relight actions --json >/dev/full`` was told as a bug of relight's."""
    told, codes = ended(monkeypatch, OSError(28, "No space left on device"))
    assert codes == [1]
    assert told.startswith("relight: its output, or its state in")


def test_a_state_folder_that_is_a_file_is_bad_input(tmp_path, monkeypatch):
    home = tmp_path / "file"
    home.write_text("")
    monkeypatch.setenv("RELIGHT_STATE", str(home))
    told, codes = ended(monkeypatch, FileExistsError(17, "File exists", str(home)))
    assert codes == [2]
    assert "RELIGHT_STATE" in told
    bugs = FileExistsError(17, "File exists", str(tmp_path / "other")), FileNotFoundError(2, "None", str(home / "runs"))
    for bug in bugs:
        told, codes = ended(monkeypatch, bug)
        assert (codes, "a bug" in told) == ([1], True)  # whatever else it is, nobody thought of it


def test_what_is_left_in_the_buffer_of_a_full_output_makes_the_code_1():
    command = [sys.executable, "-c", "from flows import cli; print('x' * 10); cli._leave(0)"]
    with Path("/dev/full").open("w") as full_disk:
        done = subprocess.run(command, stdout=full_disk, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
