"""What a run cost: instances that it started, for as long as it lasted, and what it transferred. Pure.

Unknown where no price is given or the amount was not measured; an unknown part makes the sum unknown, never smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.engine.report import Report, StepResult
from flows.engine.thresholds import Prices

GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One part. ``usd`` None: unknown, for the reason ``why``. ``goes_on_usd_h``: an hour, until somebody ends it."""

    what: str
    quantity: float | None
    unit: str
    usd: float | None
    why: str = ""
    goes_on_usd_h: float | None = None


@dataclass(frozen=True)
class RunCost:
    """What it all came to; without a line the run used nothing that costs."""

    lines: tuple[Line, ...]

    @property
    def usd(self) -> float | None:
        known = [x.usd for x in self.lines]
        return None if None in known else round(sum(x for x in known if x is not None), 6)

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"usd": self.usd, "lines": [vars(x) for x in self.lines]}


def cost_of(result: Report, prices: Prices | None) -> RunCost:
    """From the evidence of the run's steps and the prices of the system file."""
    given = prices or Prices()
    end = result.ended_at or max((s.started_at or "" for s in result.steps), default="") or result.started_at
    lines: list[Line] = []
    for step in result.steps:
        if step.outcome == "done":
            lines += _instances(step, end, given)
            lines += _transfers(step, given)
    return RunCost(tuple(lines))


def _instances(step: StepResult, end: str, prices: Prices) -> Iterator[Line]:
    before, now = step.evidence.get("running_before"), step.evidence.get("running")
    if not step.action.startswith("capacity.") or before is None or now is None or now <= before:
        return
    more = int(now) - int(before)
    began = datetime.fromisoformat(step.started_at or end)
    hours = more * max(0.0, (datetime.fromisoformat(end) - began).total_seconds()) / 3600
    price = prices.instance_hour
    usd = None if price is None else round(hours * price, 6)
    why = "" if price is not None else "cost_monitoring.prices has no instance_hour"
    what = f"{more} more instances at {step.evidence.get('site', 'the site')} ({step.id})"
    yield Line(what, round(hours, 4), "h", usd, why, None if price is None else round(more * price, 6))


def _transfers(step: StepResult, prices: Prices) -> Iterator[Line]:
    facts = step.evidence
    sizes = {f"copy of {facts.get('source')}": facts["copy_bytes"]} if "copy_bytes" in facts else {}
    copied = [n for n, how in (facts.get("how") or {}).items() if str(how).startswith(("copy", "rewind"))]
    sizes |= {f"{n} brought back by {facts['how'][n].split()[0].rstrip(';')}": None for n in copied}
    for what, size in sizes.items():
        gib = None if size is None else round(float(size) / GIB, 4)
        price = prices.transfer_gib
        if gib is None:
            why = "how much it transferred was not measured"
        else:
            why = "" if price is not None else "cost_monitoring.prices has no transfer_gib"
        usd = None if gib is None or price is None else round(gib * price, 6)
        yield Line(f"{what} ({step.id})", gib, "GiB", usd, why)
