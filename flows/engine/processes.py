"""Which process this is, and whether another one of this machine still lives."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

from tasks.leases.protocol import Engine

_DEAD = ("Z", "X")
"""States of a process that ended and was not reaped yet (proc(5))."""


def me() -> Engine:
    """This process."""
    pid = os.getpid()
    found = _stat(pid)
    return Engine(socket.gethostname(), pid, found[1] if found else 0, machine())


@cache
def machine() -> str:
    """This boot of this kernel, and this PID namespace: two containers on one host do not see each other's processes.

    Empty where it cannot be told; then nothing is ever known of another process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path: pid:[4026531836]
    except OSError:
        return ""


def same_boot(engine: Engine) -> bool:
    """``engine`` counts seconds since the same boot as this process."""
    boot = machine().partition("/")[0]
    return bool(boot) and engine.machine.partition("/")[0] == boot


def gone(engine: Engine) -> bool:
    """True only when it is certain that ``engine`` does not live any more: same machine, and not its process."""
    if not engine.machine or engine.machine != machine() or not engine.pid or not engine.started:
        return False
    found = _stat(engine.pid)
    return found is None or found[0] in _DEAD or found[1] != engine.started


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start time (clock ticks since boot) of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return "?", 0
    rest = text.rpartition(")")[2].split()  # the name before it may hold anything, brackets included
    return rest[0], int(rest[19])
