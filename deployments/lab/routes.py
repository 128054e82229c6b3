"""The way between two sites: its state, and what that does to bytes on their way. See ``links.py``."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

STATES = ("open", "cut", "deaf", "slow")
BURST = 16384


@dataclass
class Route:
    """The way from one site to another, shared by its links."""

    origin: str
    destination: str
    state: str = "open"
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, state: str, delay_s: float, bytes_per_s: float | None) -> None:
        self.state, self.delay_s, self.bytes_per_s = state, delay_s, bytes_per_s
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, within_s: float | None = None) -> None:
        """Returns at the next change, or after ``within_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()

    async def passes(self) -> None:
        """Returns when the route is not deaf."""
        while self.state == "deaf":
            await self.changed()

    async def delivered(self, sent_at: float) -> None:
        """Returns when what was sent at loop time ``sent_at`` has arrived."""
        while True:
            await self.passes()
            left_s = sent_at + self.delay_s - asyncio.get_running_loop().time() if self.state == "slow" else 0.0
            if left_s <= 0:
                return
            await self.changed(left_s)


class Allowance:
    """How many bytes one direction of a connection may send now (a token bucket)."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._tokens = float(BURST)
        self._at = asyncio.get_running_loop().time()

    async def take(self, wanted: int) -> int:
        """Waits until at least one byte may pass; returns how many of ``wanted``, already counted."""
        loop = asyncio.get_running_loop()
        while True:
            await self._route.passes()
            rate = self._route.bytes_per_s if self._route.state == "slow" else None
            if rate is None:
                return wanted
            now = loop.time()
            self._tokens = min(BURST, self._tokens + (now - self._at) * rate)
            self._at = now
            if self._tokens >= 1:
                taken = min(wanted, int(self._tokens))
                self._tokens -= taken
                return taken
            await self._route.changed((1 - self._tokens) / rate)
