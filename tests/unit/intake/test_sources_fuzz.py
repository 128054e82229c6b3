"""Whatever JSON comes, a source reads alerts of it or says that it is malformed; nothing else ever comes out."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.intake.event import Alert, Auth, Delivery, Event, Malformed, Refused, normalise
from flows.intake.source import known, of

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
PAYLOADS = [json.loads(p.read_bytes()) for p in sorted(Path(__file__).with_name("payloads").rglob("*.json"))]
PAYLOADS += [p["body"] for p in PAYLOADS if set(p) == {"headers", "body"}]
PAYLOADS += [
    {"specversion": "1.0", "id": "1", "source": "/x", "type": "t", "data": {"status": "firing", "labels": {}}},
    {"type": "t", "timestamp": "2026-11-24T12:00:00Z", "data": {"status": "resolved", "started_at": 1764000000}},
    {"message": {"data": "eyJpbmNpZGVudCI6IHt9fQ==", "messageId": "1"}},
    {"Records": [{"Sns": {"Type": "Notification", "Message": '{"alarmData": {"state": {}}}'}}]},
]

ODD = st.sampled_from(
    ["", "0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59.999999-23:59", "*x*", "{EVENT.ID}", "\ud800", "a\x00b", "²",
     "1e999", "https://[", "2021.08.27", "[[", 10**39, -1, 1e308, 0, -0.0, 1e-320, True, None]
)  # fmt: skip
LEAVES = st.one_of(ODD, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=5,
)


def places(found, path=()):
    """Every place in a document."""
    yield path
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def put(found, path, value):
    """A copy with something else in one place."""
    if not path:
        return value
    copy = dict(found) if isinstance(found, dict) else list(found)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


@st.composite
def nearly(draw):
    """A real delivery with a few places exchanged."""
    found = draw(st.sampled_from(PAYLOADS))
    for _ in range(draw(st.integers(1, 2))):
        there = list(places(found))
        found = put(found, there[draw(st.integers(0, len(there) - 1))], draw(JSON))
    return found


def made(name):
    more = {"topics": ("arn:aws:sns:eu-west-1:1:t",)} if name == "sns" else {}
    more |= {"time_zone": "Europe/Vienna"} if name == "zabbix" else {}
    return of(name)(of(name).Settings(source=name, unauthenticated=True, **more))


SOURCES = {name: made(name) for name in sorted(known())}
TYPES = ("application/json", "application/cloudevents+json", "application/cloudevents-batch+json")


def check(source, body, headers):
    delivery = Delivery("here", json.dumps(body).encode(), NOW, headers=headers)
    auth = Auth(method="none", verified=True)
    try:
        transport = source.transport_id(delivery, body)
        alerts = source.read(body, delivery)
    except Malformed:
        return
    assert isinstance(alerts, tuple)
    for alert in alerts:
        assert isinstance(alert, Alert)
        event = normalise(alert, delivery, auth, source.name, transport)
        assert Event.model_validate_json(event.model_dump_json()) == event
        assert event.started_at.tzinfo is not None
        assert event.started_at.year >= 1970
        if alert.kind == "firing" and alert.trigger and event.may_trigger:
            # what may trigger has an age
            assert alert.started_at or alert.observed_at


@settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=JSON | nearly(), content=st.sampled_from(TYPES), binary=st.booleans())
def test_any_json_is_alerts_or_malformed(body, content, binary):
    headers = {"content-type": content} | ({"ce-id": "1", "ce-source": "%ff", "ce-type": "t"} if binary else {})
    for source in SOURCES.values():
        check(source, body, headers)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_real_delivery_at_every_door(name):
    for body in PAYLOADS:
        for content in TYPES:
            check(SOURCES[name], body, {"content-type": content})


@settings(max_examples=50, deadline=None, database=None)
@given(body=JSON | nearly())
def test_nobody_passes_as_sns_or_breaks_its_check(body):
    source = SOURCES["sns"]
    delivery = Delivery("here", json.dumps(body).encode(), NOW)
    with pytest.raises(Refused):
        asyncio.run(source.authenticate(delivery))
