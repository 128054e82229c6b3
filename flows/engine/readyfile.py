"""The newest answer to "would this runbook work now?", kept where an automatic run can be held to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from flows.engine import places, turns


def file(system: str, runbook: str) -> Path:
    """Where it is kept."""
    return places.state_home() / "systems" / system / f"ready-{runbook}.json"


def note(system: str, runbook: str, mode: str, reasons: Sequence[str], now: datetime) -> None:
    """Keep an answer: ready where there are no ``reasons`` against. Raises RelightError."""
    path = file(system, runbook)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"at": now.isoformat(timespec="seconds"), "mode": mode, "ready": not reasons, "reasons": list(reasons)}
    turns.write(path, json.dumps(found) + "\n")


def newest(system: str, runbook: str) -> tuple[datetime | None, bool, tuple[str, ...]]:
    """When it was looked at, whether it was ready, and what was against it. No time where it never was."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file(system, runbook).read_text(encoding="utf-8"))
        at = datetime.fromisoformat(found["at"])
        return at if at.tzinfo else at.replace(tzinfo=UTC), bool(found["ready"]), tuple(map(str, found["reasons"]))
    return None, False, ()
