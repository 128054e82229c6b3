"""The supervisor that ``relight serve`` is: finds runs whose engine died and resumes each in a process of its own.

The border of ``supervise``, which decides. One look costs a stat of each journal and a lock of each run that has not
ended; a journal is parsed only when it changed since and nobody holds it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flows.engine import alive, killswitch, places
from flows.engine.journal import JournalBroken, of_type, read
from flows.engine.state import fold
from flows.engine.supervise import Care, Decision, Seen, decide, returned, with_newer
from tasks.errors import RelightError, SafetyRefusal
from tasks.secrets import redact

LOOK_S = 0.5
CARE = "supervisor.json"
OUTPUT = "resume.log"
"""What a resumed run says, in its folder."""


def resume_command(run_id: str) -> list[str]:
    """How a run is resumed: this very relight, and without Prefect where no server is set."""
    offline = [] if os.environ.get("PREFECT_API_URL") else ["--offline"]
    return relight_command("resume", run_id, *offline)


def relight_command(*words: str) -> list[str]:
    """A command line of this very relight."""
    entry = Path(sys.executable).with_name("relight")
    # -P: a folder named flows where we happen to stand must not be taken for ours
    relight = [str(entry)] if entry.exists() else [sys.executable, "-P", "-c", "from flows.cli import main; main()"]
    return [*relight, *words]


def care_of(folder: Path) -> Care:
    """What the supervisor notes in the run's ``folder``; empty where it did nothing."""
    try:
        return Care.model_validate_json((folder / CARE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Care()


@dataclass
class Child:
    """A resumed run: its process, and where its part of the output begins."""

    process: subprocess.Popen[bytes]
    output_from: int


@dataclass
class Supervisor:
    """Looks after the runs of one state folder.

    Attributes:
        say: gets each decision as one line.
        command: how a run is resumed.
        now: aware UTC.
    """

    home: Path
    say: Callable[[str], None]
    command: Callable[[str], list[str]] = resume_command
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _seen: dict[str, Seen] = field(default_factory=dict)
    _stats: dict[str, tuple[int, int]] = field(default_factory=dict)
    _care: dict[str, Care] = field(default_factory=dict)
    _children: dict[str, Child] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)

    def go(self, stop: threading.Event) -> None:
        """Look until ``stop``. Resumed runs go on without us. A second supervisor stands by until the first is gone."""
        waiting = False
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        while not stop.is_set():
            with alive.sole(self.home, "supervisor.lock") as mine:
                if mine:
                    self.say(f"supervising the runs below {self.home / 'runs'}")
                    while not stop.is_set():
                        self.look()
                        stop.wait(LOOK_S)
                elif not waiting:
                    waiting = True
                    self.say("another relight serve supervises these runs; standing by")
            stop.wait(LOOK_S)

    def look(self) -> None:
        """Once over all runs."""
        self._reap()
        dead = [run_id for run_id in self._folders() if self._is_dead(run_id)]
        if not dead:
            return
        known = with_newer(self._seen)
        for run_id in dead:
            self._care_for(known[run_id])

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self.home / "runs") as found:
                return sorted((e.name for e in found), reverse=True)  # the newest run first: names sort by time
        except FileNotFoundError:
            return []

    def _is_dead(self, run_id: str) -> bool:
        """Nobody holds the run, and it has no end. Parses what changed."""
        folder = self._folder(run_id)
        try:
            stat = (folder / "journal.jsonl").stat()
        except OSError:
            return False
        now = (stat.st_mtime_ns, stat.st_size)
        known = self._seen.get(run_id)
        unchanged = known is not None and self._stats.get(run_id) == now
        if unchanged and known is not None and (known.ended is not None or not known.began):
            return False
        if run_id in self._children or alive.alive(folder):
            if known is None or not known.began:
                self._read(run_id, now)  # a live one counts as the newest of its system
            return False
        if not unchanged:
            # It may have ended, or been taken up and ended, between the stat and the lock: what is read now is newer.
            self._read(run_id, now)
        return self._seen[run_id].began and self._seen[run_id].ended is None

    def _read(self, run_id: str, stat: tuple[int, int]) -> None:
        self._seen[run_id] = seen(self._folder(run_id))
        self._stats[run_id] = stat

    def _care_for(self, run: Seen) -> None:
        care = self._care.get(run.run_id) or care_of(self._folder(run.run_id))
        self._follow(run, decide(run, care, _paused(run.system), self.now()), care)

    def _follow(self, run: Seen, decision: Decision, before: Care) -> None:
        line = f"run {run.run_id}: {_WORDS[decision.do]}: {redact(decision.why)}"
        care = decision.care
        if decision.why and self._said.get(run.run_id) != line:
            self._said[run.run_id] = line
            self.say(line)
            care = care.model_copy(update={"said": line})
        self._care[run.run_id] = care
        if care != before:
            _note(self._folder(run.run_id), care)
        if decision.do == "resume":
            self._said.pop(run.run_id, None)
            self._resume(run.run_id)

    def _resume(self, run_id: str) -> None:
        folder = self._folder(run_id)
        try:
            with (folder / OUTPUT).open("ab") as output:
                begins = output.tell()
                process = subprocess.Popen(
                    self.command(run_id),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # what ends us does not end it
                    env={**os.environ, "RELIGHT_STATE": str(self.home)},
                )
        except OSError as e:
            self.say(f"run {run_id}: cannot be resumed: {e}")
            return
        self._children[run_id] = Child(process, begins)

    def _reap(self) -> None:
        for run_id in [i for i, c in self._children.items() if c.process.poll() is not None]:
            child = self._children.pop(run_id)
            folder = self._folder(run_id)
            stat = (folder / "journal.jsonl").stat()
            self._read(run_id, (stat.st_mtime_ns, stat.st_size))
            run = self._seen[run_id]
            code = child.process.returncode
            if run.ended is not None:
                self.say(f"run {run_id}: ended: {run.ended}")
                _note(folder, Care(resumed=self._care[run_id].resumed, said=f"ended: {run.ended}"))
                self._care.pop(run_id)
                continue
            care = self._care.get(run_id, Care())
            self._follow(run, returned(run, care, code, _last_line(folder, child.output_from), self.now()), care)

    def _folder(self, run_id: str) -> Path:
        return self.home / "runs" / run_id


_WORDS = {"leave": "left alone", "resume": "resuming", "wait": "waiting", "give_up": "GIVING UP"}


def seen(folder: Path) -> Seen:
    """What the journal in ``folder`` says."""
    try:
        records = read(folder / "journal.jsonl").records
    except JournalBroken as e:
        return Seen(folder.name, hopeless=f"{e}; restore it from a copy, or start a new run")
    except RelightError as e:
        return Seen(folder.name, hopeless=str(e))
    head = next(of_type(records, "run_started"), None)
    if head is None:
        return Seen(folder.name, began=False, records=len(records))
    return Seen(
        run_id=folder.name,
        system=head["system"],
        records=len(records),
        outcomes=sum(1 for _ in of_type(records, "outcome")),
        started_at=datetime.fromisoformat(head["at"]),
        last_at=datetime.fromisoformat(records[-1]["at"]),
        ended=fold(records).ended,
    )


def _paused(system: str) -> str:
    for one in dict.fromkeys(("", system)):
        try:
            killswitch.check(one)
        except SafetyRefusal:
            with contextlib.suppress(OSError, ValueError):
                return killswitch.pause_file(one).read_text(encoding="utf-8").strip() or "no reason given"
            return "its reason cannot be read"
    return ""


def _note(folder: Path, care: Care) -> None:
    # for people and for the next supervisor; a full disk must not stop this one
    with contextlib.suppress(OSError):
        new = folder / f"{CARE}.new"
        new.write_text(care.model_dump_json(indent=2) + "\n", encoding="utf-8")
        new.replace(folder / CARE)


def _last_line(folder: Path, begins: int) -> str:
    try:
        with (folder / OUTPUT).open("rb") as output:
            output.seek(max(begins, output.seek(0, os.SEEK_END) - 4096))
            lines = output.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return redact(lines[-1].strip()) if lines else ""


def home() -> Path:
    """The state folder whose runs are supervised, absolute: resumed runs get it."""
    return places.state_home().resolve()
