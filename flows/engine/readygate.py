"""Before a run: what the newest look at its readiness said, and whether that may stop it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flows.engine import readyfile
from flows.engine.safety import ReadyGate
from tasks.errors import SafetyRefusal
from tasks.quantities import show_duration

WAIVER = "readiness"


def check(gate: ReadyGate, system: str, runbook: str, waivers: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """What goes to the record: ``ready``, ``at``, ``against``, ``waived``. Nothing is looked at here: it takes no time.

    Raises SafetyRefusal where it is not ready, the gate refuses, and nobody waived it.
    """
    at, ready, reasons = readyfile.newest(system, runbook)
    against = "; ".join(reasons)
    if at is None:
        against = "nobody ever looked"
    elif (now - at).total_seconds() > gate.max_age:
        age = show_duration(round((now - at).total_seconds()))
        against = f"the newest look is {age} old, more than {show_duration(gate.max_age)}"
    found = {
        "ready": not against and ready,
        "at": at.isoformat(timespec="seconds") if at else None,
        "against": against,
        "waived": waivers.get(WAIVER),
    }
    if found["ready"] or gate.unready == "warn" or WAIVER in waivers:
        return found
    raise SafetyRefusal(
        f"{runbook} of {system} was not found ready: {against}. Look (relight ready {runbook} --system {system}), or"
        f" override by name: --waive {WAIVER}='who and why'",
        at=found["at"],
    )
