"""``relight prove migrate``: it goes through whatever dies, and bugs that are seeded on purpose are found."""

from __future__ import annotations

from collections import Counter

from stories import broken_by, case

from flows.engine.schedule import Deviation
from flows.engine.simulate import play
from tasks.errors import NotYet
from tasks.migrations.actions import Apply, Rehearse
from tasks.migrations.protocol import Target
from tasks.migrations.twin import MigrationsTwin

ALL = {f"{n:04d} expand": "applied" for n in (1, 2, 3, 4)}


def migrate():
    return case("healthy", "graceful", "migrate")


def applies(calm):
    return [e for e in calm.trace if e.what.startswith("migrations.apply ")]


def test_every_file_is_applied_once_also_when_the_engine_dies_at_an_effect():
    calm = play(migrate(), (), None)
    assert (calm.verdict, calm.violations, calm.end["schema"]) == ("succeeded", [], ALL)
    # somebody's report held the lock at the first try of each file but the index, which waits for no such lock
    assert Counter(e.what.split()[1][:4] for e in applies(calm)) == {"0001": 2, "0002": 2, "0003": 2, "0004": 1}
    for event in (applies(calm)[1], applies(calm)[-1]):
        for kind in ("kill-mid", "kill-after"):
            story = play(migrate(), (Deviation(event.at, kind),), calm.end)
            assert (story.verdicts, story.violations) == (["killed", "succeeded"], []), (event, kind)


def test_told_to_go_back_it_takes_back_every_file_that_it_applied():
    calm = play(migrate(), (), None)
    story = play(migrate(), (Deviation(applies(calm)[-1].at + 2, "abort"),), calm.end)
    assert (story.verdict, story.violations, story.end["schema"]) == ("undone", [], {})
    taken = [e.what.rpartition(" ")[2][:4] for e in story.trace if e.what.startswith("migrations.take back")]
    assert taken == ["0004", "0003", "0002", "0001"]


def test_a_lock_that_is_never_had_fails_the_run_and_applies_nothing(monkeypatch):
    """Not even by the person who resumes it, twice."""

    async def held(_self, to, file, _limits, *, back=False):
        raise NotYet(f"{to.node}: {file.name} did not get its lock")

    monkeypatch.setattr(MigrationsTwin, "apply", held)
    story = play(migrate(), (), None)
    assert story.verdicts == ["failed"] * 3
    assert "did not get its lock" in story.report.reason
    assert story.end["schema"] == {}


# ---- mutants: each must be found ----


def test_found_a_keeper_that_does_not_look_whether_another_engine_was_first(monkeypatch):
    monkeypatch.setattr(MigrationsTwin, "_over", lambda _self, _key, **_back: False)
    build = "migrations.apply 0004_at_index.expand.sql"
    assert "no effect doubled" in broken_by(migrate(), lambda e, kind: (e.what, kind) == (build, "kill-mid"))


def test_found_a_lock_that_was_not_had_is_passed_over(monkeypatch):
    async def once(self, ctx, to, file):
        try:
            await self._kept(ctx).apply(to, file, self._limits())
        except NotYet:
            ctx.report("so what")
        return 1

    monkeypatch.setattr(Apply, "_tried", once)
    assert "migrations in order" in broken_by(migrate(), lambda _event, _kind: False)


def test_found_a_rehearsal_that_is_only_said_to_have_been(monkeypatch):
    async def said(self, ctx, _observation):
        return {"rehearsed": {f.name: f.sha256 for f in (await self._found(ctx))[2]}}

    monkeypatch.setattr(Rehearse, "apply", said)
    assert "rehearsed first" in broken_by(migrate(), lambda _event, _kind: False)


def test_found_an_undo_that_takes_back_the_oldest_first(monkeypatch):
    async def oldest_first(self, ctx, evidence):
        to = Target(evidence["primary"], evidence["system_identifier"], ctx.run.run_id)
        for file in self._kept(ctx).files():
            await self._kept(ctx).apply(to, file, self._limits(), back=True)

    monkeypatch.setattr(Apply, "undo", oldest_first)
    assert "migrations in order" in broken_by(migrate(), lambda e, kind: (e.what, kind) == ("outcome apply", "abort"))
