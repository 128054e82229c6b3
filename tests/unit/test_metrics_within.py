"""A check of metrics: its parameters, and when it knows that a value is not below, or only that it is not yet."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from pydantic import ValidationError

from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import Breached, NotYet, SafetyRefusal
from tasks.metrics._promql import QUERIES
from tasks.metrics._samples import reaching
from tasks.metrics.actions import Within
from tasks.metrics.protocol import Reading


def within(**more):
    return Within.model_validate({"metric": "request_latency", "below": "1s", "for": "10s", **more})


def test_a_look_never_reaches_back_to_before_the_check_began():
    """Else its last look would still count what was before: the fast requests of the release from before."""
    with pytest.raises(ValidationError, match=r"over \(30s\) is longer than for \(10s\).*dilute"):
        within(over="30s")
    assert within(over="10s").over == 10.0
    assert within().over is None


FAST, SLOW, UNKNOWN = 0.1, 2.0, None


class Source:
    """Says one value a look, the last one for ever; and how far back it reaches."""

    def __init__(self, *values, reach_s=None):
        self.values, self.reach_s = itertools.chain(values, itertools.repeat(values[-1])), reach_s

    def metrics(self):
        return ("request_latency",)

    async def now(self, metric, over_s=None):
        value = next(self.values)
        state = "no-data" if value is None else "ok"
        return (Reading(metric, "west", state, value, reach_s=self.reach_s if over_s is None else over_s),)

    async def series(self, metric, window_s, step_s):
        return ()


def applied(source, timeout_s=45.0, **more):
    """(what it returned or raised, after how many seconds), a look every one to two seconds, under virtual time."""

    async def go():
        clock = LoopClock()
        began = clock.monotonic()
        run = RunInfo("r", "lab", "b", "graceful", 1, clock.utc().isoformat())
        ctx = Context(run, clock, {"west": "west"}, lambda _n: source, began + timeout_s)
        check = within(site="west", **more)
        try:
            found = await check.apply(ctx, await check.confirm(ctx))
        except (NotYet, Breached) as e:
            found = e
        return found, clock.monotonic() - began

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(go())


def test_a_clear_breach_fails_at_once_and_says_value_limit_and_how_long():
    found, took_s = applied(Source(SLOW), over="10s")
    assert isinstance(found, Breached)
    assert not isinstance(found, SafetyRefusal), "the run failed (exit 1); no safety rule refused it (exit 3)"
    assert not found.retryable
    assert found.state_known
    assert "request_latency of west is 2s, not below 1s, for 1" in found.message
    assert (found.facts["reading"]["value"], found.facts["below"]) == (2.0, 1.0)
    assert 10 <= found.facts["breached_s"] < 12
    assert 20 <= took_s < 25  # over, until nothing from before is in it; then for


def test_how_long_a_breach_must_last_can_be_said():
    assert 13 <= applied(Source(SLOW), over="10s", breach_after="3s")[1] < 18
    found, took_s = applied(Source(SLOW), over="10s", breach_after="60s")
    assert isinstance(found, NotYet)
    assert took_s > 40


@pytest.mark.parametrize("breaks", [UNKNOWN, FAST])
def test_a_look_that_is_unknown_or_below_ends_a_breach(breaks):
    found, took_s = applied(Source(*[*[SLOW] * 5, breaks] * 20), over="5s", **{"for": "12s"})
    assert isinstance(found, NotYet)
    assert took_s > 40


def test_unknown_is_never_a_breach():
    found, took_s = applied(Source(UNKNOWN), over="5s")
    assert isinstance(found, NotYet)
    assert took_s > 40


def test_what_was_slow_and_gets_fast_passes_as_before():
    found, _ = applied(Source(*[SLOW] * 8, FAST), over="10s")
    assert found["worst"] == FAST


def test_without_over_the_source_says_how_far_back_it_reaches_and_where_it_does_not_nothing_is_a_breach():
    found, took_s = applied(Source(SLOW, reach_s=20.0))
    assert isinstance(found, Breached)
    assert 30 <= took_s < 35
    found, took_s = applied(Source(SLOW))
    assert isinstance(found, NotYet)
    assert took_s > 40


@pytest.mark.parametrize(
    ("template", "reach_s"),
    [
        (QUERIES["error_rate"].expr, 30.0),
        (QUERIES["connection_count"].expr, 3.0),
        ("max by (site) (rate(cpu[5m]))", None),
        ("sum(rate(x[{window}])) / sum(rate(x[5m]))", None),
        ("sum(rate(x[{window}] offset 5m))", None),
    ],
)
def test_a_value_of_prometheus_reaches_back_its_window_or_to_its_sample(template, reach_s):
    """And nobody knows how far for a query with a time of its own in it."""
    assert reaching(Reading("x", "west", "ok", 1.0, age_s=3.0), template, 30.0).reach_s == reach_s
