"""A runner over a toy world (``toys``) in virtual time: no test here waits.

The parts are real: the runner is the Runner, and the journal is sealed and hash-chained like the one in a file.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows.engine import runbook, system, yamlfile
from flows.engine.journal import GENESIS, JournalUnwritable, Record, sealed
from flows.engine.plan import Plan, PlannedStep
from flows.engine.run import Run
from flows.engine.runner import Runner
from flows.engine.state import RunState, Verdict
from tasks import catalog
from tasks.clock import LoopClock
from tasks.contract import Action, Mode, RunInfo
from tasks.errors import RelightError
from tasks.network import Sockets


def _beside(name: str) -> Any:
    """A module of this folder, which is no package (``--import-mode=importlib``)."""
    spec = importlib.util.spec_from_file_location(f"relight_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pydantic look their annotations up there
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(Path(__file__).parent))  # for ``stories``
toys_module = _beside("toys")
World, TOYS = toys_module.World, toys_module.TOYS

EPOCH = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


# ---- plans, journals, runs ----


class MemoryJournal:
    """The real chain. ``fail_at``: the append (counted from 1) that cannot be made durable. ``kill_after``: the append
    after which the process is dead: the record is there, and nothing follows it.
    """

    def __init__(
        self, records: tuple[Record, ...] = (), *, fail_at: int | None = None, kill_after: int | None = None
    ) -> None:
        self._records = list(records)
        self.fail_at, self.kill_after = fail_at, kill_after

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    def append(self, at: datetime, kind: str, **body: Any) -> Record:
        if self.kill_after is not None and len(self._records) >= self.kill_after:
            raise JournalUnwritable("killed")
        if self.fail_at is not None and len(self._records) + 1 >= self.fail_at:
            raise JournalUnwritable("the disk is full")
        previous = self._records[-1]["sha256"] if self._records else GENESIS
        _, line = sealed(previous, len(self._records) + 1, at, kind, body)
        record: Record = json.loads(line)  # as it would be read back
        self._records.append(record)
        if len(self._records) == self.kill_after:
            raise JournalUnwritable("killed")
        return record


def toy_step(step_id: str, action: type[Action] = toys_module.Make, **policy: Any) -> PlannedStep:
    defaults: dict[str, Any] = {
        "summary": "",
        "with_": {"key": step_id},
        "needs": (),
        "timeout_s": 10.0,
        "attempts": 1,
        "backoff_s": 0.2,
        "on_failure": "stop",
        "irreversible": action.irreversible,
        "restores": None,
    }
    return PlannedStep(id=step_id, action=action(key=step_id), **{**defaults, **policy})


def toy_plan(*steps: PlannedStep, mode: Mode = "forced") -> Plan:
    return Plan("toy", "toyland", mode, steps)


def chain(*steps: PlannedStep) -> Plan:
    """Each step needs the one before it."""
    linked = [replace(after, needs=(before.id,)) for before, after in pairwise(steps)]
    return toy_plan(steps[0], *linked)


@dataclass
class Played:
    """One run of a runner, over."""

    verdict: Verdict | None
    journal: MemoryJournal
    world: World
    runner: Runner
    took_s: float
    error: BaseException | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        return self.journal.records

    @property
    def state(self) -> RunState:
        return self.runner.state

    def outcome(self, step_id: str) -> str | None:
        return self.state.of(step_id).outcome

    def types(self, step_id: str) -> list[str]:
        return [r["type"] for r in self.records if r.get("step") == step_id]


@dataclass
class Options:
    rto_s: dict[str, float] = field(default_factory=dict)
    rpo_s: dict[str, float] = field(default_factory=dict)
    check: Callable[[], None] = lambda: None
    ask: Any = None
    listen: Callable[[Record], None] = lambda _record: None
    after: Callable[[Runner], Any] | None = None
    """A coroutine function that runs beside the runner."""
    abort: Callable[[], Any] = lambda: None
    answers: Callable[[str], Any] = lambda _step: ()
    components: dict[str, Any] = field(default_factory=dict)
    anchor: datetime = EPOCH
    incident: datetime = EPOCH


def _begin(runner: Runner, plan: Plan, options: Options) -> None:
    if runner.journal.records:
        runner.record("run_resumed", epoch=2, operator="test", torn_bytes=0)
    else:
        steps = {"digest": plan.digest, "steps": [s.describe() for s in plan.steps]}
        runner.record(
            "run_started",
            run_id=runner.run.info.run_id,
            system=plan.system,
            runbook=plan.runbook,
            mode=plan.mode,
            epoch=1,
            incident_started_at=runner.run.info.incident_started_at,
            detected_at=options.incident.isoformat(),
            roles={"active": "west", "failed": "west", "target": "east", "west": "west", "east": "east"},
            waivers={},
            trigger="test",
            operator="test",
            objectives={"rto_s": options.rto_s, "rpo_s": options.rpo_s},
            plan=steps,
        )


async def _play(plan: Plan, world: World, journal: MemoryJournal, options: Options) -> Played:
    loop = asyncio.get_running_loop()
    clock = LoopClock(options.anchor)
    world.let_go = asyncio.Event()
    info = RunInfo("run-1", plan.system, plan.runbook, plan.mode, 1, options.incident.isoformat())
    run = Run(
        info=info,
        plan=plan,
        roles={"west": "west", "east": "east"},
        rto_s=options.rto_s,
        rpo_s=options.rpo_s,
        components={"world": world, **options.components}.__getitem__,
        check=options.check,
        clock=clock,
        incident_started_at=options.incident,
        network=Sockets(),
        abort=options.abort,
        answers=options.answers,
    )
    runner = Runner(run, journal, options.listen, ask=options.ask, dice=random.Random(7))
    world.halt = runner.halt
    beside = asyncio.create_task(options.after(runner)) if options.after else None
    started = loop.time()
    verdict: Verdict | None = None
    error: BaseException | None = None
    try:
        _begin(runner, plan, options)
        verdict = await runner.go()
    except RelightError as e:
        error = e
    took_s = loop.time() - started
    if beside:
        await beside
    world.let_go.set()  # calls that hang come back now, long after they were given up
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    return Played(verdict, journal, world, runner, took_s, error)


def play(plan: Plan, world: World | None = None, journal: MemoryJournal | None = None, **options: Any) -> Played:
    """Run (or, over a journal with records, resume) a plan to its end."""
    with asyncio.Runner(loop_factory=toys_module.VirtualLoop) as loop:
        return loop.run(_play(plan, world or World(), journal or MemoryJournal(), Options(**options)))


# ---- files ----

SYSTEM = """\
system: toyland
sites:
  west: {}
  east: {}
objectives:
  app: {rto: 5m}
  data: {rto: 10m, rpo: 0s}
components:
  storage:
    provider: storage.s3
    access_key: env:A
    secret_key: env:B
    region: us-east-1
    sites:
      west: {endpoint: "http://127.0.1.80:9000", bucket: west}
      east: {endpoint: "http://127.0.2.80:9000", bucket: east}
  health:
    provider: health.http
    urls: {app: "http://127.0.0.1:1/"}
"""


def loaded_system(text: str = SYSTEM) -> system.LoadedSystem:
    return system.check(yamlfile.parse(text.encode(), "system.yaml"))


def loaded_runbook(text: str) -> runbook.LoadedRunbook:
    return runbook.from_document(yamlfile.parse(text.encode(), "book.yaml"))


@dataclass(frozen=True)
class Kit:
    """Everything above, for tests (a conftest cannot be imported)."""

    World = World
    Journal = MemoryJournal
    Make, Once, Promote = toys_module.Make, toys_module.Once, toys_module.Promote
    Patient, Seldom, Needing = toys_module.Patient, toys_module.Seldom, toys_module.Needing
    Fence, Check = toys_module.Fence, toys_module.Check
    EPOCH = EPOCH
    SYSTEM = SYSTEM
    step = staticmethod(toy_step)
    plan = staticmethod(toy_plan)
    chain = staticmethod(chain)
    play = staticmethod(play)
    system = staticmethod(loaded_system)
    runbook = staticmethod(loaded_runbook)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Kit:
    """As ``kit``, with the toy actions (and no others) in the catalog."""
    monkeypatch.setattr(catalog, "actions", lambda: TOYS)
    return Kit()
