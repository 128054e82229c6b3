"""What people are told of a run, from its records alone."""

from __future__ import annotations

from flows.engine import news


def record(seq, kind, **body):
    return {"seq": seq, "type": kind, "at": "2026-01-01T12:00:00.000000+00:00", **body}


HEAD = record(
    1, "run_started", run_id="run-1", runbook="failover", system="shop", mode="forced", operator="J. Doe",
    trigger="cli", incident_started_at="2026-01-01T11:59:00+00:00", roles={"failed": "west", "target": "east"},
    waivers={"loss": "CTO"},
)  # fmt: skip
FIGURES = {
    "loss": {"component": "database", "text": "no acknowledged commit is lost"},
    "left_s": {"application": 200.0, "database": -5.0},
    "would_undo": [],
    "would_stay": [],
    "point_of_no_return": "promote",
}
ASKED = record(
    2, "approval_wanted", step="approve", at_least=1, who=["alice", "bob"], ui=False,
    until="2026-01-01T12:10:00+00:00", figures=FIGURES,
)  # fmt: skip


def told(*records):
    return news.of((HEAD, *records), len(records))


def test_a_run_that_begins_says_what_it_moves_and_what_was_waived():
    found = told()
    assert (found.seq, found.event) == (1, "start")
    assert found.title == "failover of shop began (forced): west → east"
    assert "J. Doe" in found.text
    assert "waived: loss: CTO" in found.text


def test_who_is_asked_gets_the_figures_and_how_to_answer():
    found = told(ASKED)
    assert (found.event, found.title) == ("approval", "failover of shop waits for you")
    for said in (
        "1 of alice, bob must say yes; 10m left to answer, then it is refused",
        "no acknowledged commit is lost",
        "objective of application: 3m20s left",
        "objective of database: missed 5s ago",
        "an abort would put back: nothing, since nothing was changed yet",
        "ahead: promote, the point of no return",
        "relight approve run-1 --step approve --as NAME",
    ):
        assert said in found.text


def test_silence_is_told_again_and_other_outcomes_are_not():
    refused = record(3, "outcome", step="approve", summary="not approved: …", error={"type": "NotApproved"})
    assert told(ASKED, refused).event == "approval"
    assert told(ASKED, record(3, "outcome", step="approve", summary="", error={"type": "TimedOut"})) is None
    assert told(record(2, "outcome", step="fence", summary="", error=None)) is None
    assert told(record(2, "intent", step="fence")) is None


def test_objectives_and_the_end():
    half = record(2, "objective", component="app", fraction=0.5, elapsed_s=150.0, rto_s=300.0)
    assert told(half).title == "failover of shop: objective of app 50% gone"
    assert told({**half, "fraction": 1.0}).title == "failover of shop: objective of app missed"
    ended = told(record(2, "run_ended", verdict="objective_missed", reason=""))
    assert (ended.event, ended.title) == ("end", "failover of shop: objective missed")
    assert "fence: no" in told(record(2, "run_ended", verdict="refused", reason="fence: no")).text


def test_an_engine_that_died_and_a_journal_without_a_beginning():
    assert "relight resume run-1" in news.died((HEAD,)).text
    assert news.died(()) is None
    assert news.of((ASKED,), 0) is None
