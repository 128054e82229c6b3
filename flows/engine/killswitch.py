"""One switch that stops every run on this machine: a file, so that it works when nothing else does."""

from __future__ import annotations

from pathlib import Path

from flows.engine import places
from tasks.errors import SafetyRefusal


def pause_file() -> Path:
    """The kill switch: while this file exists, no run starts and no run changes anything more."""
    return places.state_home() / "paused"


def check() -> None:
    """Raises SafetyRefusal while the kill switch is on."""
    try:
        why = pause_file().read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return
    except OSError as e:  # it is there, so it counts
        why = f"{pause_file()} cannot be read: {e.strerror}"
    raise SafetyRefusal(f"relight is paused{': ' + why if why else ''}. Lift it with: relight unpause")
