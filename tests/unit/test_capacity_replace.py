"""A sick instance gets one beside it, and that one has its own patience. Virtual time."""

from __future__ import annotations

import asyncio

import pytest

from flows.engine.virtualtime import VirtualLoop
from tasks.capacity.actions import Replace
from tasks.capacity.protocol import Instance, Limits
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import NotYet

NEVER = 1e9


class Site:
    """app1 is ready, app2 never gets it; each that is started later does after ``ready_s``."""

    def __init__(self, ready_s):
        self.ready_s, self.started = ready_s, {}

    def limits(self, _site):
        return Limits(2, 4)

    async def instances(self, site):
        now = asyncio.get_running_loop().time()
        late = {"app2": NEVER} | {name: at + self.ready_s for name, at in self.started.items()}
        running = ["app1", *late]
        return tuple(Instance(n, site, f"{n}:1", running=True, ready=late.get(n, 0.0) <= now) for n in running)

    async def scale(self, _site, count):
        for n in range(3, count + 1):
            self.started.setdefault(f"app{n}", asyncio.get_running_loop().time())


def replaced(site, patience="5s", left_s=60.0):
    async def go():
        clock = LoopClock()
        run = RunInfo("r", "lab", "b", "forced", 1, clock.utc().isoformat())
        ctx = Context(run, clock, {"east": "east"}, lambda _n: site, clock.monotonic() + left_s)
        step = Replace.model_validate({"site": "east", "patience": patience})
        return await step.apply(ctx, await step.observe(ctx))

    with asyncio.Runner(loop_factory=VirtualLoop) as loop:
        return loop.run(go())


def test_one_that_was_just_started_is_not_sick_yet():
    site = Site(ready_s=4.0)
    assert replaced(site)["ready_after"] == 2
    assert list(site.started) == ["app3"]


def test_the_next_one_comes_where_that_one_is_sick_too():
    site = Site(ready_s=NEVER)
    with pytest.raises(NotYet):
        replaced(site)
    assert list(site.started) == ["app3", "app4"], "and no more than may run"
    assert site.started["app4"] - site.started["app3"] >= 5.0
