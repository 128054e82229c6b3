"""What a run cost: known, unknown, and nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flows.engine.report import cost_lines
from flows.engine.runcost import cost_of
from flows.engine.thresholds import Prices

AT, END = "2026-11-26T09:00:00+00:00", "2026-11-26T09:30:00+00:00"
GROWN = {"site": "east", "running_before": 1, "running": 3}


def step(action, evidence, outcome="done"):
    return SimpleNamespace(id="s", action=action, outcome=outcome, started_at=AT, evidence=evidence)


def cost(*steps, **prices):
    result = SimpleNamespace(steps=list(steps), ended_at=END, started_at=AT)
    return cost_of(result, Prices(**prices) if prices else None)


def test_instances_for_as_long_as_it_lasted_and_copies():
    found = cost(
        step("capacity.ensure", GROWN),
        step("migrations.rehearse", {"source": "east-pg1", "copy_bytes": 3 * 2**30}),
        instance_hour=0.2,
        transfer_gib=0.1,
    )
    assert [(x.quantity, x.unit, x.usd) for x in found.lines] == [(1.0, "h", 0.2), (3.0, "GiB", 0.3)]
    assert (found.usd, found.lines[0].goes_on_usd_h) == (0.5, 0.4)
    assert "In all: 0.5000 USD." in cost_lines(found.as_json())


@pytest.mark.parametrize(
    ("part", "prices", "why"),
    [
        (step("capacity.ensure", GROWN), {"transfer_gib": 0.1}, "no instance_hour"),
        (step("migrations.rehearse", {"source": "x", "copy_bytes": 1}), {"instance_hour": 1}, "no transfer_gib"),
        (step("database.rejoin", {"how": {"w": "copy; it"}}), {"instance_hour": 1, "transfer_gib": 1}, "not measured"),
    ],
)
def test_what_has_no_price_or_no_amount_makes_the_sum_unknown(part, prices, why):
    found = cost(part, step("capacity.ensure", {"running": 2, "running_before": 2}), **prices)
    assert found.usd is None
    assert why in found.lines[0].why
    assert "In all: unknown." in cost_lines(found.as_json())


def test_a_run_that_started_and_copied_nothing_cost_nothing():
    found = cost(step("capacity.ensure", GROWN, "failed"), step("capacity.ensure", {"running": 2}))
    assert (found.lines, found.usd) == ((), 0)
