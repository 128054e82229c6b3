"""The alert that asks in the Prefect UI: what comes of an answer. Its form: tests/real/test_embedded_prefect.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from flows import alert
from tasks.errors import BadInput, LeaseHeld, SafetyRefusal, Unreachable


def answered(monkeypatch, outcome, decision="approve"):
    async def word(*_asked):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(alert.asked, "approve", word)
    monkeypatch.setattr(alert.asked, "decline", word)
    given = SimpleNamespace(decision=decision, name="dana", comment="")
    return asyncio.run(alert.handed_in(None, None, given, lambda _text: None))


def test_an_answer_that_counts_says_what_came_of_it(monkeypatch):
    assert answered(monkeypatch, "run-1") == ("dana approved; run run-1", "")
    assert answered(monkeypatch, None, "reject") == ("dana said no; no run is started", "")


@pytest.mark.parametrize("decision", ["approve", "reject"])
@pytest.mark.parametrize("error", [SafetyRefusal("gate cool-down"), BadInput("somebody was faster")])
def test_one_that_does_not_count_says_why_in_the_form(monkeypatch, error, decision):
    assert answered(monkeypatch, error, decision) == ("", str(error))


@pytest.mark.parametrize("error", [LeaseHeld("another run has it"), Unreachable("no runner")])
def test_a_yes_that_started_nothing_is_no_success(monkeypatch, error):
    with pytest.raises(type(error)):
        answered(monkeypatch, error)
