"""Orders, worst cases and critical paths. Pure."""

from __future__ import annotations

import pytest

from flows.engine.plan import GRACE_S, pause_s


def test_worst_case_is_every_attempt_cut_off_with_the_longest_pauses(kit):
    step = kit.step("a", attempts=4, timeout_s=10.0, backoff_s=1.0)
    look = 3 + GRACE_S
    assert step.worst_case_s == 4 * (10 + GRACE_S) + 1 + 2 + 4 + look
    assert kit.step("b", attempts=1, timeout_s=10.0).worst_case_s == 10 + GRACE_S + look
    assert kit.step("c", attempts=1, timeout_s=1.0).worst_case_s == 1 + GRACE_S + 1 + GRACE_S
    assert all(pause_s(1.0, n, j) <= pause_s(1.0, n, 1.0) for n in range(1, 9) for j in (0.0, 0.3, 1.0))


@pytest.fixture
def built(kit):
    return kit.plan(
        kit.step("a", timeout_s=5.0),
        kit.step("b", timeout_s=20.0, needs=("a",)),
        kit.step("c", timeout_s=3.0, needs=("a",)),
        kit.step("d", kit.Promote, timeout_s=1.0, needs=("c", "b")),
        kit.step("e", timeout_s=100.0),
    )


def test_parallel_branches_do_not_add_up(built):
    own = {i: s.worst_case_s for i, s in built.by_id.items()}
    assert built.worst_end_s == {
        "a": own["a"],
        "b": own["a"] + own["b"],
        "c": own["a"] + own["c"],
        "d": own["a"] + own["b"] + own["d"],
        "e": own["e"],
    }
    assert built.critical_path("d") == ("a", "b", "d")
    assert built.critical_path("e") == ("e",)


def test_ancestors_and_the_point_of_no_return(built, kit):
    assert built.ancestors("d") == {"a", "b", "c"}
    assert built.ancestors("a") == set()
    assert built.point_of_no_return == "d"
    assert kit.plan(kit.step("a")).point_of_no_return is None


def test_describe_is_what_the_journal_shows(built):
    told = built.by_id["d"].describe()
    assert (told["irreversible"], told["reversible"], told["needs"], told["phase"]) == (
        True,
        False,
        ["c", "b"],
        "execute",
    )
    assert built.by_id["a"].describe()["reversible"] is True


def test_digest_changes_with_anything_that_would_run(kit):
    base = kit.plan(kit.step("a")).digest
    changed = [
        kit.plan(kit.step("b")),
        kit.plan(kit.step("a", kit.Once)),
        kit.plan(kit.step("a", timeout_s=11.0)),
        kit.plan(kit.step("a", attempts=2)),
        kit.plan(kit.step("a", on_failure="undo")),
        kit.plan(kit.step("a", with_={"key": "z"})),
        kit.plan(kit.step("a"), mode="graceful"),
    ]
    assert base == kit.plan(kit.step("a")).digest
    assert len({base, *(p.digest for p in changed)}) == len(changed) + 1
