"""Load tests: where load may go, what locust's figures say, and what decides."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo, Surroundings
from tasks.deploy._load import LoadTest
from tasks.deploy.locust import Locust, LocustSettings, loaded
from tasks.deploy.protocol import Loaded
from tasks.errors import BadInput, Breached, NotYet, SafetyRefusal


def target(tmp_path, url, **more):
    file = tmp_path / "locustfile.py"
    file.touch()

    async def ask():
        around = Surroundings("shop", "load", ("east",), LoopClock(), lambda name: name)
        settings = LocustSettings.model_validate({"file": str(file), "sites": {"east": url}, **more})
        return await Locust(settings, around).target("east")

    return asyncio.run(ask())


def test_load_goes_to_this_machine_only_unless_another_network_is_named(tmp_path):
    assert target(tmp_path, "http://127.0.2.10:8080") == "http://127.0.2.10:8080"
    with pytest.raises(SafetyRefusal, match=r"is 192\.0\.2\.7, and load may only go to 127\.0\.0\.0/8"):
        target(tmp_path, "http://192.0.2.7:8080")
    assert target(tmp_path, "http://192.0.2.7:8080", networks=["192.0.2.0/24"])
    with pytest.raises(BadInput, match="no locustfile"):
        target(tmp_path, "http://127.0.2.10:8080", file=str(tmp_path / "none.py"))


def test_the_figures_of_locust_are_read():
    found = loaded(
        [
            {"name": "a", "method": "GET", "num_requests": 90, "num_failures": 1, "response_times": {"5": 80, "7": 10}},
            {"name": "b", "method": "POST", "num_requests": 10, "num_failures": 0, "response_times": {"1200.0": 10}},
        ]
    )
    assert (found.requests, found.failures, found.p95_s) == (100, 1, 1.2)
    assert found.by_name == {"GET a": (90, 1), "POST b": (10, 0)}
    assert loaded([]).p95_s is None


class Measured:
    """A load test that measured this."""

    def __init__(self, found):
        self.found = found

    async def target(self, site):
        return f"http://{site}"

    async def allowed(self, url):
        self.asked = url

    async def run(self, url, load):
        return self.found


def judged(found, **more):
    async def go():
        clock = LoopClock()
        run = RunInfo("r", "lab", "b", "graceful", 1, clock.utc().isoformat())
        roles = {"active": "west", "target": "east", "west": "west", "east": "east"}
        ctx = Context(run, clock, roles, lambda _name: Measured(found), clock.monotonic() + 9)
        test = LoadTest.model_validate({"errors": "1%", "p95": "500ms", **more})
        return await test.apply(ctx, await test.observe(ctx))

    return asyncio.run(go())


def test_errors_and_latency_decide_and_too_few_requests_decide_nothing():
    assert judged(Loaded(1000, 9, 0.4, {}))["said"] == "n=1000, errors 0.9%, p95 400ms"
    with pytest.raises(Breached, match="errors not below 1%"):
        judged(Loaded(1000, 10, 0.4, {}))
    with pytest.raises(Breached, match="p95 not below 500ms"):
        judged(Loaded(1000, 0, 0.5, {}))
    with pytest.raises(NotYet, match="not enough data"):
        judged(Loaded(99, 0, 0.1, {}))


def test_an_environment_takes_the_place_of_a_site(tmp_path):
    with pytest.raises(ValidationError, match="site and environment exclude each other"):
        LoadTest.model_validate({"errors": "1%", "p95": "1s", "site": "target", "environment": "staging"})
    with pytest.raises(BadInput, match="is no Environment"):
        judged(Loaded(1000, 0, 0.1, {}), environment="staging")


def test_the_active_site_is_refused_unless_the_runbook_says_so():
    with pytest.raises(SafetyRefusal, match="west is the active site"):
        judged(Loaded(1000, 0, 0.1, {}), site="active")
    assert judged(Loaded(1000, 0, 0.1, {}), site="active", on_active=True)
    with pytest.raises(ValidationError, match="errors is a share"):
        LoadTest.model_validate({"errors": "1s", "p95": "500ms"})
