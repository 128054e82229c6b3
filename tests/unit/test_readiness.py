"""Readiness: what is looked at, and that a runbook that cannot be read hides no other."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from flows.engine import launch, preview, readiness
from tasks.contract import Observation, Phase
from tasks.errors import BadInput, Contradiction, SafetyRefusal, Unreachable

STEP = "  - {id: look, action: health.tcp, with: {address: '127.0.0.1:1', times: 1}, timeout: 2s}\n"


@pytest.fixture
def told(monkeypatch):
    """Alerts, instead of a process that sends them."""
    found = []

    def alert(_system, title, text):
        found.append((title, text))
        thread = threading.Thread(target=list)
        thread.start()
        return thread

    monkeypatch.setattr(readiness.notify, "alert", alert)
    return found


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "state"))
    (tmp_path / "system.yaml").write_text("system: toy\nsites: {west: {}, east: {}}\n")
    (tmp_path / "broken.yaml").write_text("runbook: broken\nsteps: [{id: x, action: no.such}]\n")
    (tmp_path / "failover.yaml").write_text("runbook: failover\nsteps:\n" + STEP)
    (tmp_path / "triggers.yaml").write_text("rules: []\n")
    return tmp_path


def test_every_runbook_of_the_folder_is_one(system):
    assert readiness.runbooks_of(str(system)) == ["broken", "failover"]


def test_what_cannot_be_read_or_observed_is_a_reason_each(system, told):
    found = asyncio.run(readiness.check(str(system)))
    assert not found.ready
    assert len(told) == 1
    assert [(r.runbook, r.now) for r in found.rows] == [("broken", "cannot be told"), ("failover", "cannot be told")]
    assert "no.such" in found.reasons[0]
    assert found.reasons[1].startswith("failover: ")


def test_a_system_that_there_is_not_is_an_error():
    with pytest.raises(BadInput, match="no system 'nowhere'"):
        asyncio.run(readiness.check("nowhere"))


def test_a_plan_is_a_table_that_says_what_cannot_be_told(system):
    step = launch.prepare(str(system), "failover", "forced").plan.steps[0]
    found = [
        preview.Preview(step, Observation(holds=True, summary="a | b"), None),
        preview.Preview(step, Observation(holds=False, summary="closed", changes=("open it", "lock it")), None),
        preview.Preview(step, None, BadInput("no such\nthing")),
    ]
    assert preview.markdown(found).splitlines()[2:] == [
        "| look | health.tcp | a \\| b | nothing |",
        "| look | health.tcp | closed | open it; lock it |",
        "| look | health.tcp | **cannot be observed:** no such thing | - |",
    ]


def looked(name, needs=(), *, irreversible=False, holds=None, error=None):
    step = SimpleNamespace(id=name, needs=needs, irreversible=irreversible, phase=Phase.EXECUTE, action=None)
    seen = None if holds is None else Observation(holds=holds, summary=name, facts={})
    return preview.Preview(step, seen, error)


@pytest.mark.parametrize(
    ("holds", "error", "against"),
    [
        (False, SafetyRefusal("west is the primary"), []),
        (True, SafetyRefusal("west is the primary"), ["rejoin: west is the primary"]),
        (False, Unreachable("west does not answer"), ["rejoin: west does not answer"]),
        (False, Contradiction("two primaries"), ["rejoin: two primaries"]),
    ],
)
def test_a_refusal_of_a_step_that_comes_after_the_promotion_is_no_reason_before_it(holds, error, against):
    previews = [
        looked("promote", irreversible=True, holds=holds),
        looked("verify", ("promote",), holds=False),
        looked("rejoin", ("verify",), error=error),
    ]
    assert preview.unready(previews) == against
