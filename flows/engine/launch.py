"""Puts a run together: files to plan, roles, lease, journal, runner. Used by the CLI and by the Prefect flows alike."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import platform
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.engine import (
    abort,
    alive,
    approvals,
    check,
    killswitch,
    leasing,
    notify,
    places,
    readygate,
    report,
    runbook,
    safety,
    system,
    takeover,
)
from flows.engine import lease as leases
from flows.engine.findings import Finding
from flows.engine.journal import FileJournal, Record, of_type, read
from flows.engine.lease import Lease
from flows.engine.plan import Plan
from flows.engine.providers import Components
from flows.engine.roles import Roles, Wish, resolve
from flows.engine.run import Run
from flows.engine.runner import Runner
from flows.engine.state import FINISHED, fold, reopened
from flows.engine.stepping import Ask
from tasks.clock import Clock, LoopClock
from tasks.contract import Mode, RunInfo, in_thread
from tasks.errors import BadInput, LeaseHeld, RelightError
from tasks.leases.protocol import Mandate
from tasks.network import Network, Sockets


@dataclass(frozen=True)
class Request:
    """What someone asks for.

    Attributes:
        waivers: name of a safety rule -> who waives it and why; recorded.
        incident_started_at, detected_at: where known (an alert, a drill); default is the start of the run.
        automatic: an alert or a schedule asks, not a person: the gates of ``safety`` count.
        vars: variables of the runbook that have another value in this run, as text.
        cause: what made it be asked for, where something did (the alert's episode, and what every gate said); recorded.
        prefect_flow_run_id: the flow run that asked, where one did: tried again there, the run is resumed.
        takes_over: the run of another, lost machine in whose place this one goes on (``takeover``).
    """

    system: str
    runbook: str
    mode: Mode = "forced"
    wish: Wish = field(default_factory=Wish)
    waivers: Mapping[str, str] = field(default_factory=dict)
    incident_started_at: datetime | None = None
    detected_at: datetime | None = None
    trigger: str = "cli"
    operator: str = ""
    automatic: bool = False
    cause: Mapping[str, Any] = field(default_factory=dict)
    vars: Mapping[str, str] = field(default_factory=dict)
    prefect_flow_run_id: str = ""
    takes_over: Mandate | None = None


@dataclass(frozen=True)
class Listeners:
    """Who hears of a run while it goes.

    Attributes:
        record: each journal record, once durable.
        began: (step id, attempt) when an attempt begins; not journaled, for views.
        line: (step id, text) what is being waited for; not journaled.
        ask: decides after a failed step with ``on_failure: ask``.
        started: the runner and the run's folder, once both exist.
    """

    record: Callable[[Record], None] = lambda _record: None
    began: Callable[[str, int], None] = lambda _step, _attempt: None
    line: Callable[[str, str], None] = lambda _step, _text: None
    ask: Ask | None = None
    started: Callable[[Runner, Path], None] = lambda _runner, _folder: None

    def waiting(self, text: str) -> None:
        """A line about the lease, which comes before any step."""
        self.line("lease", text)


@dataclass(frozen=True)
class Ready:
    """Files read, checked and turned into a plan; nothing observed yet."""

    plan: Plan
    loaded: system.LoadedSystem
    book: runbook.LoadedRunbook
    warnings: tuple[Finding, ...]

    @property
    def rto_s(self) -> dict[str, float]:
        return {n: o.rto for n, o in self.loaded.system.objectives.items() if o.rto is not None}

    @property
    def rpo_s(self) -> dict[str, float]:
        return {n: o.rpo for n, o in self.loaded.system.objectives.items() if o.rpo is not None}


def prepare(name: str, book: str, mode: Mode, variables: Mapping[str, str] | None = None) -> Ready:
    """Read and check. Raises InvalidFiles and BadInput."""
    places.check_imports()
    places.set_defaults()
    file = places.system_file(name)
    loaded = system.load(file)
    found = runbook.with_vars(runbook.load(places.runbook_file(book, file.parent)), variables or {})
    plan, warnings = check.plan(found, loaded, mode)
    return Ready(plan, loaded, found, warnings)


@dataclass(frozen=True)
class Ground:
    """What a run stands on. ``relight prove`` puts a simulated world under the very same code."""

    prepare: Callable[[str, str, Mode, Mapping[str, str]], Ready] = prepare
    clock: Callable[[], Clock] = LoopClock
    components: Callable[[system.LoadedSystem, Clock], Components] = Components
    network: Network = field(default_factory=Sockets)
    dice: random.Random = field(default_factory=random.Random)
    journal: Callable[[Path], FileJournal] = FileJournal
    elapsed: Callable[[], float] = leases.elapsed
    held: Callable[[Lease], Lease] = lambda lease: lease
    """Sees each lease that was taken."""

    @contextlib.asynccontextmanager
    async def providers(self, ready: Ready, clock: Clock) -> AsyncIterator[Components]:
        """The system's providers; closed on leaving."""
        components = self.components(ready.loaded, clock)
        components.build()  # importing a driver blocks the loop: before any time-out runs, not in the middle of a step
        try:
            yield components
        finally:
            await components.aclose()


async def run(request: Request, listeners: Listeners | None = None, ground: Ground | None = None) -> report.Report:
    """Run a runbook from the start. Raises BadInput, SafetyRefusal (before anything was touched), JournalUnwritable."""
    heard, ground = listeners or Listeners(), ground or Ground()
    clock = ground.clock()
    begun = clock.utc()
    ready = ground.prepare(request.system, request.runbook, request.mode, request.vars)
    async with ground.providers(ready, clock) as components:
        killswitch.check(ready.plan.system)
        run_id = new_run_id(begun, request)
        policy = ready.loaded.system.safety
        looked = readygate.check(policy.readiness, ready.plan.system, ready.plan.runbook, request.waivers, begun)
        if looked["at"] and not looked["ready"]:
            heard.line("readiness", f"it was not found ready: {looked['against']}")
        asked = leasing.Asked(
            ready.plan.system, run_id, clock, policy, request.automatic, 0, ground.elapsed, heard.waiting, ground.held,
            takeover.may_begin(request.takes_over, ready.plan.digest),
        )  # fmt: skip
        async with leasing.turn(asked, components) as turn:
            turn.lease.check()
            if request.automatic and request.takes_over is None:
                safety.cool_down(policy, ready.plan.system, turn.lease.last, request.waivers, clock.utc())
                safety.velocity(policy.velocity, ready.plan.system, run_id, clock.utc())
            # Under the lease: a run that ends meanwhile may have swapped the roles.
            roles = await _roles(request.takes_over, ready, components, request.wish)
            folder = places.state_home() / "runs" / run_id
            turn.journal = journal = ground.journal(folder / "journal.jsonl")
            incident = request.incident_started_at or begun
            info = run_info(ready.plan, request, run_id, turn.lease.epoch, incident)
            head = _header(ready, request, roles, info, begun)
            at = begun.isoformat(timespec="microseconds")
            await turn.lease.charge(takeover.mandate({**head, "at": at}, _home(ready), takeover.lives(head)))
            going = _run(ready, info, roles, Live(components, clock, ground.network, turn.lease))
            with contextlib.closing(journal), alive.hold(folder):
                runner = Runner(going, journal, heard.record, heard.began, heard.line, heard.ask, ground.dice)
                runner.record("run_started", **head, readiness=looked)
                return await _go(runner, folder, heard, components)


async def resume(run_id: str, listeners: Listeners | None = None, ground: Ground | None = None) -> report.Report:
    """Go on with a run under its own id, its clock counting through. Raises BadInput when nothing is left to do."""
    heard, ground = listeners or Listeners(), ground or Ground()
    clock = ground.clock()
    folder = places.run_folder(run_id)
    # Only read until the lease is held: opening a journal to write repairs its end, which a live run may be writing.
    before = read(folder / "journal.jsonl").records
    head = _resumable(folder.name, before)
    newest = max(r["epoch"] for r in before if r["type"] in ("run_started", "run_resumed"))
    ready = ground.prepare(head["files"]["system"], head["files"]["runbook"], head["mode"], head.get("vars", {}))
    if ready.plan.digest != head["plan"]["digest"]:
        raise BadInput(
            f"the files of run {folder.name} changed since it began, so its steps would not be the ones it did. Put"
            f" them back ({head['files']['runbook']}, {head['files']['system']}) or start a new run."
        )
    async with ground.providers(ready, clock) as components:
        killswitch.check(ready.plan.system)
        asked = leasing.Asked(
            ready.plan.system, folder.name, clock, ready.loaded.system.safety, head.get("automatic", False),
            head["epoch"], ground.elapsed, heard.waiting, ground.held,
            takeover.not_overtaken(folder.name, newest, before[-1]["at"]),
        )  # fmt: skip
        async with leasing.turn(asked, components) as turn:
            await turn.lease.charge(takeover.mandate(head, _home(ready), takeover.lives(head)))
            turn.journal = journal = ground.journal(folder / "journal.jsonl")
            info = RunInfo(
                run_id=folder.name,
                system=head["system"],
                runbook=head["runbook"],
                mode=head["mode"],
                epoch=turn.lease.epoch,
                incident_started_at=head["incident_started_at"],
                waivers=head["waivers"],
            )
            going = _run(ready, info, Roles(head["roles"]), Live(components, clock, ground.network, turn.lease))
            with contextlib.closing(journal), alive.hold(folder):
                _resumable(folder.name, journal.records)  # the run may have ended since it was looked at
                runner = Runner(going, journal, heard.record, heard.began, heard.line, heard.ask, ground.dice)
                for record in journal.records:
                    heard.record(record)  # so that a view shows what was done before
                runner.record(
                    "run_resumed",
                    epoch=turn.lease.epoch,
                    operator=_operator(""),
                    torn_bytes=len(journal.torn),
                    reopened=reopened(ready.plan, runner.state),
                )
                return await _go(runner, folder, heard, components)


async def _roles(lost: Mandate | None, ready: Ready, components: Components, wish: Wish) -> Roles:
    """Observed; those of the run that is taken over, else: in the middle of a move, what is seen would mislead."""
    if lost is None:
        return await resolve(ready.loaded.system, components, wish)
    return Roles({**{s: s for s in ready.loaded.system.sites}, **lost.roles}, {takeover.CAUSE: lost.run_id})


def _home(ready: Ready) -> Path:
    """The folder of the system file."""
    return Path(ready.loaded.document.file).parent


def _resumable(run_id: str, records: tuple[Record, ...]) -> Record:
    """The run's first record. Raises BadInput when there is nothing to go on with."""
    head = next(of_type(records, "run_started"), None)
    if head is None:
        raise BadInput(f"run {run_id} never began: its journal has no run_started record. Start a new one.")
    ended = fold(records).ended
    if ended in FINISHED:
        raise BadInput(f"run {run_id} has ended ({ended}); there is nothing to resume")
    return head


async def _go(runner: Runner, folder: Path, heard: Listeners, components: Components) -> report.Report:
    heard.started(runner, folder)
    telling = notify.follow(folder, components)
    await runner.go()
    if telling is not None:  # a run of a moment: whoever tells of it must have been started
        await in_thread(lambda: telling.join(notify.SPAWN_S))
    return write_report(folder)


def write_report(folder: Path) -> report.Report:
    """Compute the report from the journal and write report.json and report.md beside it, where there is room."""
    result = report.build(folder / "journal.jsonl")
    with contextlib.suppress(OSError):  # a full disk must not make a bug of a recovery; the journal has everything
        _write(folder, result)
    return result


def _write(folder: Path, result: report.Report) -> None:
    for name, text in (("report.json", result.to_json()), ("report.md", report.markdown(result))):
        new = folder / f"{name}.new"
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(folder / name)


@dataclass(frozen=True)
class Live:
    """What a run acts through and what it holds."""

    components: Components
    clock: Clock
    network: Network
    lease: Lease


def _run(ready: Ready, info: RunInfo, roles: Roles, live: Live) -> Run:
    def allowed() -> None:
        killswitch.check(ready.plan.system)
        live.lease.check()

    def holds() -> None:
        try:
            live.lease.check()
        except LeaseHeld:
            raise
        except RelightError:
            return  # what cannot be read stops effects, not the record of what was done

    folder = places.state_home() / "runs" / info.run_id
    return Run(
        info=info,
        plan=ready.plan,
        roles=roles.by_name,
        rto_s=ready.rto_s,
        rpo_s=ready.rpo_s,
        components=live.components,
        check=allowed,
        holds=holds,
        clock=live.clock,
        network=live.network,
        incident_started_at=datetime.fromisoformat(info.incident_started_at),
        abort=lambda: abort.asked(folder),
        answers=approvals.Answers(folder, live.clock),
    )


def run_info(plan: Plan, request: Request, run_id: str, epoch: int, incident: datetime) -> RunInfo:
    """What every step of the run is told about it."""
    return RunInfo(
        run_id=run_id,
        system=plan.system,
        runbook=plan.runbook,
        mode=plan.mode,
        epoch=epoch,
        incident_started_at=incident.isoformat(timespec="microseconds"),
        waivers=request.waivers,
    )


def new_run_id(now: datetime, request: Request) -> str:
    """Sorts by time and says what it is: ``20261123T221930Z-failover-lab-3f9a``."""
    book = Path(request.runbook).stem
    name = Path(request.system).name.removesuffix(".yaml")
    return f"{now:%Y%m%dT%H%M%SZ}-{book}-{name}-{secrets.token_hex(2)}"


def _operator(asked: str) -> str:
    return asked or os.environ.get("SUDO_USER") or getpass.getuser()


def _header(ready: Ready, request: Request, roles: Roles, info: RunInfo, begun: datetime) -> dict[str, Any]:
    files = {"system": ready.loaded.document.file, "runbook": ready.book.document.file}
    plan = {"digest": ready.plan.digest, "steps": [s.describe() for s in ready.plan.steps]}
    return {
        "run_id": info.run_id,
        "system": ready.plan.system,
        "runbook": ready.plan.runbook,
        "mode": info.mode,
        "epoch": info.epoch,
        "incident_started_at": info.incident_started_at,
        "detected_at": (request.detected_at or begun).isoformat(timespec="microseconds"),
        "requested_at": begun.isoformat(timespec="microseconds"),
        "roles": dict(roles.by_name),
        "roles_evidence": roles.evidence,
        "waivers": dict(info.waivers),
        "vars": dict(request.vars),
        "trigger": request.trigger,
        "operator": _operator(request.operator),
        "automatic": request.automatic,
        "cause": dict(request.cause),
        "prefect_flow_run_id": request.prefect_flow_run_id,
        "objectives": {"rto_s": ready.rto_s, "rpo_s": ready.rpo_s},
        "plan": plan,
        "files": {k: str(Path(v).resolve()) for k, v in files.items()},
        "sha256": {k: hashlib.sha256(Path(v).read_bytes()).hexdigest() for k, v in files.items()},
        "engine": {
            "relight": version("relight"),
            "python": platform.python_version(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        },
    }
