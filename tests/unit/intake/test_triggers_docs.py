"""docs/triggers.md names every gate, stage, metric and number that the code has."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from flows.engine import places
from flows.intake import gates
from flows.intake.figures import Figures
from flows.intake.history import History
from flows.intake.inbox import Inbox
from flows.intake.receiver import Receiver
from flows.intake.rules import STAGES, Gates

DOCS = (places.PARENT / "docs" / "triggers.md").read_text(encoding="utf-8")


def test_every_gate_is_there_in_its_order():
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)`", DOCS, re.MULTILINE)
    names = [g.__name__.replace("_", "-").replace("rules-of-", "") for g in gates.CHAIN]
    assert [name for _, name in rows] == names
    assert [int(number) for number, _ in rows] == list(range(1, 15))


@pytest.mark.parametrize("name", [*Gates.model_fields, *STAGES])
def test_every_number_and_stage_is_named(name):
    assert re.search(rf"\b{name.replace('_', '[-_]')}\b", DOCS)


def test_every_metric_is_there(tmp_path):
    inbox = Inbox(tmp_path / "inbox.sqlite3")
    receiver = Receiver({}, inbox)
    Figures(receiver.registry, History(inbox.file), [])
    names = {m.name + ("_total" if m.type == "counter" else "") for m in receiver.registry.collect()}
    inbox.close()
    told = set(re.findall(r"`(relight_[a-z_]+)`", DOCS))
    assert told == names
    assert isinstance(receiver.registry, CollectorRegistry)
