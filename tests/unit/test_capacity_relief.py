"""When instances are added, and when not."""

from __future__ import annotations

import asyncio

import pytest

from tasks.capacity._relief import Relieve
from tasks.capacity.protocol import Instance, Limits
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import NotYet, SafetyRefusal
from tasks.metrics.protocol import Reading


class Site:
    """Both a group and its metrics."""

    def __init__(self, cpu, running=2, maximum=10):
        self.reading = (
            Reading("cpu_usage", "west", "ok", cpu) if cpu is not None else Reading("cpu_usage", "west", "stale")
        )
        self.running, self.maximum = running, maximum

    def limits(self, site):
        return Limits(2, self.maximum)

    async def instances(self, site):
        return tuple(
            Instance(f"west-app{n}", site, f"a:{n}", running=n <= self.running, ready=n <= self.running)
            for n in range(1, self.maximum + 1)
        )

    async def scale(self, site, count):
        self.running = count

    def metrics(self):
        return ("cpu_usage",)

    async def now(self, metric, over_s=None):
        return (self.reading,)

    async def series(self, metric, window_s, step_s):
        return ()


def observed(site, intended=()):
    async def go():
        clock = LoopClock()
        run = RunInfo("r", "lab", "b", "graceful", 1, clock.utc().isoformat())
        ctx = Context(run, clock, {"west": "west"}, lambda _n: site, clock.monotonic() + 5, intended=intended)
        relieve = Relieve.model_validate({"site": "west", "above": {"cpu_usage": "85%"}, "adjustment": "+2"})
        found = await relieve.observe(ctx)
        if not found.holds:
            await relieve.apply(ctx, found)
            assert (await relieve.confirm(ctx)).holds
            await relieve.undo(ctx, found.facts) if not intended else None
        return found

    return asyncio.run(go())


def test_below_nothing_is_added():
    assert observed(Site(85.0)).holds


def test_above_as_many_as_the_plan_says_and_no_more_than_may_run_and_undo_stops_them():
    site = Site(86.0)
    found = observed(site)
    assert (found.facts["wanted"], found.facts["crossed"], site.running) == (4, ["cpu_usage"], 2)
    assert observed(Site(86.0, maximum=3)).facts["wanted"] == 3
    with pytest.raises(SafetyRefusal, match="3 of at most 3 run"):
        observed(Site(86.0, running=3, maximum=3))


def test_a_run_that_goes_on_adds_what_was_wanted_and_not_that_much_more_again():
    site = Site(99.0, running=3)
    observed(site, intended=({"wanted": 4, "running": 2},))
    assert site.running == 4
    assert observed(site, intended=({"wanted": 4, "running": 2},)).holds


def test_unknown_is_neither_above_nor_below():
    with pytest.raises(NotYet, match="cannot be told"):
        observed(Site(None))
