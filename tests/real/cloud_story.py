"""What the engine does with an action, without the engine: look, do, read back, and again for what may pass."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from tasks.clock import LoopClock
from tasks.contract import Context, Done, RunInfo
from tasks.errors import Rejected, RelightError, SafetyRefusal


class Run:
    """One run against one database. Steps are awaited in the order of a runbook; ``earlier`` is its journal."""

    def __init__(self, database: Any, *, mode: str = "forced", waivers: dict[str, str] | None = None, **more: Any):
        self.parts = {"database": database, **more.pop("parts", {})}
        self.clock = more.pop("clock", None) or LoopClock()
        self.rpo_s: dict[str, float] = more.pop("rpo_s", {"database": 0.0})
        now = datetime.now(UTC).isoformat()
        self.run = RunInfo("r1", "venue", "failover", mode, 1, now, waivers or {})  # type: ignore[arg-type]
        self.earlier: list[Done] = []
        self.guarded = 0
        self.tried: list[str] = []
        """Errors of attempts that were tried again."""

    def context(self, left_s: float, intended: tuple[dict[str, Any], ...] = ()) -> Context:
        roles = {"west": "west", "east": "east", "failed": "west", "target": "east", "active": "west"}

        def guard() -> None:
            self.guarded += 1

        return Context(
            self.run,
            self.clock,
            roles,
            self.parts.__getitem__,
            self.clock.monotonic() + left_s,
            self.rpo_s,
            tuple(self.earlier),
            intended,
            guard=guard,
        )

    async def step(self, action: Any, *, attempts: int = 1, left_s: float = 150.0) -> dict[str, Any]:
        """Facts of a step that ended well. Raises what its last attempt raised."""
        intended: list[dict[str, Any]] = []
        while True:
            attempts -= 1
            try:
                return await self._attempt(action, left_s, intended)
            except RelightError as e:
                if isinstance(e, Rejected | SafetyRefusal) and (await action.observe(self.context(left_s))).holds:
                    continue  # as the engine does: after an effect, only looking tells
                if not e.retryable or not attempts:
                    raise
                self.tried.append(type(e).__name__)
            await asyncio.sleep(0.05)

    async def _attempt(self, action: Any, left_s: float, intended: list[dict[str, Any]]) -> dict[str, Any]:
        ctx = self.context(left_s, tuple(intended))
        seen = await action.observe(ctx)
        facts, outcome = seen.facts, "already"
        if not seen.holds or action.read_only:
            intended.append(seen.facts)
            done = await action.apply(ctx, seen) or {}
            after = await action.confirm(ctx)
            facts, outcome = {**seen.facts, **done, **after.facts}, "done"
        self.earlier.append(Done(action.name, action.name, outcome, facts))
        return {**facts, "outcome": outcome, "before": seen.facts}
