"""Where relight finds what it ships (runbooks, the lab) and keeps what it writes (journals, leases)."""

from __future__ import annotations

import difflib
import functools
import os
import sys
from pathlib import Path

import flows
import tasks
from tasks.errors import BadInput

PARENT = Path(flows.__file__).resolve().parent.parent
NO_RUNBOOKS = frozenset({"system", "triggers"})
"""Files of a system's folder that are something else, by stem."""


def set_defaults() -> None:
    """``$RELIGHT_LAB`` for the lab's system file, where nobody set it."""
    os.environ.setdefault("RELIGHT_LAB", str(lab_home()))


def check_imports() -> None:
    """Refuse to run when ``flows`` or ``tasks`` come from different places: both names are common.

    Raises BadInput naming both.
    """
    other = Path(tasks.__file__).resolve().parent.parent
    if other != PARENT:
        raise BadInput(
            f"package flows comes from {PARENT} and package tasks from {other}; another distribution shadows one of"
            " them. Install relight in an environment of its own."
        )


def data(kind: str) -> Path:
    """``runbooks`` or ``deployments``: of the checkout, else of the installed wheel. Raises BadInput."""
    for base in (PARENT, Path(sys.prefix) / "share" / "relight"):
        if (base / kind).is_dir():
            return base / kind
    raise BadInput(f"relight's own {kind} were not found beside its packages or under {sys.prefix}; install it again")


def state_home() -> Path:
    """``$RELIGHT_STATE``, else ``$XDG_STATE_HOME/relight``, else ``~/.local/state/relight``."""
    if told := os.environ.get("RELIGHT_STATE"):
        # asked for only where it counts: who stands in a folder that was removed has none
        return _resolved(told, os.environ.get("HOME", ""), "" if told.startswith(("/", "~")) else str(Path.cwd()))
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "relight"


@functools.lru_cache(maxsize=8)
def _resolved(told: str, _home: str, _here: str) -> Path:
    """Every guard of every step asks for the kill switch, which is below it."""
    return Path(told).expanduser().resolve()


def lab_home() -> Path:
    """``$RELIGHT_LAB``, else a folder of this user under the temporary directory."""
    return Path(os.environ.get("RELIGHT_LAB") or f"/tmp/relight-lab-{os.getuid()}")  # noqa: S108 - owner checked by lab


def is_file(path: Path) -> bool:
    """There is a file. Raises BadInput where that cannot be told: a name too long, a folder that may not be read."""
    try:
        return path.is_file()
    except OSError as e:
        raise BadInput(f"cannot look at {path}: {e.strerror}") from e


def system_folder(name: str) -> Path:
    """The folder of system ``name``: a path, or a name below ``./runbooks`` or the shipped ones. Raises BadInput."""
    asked = Path(name)
    if is_file(asked):
        return asked.parent
    bases = [Path.cwd() / "runbooks", data("runbooks")]
    for folder in (asked, *(b / name for b in bases)):
        if is_file(folder / "system.yaml"):
            return folder
    known = sorted({p.parent.name for b in bases if b.is_dir() for p in b.glob("*/system.yaml")})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"no system {name!r}: no such folder with a system.yaml. Known: {', '.join(known) or 'none'}.{hint}")


def system_file(name: str) -> Path:
    """The system file of ``name`` (as ``system_folder``, or a path to the file itself)."""
    asked = Path(name)
    return asked if is_file(asked) else system_folder(name) / "system.yaml"


def runbook_file(name: str, folder: Path) -> Path:
    """The file of runbook ``name``: a path, or a name in the system's folder. Raises BadInput."""
    asked = Path(name)
    if asked.suffix in (".yaml", ".yml") and is_file(asked):
        return asked
    found = folder / f"{name}.yaml"
    if is_file(found):
        return found
    known = sorted(p.stem for p in folder.glob("*.yaml") if p.stem not in NO_RUNBOOKS)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"no runbook {name!r} in {folder}. Known: {', '.join(known) or 'none'}.{hint}")


def run_folder(run_id: str) -> Path:
    """The folder of a run. Raises BadInput for one that is not there."""
    runs = state_home() / "runs"
    if run_id == "last":
        found = sorted(runs.glob("*/journal.jsonl"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise BadInput(f"no run yet below {runs}")
        return found[-1].parent
    if "/" in run_id or not is_file(runs / run_id / "journal.jsonl"):
        known = sorted((p.parent.name for p in runs.glob("*/journal.jsonl")), reverse=True)
        raise BadInput(f"no run {run_id!r} below {runs}. Latest: {', '.join(known[:3]) or 'none'}")
    return runs / run_id
