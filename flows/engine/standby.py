"""Watches, for ``relight serve``, over runs of other machines: goes on with one whose machine is lost (``takeover``).

For systems whose lease is in a store that many machines share. A process of its own, without Prefect: whatever a driver
does here, the supervisor goes on. One look is one read of the lease's record.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.engine import eventloop, killswitch, launch, leasing, places, system, takeover
from flows.engine.lease import elapsed
from flows.engine.providers import Components
from flows.engine.supervise import BAD_INPUT
from flows.engine.supervisor import relight_command
from flows.engine.takeover import Decision, Look
from tasks.clock import LoopClock
from tasks.errors import BadInput, RelightError, SafetyRefusal
from tasks.leases.protocol import Held, Mandate
from tasks.secrets import redact

LOOKS = 5
"""Looks in a ttl."""
OUTPUT = "take-over.log"
"""What runs that were taken over say before they have a folder, in the state folder."""
LONGEST_WAIT_S = 60.0
_SHARED = re.compile(r"\bprovider[\"']?\s*:\s*[\"']?leases\.")


def watched(names: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """System files, of these systems or else those of ``./runbooks``, that seem to share their lease. Raises BadInput.

    By their text: this only tells whether there is anything to watch.
    """
    found = tuple(places.system_file(n) for n in names) or tuple(sorted(Path.cwd().glob("runbooks/*/system.yaml")))
    return tuple(f.resolve() for f in found if _SHARED.search(f.read_text(encoding="utf-8", errors="replace")))


async def record(file: Path) -> tuple[str, Held | None, float]:
    """System, its lease's record as the store has it, and the ttl. Raises BadInput where none has it, Unreachable."""
    loaded = system.load(file)
    components = Components(loaded, LoopClock())
    try:
        store = leasing.store_of(components)
        if store is None:
            raise BadInput(
                f"{file}: the lease of system {loaded.system.system} is in the state folder of one machine, and so are"
                " its runs: relight resume. To go on elsewhere it needs a component of leases.* (docs/leases.md)."
            )
        held, _ = await store.read()
        return loaded.system.system, held, store.ttl_s
    finally:
        await components.aclose()


async def request(name: str, *, lost: bool = False) -> launch.Request:
    """What to ask of ``launch.run`` to go on with the last run of system ``name``, as its lease's record has it.

    ``lost``: nobody looked; so only with a run that came to no end. Raises BadInput, Unreachable.
    """
    file = places.system_file(name)
    named, held, _ = await record(file)
    asked = takeover.refuse_finished(held, named)
    if lost and asked.ended:
        raise BadInput(f"run {asked.run_id} of system {named} has ended ({asked.ended}) meanwhile; left to people")
    if (places.state_home() / "runs" / asked.run_id).is_dir():
        raise BadInput(f"run {asked.run_id} is of this machine: relight resume {asked.run_id}")
    return _request(name, asked, held or Held(0, ""))


def for_flow_run(
    system: str, held: Held | None, flow_run_id: str, first_start: datetime | None
) -> launch.Request | None:
    """The request with which a flow run that is tried again goes on with its run of another machine; None: it had none.

    ``first_start``: of the flow run, aware. Raises BadInput where that run has ended, or another run began since.
    """
    asked = held.mandate if held is not None else None
    if held is None or asked is None:
        return None
    if asked.flow_run_id == flow_run_id:
        return _request(system, takeover.refuse_finished(held, system), held)
    if first_start is not None and datetime.fromisoformat(asked.began_at) > first_start:
        raise BadInput(
            f"run {asked.run_id} of system {system} began on {held.holder} after this flow run first did; tried again,"
            " it could move back what was moved since. Start a new run if there is something left to do."
        )
    return None


def _request(system: str, asked: Mandate, held: Held) -> launch.Request:
    """To go on with the run of ``asked``, which ``held`` names."""
    return launch.Request(
        system=system,
        runbook=asked.runbook,
        mode="graceful" if asked.mode == "graceful" else "forced",
        waivers=asked.waivers,
        vars=asked.vars,
        incident_started_at=datetime.fromisoformat(asked.incident_started_at),
        detected_at=datetime.fromisoformat(asked.detected_at),
        trigger=asked.trigger,
        operator=asked.operator,
        automatic=asked.automatic,
        cause={
            takeover.CAUSE: asked.run_id,
            "from": str(held.holder),
            "step": held.step,
            "lives": str(asked.lives + 1),
            "origin": asked.origin or asked.run_id,
        },
        prefect_flow_run_id=asked.flow_run_id,
        takes_over=asked,
    )


def main(files: tuple[str, ...]) -> None:
    """Watch until the supervisor is gone."""
    threading.Thread(target=_end_with_the_supervisor, name="relight-orphan", daemon=True).start()
    places.set_defaults()
    eventloop.run(_watch_all(tuple(Path(f) for f in files)))


async def _watch_all(files: tuple[Path, ...]) -> None:
    await asyncio.gather(*(Watch(f).go() for f in files))


def command(run_id: str, file: Path) -> list[str]:
    """How the run is taken over: this very relight."""
    offline = [] if os.environ.get("PREFECT_API_URL") else ["--offline"]
    return relight_command("take-over", str(file.parent), "--lost", run_id, *offline)


def _say(text: str) -> None:
    sys.stderr.write(redact(text) + "\n")
    sys.stderr.flush()


@dataclass
class Watch:
    """One system, seen from here.

    Attributes:
        say: gets each decision as one line. command: run id, system file -> how it is taken over.
        now, elapsed: aware UTC, and seconds that count a suspended machine too.
    """

    file: Path
    say: Callable[[str], None] = _say
    command: Callable[[str, Path], list[str]] = command
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    elapsed: Callable[[], float] = elapsed
    _seen: Held | None = None
    _since: float = 0.0
    _child: subprocess.Popen[bytes] | None = None
    _trying: str = ""
    _refusals: int = 0
    _not_before: datetime | None = None
    _left: set[str] = field(default_factory=set)
    """Runs that are left to people."""
    _said: str = ""

    async def go(self) -> None:
        """Look again and again, without end."""
        pause_s = 2.0
        while True:
            try:
                name, held, ttl_s = await record(self.file)
                pause_s = ttl_s / LOOKS
                self.look(name, held, ttl_s)
            except RelightError as e:
                self._tell(f"runs of other machines are not watched: {e}")
            await asyncio.sleep(pause_s)

    def look(self, name: str, held: Held | None, ttl_s: float) -> None:
        """At one record of the system ``name``."""
        if held != self._seen:
            self._seen, self._since = held, self.elapsed()
        asked = held.mandate if held is not None else None
        run_id = asked.run_id if asked is not None else ""
        if self._ended(run_id) or run_id in self._left:
            return
        here = bool(run_id) and (places.state_home() / "runs" / run_id).is_dir()
        seen = Look(held, self.elapsed() - self._since, ttl_s, here, _paused(name, held), self.now())
        decision = takeover.decide(seen)
        if decision.do == "take_over" and self._not_before is not None and self.now() < self._not_before:
            return
        self._follow(name, run_id, decision)

    def _follow(self, name: str, run_id: str, decision: Decision) -> None:
        if decision.do == "leave":
            return
        words = {"take_over": "taking over", "wait": "waiting", "give_up": "LEFT TO PEOPLE (relight take-over)"}
        self._tell(f"run {run_id} of system {name}, of another machine: {words[decision.do]}: {decision.why}")
        if decision.do == "give_up":
            self._left.add(run_id)
        elif decision.do == "take_over":
            self._trying = run_id
            self._start(run_id)

    def _start(self, run_id: str) -> None:
        home = places.state_home()
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (home / OUTPUT).open("ab") as output:
                self._child = subprocess.Popen(
                    self.command(run_id, self.file),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # what ends us does not end it
                )
        except OSError as e:
            self._tell(f"run {run_id}: cannot be taken over: {e}")

    def _ended(self, run_id: str) -> bool:
        """A take-over is under way. One that came back without success is tried again later, or never."""
        if self._child is None:
            return False
        code = self._child.poll()
        if code is None:
            return True
        self._child = None
        if code == 0 or run_id != self._trying:  # it ended well, or began: then the record names a run of ours
            self._refusals = 0
            return False
        if code == BAD_INPUT:
            self._left.add(run_id)
            self._tell(f"run {run_id}: LEFT TO PEOPLE: it cannot be taken over as it is; see {OUTPUT}")
            return True
        self._refusals += 1
        wait_s = min(LONGEST_WAIT_S, 2.0**self._refusals)
        self._not_before = self.now() + timedelta(seconds=wait_s)
        self._tell(f"run {run_id}: the take-over did not begin (exit {code}), again in {wait_s:g} s; see {OUTPUT}")
        return True

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.say(text)


def _paused(name: str, held: Held | None) -> str:
    """Why nothing may begin, on this machine or on every one; empty while it may."""
    try:
        killswitch.check(name)
    except SafetyRefusal as e:
        return str(e)
    return str(killswitch.refusal(name, held.paused)) if held is not None and held.paused else ""


def _end_with_the_supervisor() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)
