"""A canary that has a share of the requests: when it is known to be worse, when not to be, and when nobody knows."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo
from tasks.deploy.actions import Compare
from tasks.errors import Breached, NotYet
from tasks.metrics.protocol import Counts


class Source:
    """So many requests a second each, of which so many fail (percent), from the moment that is asked for."""

    def __init__(self, clock, ours, theirs):
        self.clock, self.rates, self.asked = clock, (ours, theirs), []

    async def counted(self, site, since):
        self.asked.append(since)
        past_s = (self.clock.utc() - since).total_seconds()
        return tuple(Counts(round(rate * past_s), round(rate * past_s * bad / 100)) for rate, bad in self.rates)


def applied(ours, theirs, given_s=None, **more):
    """(what it returned or raised, after how many seconds, the last moment it counted from), under virtual time."""

    async def go():
        clock = LoopClock()
        began, source = clock.monotonic(), Source(clock, ours, theirs)
        run = RunInfo("r", "venue", "canary", "graceful", 1, clock.utc().isoformat())
        given = None if given_s is None else clock.utc() - timedelta(seconds=given_s)
        facts = {} if given is None else {"given_at": given.isoformat()}
        earlier = (Done("canary", "traffic.weigh", "done", facts),)
        ctx = Context(run, clock, {"west": "west"}, lambda _n: source, began + 1000, earlier=earlier)
        wanted = {"site": "west", "for": "60s", "most": "120s", "minimum": 200, "every": "10s"} | more
        step = Compare.model_validate(wanted)
        try:
            found = await step.apply(ctx, await step.observe(ctx))
            assert (await step.confirm(ctx)).holds
        except (Breached, NotYet) as e:
            found = e
        return found, clock.monotonic() - began, given is None or set(source.asked) == {given}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(go())


def test_one_that_does_no_worse_is_watched_for_the_whole_time():
    found, took_s, from_the_share_on = applied((20, 1), (200, 1), given_s=5)
    assert found["p_errors"] > 0.005
    assert found["baseline"]["requests"] > 10 * 60
    assert 60 <= took_s < 85
    assert from_the_share_on


def test_one_that_fails_beyond_doubt_ends_long_before_and_not_every_error_is_one():
    found, took_s, _ = applied((20, 10), (200, 0))
    assert isinstance(found, Breached)
    assert "the canary answers more errors: canary n=" in found.message
    assert took_s < 45
    found, _, _ = applied((20, 1), (200, 0.7))
    assert found["canary"]["errors"] > 0


def test_a_little_worse_is_found_in_the_end():
    found, took_s, _ = applied((20, 1.2), (2000, 0.5))
    assert isinstance(found, Breached)
    assert took_s >= 60


@pytest.mark.parametrize(("ours", "theirs"), [((0, 0), (200, 0)), ((20, 0), (0, 0)), ((0.5, 0), (200, 0))])
def test_too_few_requests_are_no_answer(ours, theirs):
    found, took_s, _ = applied(ours, theirs)
    assert isinstance(found, NotYet)
    assert "not enough data" in found.message
    assert 150 < took_s <= 200
