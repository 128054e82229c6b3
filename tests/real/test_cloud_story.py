"""One story of a failover, told by the simulated twins and by the real providers on AWS; both tell the same.

Fence, choose, measure, promote, read back; then what must not happen: promotion without a fence, a replica that is too
far behind, a second promotion, giving the old primary its writes back.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import test_aurora
import test_rds
from aws_aurora import aurora
from aws_rds import Plant, service
from cloud_story import Run
from pg_cluster import Cluster

from flows.engine.virtualtime import VirtualLoop
from tasks import catalog
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.database.actions import CatchUp, Fence, Follow, Promote, ReadyToSwitch, Rejoin
from tasks.errors import RelightError
from tasks.simulation import Process, ProcessClock, Simulation, enter
from tasks.world import World
from tasks.world_parts import Node

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
FENCE, PROMOTE = Fence(site="failed"), Promote(site="target")


class Teller:
    """Writes down how each step ended."""

    def __init__(self, database: Any, clock: Any) -> None:
        self.database, self.clock, self.told = database, clock, []

    def run(self, **more: Any) -> Run:
        return Run(self.database, clock=self.clock, **more)

    async def tell(self, label: str, run: Run, action: Any, *keys: str, attempts: int = 5) -> dict[str, Any]:
        try:
            facts = await run.step(action, attempts=attempts, left_s=100)
        except RelightError as e:
            name = next(c.__name__ for c in type(e).__mro__ if c.__module__ == "tasks.errors")
            self.told.append((label, name))
            return {}
        self.told.append((label, facts["outcome"], *(facts.get(k) for k in keys)))
        return facts


async def forced(t: Teller) -> None:
    run = t.run()
    await t.tell("ready", run, ReadyToSwitch(site="target"), "primary", "chosen")
    await t.tell("promote without a fence", run, PROMOTE)
    await t.tell("fence", run, FENCE, "loose")
    await t.tell("fence again", run, FENCE, "loose")
    await t.tell("promote above the budget", run, PROMOTE)
    waived = t.run(waivers={"loss": "story"})
    waived.earlier = run.earlier
    facts = await t.tell("promote", waived, PROMOTE, "primary", "chosen", "old_primary")
    t.told.append(("the loss", facts["rpo"]["proven_zero"], facts["rpo"]["waiver"]))
    await t.tell("promote again", waived, PROMOTE, "primary")
    try:
        await t.database.unfence("west")
    except RelightError as e:
        t.told.append(("give the old one its writes back", type(e).__name__))


async def planned(t: Teller) -> None:
    run = t.run(mode="graceful")
    await t.tell("fence", run, FENCE, "loose")
    await t.tell("catch up", run, CatchUp(site="target"), "behind_bytes")
    facts = await t.tell("promote", run, PROMOTE, "primary")
    t.told.append(("the loss", facts["rpo"]["proven_zero"], facts["rpo"]["met"]))
    await t.tell("follow", run, Follow(), "left_out")
    await t.tell("bring the old one back", run, Rejoin(site="west"))
    await t.tell("ready to go back", run, ReadyToSwitch(site="west"), "primary", "chosen")


def simulated(provider: str, settings: dict[str, Any], story: Any) -> list[Any]:
    """The story as the twin of ``provider`` tells it, in virtual time."""

    async def main() -> list[Any]:
        clock = ProcessClock()
        process = Process("engine", epoch=1, run_id="r1")
        enter(process)
        world, simulation = World(("west", "east"), waived=lambda _rule: True), Simulation()
        world.nodes = {
            "west": Node("west", "west", replica=False, log=[0]),
            "east": Node("east", "east", upstream="west", log=[0]),
        }
        around = Surroundings("venue", "database", ("west", "east"), clock, {}.__getitem__)
        cls = catalog.provider(provider)
        real = cls(cls.Settings.model_validate(settings), around)
        twin = next(t for p, t in catalog.twins("database") if isinstance(real, p))
        teller = Teller(twin(real, around, world, simulation), clock)
        await story(teller)
        await real.aclose()
        assert not world.violations
        return teller.told

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def real(venue: Any, story: Any) -> list[Any]:
    told: list[Any] = []

    async def tell(database: Any) -> None:
        teller = Teller(database, LoopClock())
        await story(teller)
        told.extend(teller.told)

    venue.play(tell)
    return told


@contextlib.contextmanager
def standing(aws: Any, play: Any, module: Any):
    names = {module.WEST: "west-pg1", module.EAST: "east-pg1"}
    with Cluster() as cluster, contextlib.ExitStack() as stack:
        (cluster.folder / "relight").write_text("relight-secret\n")
        plant = Plant(cluster, names)
        stack.callback(plant.close)
        yield module.Venue(aws, stack.enter_context(play(aws, plant)), plant, cluster)


@pytest.mark.parametrize("story", [forced, planned])
def test_rds_and_its_twin(aws, story):
    with standing(aws, service, test_rds) as venue:
        on_aws = real(venue, story)
        assert on_aws == simulated("database.rds", venue.settings(), story)
    assert on_aws[0][1] in ("done", "already")


def test_aurora_and_its_twin(aws):
    with standing(aws, aurora, test_aurora) as venue:
        venue.rds.lag(test_aurora.EAST, test_aurora.OTHER_REGION, 500)
        on_aws = real(venue, forced)
        assert on_aws == simulated("database.aurora", venue.settings(), forced)


def test_a_story_that_differs_is_noticed(aws):
    with standing(aws, service, test_rds) as venue:
        told = simulated("database.rds", venue.settings(), forced)
        assert told != simulated("database.rds", venue.settings(), planned)
    assert asyncio.iscoroutinefunction(forced)
