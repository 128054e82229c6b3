"""What Prefect shows of a run: ``window.json`` in the run's folder. Ties a run to its one flow run.

Only what it says of completeness is not known elsewhere: a flow run that Prefect itself started is in the journal's
first record, and any other is found again by its idempotency key (``key``).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flows.engine.journal import Record

FILE = "window.json"
_KEY = "relight-"


class Window(BaseModel):
    """Attributes:
    flow_run_id: in Prefect; empty while there is none.
    api: the server that has it.
    complete: everything up to record ``records`` is there.
    """

    model_config = ConfigDict(extra="ignore")

    flow_run_id: str = ""
    api: str = ""
    complete: bool = False
    records: int = 0


def load(folder: Path) -> Window:
    """What is known; an empty one where nothing is."""
    try:
        return Window.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Window()


def save(folder: Path, window: Window) -> None:
    """Keep it. A disk that is full must not stop anything: it would only be shown again."""
    with contextlib.suppress(OSError):
        new = folder / f"{FILE}.{os.getpid()}.new"  # the run's own process and the catch-up both keep it
        new.write_text(window.model_dump_json(indent=2) + "\n", encoding="utf-8")
        new.replace(folder / FILE)


def key(run_id: str) -> str:
    """Under which Prefect knows the run, so that asking twice makes one flow run."""
    return f"{_KEY}{run_id}"


def run_of_key(key_: str) -> str | None:
    """The run whose flow run has this idempotency key; None where it is not one of ours."""
    return key_.removeprefix(_KEY) if key_.startswith(_KEY) else None


def run_of(home: Path, flow_run_id: str) -> Path | None:
    """The folder of the run that flow run ``flow_run_id`` shows; the newest, if there are several; None if none is."""
    folders = sorted((p.parent for p in (home / "runs").glob("*/journal.jsonl")), reverse=True)
    return next((f for f in folders if flow_run_id in (load(f).flow_run_id, _started_by(f))), None)


def flow_run_of(folder: Path, head: Record) -> str:
    """The flow run that is known to show the run; empty if none is."""
    return load(folder).flow_run_id or str(head.get("prefect_flow_run_id") or "")


def _started_by(folder: Path) -> str:
    # only the first line: this looks at every run there is
    with contextlib.suppress(OSError, ValueError), (folder / "journal.jsonl").open(encoding="utf-8") as f:
        head = json.loads(f.readline())
        return str(head.get("prefect_flow_run_id") or "")
    return ""
