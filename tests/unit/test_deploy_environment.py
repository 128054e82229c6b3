"""An environment that is no site: who looks for the parts of a system does not find it, and no role stands for it."""

from __future__ import annotations

import asyncio

import pytest

from flows.engine import places, system
from flows.engine.providers import Components
from tasks.capacity.protocol import Capacity
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database.protocol import Database
from tasks.deploy.environment import PROVIDER
from tasks.deploy.protocol import Environment, LoadTests, Releases
from tasks.errors import BadInput
from tasks.traffic.protocol import Balancer

LAB = places.PARENT / "runbooks" / "lab" / "system.yaml"


def test_staging_is_no_site_and_none_of_what_failovers_look_for():
    async def look():
        loaded = system.load(LAB)
        components = Components(loaded, LoopClock())
        found = {
            p: [name for name, _ in components.of(p)] for p in (Environment, Capacity, Balancer, Database, Releases)
        }
        staging = components("staging")
        assert not isinstance(staging, Capacity | Balancer | Database | Releases | LoadTests)
        assert staging.fleet().balancer.sites() == ("staging",)
        await components.aclose()
        return tuple(loaded.system.sites), found

    sites, found = asyncio.run(look())
    assert sites == ("west", "east")
    assert found[Environment] == ["staging"]
    assert not [p for p in (Capacity, Balancer, Database, Releases) if "staging" in found[p]]


@pytest.mark.parametrize("name", ["west", "active", "failed", "target"])
def test_an_environment_cannot_be_called_as_a_site_or_a_role(name):
    said = {"front": "127.0.4.10:8080", "releases": "/r", "link": "/l", "balancer": "/b", "supervisor": "/s"}
    settings = PROVIDER.Settings.model_validate({**said, "first_address": "127.0.4.21:3000"})

    async def build():
        PROVIDER(settings, Surroundings("lab", name, ("west", "east"), LoopClock(), lambda n: n))

    with pytest.raises(BadInput, match=f"component {name}: an environment cannot be called as a site or a role"):
        asyncio.run(build())
