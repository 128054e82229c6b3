"""The report: from records alone, the same for everyone."""

from __future__ import annotations

import json

import pytest

from flows import catchup
from flows.engine import report
from flows.engine.journal import FileJournal
from flows.engine.report import JournalRef
from tasks.errors import BadInput

WHERE = JournalRef(path="journal.jsonl", records=9, head_sha256="abc")


@pytest.fixture
def played(kit):
    world = kit.World(script={"apply a": ["refuse", "lost"], "apply c": ["slow:20"]})
    steps = (kit.step("a", attempts=3), kit.step("b", kit.Check), kit.step("c", restores="app", timeout_s=60.0))
    world.true.add("b")
    return kit.play(kit.chain(*steps), world, rto_s={"app": 100.0, "other": 5.0}, rpo_s={"data": 0.0})


def test_from_records(played):
    result = report.from_records(played.records, WHERE)
    assert (result.verdict, result.exit_code, result.reason) == ("succeeded", 0, "")
    assert [(s.id, s.outcome, s.attempts) for s in result.steps] == [
        ("a", "done", 3),
        ("b", "done", 1),
        ("c", "done", 1),
    ]
    assert result.objectives["app"].met is True
    assert result.objectives["app"].actual_s == pytest.approx(20, abs=1)
    assert (result.objectives["other"].actual_s, result.objectives["other"].met) == (None, None)
    assert result.roles == {"active": "west", "failed": "west", "target": "east"}
    assert json.loads(result.to_json())["journal"]["head_sha256"] == "abc"


def test_every_prefix_has_a_report(played):
    """A run that is still going, or died, has one too."""
    for end in range(1, len(played.records)):
        result = report.from_records(played.records[:end], WHERE)
        assert (result.verdict, result.exit_code, result.ended_at) == ("running", 1, None)
        assert "ended None" not in report.markdown(result)


def test_an_effect_in_flight_is_unknown(played):
    first_intent = next(i for i, r in enumerate(played.records) if r["type"] == "intent")
    result = report.from_records(played.records[: first_intent + 1], WHERE)
    assert result.steps[0].outcome == "unknown"


@pytest.mark.parametrize(
    ("script", "verdict", "code"),
    [
        ({"apply a": ["refuse"]}, "failed", 1),
        ({"apply a": ["unsafe"]}, "refused", 3),
        ({"apply a": ["breach"]}, "failed", 1),
        ({"apply a": ["lost"], "observe a": ["ok", "refuse"]}, "unknown", 1),
        ({"observe a": ["halt"]}, "interrupted", 1),
    ],
)
def test_verdicts_and_exit_codes(kit, script, verdict, code):
    played = kit.play(kit.plan(kit.step("a", restores="app")), kit.World(script=script), rto_s={"app": 100.0})
    result = report.from_records(played.records, WHERE)
    assert (result.verdict, result.exit_code) == (verdict, code)
    assert result.objectives["app"].met is (None if verdict == "interrupted" else False)
    assert result.objectives["app"].pending is (verdict == "interrupted")
    assert result.reason


def test_an_objective_is_missed_when_its_time_has_run_out_not_before(played):
    """Of a run that is going: ten seconds into five minutes, nothing is missed."""
    early, late = played.records[:3], [{**played.records[3], "at": "2027-01-01T00:00:00+00:00"}]
    before, after = (report.from_records((*early, *more), WHERE) for more in ((), late))
    app = before.objectives["app"]
    assert (app.met, app.pending, report.rto_told(app)) == (None, True, "not yet")
    assert "| app | 1m40s | - | not yet |" in report.markdown(before)
    assert report.rto_told(before.objectives["other"]) == "not part of this run"
    app = after.objectives["app"]
    assert (app.met, app.pending, report.rto_told(app)) == (False, False, "MISSED")


def test_the_card_of_prefects_ui_says_missed_only_of_what_was(played):
    def card(records):
        return catchup.rto_artifact(report.from_records(records, WHERE))[2].partition(":")[0]

    head = {**played.records[0], "plan": {**played.records[0]["plan"], "steps": []}}
    assert card(played.records) == "All met"  # and an objective that is not part of the run
    assert card(played.records[:3]) == "Not yet"
    assert card((head, played.records[-1])) == "No objectives"


def test_undone_is_no_success(kit):
    plan = kit.chain(kit.step("a"), kit.step("b", on_failure="undo"))
    played = kit.play(plan, kit.World(script={"apply b": ["refuse"]}))
    result = report.from_records(played.records, WHERE)
    assert (result.verdict, result.exit_code) == ("undone", 1)
    assert result.put_back_after_s is not None
    assert "Time to restore" in report.markdown(result)
    assert result.steps[1].error["message"] == "apply b: refuse"


def test_what_was_counted_afterwards_outweighs_the_estimate(played):
    lost = {
        "type": "measured",
        "at": "2026-01-01T12:01:00+00:00",
        "rpo": {"data": {"lost_transactions": 2, "met": False}},
    }
    load = {"load": {"acknowledged": 10, "lost": 2}, "client_visible_s": 1.5}
    result = report.from_records((*played.records, {**lost, **load}), WHERE)
    assert (result.verdict, result.exit_code) == ("objective_missed", 1)
    assert result.rpo["data"].lost_transactions == 2
    assert result.phases["client_visible_s"] == 1.5
    assert result.measured["load"] == {"acknowledged": 10, "lost": 2}


def test_a_loss_that_was_only_feared_is_no_miss_once_it_was_counted(played):
    feared = [{**r, "verdict": "objective_missed"} if r["type"] == "run_ended" else r for r in played.records]
    assert report.from_records(tuple(feared), WHERE).exit_code == 1
    none = {
        "type": "measured",
        "at": "2026-01-01T12:01:00+00:00",
        "rpo": {"data": {"lost_transactions": 0, "met": True}},
    }
    result = report.from_records((*feared, none), WHERE)
    assert (result.verdict, result.exit_code) == ("succeeded", 0)


def test_a_resumed_run_ends_with_its_last_verdict(kit):
    plan = kit.plan(kit.step("a"))
    world = kit.World(script={"apply a": ["refuse"]})
    first = kit.play(plan, world)
    again = kit.play(plan, world, first.journal)
    result = report.from_records(again.records, WHERE)
    assert (result.verdict, result.epoch) == ("succeeded", 2)


def test_markdown(played):
    text = report.markdown(report.from_records(played.records, WHERE))
    assert text.startswith(
        "# toy of toyland: succeeded\n\nRun `run-1` (forced), west → east, started by test (test).\n"
    )
    for piece in (
        "\n## Recovery time\n\n| component | objective | actual | |\n|---|---|---|---|\n| app | 1m40s | 20",
        "| other | 5s | - | not part of this run |\n",
        "| detect | declare | approve | execute | verify | client-visible |\n|---|---|---|---|---|---|\n",
        "| a | toy.make | done | 3 | ",
        "Journal: 9 records, SHA-256 of the last `abc`.",
    ):
        assert piece in text, piece
    assert "## Recovery point" not in text


def test_markdown_of_a_failure_says_why_and_keeps_its_tables(kit):
    world = kit.World(script={"apply a|b": ["refuse"]})
    played = kit.play(kit.plan(kit.step("a|b")), world)
    text = report.markdown(report.from_records(played.records, WHERE))
    assert "**Why:** a|b: apply a|b: refuse" in text
    assert "apply a\\|b: refuse |" in text


def test_a_run_that_never_began(tmp_path):
    book = FileJournal(tmp_path / "journal.jsonl")
    book.close()
    with pytest.raises(BadInput, match="never began"):
        report.build(tmp_path / "journal.jsonl")
