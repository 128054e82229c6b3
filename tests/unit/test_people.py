"""People decide: N of M by name, on figures, in time; forged, stale and doubled answers are refused and recorded."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from flows.engine import approvals, asking, objectives
from flows.engine.verdict import concluded
from tasks import tokens
from tasks.clock import LoopClock
from tasks.errors import BadInput
from tasks.people.actions import Approve
from tasks.people.directory import DirectorySettings, FileDirectory
from tasks.people.protocol import Directory

PEOPLE = {
    "alice": {"groups": ["dba"], "secret": "env:TEST_ALICE"},
    "bob": {"groups": ["sre"], "secret": "env:TEST_BOB"},
    "carol": {"groups": ["sre", "dba"], "secret": "env:TEST_CAROL"},
    "dave": {},
}
MALLORY = SecretStr("a secret of nobody at all")


def key(name):
    return SecretStr(f"the secret of {name} here")


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for name in ("alice", "bob", "carol"):
        monkeypatch.setenv(f"TEST_{name.upper()}", key(name).get_secret_value())


def directory(**more):
    return FileDirectory(
        DirectorySettings.model_validate({"approvers": PEOPLE, **more}), SimpleNamespace(component="p")
    )


class Asked:
    """A toy run whose second step asks; people answer at times after its start."""

    def __init__(self, kit, folder, *, people=None, timeout_s=100.0, **parameters):
        self.kit, self.folder = kit, folder
        self.people = people or directory()
        self.action = Approve.model_validate(parameters)
        step = kit.step("ask")
        step = type(step)(**{**vars(step), "action": self.action, "timeout_s": timeout_s})
        self.plan = kit.chain(kit.step("first"), step, kit.step("last", restores="app"))
        self.script = []

    def says(self, at_s, name, decision="approve", **more):
        """``name`` hands something in at ``at_s``; ``more``: run, step, lasts_s, signed_with, raw, words, via."""
        self.script.append((at_s, name, decision, more))
        return self

    async def _answers(self, runner):
        began = runner.run.clock.utc()
        for at_s, name, decision, more in sorted(self.script, key=lambda s: s[0]):
            await runner.run.clock.sleep(at_s - (runner.run.clock.utc() - began).total_seconds())
            self.hand_in(runner.run.clock.utc(), name, decision, more)

    def hand_in(self, now, name, decision, more):
        wish = tokens.Wish(
            more.get("run", "run-1"), more.get("step", "ask"), decision, name,
            now + timedelta(seconds=more.get("lasts_s", 900)), more.get("why", ""),
        )  # fmt: skip
        answer = {"token": more.get("raw") or tokens.mint(wish, more.get("signed_with", key(name)))}
        if "words" in more:
            expires = int(wish.expires.timestamp())
            answer = {"words": {**vars(wish), "expires": expires, "nonce": "n" * 12, **more["words"]}}
        return approvals.hand_in(self.folder, "ask", answer, more.get("via", "cli"))

    def play(self, journal=None, **options):
        def answers(step):
            return self.heard(step)

        async def after(runner):
            self.heard = approvals.Answers(self.folder, runner.run.clock)
            await self._answers(runner)

        self.heard = lambda _step: ()
        options = {"components": {"people": self.people}, "answers": answers, "after": after, **options}
        return self.kit.play(self.plan, self.kit.World(), journal, **options)


def noted(played, *, counted):
    return [(r["by"], r["against"]) for r in played.records if r["type"] == "approval" and r["counted"] is counted]


def wanted(played):
    return [r for r in played.records if r["type"] == "approval_wanted"]


def test_nobody_is_asked_and_it_says_so(kit, tmp_path):
    played = Asked(kit, tmp_path, at_least=0, people=object()).play()
    assert (played.verdict, played.outcome("ask")) == ("succeeded", "done")
    assert "nobody is asked" in played.state.of("ask").summary
    assert wanted(played) == []
    assert objectives.phases(played.records)["approve_s"] is None
    assert played.runner.run.plan.by_id["ask"].worst_case_s == 0.0


def test_enough_different_people_say_yes_and_it_goes_on_within_half_a_second(kit, tmp_path):
    played = Asked(kit, tmp_path, at_least=2).says(3, "alice").says(10, "bob", why="seen the graphs").play()
    assert (played.verdict, played.took_s < 10.5) == ("succeeded", True)
    facts = played.state.of("ask").facts
    assert [(a["by"], a["comment"], a["signed"]) for a in facts["approved"]] == [
        ("alice", "", True), ("bob", "seen the graphs", True),
    ]  # fmt: skip
    assert objectives.phases(played.records)["approve_s"] == pytest.approx(10, abs=0.5)
    (asked,) = wanted(played)
    assert (asked["at_least"], asked["who"]) == (2, ["alice", "bob", "carol", "dave"])


def test_the_same_person_twice_is_one_person(kit, tmp_path):
    played = Asked(kit, tmp_path, at_least=2).says(1, "alice").says(2, "alice").says(9, "carol").play()
    assert (played.verdict, played.took_s > 8.9) == ("succeeded", True)
    assert noted(played, counted=False) == [("alice", "alice has answered already; one answer a person")]


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("alice", {"run": "run-2"}, "it is for run run-2, and this is run-1"),
        ("alice", {"step": "other"}, "it is for step other, and step ask asks"),
        ("alice", {"lasts_s": -1}, "it expired"),
        ("alice", {"signed_with": MALLORY}, "it was not signed with the secret of alice"),
        ("bob", {}, "bob may not approve here; alice, carol may"),
        ("mallory", {"signed_with": MALLORY}, "mallory may not approve here"),
        ("alice", {"words": {}}, "it is not signed"),
        ("alice", {"words": {}, "via": "ui"}, "it is not signed"),
        ("alice", {"raw": "relight1.e30.e30"}, "its body cannot be read"),
        ("alice", {"raw": "hello"}, "this is no token"),
    ],
)
def test_what_does_not_count_is_refused_with_its_reason_and_recorded_once(kit, tmp_path, name, more, says):
    played = Asked(kit, tmp_path, at_least=1, who=["dba"], timeout_s=20).says(1, name, **more).play()
    assert (played.verdict, played.outcome("ask")) == ("refused", "failed")
    assert noted(played, counted=True) == []
    ((_, against),) = noted(played, counted=False)
    assert says in against
    assert not {"effect", "last"} & played.world.true


def test_one_no_ends_it_by_name(kit, tmp_path):
    asked = Asked(kit, tmp_path, at_least=2).says(1, "alice").says(2, "bob", "reject", why="it is the switch")
    played = asked.says(3, "carol").play()
    assert (played.verdict, played.took_s < 3) == ("refused", True)
    error = played.state.of("ask").error
    assert error["type"] == "NotApproved"
    assert "bob said no: it is the switch" in error["message"]
    assert played.world.effects["apply last"] == 0


def test_who_said_yes_may_still_say_no_and_not_the_other_way_round(kit, tmp_path):
    played = Asked(kit, tmp_path, at_least=2).says(1, "alice").says(2, "alice", "reject").play()
    assert "alice said no" in played.state.of("ask").error["message"]
    again = Asked(kit, tmp_path, at_least=1).says(1, "alice").play(kit.Journal(played.records))
    assert again.verdict == "refused"  # the no stands


def test_silence_is_not_approved(kit, tmp_path):
    played = Asked(kit, tmp_path, at_least=1, timeout_s=60).play()
    assert (played.verdict, played.took_s < 60) == ("refused", True)
    error = played.state.of("ask").error
    assert error["safety_refusal"] is True
    assert "not approved: 0 of 1 approved within" in error["message"]
    assert objectives.phases(played.records)["approve_s"] == pytest.approx(55, abs=1)
    assert concluded(played.runner.run.plan, played.state, objectives_met=True) == "refused"


def test_a_killed_engine_sees_what_was_said_meanwhile(kit, tmp_path):
    for dead_after in (4, 5):  # asked; the first answer recorded
        folder = tmp_path / str(dead_after)
        folder.mkdir()
        first = Asked(kit, folder, at_least=2).says(1, "alice").play(kit.Journal(kill_after=dead_after))
        assert first.verdict is None
        assert len(wanted(first)) == 1
        between = Asked(kit, folder, at_least=2)
        between.hand_in(kit.EPOCH + timedelta(seconds=30), "bob", "approve", {})
        if dead_after == 4:
            between.hand_in(kit.EPOCH + timedelta(seconds=30), "alice", "approve", {})
        later = kit.EPOCH + timedelta(seconds=40)
        again = Asked(kit, folder, at_least=2).play(kit.Journal(first.records), anchor=later)
        assert (again.verdict, again.took_s < 0.5) == ("succeeded", True), again.state.of("ask").error
        assert objectives.phases(again.records)["approve_s"] == pytest.approx(40, abs=0.5)  # from the first asking on
        assert sorted(n for n, _ in noted(again, counted=True)) == ["alice", "bob"]


def test_an_answer_that_is_old_when_the_run_is_taken_up_is_asked_for_again(kit, tmp_path):
    first = Asked(kit, tmp_path, at_least=1).play(kit.Journal(kill_after=4))
    Asked(kit, tmp_path).hand_in(kit.EPOCH, "alice", "approve", {"lasts_s": 60})
    later = kit.EPOCH + timedelta(hours=1)
    again = Asked(kit, tmp_path, at_least=1).says(5, "bob").play(kit.Journal(first.records), anchor=later)
    assert (again.verdict, again.took_s > 4.9) == ("succeeded", True)
    assert "it expired" in dict(noted(again, counted=False))["alice"]
    assert len(wanted(again)) == 2


def test_the_ui_vouches_for_a_name_only_where_the_directory_says_so(kit, tmp_path):
    people = directory(ui=True)
    played = Asked(kit, tmp_path, at_least=1, people=people).says(1, "dave", words={}, via="ui").play()
    assert played.verdict == "succeeded"
    assert played.state.of("ask").facts["approved"][0]["signed"] is False


@pytest.mark.parametrize(
    ("parameters", "settings", "says"),
    [
        ({"who": ["dba", "oncall"]}, {}, "p?people knows no oncall"),
        ({"who": ["dba"], "at_least": 3}, {}, r"3 people have to approve, and 2 may \(alice, carol\)"),
        ({"who": ["dave"]}, {}, "'dave' has no secret"),
        ({}, {"approvers": {}}, "0 may"),
    ],
)
def test_too_few_people_is_said_before_anybody_is_asked(kit, tmp_path, parameters, settings, says):
    played = Asked(kit, tmp_path, people=directory(**settings), **parameters).play()
    assert played.verdict == "failed"
    error = played.state.of("ask").error
    assert pytest.importorskip("re").search(says, error["message"]), error
    assert wanted(played) == []


def test_an_abort_and_a_halt_end_the_waiting_at_once(kit, tmp_path):
    wish = {"by": "J. Doe", "why": "false alarm", "asked_at": ""}
    asked = []

    async def later(_runner):
        await asyncio.sleep(2)
        asked.append(wish)

    played = Asked(kit, tmp_path, at_least=1).play(after=later, abort=lambda: asked[0] if asked else None)
    assert (played.verdict, played.took_s < 4) == ("undone", True)
    assert objectives.phases(played.records)["approve_s"] is not None


def test_figures_are_shown_before_the_decision(kit, tmp_path):
    played = Asked(kit, tmp_path, at_least=1).says(3, "alice").play(rto_s={"app": 100.0})
    (record,) = wanted(played)
    assert record["figures"]["left_s"] == {"app": 100.0}
    assert record["figures"]["would_undo"] == ["first"]
    until = [r for r in played.records if r["type"] != "outcome" or r["step"] == "first"]
    (open_,) = asking.open_now(until[:-1])
    said = asking.lines(open_, kit.EPOCH + timedelta(seconds=40))
    assert "objective of app: 1m left" in said
    assert "an abort would put back: first" in said
    # a form stands for as long as it is open, so its times are the clock's
    standing = asking.lines(open_, None)
    assert "objective of app: to be met by 12:01:40 UTC" in standing
    assert not [line for line in standing if "left" in line or "ago" in line]
    assert asking.open_now(played.records) == ()


# ---- the files ----


def test_answers_are_whole_private_and_named_by_what_they_say(tmp_path):
    asyncio.run(_files(tmp_path))


async def _files(folder):
    one = approvals.hand_in(folder, "ask", {"token": "x"}, "cli")
    assert approvals.hand_in(folder, "ask", {"token": "x"}, "cli") == one
    approvals.hand_in(folder, "ask-more", {"token": "y"}, "cli")
    home = folder / approvals.FOLDER
    assert home.stat().st_mode & 0o777 == 0o700
    (home / "ask.torn.json").write_text('{"via": ')
    (home / "ask.odd.json").write_text(json.dumps({"via": "cli", "words": []}))
    heard = approvals.Answers(folder, LoopClock())("ask")
    assert sorted((s.digest, s.token, s.via) for s in heard) == sorted(
        [(one, "x", "cli"), ("torn", "", "unknown"), ("odd", "", "cli")]
    )


def test_there_is_an_end_to_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(approvals, "MOST_FILES", 2)
    for n in range(2):
        approvals.hand_in(tmp_path, "ask", {"token": str(n)}, "cli")
    with pytest.raises(BadInput, match="2 answers already"):
        approvals.hand_in(tmp_path, "ask", {"token": "2"}, "cli")


def test_a_directory_of_a_file_is_a_directory():
    assert isinstance(directory(), Directory)
