"""What the system itself says, looked at by the entry checks of the run that an alert proposes. Read-only.

A watch looks at once and then again and again for as long as somebody asks, so that a decision never waits for a node
that hangs: it takes what is known by now, and holds while nothing is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from flows.engine import launch
from flows.engine.launch import Ready
from flows.engine.plan import PlannedStep
from flows.engine.preview import Glance, Preview
from flows.engine.roles import Roles
from flows.intake.facts import Evidence, Sample
from tasks.contract import Phase
from tasks.errors import Contradiction, RelightError

IDLE_S = 30.0
"""A watch that nobody asked for so long ends."""
LONGEST_S = 20.0
"""No single look takes longer than this."""
FIRST_S = 0.25
"""How long a decision waits for the first look: a node that is gone says so within milliseconds."""


@dataclass
class Watch:
    """Looks at one system for one runbook until nobody asks any more."""

    request: launch.Request
    ready: Ready
    every_s: float
    seen: Callable[[], None]
    evidence: Evidence | None = None
    asked_at: float = field(default_factory=time.monotonic)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    async def go(self) -> None:
        """Until nobody asked for ``IDLE_S``. Raises nothing of the world's."""
        glance = Glance(self.request, self.ready)
        try:
            while time.monotonic() - self.asked_at < IDLE_S:
                sample = await looked(glance, self.ready)
                failing = self.evidence.failing + 1 if sample.failing and self.evidence else int(sample.failing)
                looks = self.evidence.looks + 1 if self.evidence else 1
                self.evidence = Evidence(sample, failing, looks)
                self.first.set()
                self.seen()
                await asyncio.sleep(self.every_s)
        finally:
            self.first.set()
            await glance.aclose()


class Watches:
    """Every watch of a desk, each started when it is first asked for. For one event loop."""

    def __init__(self, seen: Callable[[], None] = lambda: None) -> None:
        self._seen = seen
        self._going: dict[tuple[str, ...], tuple[Watch, asyncio.Task[None]]] = {}

    async def evidence(
        self, request: launch.Request, ready: Ready, every_s: float, wait_s: float | None = None
    ) -> Evidence | None:
        """What is known by now; None while the first look is not over, after waiting for it (None: ``FIRST_S``)."""
        key = (request.system, request.runbook, request.mode, request.wish.leave or "", ready.plan.digest)
        for old, (_, task) in list(self._going.items()):
            if task.done():
                if not task.cancelled():
                    task.exception()  # retrieved; a new one begins
                del self._going[old]
        if key not in self._going:
            watch = Watch(request, ready, every_s, self._seen)
            self._going[key] = (watch, asyncio.create_task(watch.go()))
        watch, _ = self._going[key]
        watch.asked_at = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch.first.wait(), FIRST_S if wait_s is None else wait_s)
        return watch.evidence

    async def aclose(self) -> None:
        """End all of them."""
        tasks = [task for _, task in self._going.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._going.clear()


async def look_once(request: launch.Request, ready: Ready) -> Sample:
    """One look by itself. Raises nothing of the world's."""
    glance = Glance(request, ready)
    try:
        return await looked(glance, ready)
    finally:
        await glance.aclose()


async def looked(glance: Glance, ready: Ready) -> Sample:
    """One look: the entry checks, and what the steps of no return would lose."""
    checks = [once(s) for s in ready.plan.steps if s.phase is Phase.DETECT and s.action.read_only]
    chosen = (*checks, *(s for s in ready.plan.steps if s.irreversible))
    at, began = datetime.now(UTC), time.monotonic()
    try:
        async with asyncio.timeout(LONGEST_S):
            roles, previews = await glance.at(chosen)
    except TimeoutError:
        return Sample(at, summary=f"a look did not end within {LONGEST_S:g} s", took_s=time.monotonic() - began)
    except Contradiction as e:
        return Sample(at, against=(e.message,), summary=e.message, took_s=time.monotonic() - began)
    except RelightError as e:
        return Sample(at, summary=f"it cannot be looked at: {e.message}", took_s=time.monotonic() - began)
    return read(at, roles, previews, glance.sites(), time.monotonic() - began)


def once(step: PlannedStep) -> PlannedStep:
    """The check with one round: how many in a row are asked for is the confirm gate's to count."""
    if "times" not in type(step.action).model_fields:
        return step
    return replace(step, action=step.action.model_copy(update={"times": 1}))


def read(at: datetime, roles: Roles, previews: list[Preview], sites: Mapping[str, str], took_s: float = 0.0) -> Sample:
    """What a look came to. ``sites``: database node -> its site. Pure."""
    checks = [p for p in previews if p.step.phase is Phase.DETECT]
    against = [p.error.message for p in checks if isinstance(p.error, Contradiction)]
    kinds: set[str] = set()
    for p in checks:
        told, disagree = testimony(p)
        kinds |= told
        against += disagree
    healthy = any(p.seen is not None and p.seen.facts.get("verdict") == "healthy" for p in checks)
    failing = bool(checks) and all(p.seen is not None and p.seen.holds for p in checks)
    target = str(roles.by_name.get("target", ""))
    return Sample(
        at=at,
        failing=failing,
        healthy=healthy,
        kinds=frozenset(kinds) if failing else frozenset(),
        against=tuple(dict.fromkeys(against)),
        summary="; ".join(_words(p) for p in checks) or "the runbook has no entry check",
        facts={p.step.id: _round(p) for p in checks},
        loss="; ".join(x for p in previews if p.step.irreversible and (x := _loss(p))),
        failed=str(roles.by_name.get("failed", "")),
        target=target,
        target_answers=_answering(checks, {n for n, site in sites.items() if site == target}),
        took_s=took_s,
    )


def testimony(check: Preview) -> tuple[set[str], list[str]]:
    """Kinds of evidence that a check's facts hold for a failure, and what speaks against one.

    ``probe``: at least two places, and two of three of all, do not reach it. ``replicas``: every replica that answers
    has lost it. Against: it answers, or a replica still streams from it.
    """
    facts = _round(check)
    reach = [v.get("reach") for v in _objects(facts.get("vantages"))]
    replicas = [v for v in _objects(facts.get("replicas")) if v.get("reach") == "answers" and v.get("in_recovery")]
    names = {n: v for n, v in (facts.get("replicas") or {}).items() if isinstance(v, dict)}
    failing = sum(r != "answers" for r in reach)
    kinds: set[str] = set()
    if failing >= 2 and failing * 3 >= len(reach) * 2:
        kinds.add("probe")
    if replicas and not any(v.get("streaming") for v in replicas):
        kinds.add("replicas")
    against = []
    if reach and failing * 2 < len(reach):
        against.append(
            f"{facts.get('primary', 'the primary')} answers from {len(reach) - failing} of {len(reach)} places"
        )
    streams = [n for n, v in names.items() if v.get("streaming") and v.get("reach") == "answers"]
    if streams:
        against.append(f"{', '.join(streams)} still streams from it")
    return kinds, against


def _round(check: Preview) -> dict[str, Any]:
    """The last round of a check's facts."""
    facts: Mapping[str, Any] = check.seen.facts if check.seen else check.error.facts if check.error else {}
    rounds = facts.get("rounds")
    return dict(rounds[-1]) if isinstance(rounds, list) and rounds and isinstance(rounds[-1], dict) else dict(facts)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [v for v in value.values() if isinstance(v, dict)] if isinstance(value, dict) else []


def _answering(checks: list[Preview], here: AbstractSet[str]) -> bool:
    """Does one of the nodes answer, as the checks saw them? True where they saw none."""
    seen = [v for p in checks for n, v in (_round(p).get("replicas") or {}).items() if n in here]
    return not seen or any(isinstance(v, dict) and v.get("reach") == "answers" for v in seen)


def _words(p: Preview) -> str:
    return f"{p.step.id}: {p.seen.summary if p.seen else p.error.message if p.error else 'not seen'}"


def _loss(p: Preview) -> str:
    """Why a step of no return would lose too much, or why nobody can tell; empty where it would not."""
    if p.seen is None:
        return f"what {p.step.id} would lose cannot be told: {p.error.message if p.error else 'it was not seen'}"
    rpo = p.seen.facts.get("rpo")
    if isinstance(rpo, dict) and rpo.get("met") is False:
        return f"{p.step.id} would lose more than the objective allows: {'; '.join(rpo.get('reasons', []))}"
    return ""
