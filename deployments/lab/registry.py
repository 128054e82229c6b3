"""The lab's processes: who was started, is it still the same one, and end it by that identity.

A process is known by its id *and* the kernel tick it started at, so a recycled id is never signalled. Each has
one record ``$RELIGHT_LAB/processes/NAME.json`` and one log ``$RELIGHT_LAB/logs/NAME.log``.
Sources: proc(5) for the fields of ``stat``, pidfd_open(2) for waiting on a process that is not a child.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal as signals
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAME = "RELIGHT_LAB_PROCESS"
"""Environment variable that marks a process and what it spawns as ``HOME:NAME`` of this lab."""

_spawned: dict[int, subprocess.Popen[bytes]] = {}


class LabError(Exception):
    """The lab cannot do what was asked; the message names the object, what was found and what to do."""


@dataclass(frozen=True)
class Process:
    """One started process.

    Attributes:
        name: ``west-pg1``, ``east-haproxy``, ``load`` …; unique in a lab.
        pid: process id of the daemon itself, which leads its own session and process group.
        started_ticks: field 22 of ``/proc/PID/stat``: clock ticks after boot.
        site: ``west``, ``east``, ``staging`` or ``ops``.
        argv: the command line. Never holds a secret.
        log: path of the log file.
        user: user name it runs as; None is the one who started it.
        cwd: its working directory.
        env: what was added to its environment, so that ``restart`` can repeat it. Never holds a secret.
    """

    name: str
    pid: int
    started_ticks: int
    site: str
    argv: tuple[str, ...]
    log: str
    user: str | None = None
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict, hash=False)


def home() -> Path:
    """``$RELIGHT_LAB`` or ``/tmp/relight-lab-UID``, created mode 0711. Raises LabError if it is somebody else's."""
    given = os.environ.get("RELIGHT_LAB")
    path = Path(given) if given else Path(f"/tmp/relight-lab-{os.getuid()}")  # noqa: S108  owner and type are checked below
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    found = path.lstat()
    if not path.is_dir() or path.is_symlink() or found.st_uid != os.getuid():
        raise LabError(
            f"lab folder {path}: expected a directory of uid {os.getuid()}, found one of uid {found.st_uid} "
            "or a symbolic link. Set RELIGHT_LAB to a folder of your own."
        )
    return path.resolve()


def start(  # noqa: PLR0913  name, site and command are what a process is; the rest is how Popen takes it
    name: str,
    site: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    user: str | None = None,
    cwd: Path | None = None,
) -> Process:
    """Spawn a process in its own session, log to its file, and record it.

    Args:
        name: unique name; a name that is still alive is refused with LabError.
        site: ``west``, ``east``, ``staging`` or ``ops``.
        argv: the daemon itself, in the foreground.
        env: added to PATH, HOME, LANG and RELIGHT_LAB; nothing else of the caller's environment is passed on.
            Recorded, so never a secret: pass the path of a file instead.
        user: run as this user (only root can ask for another).
        cwd: working directory; the lab folder by default.
    """
    lab = home()
    if (old := find(name)) is not None and alive(old):
        raise LabError(f"process {name} already runs as {old.pid}; stop it first (lab.py down)")
    for folder in ("logs", "processes"):
        (lab / folder).mkdir(mode=0o711, exist_ok=True)
    log = lab / "logs" / f"{name}.log"
    where = (cwd or lab).resolve()
    base = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(lab), "LANG": "C.UTF-8", "TZ": "UTC"}
    account = pwd.getpwnam(user) if user and os.geteuid() == 0 else None
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=where,
            env={**base, "RELIGHT_LAB": str(lab), NAME: f"{lab}:{name}", **env},
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
    _spawned[child.pid] = child  # kept, so that a dead child is reaped and no ResourceWarning is raised
    ticks = _ticks(child.pid)
    process = Process(
        name, child.pid, ticks or 0, site, tuple(argv), str(log), user if account else None, str(where), dict(env)
    )
    record(process)
    return process


def restart(process: Process) -> Process:
    """Spawn a dead process again exactly as it was recorded. Raises LabError when it still runs."""
    return start(process.name, process.site, process.argv, env=process.env, user=process.user, cwd=Path(process.cwd))


def find(name: str) -> Process | None:
    """The record of ``name``, alive or not; None when there is none."""
    try:
        record = json.loads((home() / "processes" / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Process(**{**record, "argv": tuple(record["argv"])})


def all() -> tuple[Process, ...]:  # noqa: A001  reads as registry.all()
    """Every recorded process, by name."""
    names = sorted(p.stem for p in (home() / "processes").glob("*.json"))
    return tuple(p for p in map(find, names) if p is not None)


def record(process: Process) -> None:
    """Write the record of ``process``, in place of the one of its name."""
    path = home() / "processes" / f"{process.name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(process)), encoding="utf-8")
    part.replace(path)


def forget(process: Process) -> None:
    """Drop the record of a process that is gone."""
    (home() / "processes" / f"{process.name}.json").unlink(missing_ok=True)


def alive(process: Process) -> bool:
    """The id exists, started at the recorded tick, and is not a zombie. A stopped (SIGSTOP) process is alive."""
    if (child := _spawned.get(process.pid)) is not None:
        child.poll()
    return _ticks(process.pid, zombies=False) == process.started_ticks


def members(process: Process) -> tuple[int, ...]:
    """Ids of every live process that belongs to ``process``, itself first if it lives.

    Found by descent from it, by its session, by the mark in the environment, and, because PostgreSQL's children
    leave the session and overwrite their environment, by the same executable in the same working directory.
    """
    lives = alive(process)
    mark = f"{NAME}={home()}:{process.name}".encode()
    program = _link(process.pid, "exe") if lives else os.path.realpath(process.argv[0])
    parents: dict[int, int] = {}
    found = {process.pid} if lives else set()
    for entry in os.listdir("/proc"):  # noqa: PTH208  names only, thousands of times while waiting
        if not entry.isdigit():
            continue
        pid = int(entry)
        stat = _stat(pid)
        if stat is None or stat[0] in "ZX" or int(stat[19]) < process.started_ticks:
            continue
        parents[pid] = int(stat[1])
        in_session = lives and int(stat[3]) == process.pid
        same_place = process.cwd != str(home()) and _link(pid, "cwd") == process.cwd and _link(pid, "exe") == program
        if in_session or same_place or mark in _environ(pid):
            found.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    found.discard(os.getpid())
    return tuple(sorted(found, key=lambda pid: (pid != process.pid, pid)))


def strays() -> tuple[int, ...]:
    """Ids of live processes that carry this lab's mark, recorded or not: a starter may die before it records one."""
    mark = f"{NAME}={home()}:".encode()
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208  names only
    return tuple(
        pid
        for pid in pids
        if pid != os.getpid()
        and any(one.startswith(mark) for one in _environ(pid))
        and _ticks(pid, zombies=False) is not None
    )


def kill(process: Process, signal: int, group: bool = True) -> bool:
    """Send ``signal`` to the process (with ``group`` to all its members). False when nothing was there to signal."""
    targets = members(process) if group else ((process.pid,) if alive(process) else ())
    sent = False
    for pid in targets:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if pid != process.pid or alive(process):  # the descriptor pins the id: it cannot be recycled from here on
                signals.pidfd_send_signal(fd, signal)
                sent = True
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)
    return sent


def stop(process: Process, timeout: float, signal: int = signals.SIGTERM) -> bool:
    """``signal`` (and SIGCONT, for one that is stopped), wait ``timeout`` seconds, then SIGKILL whatever is left.

    Returns True when it ended by itself. Raises LabError when even SIGKILL leaves something after 5 s.
    """
    if alive(process):
        kill(process, signal, group=False)
        kill(process, signals.SIGCONT)
    orderly = wait_gone(process, timeout)
    destroy(process)
    return orderly


def destroy(process: Process, timeout: float = 30.0) -> None:
    """SIGKILL the process and every member, and wait until none is left. Raises LabError after ``timeout`` seconds."""
    until = time.monotonic() + timeout
    while left := members(process):
        if time.monotonic() > until:
            raise LabError(f"process {process.name}: {left} still there {timeout:.0f} s after SIGKILL; look at them")
        kill(process, signals.SIGKILL)
        for pid in left:
            _wait(pid, until - time.monotonic())
    wait_gone(process, 0)


def wait_gone(process: Process, timeout: float) -> bool:
    """Wait up to ``timeout`` seconds for the process itself to end; True when it has."""
    if alive(process):
        _wait(process.pid, timeout)
    return not alive(process)


def _wait(pid: int, timeout: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([fd], [], [], max(0.0, timeout))
    finally:
        os.close(fd)


def _stat(pid: int) -> list[str] | None:
    """``stat`` from field 3 (state) on; None when the process is gone. The name before may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _ticks(pid: int, *, zombies: bool = True) -> int | None:
    stat = _stat(pid)
    if stat is None or (not zombies and stat[0] in "ZX"):
        return None
    return int(stat[19])


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's: then it is not ours
        return []


def _link(pid: int, name: str) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/{name}").readlink())
    except OSError:
        return None
