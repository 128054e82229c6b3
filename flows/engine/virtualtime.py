"""An event loop whose clock jumps to the next timer: what takes minutes in the world takes milliseconds here."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

DEADLOCK_S = 20


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait for a timer, time jumps instead. Real events (threads) are looked for first."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # nothing is scheduled: only a thread can go on
            ready = super().select(DEADLOCK_S)
            if not ready:
                raise RuntimeError("deadlock: nothing is scheduled and no thread answers")
            return ready
        ready = super().select(0)
        if not ready and timeout > 0:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now
