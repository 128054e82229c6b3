"""What the rules would have done, and how it turned out; and what is kept has no secrets in it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flows.engine import places, readyfile
from flows.intake import score
from flows.intake.redaction import without_secrets
from flows.intake.score import Done, Shadow

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
RULES = {"down": ("lab", "failover")}


def shadow(would="start", closed=None, mark="", at=NOW):
    return Shadow(1, "down", would, at, at + timedelta(minutes=closed) if closed is not None else None, mark)


def ran(minutes, system="lab", runbook="failover"):
    return Done("r", system, runbook, NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("one", "runs", "turned"),
    [
        (shadow(), [ran(5)], "right"),
        (shadow(closed=10), [ran(5)], "right"),  # it ended because a person recovered it
        (shadow(closed=10), [], "wrong"),
        (shadow(closed=40), [], "open"),
        (shadow(), [], "open"),
        (shadow(), [ran(16)], "open"),
        (shadow(), [ran(-1)], "open"),
        (shadow(closed=1), [ran(5, system="other")], "wrong"),
        (shadow(closed=1), [ran(5, runbook="rejoin")], "wrong"),
        (shadow(closed=1, mark="right"), [], "right"),
        (shadow(mark="wrong"), [ran(5)], "wrong"),
    ],
)
def test_how_it_turned_out(one, runs, turned):
    assert score.turned_out(one, "lab", "failover", runs) == turned


def test_precision_by_rule_and_month():
    past = NOW - timedelta(days=40)
    found = score.table(
        [
            shadow(closed=1),
            shadow(mark="right"),
            shadow(mark="right"),
            shadow(),
            shadow("ask"),
            shadow("refuse", at=past),
        ],
        RULES,
        [],
    )
    assert [(r["month"], r["start"], r["ask"], r["refuse"], r["precision"]) for r in found] == [
        ("2026-10", 0, 0, 1, None),
        ("2026-11", 4, 1, 0, 0.667),
    ]
    assert (found[1]["right"], found[1]["wrong"], found[1]["open"]) == (2, 1, 1)
    assert score.table([shadow()], {}, []) == []


def test_runs_of_people_count_and_no_others():
    for number, (automatic, trigger) in enumerate([(False, "cli"), (True, "alert"), (False, "drill kill-primary")]):
        folder = places.state_home() / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        head = {
            "type": "run_started", "run_id": folder.name, "system": "lab", "runbook": "failover",
            "automatic": automatic, "trigger": trigger, "requested_at": NOW.isoformat(),
        }  # fmt: skip
        (folder / "journal.jsonl").write_text(json.dumps(head) + "\n")
    assert [r.run_id for r in score.by_people()] == ["run-0"]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ('{"api_key": "hunter2"}', "hunter2"),
        ('{"a": {"X-Relight-Token":"hun\\"ter2", "b": 1}}', "ter2"),
        ('{"link": "https://x/y?token=hunter2&a=1"}', "hunter2"),
        ('{"link": "https://x/alerts/am/hunter2"}', "hunter2"),
        ('{"Password" : "hunter2"}', "hunter2"),
    ],
)
def test_what_is_named_like_a_secret_is_not_kept(text, gone):
    found = without_secrets(text)
    assert gone not in found
    assert "***" in found
    json.loads(found)


def test_the_rest_is_kept_as_it_is():
    text = '{"labels": {"alertname": "TokenBucketEmpty"}, "summary": "the token bucket is empty", "n": 3}'
    assert without_secrets(text) == text


def test_readiness_is_kept_and_read_again():
    assert readyfile.newest("lab", "failover") == (None, False, ())
    readyfile.note("lab", "failover", "graceful", ["lag"], NOW)
    assert readyfile.newest("lab", "failover") == (NOW, False, ("lag",))
    readyfile.note("lab", "failover", "graceful", [], NOW)
    assert readyfile.newest("lab", "failover")[1] is True
    readyfile.file("lab", "failover").write_text("{")
    assert readyfile.newest("lab", "failover") == (None, False, ())


def test_what_its_own_run_ended_did_not_end_by_itself():
    """An automatic run that recovers the system ends the alert that started it: that was counted as wrong."""
    one = replace(shadow(closed=5), run_id="run-1")
    assert score.turned_out(one, "lab", "failover", []) == "open"
    assert score.turned_out(replace(one, mark="wrong"), "lab", "failover", []) == "wrong"
