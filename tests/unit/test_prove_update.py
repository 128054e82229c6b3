"""``relight prove update``: releases that are no good go back, and bugs that are seeded on purpose are found."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

from stories import broken_by, case

from flows.engine.schedule import Deviation
from flows.engine.simulate import play
from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.deploy import _roll, actions
from tasks.deploy._canary import Trial
from tasks.deploy._roll import Balanced, Site
from tasks.deploy._turns import Turns
from tasks.deploy.actions import Rolling
from tasks.deploy.folders import Folders, FoldersSettings
from tasks.deploy.protocol import Answer
from tasks.deploy.twin import EnvironmentTwin, ReleasesTwin
from tasks.errors import RelightError
from tasks.metrics.protocol import Served
from tasks.metrics.twin import RequestsTwin
from tasks.simulation import Process, Simulation, enter
from tasks.world import World


def update():
    return case("healthy", "graceful", "update")


def everywhere(version):
    return {place: [version, version] for place in ("staging", "west", "east")}


def changed(story):
    """Components that were changed, in the order of their first change."""
    return list(dict.fromkeys(e.what.partition(".")[0] for e in story.trace if e.kind == "change"))


def test_an_update_goes_through_also_when_the_engine_dies_right_after_an_effect():
    what = update()
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    assert calm.end["releases"] == everywhere("2")
    sites = {s: [f"{s}-app1", f"{s}-app2"] for s in ("west", "east")}
    assert calm.end["running"] == {"staging": ["staging-app1"], **sites}
    changes = [
        e.at for e in calm.trace if e.kind == "change" and e.what.startswith(("capacity", "releases", "traffic"))
    ]
    assert {e.what.split()[0] for e in calm.trace if e.at in changes} >= {"capacity.stop", "traffic.set_weight"}
    for at in changes[::7]:
        story = play(what, (Deviation(at, "kill-after"),), calm.end)
        assert (story.verdicts, story.violations) == (["killed", "succeeded"], []), at


def test_a_release_that_never_gets_ready_goes_back(monkeypatch):
    real = World.start

    def start(self, server):
        real(self, server)
        if self.started.get(server, ("",))[0] == "2":
            self.started[server] = ("2", math.inf)

    monkeypatch.setattr(World, "start", start)
    story = play(update(), (), None)
    assert (story.verdict, story.violations) == ("undone", [])
    assert story.end["releases"] == everywhere("1")
    assert changed(story) == ["staging"]  # nothing of production was touched


def test_staging_comes_first_then_the_standby_then_the_active_site():
    calm = play(update(), (), None)
    assert changed(calm)[0] == "staging"
    order = list(dict.fromkeys(s for s in map(switched, calm.trace) if s))
    assert order == ["staging", "east", "west"]


def switched(event):
    """The place whose servers start from another release from then on."""
    words = event.what.split()
    return words[1] if words[0] in ("staging.switch", "releases.switch") and event.kind == "change" else ""


def test_no_failover_knows_staging():
    story = play(case("kill-primary", "forced"), (), None)
    assert (story.verdict, story.violations) == ("succeeded", [])
    assert not [e for e in story.trace if "staging" in e.what]


def test_a_front_door_that_leads_elsewhere_is_no_staging(monkeypatch):
    async def front(_self):
        return Answer("1", ready=True)

    monkeypatch.setattr(EnvironmentTwin, "front", front)
    story = play(update(), (), None)
    assert (story.verdict, story.violations) == ("undone", [])
    assert "the front door of staging says: release 1" in story.report.reason
    assert changed(story) == ["staging"]


def test_a_canary_that_fails_some_requests_goes_back_with_everything_before_it(monkeypatch):
    real = RequestsTwin.served

    async def served(self, site):
        found = await real(self, site)
        bad = [n for n in found if self._world.release(n) == "2" and site == "west"]
        return found | {n: Served(s.requests, s.requests // 10, s.bounds, s.counts) for n in bad for s in (found[n],)}

    monkeypatch.setattr(RequestsTwin, "served", served)
    story = play(update(), (), None)
    assert (story.verdict, story.violations) == ("undone", [])
    assert story.report.reason.startswith("canary"), story.report.reason
    assert story.end["releases"] == everywhere("1")
    assert story.end["weights"] == {}


def test_the_spare_one_that_was_drained_already_goes_back_first():
    """Found by ``prove``: it was counted as one that serves, so the others waited for ever for somebody to spare."""
    what = update()
    calm = play(what, (), None)
    drained = [e.at for e in calm.trace if e.what == "traffic.set_admin east app/east-app3 drain"]
    story = play(what, (Deviation(drained[-1] + 1, "error"),), calm.end)
    assert story.happened[0][1].what.startswith("traffic.servers")
    assert (story.verdict, story.violations) == ("undone", [])


# ---- mutants: each must be found ----


def test_found_a_server_is_stopped_while_it_gets_requests(monkeypatch):
    async def out(_self, _name):
        return None

    monkeypatch.setattr(Balanced, "out", out)
    assert "no request lost" in broken_by(update(), lambda _event, _kind: False)


def test_found_a_server_is_stopped_before_its_last_request_has_ended(monkeypatch):
    async def idle(_self, _name):
        return None

    monkeypatch.setattr(Balanced, "_idle", idle)
    assert "no request lost" in broken_by(update(), lambda _event, _kind: False)


def test_found_too_few_serve_meanwhile(monkeypatch):
    async def spared(_self, _pool, _name):
        return None

    real = _roll.turns
    monkeypatch.setattr(_roll, "turns", lambda *asked: Turns(real(*asked).replace))
    monkeypatch.setattr(Balanced, "_spared", spared)
    assert "enough serve" in broken_by(update(), lambda _event, _kind: False)


def test_found_what_there_was_before_is_looked_at_again_after_a_crash(monkeypatch):
    """And not taken from the intent: then one that was started only to have one to spare seems to have been there."""
    monkeypatch.setattr(Rolling, "_before", lambda _self, _ctx, observation: observation.facts)

    def a_death(event, kind):
        return kind == "kill-after" and event.what == "traffic.set_admin east app/east-app3 ready"

    assert broken_by(update(), a_death) == set()  # the confirmation is the second guard: everything goes back
    monkeypatch.setattr(actions, "left_over", lambda *_asked: [])
    assert "same end" in broken_by(update(), a_death)


def test_found_an_undo_that_leaves_the_link(monkeypatch):
    real = Site.roll

    async def roll(self, version, before):
        found = await real(self, version, before)
        self.releases._world.links[self.name] = "2"
        return found

    async def worse(_self):
        raise RelightError("mutant: the canary is worse")

    monkeypatch.setattr(Site, "roll", roll)
    monkeypatch.setattr(Trial, "run", worse)
    assert "undone, but not as before" in broken_by(update(), lambda _event, _kind: False)


# ---- what keeps the twin honest ----


CALLS = (
    ("available", "west"),
    ("chosen", "west"),
    ("switch", "west", "nothing"),
    ("chosen", "west"),
    ("switch", "west", "2"),
    ("switch", "west", "2"),
    ("chosen", "west"),
    ("chosen", "east"),
    ("switch", "west", "1"),
    ("chosen", "west"),
)


async def told(releases):
    """One story of the releases of two sites: what each call answers, or which error it raises."""
    found = []
    for name, *arguments in CALLS:
        try:
            found.append(await getattr(releases, name)(*arguments))
        except RelightError as e:
            found.append(type(e).__name__)
    answer = await releases.ask("127.0.0.1:9")  # where nobody listens
    return [*found, (answer.version, answer.ready, bool(answer.why))]


def test_the_twin_of_the_releases_tells_the_same_story_as_real_folders(tmp_path):
    for version in ("1", "2"):
        (tmp_path / "releases" / version).mkdir(parents=True)
        (tmp_path / "releases" / version / "RELEASE").write_text(version)
    sites = {site: str(tmp_path / site) for site in ("west", "east")}
    for link in sites.values():
        Path(link).symlink_to("releases/1")
    settings = FoldersSettings(releases=str(tmp_path / "releases"), sites=sites)

    async def real():
        return await told(Folders(settings, Surroundings("lab", "releases", tuple(sites), LoopClock(), lambda n: n)))

    async def simulated():
        enter(Process("test"))
        around = Surroundings("lab", "releases", tuple(sites), LoopClock(), lambda n: n)
        world = World(tuple(sites), running={s: set() for s in sites})
        return await told(ReleasesTwin(None, around, world, Simulation()))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        told_by_the_twin = runner.run(simulated())
    assert told_by_the_twin == asyncio.run(real())
