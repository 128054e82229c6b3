"""Which run the supervisor resumes, when, and when it stops; with a clock in the test's hand."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flows.engine import alive, supervise
from flows.engine.journal import FileJournal
from flows.engine.supervise import Care, Seen, decide, returned, with_newer
from flows.engine.supervisor import Supervisor, care_of, seen

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
DEAD = Seen("run-1", "toy", records=5, outcomes=1, started_at=NOW, last_at=NOW)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


# ---- the decision ----


def test_a_run_that_died_is_resumed_at_once():
    decision = decide(DEAD, Care(), "", NOW)
    assert decision.do == "resume"
    assert (decision.care.deaths, decision.care.resumed) == (1, 1)


@pytest.mark.parametrize(
    "verdict", ["succeeded", "objective_missed", "failed", "unknown", "refused", "undone", "interrupted"]
)
def test_a_run_that_ended_is_left_alone_whatever_its_verdict(verdict):
    assert decide(replace(DEAD, ended=verdict), Care(), "", NOW).do == "leave"


def test_a_run_that_never_began_is_left_alone():
    assert decide(Seen("run-1", began=False), Care(), "", NOW).do == "leave"


def test_a_paused_relight_resumes_nothing_until_unpaused():
    held = decide(DEAD, Care(), "maintenance", NOW)
    assert held.do == "wait"
    assert "maintenance" in held.why
    assert decide(DEAD, held.care, "", later(1)).do == "resume"
    assert held.care.deaths == 1, "waiting is no death"


def test_deaths_without_progress_back_off_and_end():
    """Five deaths in all; 0, 1, 2 and 4 s between them; then never again."""
    care, now, waits, run = Care(), NOW, [], DEAD
    for death in range(1, supervise.MOST_DEATHS + 1):
        decision = decide(run, care, "", now)
        care = decision.care
        assert care.deaths == death
        if death == supervise.MOST_DEATHS:
            break
        if decision.do == "wait":
            waits.append((care.not_before - now).total_seconds())
            assert decide(run, care, "", care.not_before - timedelta(milliseconds=1)).do == "wait"
            now = care.not_before
            decision = decide(run, care, "", now)
            care = decision.care
        assert decision.do == "resume"
        run = replace(run, records=run.records + 1)  # run_resumed, and dead again
    assert waits == [1.0, 2.0, 4.0]
    assert decision.do == "give_up"
    assert "relight resume run-1" in decision.why
    assert decide(run, care, "", later(10_000)).do == "leave"


def test_progress_starts_the_count_again():
    care = Care(deaths=4, outcomes=1, records=9, resumed=3)
    decision = decide(replace(DEAD, outcomes=2, records=12), care, "", NOW)
    assert decision.do == "resume"
    assert decision.care.deaths == 1


def test_a_given_up_run_that_a_person_took_up_has_another_chance():
    care = Care(gave_up="it died 5 times", deaths=5, records=5, outcomes=1)
    assert decide(DEAD, care, "", NOW).do == "leave"
    assert decide(replace(DEAD, records=6), care, "", NOW).do == "resume"


def test_the_same_death_is_counted_once_by_a_supervisor_that_was_restarted():
    first = decide(DEAD, Care(), "", NOW)
    again = decide(DEAD, Care.model_validate_json(first.care.model_dump_json()), "", later(3))
    assert again.care.deaths == 1


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (replace(DEAD, hopeless="journal x, record 3: not JSON"), "record 3"),
        (replace(DEAD, newer="run-2"), "run-2"),
        (replace(DEAD, last_at=NOW - supervise.STALE - timedelta(seconds=1)), "24 h"),
    ],
)
def test_what_cannot_or_should_not_be_resumed_is_said_once(run, word):
    decision = decide(run, Care(), "", NOW)
    assert decision.do == "give_up"
    assert word in decision.why
    assert decide(run, decision.care, "", later(60)).do == "leave"


def test_a_later_run_of_the_same_system_counts_and_one_of_another_does_not():
    runs = {
        "a": replace(DEAD, run_id="a"),
        "b": replace(DEAD, run_id="b", started_at=later(5)),
        "c": replace(DEAD, run_id="c", system="other", started_at=later(9)),
    }
    assert {name: run.newer for name, run in with_newer(runs).items()} == {"a": "b", "b": "", "c": ""}


# ---- a resume that came back ----


def test_a_resume_that_is_refused_is_tried_again_later_and_later_without_end():
    care = decide(DEAD, Care(), "", NOW).care
    waits = []
    for _ in range(12):
        decision = returned(DEAD, care, 3, "relight: system toy already has a run", NOW)
        assert decision.do == "wait"
        care = decision.care
        waits.append((care.not_before - NOW).total_seconds())
    assert waits[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert waits[-1] == 60
    assert care.deaths == 1


def test_changed_files_are_reported_once():
    care = decide(DEAD, Care(), "", NOW).care
    decision = returned(DEAD, care, 2, "relight: the files of run run-1 changed", NOW)
    assert decision.do == "give_up"
    assert "changed" in decision.why
    assert decide(DEAD, decision.care, "", later(99)).do == "leave"


def test_a_resumed_run_that_is_killed_is_one_more_death():
    care = decide(DEAD, Care(), "", NOW).care
    decision = returned(replace(DEAD, records=6), care, -9, "", NOW)
    assert decision.care.deaths == 2
    assert "signal 9" in decision.why


def test_a_resume_that_ended_is_nothing_to_care_for():
    assert returned(replace(DEAD, ended="failed"), Care(), 1, "", NOW).do == "leave"


# ---- the border, with real files, locks and processes ----


def dead_run(home, run_id="20260101T120000Z-toy-toy-0001", *ended):
    journal = FileJournal(home / "runs" / run_id / "journal.jsonl")
    now = datetime.now(UTC)
    journal.append(now, "run_started", run_id=run_id, system=run_id[-4:])
    for verdict in ended:
        journal.append(now, "run_ended", verdict=verdict, reason="")
    journal.close()
    return home / "runs" / run_id


def until(condition):
    deadline = threading.Event()
    for _ in range(200):
        if condition():
            return
        deadline.wait(0.05)
    raise AssertionError("not true within 10 s")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))
    return tmp_path


def watched(home, *python):
    """A supervisor whose resumes are this Python program."""
    said = []
    return Supervisor(home, said.append, lambda run_id: [sys.executable, "-c", "\n".join(python), run_id]), said


def test_only_the_dead_are_resumed_and_only_once(home):
    dead_run(home, "20260101T120000Z-toy-toy-done", "succeeded")
    living = dead_run(home, "20260101T120000Z-toy-toy-live")
    dead_run(home, "20260101T120000Z-toy-toy-dead")
    supervisor, said = watched(home, "import sys", "sys.stdin.read()")
    with alive.hold(living):
        for _ in range(5):
            supervisor.look()
    assert [line for line in said if "resuming" in line] == [
        "run 20260101T120000Z-toy-toy-dead: resuming: its engine died"
    ]
    (child,) = supervisor._children.values()
    child.process.wait()


def test_a_process_that_dies_is_seen_through_its_lock(home):
    folder = dead_run(home)
    assert not alive.alive(folder)
    with alive.hold(folder), alive.hold(folder):
        assert alive.alive(folder)
    assert not alive.alive(folder)


def test_sole_is_sole(home):
    with alive.sole(home, "x.lock") as first, alive.sole(home, "x.lock") as second:
        assert (first, second) == (True, False)
    with alive.sole(home, "x.lock") as again:
        assert again


def test_a_crash_loop_ends_and_stands_in_the_runs_folder(home):
    folder = dead_run(home)
    supervisor, said = watched(home, "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    clock = [datetime.now(UTC)]
    supervisor.now = lambda: clock[0]

    def over() -> bool:
        clock[0] += timedelta(seconds=30)
        supervisor.look()
        return bool(care_of(folder).gave_up)

    until(over)
    assert care_of(folder).deaths == supervise.MOST_DEATHS
    assert care_of(folder).resumed == supervise.MOST_DEATHS - 1
    assert sum("GIVING UP" in line for line in said) == 1
    for _ in range(3):
        over()
    assert sum("resuming" in line for line in said) == supervise.MOST_DEATHS - 1


def test_a_journal_that_did_not_change_is_not_read_again(home, monkeypatch):
    dead_run(home, "20260101T120000Z-toy-toy-done", "succeeded")
    read = []
    monkeypatch.setattr("flows.engine.supervisor.seen", lambda folder: read.append(folder) or seen(folder))
    supervisor, _ = watched(home, "")
    for _ in range(3):
        supervisor.look()
    assert len(read) == 1


def test_a_damaged_journal_is_said_once_and_stops_nothing_else(home):
    folder = dead_run(home, "20260101T120000Z-toy-toy-ruin")
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"system"', b'"sistem"'))
    dead_run(home, "20260101T120000Z-toy-toy-dead")
    supervisor, said = watched(home, "import sys", "sys.stdin.read()")
    supervisor.look()
    supervisor.look()
    assert sum("GIVING UP" in line and "ruin" in line for line in said) == 1
    assert sum("resuming" in line for line in said) == 1
    for child in supervisor._children.values():
        child.process.wait()


def test_a_second_supervisor_stands_by_and_takes_over(home):
    stop_first, stop_second = threading.Event(), threading.Event()
    (first, said_first), (second, said_second) = watched(home, ""), watched(home, "")
    one = threading.Thread(target=first.go, args=(stop_first,))
    one.start()
    until(lambda: said_first)
    two = threading.Thread(target=second.go, args=(stop_second,))
    two.start()
    until(lambda: said_second)
    assert "standing by" in said_second[0]
    stop_first.set()
    one.join(5)
    until(lambda: len(said_second) == 2)
    assert "supervising" in said_second[1]
    stop_second.set()
    two.join(5)
