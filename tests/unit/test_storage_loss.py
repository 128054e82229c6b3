"""What a bucket lacks of its source, from two views."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from tasks.catalog import actions
from tasks.storage._loss import loss
from tasks.storage.actions import CopyFrom, TakeOver
from tasks.storage.protocol import BucketView

INCIDENT = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def at(minute: int, second: int = 0) -> str:
    return datetime(2026, 1, 1, 11, minute, second, tzinfo=UTC).isoformat()


def view(site: str, objects: int, newest: str | None, size: int | None = None, **copied: str) -> BucketView:
    return BucketView(site, objects, objects * 10 if size is None else size, newest, copied)


def test_equal_counts_and_bytes_lose_nothing():
    found = loss(view("east", 5, at(50)), "west", view("west", 5, at(59)), INCIDENT)
    assert (found.objects_behind, found.bound_s) == (0, 0.0)
    assert found.within(0.0)


def test_overwritten_object_is_seen_by_its_size_and_bounded():
    found = loss(view("east", 5, at(58)), "west", view("west", 5, at(59), size=51), INCIDENT)
    assert (found.objects_behind, found.bound_s) == (0, 60.0)
    assert not found.within(59.0)


def test_mark_bounds_tighter_than_the_newest_object():
    east = view("east", 3, at(10), west=at(59, 30))
    assert loss(east, "west", view("west", 5, at(59, 50)), INCIDENT).bound_s == 20.0
    dark = loss(east, "west", None, INCIDENT)
    assert (dark.objects_behind, dark.bound_s) == (None, 30.0)
    assert "the copier's mark" in dark.basis


def test_mark_of_another_source_or_without_zone_proves_nothing():
    for copied in ({"north": at(59)}, {"west": "2026-01-01T11:59:00"}, {"west": "rubbish"}):
        assert loss(view("east", 3, at(10), **copied), "west", None, INCIDENT).bound_s == 3000.0


def test_copied_after_the_incident_started_is_no_negative_loss():
    east = view("east", 3, at(10), west="2026-01-01T12:00:05+00:00")
    assert loss(east, "west", None, INCIDENT).bound_s == 0.0


def test_nothing_known_is_never_within_a_limit():
    found = loss(view("east", 0, None), "west", None, INCIDENT)
    assert found.bound_s is None
    assert not found.within(86400.0)
    assert found.within(None)
    assert found.facts(60.0)["met"] is False


def test_actions_take_from_as_written_in_a_runbook():
    assert actions()["storage.take_over"] is TakeOver
    assert TakeOver.model_validate({"site": "target", "from": "failed"}).source == "failed"
    assert CopyFrom.model_validate({"site": "failed", "from": "active"}).source == "active"
    with pytest.raises(ValidationError, match="from"):
        CopyFrom.model_validate({"site": "failed"})
