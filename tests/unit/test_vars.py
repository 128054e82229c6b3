"""Variables of a run: other values for a runbook's vars, of the right type, journaled, and used again on resume."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flows.cli_read import read_vars
from flows.engine import handover, launch, prove, runbook
from flows.engine.findings import InvalidFiles
from tasks.errors import BadInput

BOOK = """\
runbook: book
vars: {count: 1, share: 0.5, really: false, name: "app."}
steps:
  - {id: a, action: health.tcp, with: {address: "127.0.0.1:1", times: "${count}"}}
"""


def values(kit, **asked):
    return runbook.with_vars(kit.runbook(BOOK), asked).runbook.vars


def test_text_becomes_the_type_of_the_variable(kit):
    changed = values(kit, count="3", share="2", really="True", name="5")
    assert changed == {"count": 3, "share": 2.0, "really": True, "name": "5"}
    assert [type(v) for v in changed.values()] == [int, float, bool, str]
    assert values(kit) == {"count": 1, "share": 0.5, "really": False, "name": "app."}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"cuont": "1"}, r"no variable 'cuont': .*count \(int, 1\).*Did you mean 'count'"),
        ({"count": "many"}, "variable count: expected a whole number, got 'many'; .*share"),
        ({"count": "1.5"}, "expected a whole number"),
        ({"share": "half"}, "expected a number"),
        ({"really": "yes"}, "expected true or false"),
    ],
)
def test_what_does_not_fit_names_what_there_is(kit, asked, says):
    with pytest.raises(BadInput, match=says):
        values(kit, **asked)


def test_they_change_the_plan_and_so_its_digest():
    one, other = (
        launch.prepare("lab", "failover", "forced"),
        launch.prepare("lab", "failover", "forced", {"approvals": "2"}),
    )
    assert one.plan.by_id["approve"].action.at_least == 0
    assert other.plan.by_id["approve"].action.at_least == 2
    assert one.plan.digest != other.plan.digest
    with pytest.raises(InvalidFiles, match="at_least"):
        launch.prepare("lab", "failover", "forced", {"approvals": "-1"})


def test_they_are_handed_to_a_waiting_runner():
    request = launch.Request("lab", "failover", vars={"approvals": "2"}, detected_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert handover.unpack(handover.pack(request)) == request


def test_they_are_written_as_name_and_value():
    assert read_vars(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    assert read_vars(None) == {}
    for wrong in ("a", "=1"):
        with pytest.raises(BadInput, match="expected NAME=VALUE"):
            read_vars([wrong])


def test_a_failover_that_asks_survives_a_crash_at_every_record():
    question = prove.Question("lab", "failover", ("forced",), ("kill-primary",), vars=(("approvals", "2"),))
    case = prove.case_of(question, "forced", "kill-primary")
    calm = prove.play(case, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    asked = next(i for i, e in enumerate(calm.trace) if e.what == "approval_wanted approve")
    over = next(i for i, e in enumerate(calm.trace) if e.what == "outcome approve")
    for event in calm.trace[asked - 3 : over + 4]:
        if event.kind == "record":
            for kind in ("kill", "kill-after"):
                story = prove.play(case, (prove.Deviation(event.at, kind),), calm.end)
                assert (story.verdict, story.violations) == ("succeeded", []), (event, story.verdicts)
    early = calm.trace[asked + 1]
    story = prove.play(case, (prove.Deviation(early.at, "abort"),), calm.end)
    assert (story.verdict, story.violations) == ("undone", [])


def test_nothing_of_a_failover_that_asks_begins_before_the_answer():
    """Also what changes nothing for the worse: its time-out would run out while people think."""
    ready = launch.prepare("lab", "failover", "forced", {"approvals": "1"})
    before = {s.id for s in ready.plan.steps} - _after("approve", ready.plan)
    assert before == {"detect", "approve"}


def _after(step, plan):
    found = {step}
    while more := {s.id for s in plan.steps if found & set(s.needs)} - found:
        found |= more
    return found - {step}
