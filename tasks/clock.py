"""The border where time is read. Everything else takes a ``Clock`` (or ``now``) as a parameter."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Time as the engine and the actions see it."""

    def utc(self) -> datetime:
        """Now, as an aware UTC datetime: for records, never for deadlines."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back: for deadlines and durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""
        ...


class LoopClock:
    """The running event loop's clock.

    Deadlines follow ``loop.time()``, so a loop with virtual time gives a virtual clock without other code.
    UTC is anchored once and then advances with the monotonic clock: a step of the system's wall clock in
    the middle of a run (NTP) cannot make a duration negative.
    """

    def __init__(self, anchor: datetime | None = None) -> None:
        self._anchor = anchor or datetime.now(UTC)
        self._started = asyncio.get_running_loop().time()

    def utc(self) -> datetime:
        return self._anchor + timedelta(seconds=self.monotonic() - self._started)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
