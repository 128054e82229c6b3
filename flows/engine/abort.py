"""A person's wish that a run goes back: a file in the run's folder, which its engine looks for as long as it lives.

A file reaches an engine that hangs, one that dies and is resumed, and one that is resumed only because of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from flows.engine import turns

FILE = "abort.json"


def ask(folder: Path, by: str, why: str, now: datetime) -> None:
    """Durable before it returns. Raises RelightError."""
    turns.write(folder / FILE, json.dumps({"by": by, "why": why, "asked_at": now.isoformat(timespec="seconds")}) + "\n")


def withdraw(folder: Path) -> None:
    """Forget a wish that came too late."""
    (folder / FILE).unlink(missing_ok=True)


def asked(folder: Path) -> Mapping[str, str] | None:
    """Who asked, why and when; None where nobody did. A file that cannot be read counts."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {key: str(found[key]) for key in ("by", "why", "asked_at")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        return {"by": "unknown", "why": f"{FILE} cannot be read: {type(e).__name__}", "asked_at": ""}
