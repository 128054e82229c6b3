"""The inbox keeps what it said it kept: once, for ever, and nothing by halves."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from flows.intake.event import Alert, Auth, Delivery, Unavailable, normalise
from flows.intake.history import History, stored
from flows.intake.inbox import Inbox
from tasks.errors import BadInput

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
AUTH = Auth(method="token", verified=True)


@pytest.fixture
def inbox(tmp_path):
    one = Inbox(tmp_path / "inbox.sqlite3")
    yield one
    one.close()


def post(inbox, transport="t", kind="firing", start=NOW, at=NOW, **alert):
    delivery = Delivery("am", f"{transport} body".encode(), at, {"content-type": "x", "authorization": "Bearer secret"})
    what = Alert(kind=kind, fingerprint="f", started_at=start, labels={"alertname": "Down"}, **alert)
    return inbox.keep(delivery, transport, (normalise(what, delivery, AUTH, "x", transport),)).result()


def test_the_same_delivery_again_is_one(inbox):
    first, again = post(inbox), post(inbox)
    assert (first.new, first.fresh, len(first.events)) == (True, 1, 1)
    assert (again.new, again.delivery, again.events) == (False, first.delivery, ())
    assert len(History(inbox.file).entries()) == 1


def test_an_episode_that_ended_never_begins_again(inbox):
    """A peer of Alertmanager that was late replays the whole episode, with the same start."""
    fresh = [
        post(inbox, f"t{n}", kind).fresh
        for n, kind in enumerate(["firing", "firing", "resolved", "firing", "resolved"])
    ]
    assert fresh == [1, 0, 1, 0, 0]
    history = History(inbox.file)
    assert not history.firing(history.entries()[0].event.episode_key)
    assert post(inbox, "other", start=NOW + timedelta(minutes=9)).fresh == 1


def test_a_resolved_that_nobody_fired_is_noted_and_closes_the_episode(inbox):
    assert post(inbox, "t1", "resolved").fresh == 1
    assert post(inbox, "t2", "firing").fresh == 0


def test_what_was_decided_stays_decided(inbox):
    kept = post(inbox)
    history = History(inbox.file)
    assert [e.id for e in history.open(NOW)] == list(kept.events)
    inbox.hold(kept.events[0], {"why": "wait"}, NOW + timedelta(seconds=5)).result()
    assert history.open(NOW) == []
    assert [e.id for e in history.open(NOW + timedelta(seconds=6))] == list(kept.events)
    inbox.decide(kept.events[0], {"why": "go"}, "start").result()
    assert [e.id for e in history.proposed()] == list(kept.events)
    inbox.started(kept.events[0], "run-1").result()
    assert history.proposed() == []
    assert history.entry(kept.events[0]).run_id == "run-1"


def test_secrets_in_headers_are_not_kept_and_the_rest_can_be_read_again(inbox):
    kept = post(inbox)
    endpoint, headers, body, at = stored(inbox.file, kept.delivery)
    assert (endpoint, headers, body, at) == ("am", {"content-type": "x"}, b"t body", NOW)
    with pytest.raises(BadInput):
        stored(inbox.file, 99)
    with pytest.raises(BadInput):
        History(inbox.file).entry(99)


def test_secrets_in_what_an_alert_says_are_not_kept(inbox):
    kept = post(inbox, links={"runbook": "https://wiki/x?token=hunter2"}, annotations={"api_key": "hunter2"})
    assert "hunter2" not in History(inbox.file).entry(kept.events[0]).event.model_dump_json()


def test_two_ways_to_write_one_start_are_one_episode(inbox):
    """Alertmanager's webhook says nanoseconds, its API milliseconds; CloudWatch's two differ little."""
    first = post(inbox, "t1", start=NOW.replace(microsecond=123456))
    second = post(inbox, "t2", start=NOW.replace(microsecond=123000))
    third = post(inbox, "t3", start=NOW.replace(microsecond=400000))
    assert (first.fresh, second.fresh, third.fresh) == (1, 0, 0)
    assert len({e.event.episode_key for e in History(inbox.file).entries()}) == 1
    assert post(inbox, "t4", start=NOW + timedelta(seconds=1)).fresh == 1


def test_many_at_once_are_all_there_once(inbox):
    with ThreadPoolExecutor(20) as pool:
        kept = list(pool.map(lambda n: post(inbox, f"t{n % 150}", start=NOW + timedelta(seconds=n % 150)), range(300)))
    assert sum(k.new for k in kept) == 150
    assert len(History(inbox.file).entries(1000)) == 150


def test_a_disk_that_takes_nothing_is_unavailable_and_nothing_is_half_there(inbox, monkeypatch):
    real = sqlite3.connect

    class Full(sqlite3.Connection):
        def execute(self, sql, *more):
            if sql == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *more)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": Full}))
    with pytest.raises(Unavailable, match="disk is full"):
        post(inbox)
    monkeypatch.setattr(sqlite3, "connect", real)
    assert History(inbox.file).entries() == []
    assert post(inbox).new  # and it goes on once there is room


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        Inbox(tmp_path / "file" / "inbox.sqlite3")


def test_last_seen_is_renewed_by_the_same_bytes(inbox):
    post(inbox)
    post(inbox, at=NOW + timedelta(minutes=3))
    assert History(inbox.file).last_seen("am", "Down") == NOW + timedelta(minutes=3)
    assert History(inbox.file).last_seen("am", "Up") is None
