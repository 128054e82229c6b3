"""Quantities as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tasks import quantities as q


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("20s", 20),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("2d", 172800),
        ("1w", 604800),
        (0, 0),
        (300, 300),
        (0.25, 0.25),
        ("0s", 0),
    ],
)
def test_durations(written, seconds):
    assert q.duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "5",
        "5 m",
        "-5s",
        "m",
        "5x",
        "5m ",
        "\u0665s",
        "1e3s",
        "5S",
        True,
        None,
        [],
        -1,
        float("nan"),
        float("inf"),
        "9" * 500 + "s",
        "11y",
        10 * 366 * 86400,
    ],
)
def test_what_is_no_duration(wrong):
    with pytest.raises(ValueError, match="expected a duration"):
        q.duration(wrong)


@given(st.floats(min_value=0, max_value=10 * 365 * 86400))
def test_a_shown_duration_can_be_read_back(seconds):
    shown = q.show_duration(seconds)
    assert q.duration(shown) == pytest.approx(seconds, rel=0.02, abs=0.51 if seconds >= 1 else 0.00051)


def test_shown_durations():
    assert [q.show_duration(s) for s in (0, 0.183, 4.2, 59.0, 300, 5400, 86400)] == [
        "0ms",
        "183ms",
        "4.2s",
        "59s",
        "5m",
        "1h30m",
        "24h",
    ]


@pytest.mark.parametrize(("written", "value"), [("70%", 70.0), ("0.5%", 0.5), ("100%", 100.0)])
def test_percentages(written, value):
    assert q.percent(written) == value


@pytest.mark.parametrize("wrong", ["70", 70, "70 %", "-1%", "%", "70%%", None, True])
def test_what_is_no_percentage(wrong):
    with pytest.raises(ValueError, match="expected a percentage"):
        q.percent(wrong)


@pytest.mark.parametrize(("written", "value"), [("+2", 2), ("-1", -1), (2, 2), (-1, -1)])
def test_changes(written, value):
    assert q.change(written) == value


@pytest.mark.parametrize("wrong", ["2", "+", "+2.5", True, 1.5, None, "++2"])
def test_what_is_no_change(wrong):
    with pytest.raises(ValueError, match="expected a change"):
        q.change(wrong)


@pytest.mark.parametrize(
    ("written", "metric", "operator", "value", "unit"),
    [
        ("cpu_usage > 85%", "cpu_usage", ">", 85.0, "%"),
        ("request_latency > 1000ms", "request_latency", ">", 1.0, "s"),
        ("lag>60s", "lag", ">", 60.0, "s"),
        ("daily_cost > threshold", "daily_cost", ">", "threshold", "name"),
        ("  errors  >=  12  ", "errors", ">=", 12.0, ""),
        ("a == 1", "a", "==", 1.0, ""),
    ],
)
def test_conditions(written, metric, operator, value, unit):
    found = q.condition(written)
    assert (found.metric, found.operator, found.threshold) == (metric, operator, q.Threshold(value, unit))
    assert found.text == " ".join(written.split())


@pytest.mark.parametrize(
    "wrong", ["", "cpu", "cpu >", "> 85%", "cpu > 85 %", "cpu => 1", "1cpu > 1", 5, None, "a > $(x)"]
)
def test_what_is_no_condition(wrong):
    with pytest.raises(ValueError, match="expected"):
        q.condition(wrong)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers())))
def test_nothing_but_value_error(value):
    """pydantic turns a ValueError into a finding; anything else would come out of the loader raw."""
    for read in (q.duration, q.percent, q.change, q.threshold, q.condition):
        with contextlib.suppress(ValueError):
            read(value)


def test_as_model_fields():
    class Model(BaseModel):
        wait: q.Duration
        limit: q.ThresholdText
        when: q.ConditionText

    model = Model.model_validate({"wait": "1m", "limit": "85%", "when": "lag > 60s"})
    assert model.wait == 60
    assert model.model_dump()["when"] == "lag > 60s"
    with pytest.raises(ValidationError):
        Model.model_validate({"wait": "soon", "limit": "85%", "when": "lag > 60s"})
    Model.model_json_schema()
