"""What a look at the system comes to: kinds of evidence, and what speaks against a failure."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from flows.engine import launch
from flows.engine.preview import Preview
from flows.engine.roles import Roles
from flows.intake import evidence
from flows.intake.evidence import Watches, once, read
from flows.intake.facts import Sample
from tasks.contract import Observation
from tasks.errors import Contradiction, Unreachable

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
READY = launch.prepare("lab", "failover", "forced")
DETECT, PROMOTE = READY.plan.by_id["detect"], READY.plan.by_id["promote"]
ROLES = Roles({"failed": "west", "target": "east", "west": "west", "east": "east"})
SITES = {"west-pg1": "west", "west-pg2": "west", "east-pg1": "east"}


def round_of(vantages, streaming, verdict="failed", answers="answers"):
    views = {f"v{n}": {"reach": reach} for n, reach in enumerate(vantages)}
    replicas = {
        name: {"reach": answers, "in_recovery": True, "streaming": s}
        for name, s in zip(list(SITES)[1:], streaming, strict=False)
    }
    facts = {"verdict": verdict, "rounds": [{"primary": "west-pg1", "vantages": views, "replicas": replicas}]}
    return Preview(DETECT, Observation(holds=verdict == "failed", summary="as seen", facts=facts), None)


def sample(check, *more):
    return read(NOW, ROLES, [check, *more], SITES)


@pytest.mark.parametrize(
    ("vantages", "streaming", "kinds", "against"),
    [
        (("refused",) * 3, (False, False), {"probe", "replicas"}, 0),
        (("refused", "refused", "answers"), (False, False), {"probe", "replicas"}, 0),
        (("refused", "answers", "answers"), (False, False), {"replicas"}, 1),
        (("refused",), (False, False), {"replicas"}, 0),  # one place is no two
        (("refused",) * 3, (), {"probe"}, 0),
        (("refused",) * 3, (False, True), {"probe"}, 1),
        (("answers",) * 3, (True, True), set(), 2),
    ],
)
def test_kinds_and_what_is_against(vantages, streaming, kinds, against):
    found = sample(round_of(vantages, streaming))
    assert (set(found.kinds), len(found.against)) == (kinds, against)
    assert (found.failed, found.target) == ("west", "east")


def test_nothing_counts_where_the_check_does_not_say_that_it_failed():
    found = sample(round_of(("refused",) * 3, (False,), verdict="unclear"))
    assert (found.failing, found.kinds) == (False, frozenset())
    assert sample(round_of(("answers",) * 3, (True,), verdict="healthy")).healthy


def test_a_contradiction_is_against_and_silence_is_nothing():
    torn = sample(Preview(DETECT, None, Contradiction("two primaries", rounds=[])))
    assert torn.against == ("two primaries",)
    away = sample(Preview(DETECT, None, Unreachable("no route")))
    assert (away.against, away.failing, "no route" in away.summary) == ((), False, True)


def test_a_target_of_which_no_node_answers():
    assert sample(round_of(("refused",) * 3, (False, False))).target_answers
    assert not sample(round_of(("refused",) * 3, (False, False), answers="silent")).target_answers


@pytest.mark.parametrize(
    ("rpo", "error", "loss"),
    [
        ({"met": True}, None, ""),
        ({"met": False, "reasons": ["3 commits"]}, None, "3 commits"),
        (None, Unreachable("no replica answers"), "cannot be told"),
    ],
)
def test_what_a_promotion_would_lose(rpo, error, loss):
    seen = Observation(holds=False, summary="a replica", changes=("promote",), facts={"rpo": rpo}) if rpo else None
    found = sample(round_of(("refused",) * 3, (False,)), Preview(PROMOTE, seen, error))
    assert loss in found.loss
    assert bool(found.loss) == bool(loss)


def test_a_look_is_one_round_and_the_gate_counts_them():
    assert DETECT.action.times == 2
    assert once(DETECT).action.times == 1
    assert once(PROMOTE) == PROMOTE


# ---- watches ----


@pytest.fixture
def looks(monkeypatch):
    """Looks that say what the test says, and take no time."""
    says = []

    class Glance:
        def __init__(self, *_):
            pass

        async def aclose(self):
            pass

    async def looked(_glance, _ready):
        while not says:  # noqa: ASYNC110 - a node that hangs
            await asyncio.sleep(0.001)
        return says.pop(0) if len(says) > 1 else says[0]

    monkeypatch.setattr(evidence, "Glance", Glance)
    monkeypatch.setattr(evidence, "looked", looked)
    return says


def test_a_decision_never_waits_for_a_node_that_hangs(looks):
    async def go():
        seen = []
        watches = Watches(lambda: seen.append(1))
        request = launch.Request("lab", "failover")
        began = time.monotonic()
        assert await watches.evidence(request, READY, 0.001) is None
        assert time.monotonic() - began < 5
        looks.append(Sample(NOW, failing=True))
        found = await watches.evidence(request, READY, 0.001, 5.0)
        await watches.aclose()
        return found, seen

    found, seen = asyncio.run(go())
    assert found.last.failing
    assert seen, "whoever waits is told at once"


def test_failures_are_counted_in_a_row(looks):
    bad, good = Sample(NOW, failing=True), Sample(NOW)
    looks += [bad, bad, good, bad, bad, bad, replace(bad, summary="last")]

    async def go():
        watches = Watches()
        request = launch.Request("lab", "failover")
        while True:
            found = await watches.evidence(request, READY, 0.0005, 5.0)
            if found.last.summary == "last":
                await watches.aclose()
                return found
            await asyncio.sleep(0)

    found = asyncio.run(go())
    assert found.failing == found.looks - 3 >= 4
