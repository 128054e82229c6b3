"""What one run is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.engine.plan import Plan
from tasks.clock import Clock
from tasks.contract import RunInfo
from tasks.hearing import Said
from tasks.network import Network


@dataclass(frozen=True)
class Run:
    """A plan with everything it acts on.

    Attributes:
        roles: role or site name -> site name.
        rto_s: component -> seconds; likewise rpo_s.
        components: component name -> provider instance.
        check: raises when this run may no longer change anything (lease lost, kill switch on).
        holds: raises when the lease is lost: then nothing is recorded either, somebody else may go on with the run.
        answers: what people handed in for a step, as far as it was heard.
        abort: who wants the run to go back, and why (``by``, ``why``, ``asked_at``); None while nobody does.
    """

    info: RunInfo
    plan: Plan
    roles: Mapping[str, str]
    rto_s: Mapping[str, float]
    rpo_s: Mapping[str, float]
    components: Callable[[str], Any]
    check: Callable[[], None]
    clock: Clock
    incident_started_at: datetime
    network: Network
    holds: Callable[[], None] = lambda: None
    abort: Callable[[], Mapping[str, str] | None] = lambda: None
    answers: Callable[[str], tuple[Said, ...]] = lambda _step: ()
