"""Explores what can go wrong with a runbook: every single deviation, then combinations, in every scenario it is for.

Exhaustive for one deviation: every crash point, every fault of every call, a second engine, a stopped engine and the
return of the dead site, each at every event of the run in which nothing goes wrong. Beyond that hypothesis draws
schedules of several deviations and shortens those that break an invariant.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from flows.engine import launch
from flows.engine.scenario import SCENARIOS
from flows.engine.schedule import Deviation, Schedule, deviations, show, singles
from flows.engine.simulate import Case, Story, play
from tasks.contract import Mode
from tasks.errors import BadInput
from tasks.simulation import Event

OFTEN = 8
"""So often a look is told apart from those before it."""
CHUNK = 60
"""Schedules that one worker plays before it says how far it is."""


@dataclass(frozen=True)
class Question:
    """What to explore.

    Attributes:
        scenarios: names, or empty for all in which the runbook has something to do and succeeds.
        every: 1 plays every single deviation; n every n-th (crashes are never left out, see ``chosen_singles``).
        most: of those at most so many a case, spread evenly over all of them, crashes too; 0: no limit.
        depth: how many schedules of two to four deviations to draw for each case.
        seed: of the draws and of the engine's jitter.
        vars: variables of the runbook with another value, as (name, text).
        waivers: rules that somebody waives by name, as (rule, who and why). What a waived rule would have forbidden is
            counted apart, see ``Tally.accepted``.
    """

    system: str
    runbook: str
    modes: tuple[Mode, ...] = ("forced", "graceful")
    scenarios: tuple[str, ...] = ()
    every: int = 1
    depth: int = 200
    seed: int = 1
    vars: tuple[tuple[str, str], ...] = ()
    waivers: tuple[tuple[str, str], ...] = ()
    most: int = 0


@dataclass(frozen=True)
class Violation:
    """A broken invariant and the shortest schedule that was found to break it."""

    invariant: str
    mode: Mode
    scenario: str
    schedule: str
    seed: int
    verdict: str
    times: int = 1
    where: tuple[str, ...] = ()
    """What the deviations hit."""


@dataclass(frozen=True)
class Worst:
    """The longest recovery that was seen, and what the time-outs would allow at most."""

    seen_s: float
    schedule: str
    scenario: str
    step: str
    """The step that took longest on the way there."""
    bound_s: float
    bound_step: str
    """The step with the largest worst case on the critical path."""


@dataclass
class Tally:
    """What came of some schedules. Adds up."""

    explored: int = 0
    crashes: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    """In so many schedules there were two writers, where the proof of a fence was waived."""
    violations: dict[tuple[str, str, str], Violation] = field(default_factory=dict)
    worst: dict[str, Worst] = field(default_factory=dict)

    def add(self, case: Case, story: Story) -> None:
        """Count one story."""
        self.explored += 1
        self.crashes += any(d.kind.startswith("kill") for d in story.schedule)
        self.verdicts[story.verdict.partition(":")[0]] += 1
        self.accepted += bool(story.accepted)
        for text in story.violations:
            invariant = text.partition(":")[0]
            where = tuple(f"{kind} at {event.what}" for kind, event in story.happened)
            found = Violation(
                text, case.mode, case.scenario.name, show(story.schedule), case.seed, story.verdict, 1, where
            )
            self._keep((invariant, case.mode, case.scenario.name), found)
        self._time(case, story)

    def _keep(self, key: tuple[str, str, str], found: Violation) -> None:
        known = self.violations.get(key)
        if known is None:
            self.violations[key] = found
            return
        best = min(known, found, key=lambda v: (v.schedule.count("@"), len(v.schedule), v.schedule))
        self.violations[key] = Violation(**{**vars(best), "times": known.times + found.times})

    def _time(self, case: Case, story: Story) -> None:
        if story.report is None:
            return
        plan = case.ready.plan
        took = {s.id: s.duration_s for s in story.report.steps}
        for component, objective in story.report.objectives.items():
            step = next((s.id for s in plan.steps if s.restores == component), None)
            if objective.actual_s is None or step is None:
                continue
            chain = plan.critical_path(step)
            worst = Worst(
                seen_s=round(objective.actual_s, 3),
                schedule=show(story.schedule),
                scenario=case.scenario.name,
                step=max(chain, key=lambda s: took.get(s, 0.0)),
                bound_s=round(plan.worst_end_s[step], 3),
                bound_step=max(chain, key=lambda s: plan.by_id[s].worst_case_s),
            )
            self._slower(component, worst)

    def _slower(self, component: str, found: Worst) -> None:
        known = self.worst.get(component)
        if known is None or found.seen_s > known.seen_s:
            self.worst[component] = found

    def join(self, other: Tally) -> None:
        """Add another tally."""
        self.explored += other.explored
        self.crashes += other.crashes
        self.accepted += other.accepted
        self.verdicts += other.verdicts
        for key, violation in other.violations.items():
            self._keep(key, violation)
        for component, worst in other.worst.items():
            self._slower(component, worst)


@dataclass(frozen=True)
class Proof:
    """The answer. ``cases``: (mode, scenario) -> events of its calm run; ``passed_over``: case -> why."""

    question: Question
    cases: dict[str, int]
    passed_over: dict[str, str]
    tally: Tally
    seconds: float

    @property
    def holds(self) -> bool:
        return not self.tally.violations


def case_of(question: Question, mode: Mode, scenario: str) -> Case:
    """Read the files and name the case. Raises InvalidFiles, BadInput."""
    if scenario not in SCENARIOS:
        raise BadInput(f"no scenario {scenario!r}; known: {', '.join(SCENARIOS)}")
    chosen = dict(question.vars)
    ready = launch.prepare(question.system, question.runbook, mode, chosen)
    request = launch.Request(
        question.system,
        question.runbook,
        mode,
        waivers=dict(question.waivers),
        trigger="prove",
        operator="prove",
        vars=chosen,
    )
    return Case(ready, mode, SCENARIOS[scenario], request, question.seed)


def replay(question: Question, schedule: Schedule) -> tuple[Case, Story]:
    """Play one schedule in the one case that ``question`` names."""
    scenario = question.scenarios[0] if question.scenarios else "kill-primary"
    case = case_of(question, question.modes[0], scenario)
    calm = play(case, (), None)
    return case, play(case, schedule, calm.end)


def prove(question: Question, jobs: int, progress: Callable[[int, int], None] = lambda _done, _all: None) -> Proof:
    """Explore. Raises InvalidFiles, BadInput when the runbook succeeds in no scenario at all."""
    began = time.monotonic()
    cases: dict[tuple[Mode, str], Story] = {}
    passed_over: dict[str, str] = {}
    total = Tally()
    for mode in question.modes:
        for name in question.scenarios or tuple(SCENARIOS):
            case = case_of(question, mode, name)
            calm = play(case, (), None)
            if calm.verdict == "succeeded" and (calm.report is None or _does_something(calm)):
                cases[mode, name] = calm
                total.add(case, calm)
            else:
                passed_over[f"{mode} {name}"] = _why_not(calm)
    if not cases:
        said = "; ".join(f"{case}: {why}" for case, why in passed_over.items())
        raise BadInput(f"{question.runbook} succeeds in no scenario, so there is nothing to explore: {said}")
    work = [w for key, calm in cases.items() for w in _work(question, key, calm)]
    done, everything = 0, sum(w.count for w in work)
    for tally, count in _played(work, jobs):
        total.join(tally)
        done += count
        progress(done, everything)
    names = {f"{mode} {name}": len(calm.trace) for (mode, name), calm in cases.items()}
    return Proof(question, names, passed_over, total, time.monotonic() - began)


def _played(work: list[Work], jobs: int) -> Iterator[tuple[Tally, int]]:
    """As they finish. One job is this process itself; more are fresh interpreters, which share no lock with it."""
    if jobs <= 1:
        yield from map(_do, work)
        return
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        for finished in as_completed([pool.submit(_do, w) for w in work]):
            yield finished.result()


def _does_something(calm: Story) -> bool:
    return any(e.kind == "change" for e in calm.trace)


def _why_not(calm: Story) -> str:
    if calm.verdict == "succeeded":
        return "nothing to do"
    return calm.report.reason if calm.report and calm.report.reason else calm.verdict


@dataclass(frozen=True)
class Work:
    """What one worker does in one go."""

    question: Question
    mode: Mode
    scenario: str
    end: dict[str, Any]
    schedules: tuple[Schedule, ...] = ()
    trace: tuple[Event, ...] = ()
    draw: int = 0

    @property
    def count(self) -> int:
        return len(self.schedules) + self.draw


def _work(question: Question, key: tuple[Mode, str], calm: Story) -> Iterable[Work]:
    chosen = spread(chosen_singles(calm.trace, question.every), question.most)
    for start in range(0, len(chosen), CHUNK):
        yield Work(question, *key, calm.end, tuple(chosen[start : start + CHUNK]))
    if question.depth:
        yield Work(question, *key, calm.end, trace=tuple(calm.trace), draw=question.depth)


def chosen_singles(trace: Sequence[Event], every: int) -> list[Schedule]:
    """All crashes, and every ``every``-th of each other kind, each kind from another start.

    Crashes at a look that was there ``OFTEN`` times before are of the second sort: one who waits asks the same thing
    again and again.
    """
    counts: Counter[str] = Counter()
    again: set[int] = set()
    for event in trace:
        counts[event.what] += event.kind == "read"
        if counts[event.what] > OFTEN and event.kind == "read":
            again.add(event.at)
    everything = singles(trace)
    chosen = [s for s in everything if s[0].kind.startswith("kill") and s[0].at not in again]
    left = [s for s in everything if not s[0].kind.startswith("kill") or s[0].at in again]
    for number, kind in enumerate(sorted({s[0].kind for s in left})):
        chosen += [s for s in left if s[0].kind == kind][number % every :: every]
    return chosen


def spread(schedules: Sequence[Schedule], most: int) -> list[Schedule]:
    """At most ``most`` of them (0: all), evenly from the first to the last."""
    if not most or len(schedules) <= most:
        return list(schedules)
    return [schedules[n * len(schedules) // most] for n in range(most)]


def _do(work: Work) -> tuple[Tally, int]:
    case = case_of(work.question, work.mode, work.scenario)
    tally = Tally()
    for schedule in work.schedules:
        tally.add(case, play(case, schedule, work.end))
    if work.draw:
        draw(case, work.trace, work.end, work.draw, tally)
    return tally, work.count


class Broken(Exception):
    """A drawn schedule breaks an invariant."""


def draw(case: Case, trace: Sequence[Event], end: dict[str, Any], count: int, tally: Tally) -> None:
    """Play ``count`` drawn schedules; hypothesis shortens one that breaks an invariant that was not broken before."""
    from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: PLC0415 - only prove needs it
    from hypothesis import strategies as st  # noqa: PLC0415

    one = st.sampled_from(trace).flatmap(
        lambda event: st.builds(Deviation, st.just(event.at), st.sampled_from(deviations(event)))
    )
    schedules = st.lists(one, min_size=2, max_size=4, unique_by=lambda d: d.at).map(lambda ds: tuple(sorted(ds)))

    @seed(case.seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules)
    def holds(schedule: Schedule) -> None:
        known = set(tally.violations)
        story = play(case, schedule, end)
        tally.add(case, story)
        if shrinking or set(tally.violations) - known:
            shrinking.add(show(schedule))
            if story.violations:
                raise Broken(story.violations[0])

    shrinking: set[str] = set()
    try:
        holds()
    except Broken:
        return  # its shortest form is in the tally
