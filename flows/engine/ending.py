"""How long a run that stops still waits for what it applied and what is not yet so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.clock import Clock

ENDING_S = 2.0
"""Its report, and its lease, which the next run needs, wait for that."""


@dataclass
class Ending:
    """Counts down from the first time that it is asked after ``over`` said yes."""

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
