"""Going on with a run of a lost machine: when the lease's record is believed, and what it never allows."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flows.engine import handover, objectives, report, standby, takeover
from flows.engine.takeover import Look, decide
from tasks.errors import BadInput
from tasks.leases.protocol import Engine, Held, LastRun, Mandate

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
MANDATE = Mandate(
    run_id="r1",
    runbook="failover",
    mode="forced",
    roles={"active": "west", "failed": "west", "target": "east"},
    plan="d1",
    began_at="2026-01-01T11:59:00.000000+00:00",
    incident_started_at="2026-01-01T11:58:00.000000+00:00",
    detected_at="2026-01-01T11:58:30.000000+00:00",
    waivers={"loss": "J. Doe"},
    vars={"approvals": "2"},
    operator="jdoe",
    trigger="prefect",
    flow_run_id="f1",
)
HELD = Held(7, "r1", Engine("west-1", 5, 6, "m"), "2026-01-01T11:59:00+00:00", "t", "at step gate", 3, 10.0,
            released=False, mandate=MANDATE)  # fmt: skip


STOPPED = "2026-01-01T11:57:30.123456+00:00"


def look(held=HELD, still_s=60.0, **more):
    return Look(held, still_s, **{"ttl_s": 10.0, "here": False, "paused": "", "now": NOW, **more})


def having(**changes):
    return replace(HELD, mandate=replace(MANDATE, **changes))


def test_a_record_that_stands_still_long_enough_is_a_lost_machine():
    assert decide(look()).do == "take_over"
    assert "process 5 on west-1" in decide(look()).why
    # the holder may renew as late as its ttl, and its own supervisor resumes at once: that much is waited beyond it
    assert decide(look(still_s=15.0)).do == "leave"
    assert decide(look(still_s=16.0, ttl_s=20.0)).do == "leave"


def test_a_run_that_gave_its_lease_up_without_an_end_counts_as_well():
    assert decide(look(replace(HELD, released=True))).do == "take_over"


@pytest.mark.parametrize("ended", ["succeeded", "failed", "interrupted", "refused", "undone", "unknown"])
def test_a_run_that_ended_is_left_alone(ended):
    assert decide(look(having(ended=ended))).do == "leave"


def test_what_is_not_taken_over_by_itself():
    assert decide(look(None)).do == "leave"
    assert decide(look(replace(HELD, mandate=None))).do == "leave"
    assert decide(look(here=True)).do == "leave"
    waits = decide(look(paused="maintenance"))
    assert (waits.do, "maintenance" in waits.why) == ("wait", True)
    old = decide(look(now=NOW + timedelta(hours=25)))
    assert (old.do, "24 h" in old.why) == ("give_up", True)
    deadly = decide(look(having(lives=3)))
    assert (deadly.do, "3 machines" in deadly.why) == ("give_up", True)
    assert decide(look(having(runbook=""))).do == "give_up"


def test_the_record_must_still_charge_the_run_when_it_is_replaced():
    takeover.may_begin(None, "any")(None)
    may = takeover.may_begin(MANDATE, "d1")
    may(HELD)
    for other in (None, replace(HELD, mandate=None), having(run_id="r2"), having(ended="succeeded")):
        with pytest.raises(BadInput, match="nothing was done"):
            may(other)
    # by hand it may have failed before, and fail no more; what had failed by then, nobody sees change unnoticed
    takeover.may_begin(replace(MANDATE, ended="failed"), "d1")(having(ended="failed"))
    with pytest.raises(BadInput, match="nothing was done"):
        may(having(ended="failed"))


def test_other_files_on_this_machine_take_nothing_over():
    with pytest.raises(BadInput, match="are not those that it began with"):
        takeover.may_begin(MANDATE, "d2")


def test_a_machine_that_comes_back_does_not_go_on_where_another_one_did():
    with pytest.raises(
        BadInput, match=r"run r1 .* began on another machine \(process 5 on west-1\) after run r0 stopped"
    ):
        takeover.not_overtaken("r0", 6, STOPPED)(HELD)
    takeover.not_overtaken("r1", 6, STOPPED)(HELD)  # its own
    takeover.not_overtaken("r0", 8, STOPPED)(HELD)  # began after it
    takeover.not_overtaken("r0", 6, STOPPED)(replace(HELD, mandate=None))
    takeover.not_overtaken("r0", 6, STOPPED)(None)


def test_a_run_is_not_taken_up_once_another_one_changed_the_system():
    later = replace(HELD, mandate=None, last=LastRun("r9", "succeeded", "2026-01-01T11:58:00+00:00"))
    with pytest.raises(
        BadInput, match=r"run r9 changed the same system after run r0 stopped \(succeeded, 2026-01-01T11:58"
    ):
        takeover.not_overtaken("r0", 8, STOPPED)(later)
    takeover.not_overtaken("r9", 8, STOPPED)(later)  # its own
    takeover.not_overtaken("r0", 8, "2026-01-01T11:58:30.5+00:00")(later)  # it changed something before that


def test_a_flow_run_that_is_tried_again_on_another_machine_goes_on_with_its_run():
    asked = standby.for_flow_run("lab", HELD, "f1", NOW)
    assert asked is not None
    assert (asked.takes_over, asked.prefect_flow_run_id, asked.waivers, asked.vars) == (
        MANDATE,
        "f1",
        MANDATE.waivers,
        MANDATE.vars,
    )
    assert asked.incident_started_at == datetime(2026, 1, 1, 11, 58, tzinfo=UTC)
    assert asked.cause["takes_over"] == "r1"
    assert (asked.cause["lives"], asked.cause["origin"]) == ("2", "r1")
    assert standby.for_flow_run("lab", having(ended="failed"), "f1", NOW) is not None
    with pytest.raises(BadInput, match="has ended"):
        standby.for_flow_run("lab", having(ended="succeeded"), "f1", NOW)


def test_a_flow_run_without_a_run_begins_one_unless_another_began_since():
    assert standby.for_flow_run("lab", None, "f2", None) is None
    assert standby.for_flow_run("lab", HELD, "f2", None) is None
    assert standby.for_flow_run("lab", HELD, "f2", NOW) is None
    with pytest.raises(BadInput, match="began on process 5 on west-1 after"):
        standby.for_flow_run("lab", HELD, "f2", NOW - timedelta(minutes=5))


def test_the_record_and_the_request_are_read_back_as_they_were():
    assert Held.decode(HELD.encode(), "here") == HELD
    assert len(HELD.encode()) < 1500
    bare = replace(HELD, mandate=None)
    assert "mandate" not in json.loads(bare.encode())  # as it was before there were mandates
    assert Held.decode(bare.encode(), "here") == bare
    asked = standby.for_flow_run("lab", HELD, "f1", None)
    assert handover.unpack(handover.pack(asked)) == asked


def test_a_loss_that_was_measured_on_the_lost_machine_is_not_known_here():
    step = {"action": "database.promote", "irreversible": True, "with": {}}
    head = {"type": "run_started", "incident_started_at": "2026-01-01T11:58:00+00:00", "plan": {"steps": [step]}}
    lost = {**head, "cause": {"takes_over": "r1"}}
    assert objectives.all_met((head,), {}, {"database": 0.0})
    assert not objectives.all_met((lost,), {}, {"database": 0.0})
    assert objectives.all_met((lost,), {}, {"storage": 0.0})
    counted = {"type": "measured", "rpo": {"database": {"met": True}}}
    assert objectives.all_met((lost, counted), {}, {"database": 0.0})


def test_the_report_says_in_whose_place_a_run_goes_on():
    cause = {"takes_over": "r1", "from": "process 5 on west-1", "step": "at step gate", "lives": "2", "origin": "r1"}
    assert report.taken_over({"cause": cause}) == {k: cause[k] for k in ("takes_over", "from", "step")}
    assert report.taken_over({"cause": {"episode": "e"}}) == report.taken_over({}) == {}


def test_nobody_watches_a_system_whose_lease_is_on_one_machine(tmp_path):
    leases = {
        "one": "{}",
        "block": "\n  lease:\n    provider: leases.postgresql\n    address: 'h:1'",
        "flow": """{lease: {"provider": "leases.s3"}}""",
    }
    for name, components in leases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "system.yaml").write_text(f"system: {name}\nsites: {{}}\ncomponents: {components}\n")
    found = standby.watched(tuple(str(tmp_path / name) for name in leases))
    assert found == (tmp_path / "block" / "system.yaml", tmp_path / "flow" / "system.yaml")


class Child:
    """How the watch starts a take-over in a test: nothing but ``true``, or a command that fails with a code."""

    def __init__(self, code: int) -> None:
        self.code, self.asked = code, []

    def __call__(self, run_id, file):
        self.asked.append(run_id)
        return ["sh", "-c", f"exit {self.code}"]


@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))
    clock = [0.0]

    def make(code):
        child, said = Child(code), []
        made = standby.Watch(
            tmp_path / "system.yaml", said.append, child, lambda: NOW + timedelta(seconds=clock[0]), lambda: clock[0]
        )

        def pass_by(seconds, held=HELD):
            for _ in range(int(seconds)):
                clock[0] += 1
                made.look("lab", held, 10.0)
                if made._child is not None:
                    made._child.wait()

        return pass_by, child, said

    return make


def test_the_watch_begins_once_and_tells(watch):
    pass_by, child, said = watch(0)
    pass_by(15)
    assert (child.asked, said) == ([], [])
    pass_by(2)
    assert child.asked == ["r1"]
    (line,) = said
    assert line.startswith("run r1 of system lab, of another machine: taking over: nothing was heard from process 5")


def test_a_record_that_is_renewed_is_never_taken_over(watch):
    pass_by, child, _ = watch(0)
    for renewal in range(20):
        pass_by(5, replace(HELD, renewals=renewal))
    assert child.asked == []


def test_a_take_over_that_is_refused_is_tried_again_and_one_that_cannot_be_is_left_to_people(watch):
    pass_by, child, said = watch(3)
    pass_by(60)
    assert 3 <= len(child.asked) <= 6
    assert "did not begin (exit 3)" in said[-1] or "taking over" in said[-1]
    pass_by, child, said = watch(2)
    pass_by(120)
    assert child.asked == ["r1"]
    assert "LEFT TO PEOPLE" in said[-1]


def test_a_paused_system_is_taken_over_once_it_is_not(watch):
    pass_by, child, said = watch(0)
    pass_by(30, replace(HELD, paused="maintenance, J. Doe"))
    assert child.asked == []
    assert "maintenance, J. Doe" in said[-1]
    pass_by(17)
    assert child.asked == ["r1"]


def test_requests_of_people_name_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path / "state"))
    (tmp_path / "system.yaml").write_text("system: one\nsites: {west: {}, east: {}}\n")
    with pytest.raises(BadInput, match=r"docs/leases\.md"):
        asyncio.run(standby.request(str(tmp_path)))
