"""Plays one schedule: the real plan, runner, journal and lease, in a simulated world, to the end of the story.

The story: clients write; the runbook runs; whatever the schedule says goes wrong. A dead engine is started again after
RESTART_S, as the supervisor does, and resumes. When a run ended badly a person looks, the faults are over, and it is
resumed up to twice. At the end, and after every effect on the way, the invariants of the design are checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.engine import abort, approvals, launch, report
from flows.engine.invariants import Rules, Told
from flows.engine.journal import FileJournal, Record, sealed
from flows.engine.lease import Lease
from flows.engine.scenario import Scenario, Twins, world_of
from flows.engine.schedule import Schedule
from flows.engine.virtualtime import VirtualLoop
from tasks.contract import Mode
from tasks.errors import BadInput, RelightError
from tasks.health.twin import NetworkTwin
from tasks.people.twin import secret_of
from tasks.simulation import Event, Killed, Process, ProcessClock, Simulation, enter
from tasks.tokens import FOR, Wish, mint
from tasks.world import World

RESTART_S = 1.0
PERSON_S = 5.0
MOST_STARTS = 24
PEOPLE = 2
"""How often a person resumes a run that ended badly."""
ANSWER_S = 2.0
"""How long people think about an approval."""
PAUSE_S = 30.0
"""Longer than any lease."""
AFTERWARDS_S = 5.0


@dataclass(frozen=True)
class Case:
    """What is proven: a runbook of a system, in a mode, from a broken world. ``seed``: for jittered pauses."""

    ready: launch.Ready
    mode: Mode
    scenario: Scenario
    request: launch.Request
    seed: int = 1


@dataclass
class Story:
    """One schedule, played. ``verdicts``: of each time the engine was started, ``killed`` where it died."""

    schedule: Schedule
    verdicts: list[str]
    violations: list[str]
    accepted: list[str]
    """Two writers, where somebody waived the proof that there is one."""
    trace: list[Event]
    happened: list[tuple[str, Event]]
    end: dict[str, Any]
    report: report.Report | None
    seconds: float

    @property
    def verdict(self) -> str:
        return self.verdicts[-1] if self.verdicts else "nothing"


class MortalJournal(FileJournal):
    """The real journal of a process that may die before, in the middle of, or right after a record."""

    def __init__(
        self, path: Path, process: Process, simulation: Simulation, seen: Callable[[Process, str, Record], None]
    ) -> None:
        process.must_live()
        super().__init__(path)
        self._process, self._simulation, self._seen = process, simulation, seen

    def append(self, at: Any, kind: str, **body: Any) -> Record:
        self._process.must_live()
        due = self._simulation.turn("record", f"{kind} {body.get('step', '')}".strip())
        if due == "kill-torn":
            _, line = sealed(self.head, len(self._records) + 1, at, kind, body)
            os.write(self._file, line.encode()[: len(line) // 2])
        if due in ("kill", "kill-torn"):
            self._process.die()
            self._process.must_live()
        record = super().append(at, kind, **body)
        self._seen(self._process, self.path.parent.name, record)
        if due == "kill-after":
            self._process.die()
        self._process.must_live()
        return record


@dataclass
class Play:
    """One schedule being played."""

    case: Case
    schedule: Schedule
    expected: dict[str, Any] | None
    """The end of the run in which nothing goes wrong; None while that one is played."""
    world: World = field(init=False)
    sim: Simulation = field(init=False)
    rules: Rules = field(init=False)
    verdicts: list[str] = field(default_factory=list)
    last: report.Report | None = None
    beside: list[asyncio.Task[Any]] = field(default_factory=list)

    async def go(self) -> Story:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # the dead leave loose ends
        started = loop.time()
        self.world = world_of(self.case.ready.loaded, ProcessClock())
        kinds = {d.at: d.kind for d in self.schedule}
        self.sim = Simulation(kinds)
        self.rules = Rules(self.case.ready, self.world, self.sim)
        clients = self._clients()
        if clients:
            await asyncio.sleep(1.0)
        self.case.scenario.breaks(self.world)
        before = self.rules.signature()
        served = await self.rules.serves()
        self.sim.happenings = {
            "return": self._return,
            "second": self._second,
            "pause": self._pause,
            "abort": self._abort,
        }
        await self._story()
        await asyncio.gather(*self.beside, return_exceptions=True)
        await asyncio.sleep(AFTERWARDS_S)
        if clients:
            clients.cancel()
        end = self.rules.signature()
        await self.rules.at_end(
            Told(
                verdict=self.verdicts[-1],
                before=before,
                served=served,
                expected=self.expected,
                disturbed=any(not k.startswith("kill") for k in kinds.values()),
                returned="return" in kinds.values(),
                aborted="abort" in kinds.values(),
                stayed=self._stayed(),
            )
        )
        violations = [*self.world.violations]
        return Story(
            self.schedule, self.verdicts, violations, [*self.world.accepted], self.sim.trace, self.sim.happened, end,
            self.last, loop.time() - started,
        )  # fmt: skip

    def _stayed(self) -> bool:
        steps = self.case.ready.plan.by_id
        done = [s.id for s in self.last.steps if s.outcome == "done"] if self.last else []
        return any(i in steps and not steps[i].action.read_only for i in done)

    def _clients(self) -> asyncio.Task[None] | None:
        name = next(iter(self.world.records), None)
        return asyncio.create_task(self.world.clients(name)) if name and self.world.nodes else None

    async def _story(self) -> None:
        people = PEOPLE
        for _ in range(MOST_STARTS):
            verdict = await self._engine(f"engine-{len(self.verdicts) + 1}", self._unfinished())
            self.verdicts.append(verdict)
            if verdict.startswith("LeaseHeld"):  # by the engine that took over meanwhile
                await asyncio.gather(*self.beside, return_exceptions=True)
                await asyncio.sleep(RESTART_S)  # or a dead one's lease has not run out yet
            elif verdict == "killed":
                await asyncio.sleep(RESTART_S)
            elif verdict in ("succeeded", "objective_missed", "undone", "over") or people == 0:
                return
            else:
                people -= 1
                self.sim.deviations = {}
                await asyncio.sleep(PERSON_S)

    def _unfinished(self) -> str | None:
        """The run to resume: the first that this story began."""
        runs = sorted(Path(os.environ["RELIGHT_STATE"]).glob("runs/*/journal.jsonl"), key=lambda p: p.parent.name)
        begun = [p.parent.name for p in runs if b'"run_started"' in p.read_bytes().split(b"\n", 1)[0]]
        return begun[0] if begun else None

    async def _engine(self, name: str, run_id: str | None) -> str:
        """Run or resume in a process of its own, until it ends or dies; the verdict, or the error's class."""
        process = Process(name)

        async def main() -> report.Report:
            enter(process)
            ground = self._ground(process)
            if run_id is None:
                return await launch.run(self.case.request, None, ground)
            return await launch.resume(run_id, None, ground)

        task = asyncio.create_task(main())
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon(task.cancel)

        process.on_death.append(end)
        try:
            self.last = await task
        except (Killed, asyncio.CancelledError):
            if process.alive:
                raise
            return "killed"
        except BadInput as e:
            # ended meanwhile, or another one brought the system to the same end after it
            over = "has ended" in e.message or "stopped (succeeded," in e.message
            return "over" if over else f"{type(e).__name__}: {e.message}"
        except RelightError as e:
            return f"{type(e).__name__}: {e.message}" if process.alive else "killed"
        finally:
            self.rules.gone(process)
        return str(self.last.verdict)

    def _ground(self, process: Process) -> launch.Ground:
        clock = ProcessClock(self.world.utc())

        def held(lease: Lease) -> Lease:
            process.on_death.append(lease.drop)
            return lease

        return launch.Ground(
            prepare=lambda _system, _runbook, _mode, _vars: self.case.ready,
            clock=lambda: clock,
            components=lambda loaded, clock: Twins(loaded, clock, self.world, self.sim),
            network=NetworkTwin(self.world, self.sim),
            dice=random.Random(self.case.seed),  # noqa: S311 - jitter that can be repeated, not a secret
            journal=lambda path: MortalJournal(path, process, self.sim, self._seen),
            elapsed=lambda: asyncio.get_running_loop().time(),
            held=held,
        )

    # ---- what happens beside the engine ----

    def _seen(self, process: Process, run_id: str, record: Record) -> None:
        self.rules.seen(process, run_id, record)
        if record["type"] == "approval_wanted":
            self.beside.append(asyncio.create_task(answered(run_id, record, self.world)))

    def _return(self) -> None:
        self.case.scenario.returns(self.world)
        self.rules.settled("the dead site came back")

    def _second(self) -> None:
        """A second engine starts the same runbook at this very moment."""

        async def other() -> None:
            await self._engine("second", None)

        self.beside.append(asyncio.create_task(other()))

    def _abort(self) -> None:
        """A person tells the run to go back."""
        run_id = self._unfinished()
        if run_id is not None:
            abort.ask(Path(os.environ["RELIGHT_STATE"]) / "runs" / run_id, "a person", "proof", self.world.utc())

    def _pause(self) -> None:
        """The engine stands still past its lease; another one resumes the run meanwhile; then it wakes up."""
        stopped = self.rules.running()
        if stopped is None:
            return
        stopped.going.clear()

        async def other() -> None:
            await asyncio.sleep(PAUSE_S)
            run_id = self._unfinished()
            going = asyncio.create_task(self._engine("successor", run_id)) if run_id else None
            while going and not going.done() and self.rules.newest <= stopped.epoch:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.01)
            stopped.going.set()
            if going:
                await going

        self.beside.append(asyncio.create_task(other()))


async def answered(run_id: str, record: Record, world: World) -> None:
    """Those who are asked say yes after a while, whoever lives by then."""
    await asyncio.sleep(ANSWER_S)
    folder, step = Path(os.environ["RELIGHT_STATE"]) / "runs" / run_id, record["step"]
    for name in record["who"][: record["at_least"]]:
        wish = Wish(run_id, step, "approve", name, world.utc() + FOR)
        approvals.hand_in(folder, step, {"token": mint(wish, secret_of(name))}, "cli")


@contextlib.contextmanager
def state_folder() -> Iterator[Path]:
    """A state folder of its own (journals, leases), in memory where there is such a place."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own below it
    folder = Path(tempfile.mkdtemp(prefix="relight-prove-", dir=memory if os.access(memory, os.W_OK) else None))
    kept = os.environ.get("RELIGHT_STATE")
    os.environ["RELIGHT_STATE"] = str(folder)
    try:
        yield folder
    finally:
        if kept is None:
            del os.environ["RELIGHT_STATE"]
        else:
            os.environ["RELIGHT_STATE"] = kept
        shutil.rmtree(folder, ignore_errors=True)


def play(case: Case, schedule: Schedule, expected: dict[str, Any] | None) -> Story:
    """Play one schedule in a loop, a world and a state folder of its own."""
    random.seed(case.seed)  # tenacity's jitter
    with state_folder(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(Play(case, schedule, expected).go())
