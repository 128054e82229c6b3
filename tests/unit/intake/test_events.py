"""Bodies are bounded and unambiguous; what a sender means is brought into one shape, and what is not known stays so."""

from __future__ import annotations

import gzip
import json
import zlib
from datetime import UTC, datetime, timedelta

import pytest

from flows.intake.body import MOST_BYTES, TooLarge, UnknownEncoding, decompressed, strict_json
from flows.intake.event import Alert, Auth, Delivery, Malformed, moment, normalise, text
from flows.intake.source import known

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
AUTH = Auth(method="token", verified=True)


def delivery(body=b"{}", **more):
    return Delivery("am", body, NOW, **more)


def event(body=b"{}", **alert):
    return normalise(
        Alert(**{"kind": "firing", "fingerprint": "f", "started_at": NOW, **alert}), delivery(body), AUTH, "x"
    )


# ---- bodies ----


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b'{"a": {"b": 1, "b": 2}}', "names 'b' twice"),
        (b"[" * 40 + b"]" * 40, "deeper than 32"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"{", "no JSON"),
        (b"", "no JSON"),
    ],
)
def test_a_body_that_could_mean_two_things_or_hurt_is_refused(raw, why):
    with pytest.raises(Malformed, match=why):
        strict_json(raw)


def test_brackets_in_a_string_are_no_depth():
    assert strict_json(json.dumps({"a": '\\"[[[' * 50}).encode())["a"].startswith('\\"')


def test_a_gzip_bomb_stops_at_the_limit():
    bomb = gzip.compress(b"0" * (50 * MOST_BYTES))
    assert len(bomb) < MOST_BYTES
    with pytest.raises(TooLarge):
        decompressed(bomb, "gzip")


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("", bytes)])
def test_encodings(encoding, pack):
    assert decompressed(pack(b'{"a": 1}'), encoding) == b'{"a": 1}'


def test_what_is_no_encoding():
    with pytest.raises(UnknownEncoding):
        decompressed(b"x", "br")
    with pytest.raises(Malformed):
        decompressed(b"not gzip", "gzip")
    with pytest.raises(TooLarge):
        decompressed(b"x" * (MOST_BYTES + 1), "")


# ---- values ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+02:00", None),  # cannot even be converted to UTC
        ("2026-11-24T14:00:00+02:00", NOW),
        ("2026-11-24T12:00:00", NOW),
        ("2026-11-24T12:00:00.1234567Z", NOW.replace(microsecond=123456)),
        (NOW.timestamp(), NOW),
        (str(int(NOW.timestamp())), NOW),
        (0, None),
        (-5, None),
        (True, None),
        (1e300, None),
        ("soon", None),
        (None, None),
        ([], None),
    ],
)
def test_a_senders_time(value, expected):
    assert moment(value) == expected


@pytest.mark.parametrize(
    "unfilled", ["*alertType*", "{EVENT.ID}", "{{ $labels.x }}".replace(" ", ""), "$ALERT_ID", None, {}]
)
def test_a_variable_that_its_sender_did_not_fill_in_is_nothing(unfilled):
    assert text(unfilled) == ""


@pytest.mark.parametrize("said", ["down", "costs $5", "{a b}", "*bold move*", 3])
def test_what_is_said_is_kept(said):
    assert text(said) == str(said)


# ---- events ----


def test_an_episode_has_one_key_for_ever_and_another_start_is_another_episode():
    one = event()
    assert event(kind="resolved").episode_key == one.episode_key
    assert event(started_at=NOW - timedelta(seconds=1)).episode_key != one.episode_key
    assert event(fingerprint="g").episode_key != one.episode_key
    assert event(cycle="c", started_at=NOW).episode_key == event(cycle="c", started_at=NOW - timedelta(1)).episode_key


def test_a_clock_far_ahead_is_not_trusted():
    ahead = event(observed_at=NOW + timedelta(minutes=6))
    assert (ahead.time_trusted, ahead.started_at_basis, ahead.started_at) == (False, "received", NOW)
    assert event(observed_at=NOW + timedelta(minutes=4)).time_trusted


def test_age_is_that_of_the_look_and_not_of_the_beginning():
    old = event(started_at=NOW - timedelta(hours=3), observed_at=NOW - timedelta(seconds=10))
    assert old.age_s == 10
    assert event(started_at=NOW - timedelta(hours=3)).age_s == 3 * 3600


def test_without_a_start_nothing_triggers():
    undated = event(started_at=None)
    assert (undated.may_trigger, undated.started_at_basis) == (False, "received")
    assert event(started_at=None, cycle="c").may_trigger


def test_a_test_is_a_test_whatever_it_says():
    assert event(test="TestAlert").kind == "test"


# ---- Alertmanager ----


def am(body):
    return known()["alertmanager"](known()["alertmanager"].Settings(source="alertmanager")).read(body, delivery())


def alert(**more):
    base = {"status": "firing", "labels": {"alertname": "Down"}, "startsAt": NOW.isoformat(), "fingerprint": "f"}
    return {**base, "endsAt": "0001-01-01T00:00:00Z", **more}


def test_the_status_of_each_alert_counts_and_not_the_groups():
    body = {"version": "4", "status": "firing", "alerts": [alert(), alert(status="resolved"), alert(status="")]}
    assert [a.kind for a in am(body)] == ["firing", "resolved", "firing"]


def test_an_unknown_status_is_unknown():
    assert am({"version": "4", "status": "firing", "alerts": [alert(status="exploding")]})[0].kind == "unknown"


def test_a_truncated_group_says_so():
    assert am({"version": "4", "truncatedAlerts": 2, "alerts": [alert()]})[0].truncated


@pytest.mark.parametrize("body", [{}, [], None, {"alerts": {}}, {"alerts": [3]}, {"version": "3", "alerts": []}])
def test_what_alertmanager_does_not_send(body):
    with pytest.raises(Malformed):
        am(body)
