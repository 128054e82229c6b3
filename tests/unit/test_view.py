"""What people see; and that a view which goes away takes nothing with it."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from flows.engine import report, view
from flows.engine.report import JournalRef


def steps(kit):
    world = kit.World(script={"apply a": ["refuse"]})
    return kit.chain(kit.step("a", attempts=2, restores="app"), kit.step("p", kit.Promote)), world


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_tells_each_step(kit, terminal):
    out = io.StringIO()
    progress = view.Progress(Console(file=out, force_terminal=terminal, width=200, no_color=True))
    plan, world = steps(kit)
    kit.play(plan, world, rto_s={"app": 100.0}, listen=progress.record)
    progress.close()
    said = out.getvalue()
    assert "west → east" in said
    assert "done" in said
    if not terminal:
        assert "attempt 1: apply a: refuse; again in" in said
        assert "run run-1" in said


def test_quiet_says_nothing(kit):
    out = io.StringIO()
    progress = view.Progress(Console(file=out), quiet=True)
    plan, world = steps(kit)
    kit.play(plan, world, listen=progress.record)
    assert out.getvalue() == ""


BROKEN = """
import os, sys
from rich.console import Console
from flows.engine.view import Progress

read, write = os.pipe()
os.close(read)
progress = Progress(Console(file=os.fdopen(write, "w", buffering=1), force_terminal=len(sys.argv) > 1))
plan = {"steps": [{"id": "a", "summary": "", "irreversible": False}]}
progress.record({"type": "run_started", "run_id": "r", "runbook": "b", "system": "s", "mode": "forced", "plan": plan,
    "incident_started_at": "2026-01-01T00:00:00+00:00", "roles": {"failed": "west", "target": "east"}})
progress.began("a", 1)
progress.line("a", "waiting")
outcome = {"type": "outcome", "step": "a", "outcome": "done", "summary": "", "duration_s": 1.0}
progress.record(outcome)
progress.record({"type": "run_ended", "verdict": "succeeded", "reason": ""})
progress.close()
os._exit(7)  # got here
"""


@pytest.mark.parametrize("terminal", [[], ["terminal"]])
def test_a_broken_pipe_ends_the_view_and_not_the_run(terminal):
    """``relight run ... 2>&1 | head``: rich raises SystemExit there, in the middle of a failover."""
    done = subprocess.run([sys.executable, "-c", BROKEN, *terminal], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr[-2000:]


def test_a_terminal_that_was_lost(kit):
    class Gone(io.StringIO):
        def write(self, _text):
            raise OSError(5, os.strerror(5))

    progress = view.Progress(Console(file=Gone(), force_terminal=False))
    plan, world = steps(kit)
    played = kit.play(plan, world, listen=progress.record)
    assert played.verdict == "succeeded"


def test_the_report_and_the_plan_for_a_terminal(kit):
    plan, world = steps(kit)
    played = kit.play(plan, world, rto_s={"app": 100.0})
    result = report.from_records(played.records, JournalRef(path="j", records=1, head_sha256="x"))
    out = io.StringIO()
    Console(file=out, width=160).print(view.report_view(result))
    assert "toy of toyland (forced) west → east: succeeded" in out.getvalue()
