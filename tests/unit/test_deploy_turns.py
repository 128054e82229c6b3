"""Which server of a rolling update is replaced when."""

from __future__ import annotations

import pytest

from tasks.deploy._roll import left_over
from tasks.deploy._turns import Bounds, Seen, Turns, turns
from tasks.errors import SafetyRefusal


def on(version, *, ready=True):
    return Seen(running=True, version=version, ready=ready)


OLD, NEW, SICK, IDLE = on("1"), on("2"), on("1", ready=False), Seen(running=False)


def of(*seen):
    return {f"a{n}": one for n, one in enumerate(seen, start=1)}


def test_those_that_run_the_release_and_are_ready_are_passed():
    assert turns(of(NEW, OLD, NEW), "2", Bounds(1, 10)) == Turns(("a2",))


def test_one_that_runs_the_release_but_is_not_ready_is_replaced_again():
    assert turns(of(NEW, on("2", ready=False)), "2", Bounds(1, 10)) == Turns(("a2",))


def test_one_that_does_not_answer_is_replaced():
    assert turns(of(OLD, OLD, on(None, ready=False)), "2", Bounds(1, 10)).replace == ("a3", "a1", "a2")


def test_with_none_to_spare_one_is_started_first():
    assert turns(of(OLD, OLD, IDLE, IDLE), "2", Bounds(2, 10)) == Turns(("a1", "a2"), "a3")


def test_with_one_to_spare_none_is_started():
    assert turns(of(OLD, OLD, OLD, IDLE), "2", Bounds(2, 10)) == Turns(("a1", "a2", "a3"))


def test_one_that_does_not_serve_goes_first_and_is_then_the_one_to_spare():
    assert turns(of(OLD, OLD, SICK, IDLE), "2", Bounds(2, 10)) == Turns(("a3", "a1", "a2"))
    assert turns(of(OLD, SICK, IDLE), "2", Bounds(2, 10)) == Turns(("a2", "a1"), "a3")


def test_where_only_servers_that_do_not_serve_are_replaced_none_is_started():
    assert turns(of(NEW, SICK, IDLE), "2", Bounds(2, 10)) == Turns(("a2",))


def test_nothing_to_do_starts_nothing():
    assert turns(of(NEW, NEW, IDLE), "2", Bounds(2, 10)) == Turns(())


def test_one_that_a_dead_run_stopped_is_started_first():
    assert turns(of(IDLE, OLD, NEW, IDLE), "2", Bounds(2, 10), ["a1", "a2"]) == Turns(("a1", "a2"))
    assert turns(of(IDLE, NEW, NEW, IDLE), "2", Bounds(2, 10), ["a1", "a2"]) == Turns(("a1",))


@pytest.mark.parametrize(("fleet", "maximum"), [(of(OLD, OLD, IDLE), 2), (of(OLD, OLD), 10)])
def test_without_room_for_one_more_it_refuses(fleet, maximum):
    with pytest.raises(SafetyRefusal, match="2 servers can serve and 2 must"):
        turns(fleet, "2", Bounds(2, maximum))


def test_what_a_dead_run_left_is_seen():
    before = {"running": ["a1", "a2"], "admin": {"west": {"a1": "ready", "a2": "ready"}, "east": {"a1": "maint"}}}
    admins = {"west": {"a1": "drain", "a2": "ready"}, "east": {"a1": "maint"}}
    assert left_over(of(NEW, NEW, NEW), admins, before) == [
        "stop a3, which was started for the update",
        "a1: drain -> ready at west",
    ]
    assert left_over(of(NEW, NEW, IDLE), before["admin"], before) == []
    assert left_over(of(IDLE, NEW, IDLE), before["admin"], before) == ["start a1, which ran before"]
