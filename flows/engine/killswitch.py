"""The switch that stops every run on this machine, or those of one system: a file, for when nothing else works.

A system whose lease is kept in a store (``docs/leases.md``) has the switch in the lease's record as well, so that it
reaches the engines of every machine: see ``storelease``.
"""

from __future__ import annotations

from pathlib import Path

from flows.engine import places
from tasks.errors import SafetyRefusal


def pause_file(system: str = "") -> Path:
    """The kill switch: while this file exists, no run (of ``system``) starts, and none changes anything more."""
    return places.state_home() / "systems" / system / "paused" if system else places.state_home() / "paused"


def check(system: str = "") -> None:
    """Raises SafetyRefusal while the kill switch of everything, or of ``system``, is on."""
    for one in dict.fromkeys(("", system)):
        file = pause_file(one)
        try:
            why = file.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            continue
        except OSError as e:  # it is there, so it counts
            why = f"{file} cannot be read: {e.strerror}"
        raise refusal(one, why)


def refusal(system: str, why: str) -> SafetyRefusal:
    """What is said while it is on."""
    what, lift = (
        (f"system {system}", f"relight unpause --system {system}") if system else ("relight", "relight unpause")
    )
    return SafetyRefusal(f"{what} is paused{': ' + why if why else ''}. Lift it with: {lift}")
