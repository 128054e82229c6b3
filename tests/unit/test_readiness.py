"""Readiness: what is looked at, and that a runbook that cannot be read hides no other."""

from __future__ import annotations

import asyncio
import threading

import pytest

from flows.engine import readiness
from tasks.errors import BadInput

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
