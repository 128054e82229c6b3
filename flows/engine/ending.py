"""How long a run that stops still waits for what a step applied and what is not yet so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from flows.engine.plan import Plan, PlannedStep
from flows.engine.state import RunState, goes_back, over
from tasks.clock import Clock

ENDING_S = 2.0
"""Its report, and its lease, which the next run needs, wait for that."""


def dispensable(step: PlannedStep, plan: Plan, state: RunState) -> bool:
    """What comes of the step changes nothing any more about how the run ends.

    Where its own failure would be what makes the run go back, it is waited for as ever.
    """
    return goes_back(plan, state) if step.on_failure == "undo" else over(plan, state)


@dataclass
class Ending:
    """Of one attempt: counts down from the first time that it is asked after ``over`` said yes."""

    clock: Clock
    over: Callable[[], bool]
    _at: float | None = field(init=False, default=None)

    def left_s(self) -> float:
        """Seconds for which a step may still wait; without end while the run goes on."""
        if not self.over():
            self._at = None
            return math.inf
        now = self.clock.monotonic()
        if self._at is None:
            self._at = now + ENDING_S
        return max(0.0, self._at - now)
