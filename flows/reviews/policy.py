"""The auto-scaling policy of a system file played over a load that was recorded. Pure.

Simple scaling as AWS describes it: above the target it adds, then waits for its cool-down; it takes away where the rest
would still be at or below the target. A new instance helps at once, which flatters every policy alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tasks.capacity._plan import AutoScaling, ScaleStep

Load = Sequence[tuple[datetime, float]]
"""(when, percent of one instance): 150 is one and a half instances at full work."""


@dataclass(frozen=True)
class Played:
    """How a policy did.

    Attributes:
        counts: (when, instances).
        over_s: seconds in which an instance was above the target; full_s: of those, with the maximum running.
        changes: how often it scaled; turns: how often it turned round within the longer cool-down (flapping).
        hours: instance hours.
    """

    counts: tuple[tuple[datetime, float], ...]
    worst: float
    over_s: float
    full_s: float
    changes: int
    turns: int
    hours: float


def play(policy: AutoScaling, load: Load) -> Played:
    """The policy over the load, beginning with its minimum."""
    count, target = max(1, policy.min_instances), policy.target_cpu_utilization
    changed: tuple[datetime, int] | None = None
    counts, worst, over_s, full_s, changes, turns, used_s = [], 0.0, 0.0, 0.0, 0, 0, 0.0
    before: datetime | None = None
    for at, work in load:
        each = work / count
        span_s = (at - before).total_seconds() if before else 0.0
        before, worst, used_s = at, max(worst, each), used_s + span_s * count
        if each > target:
            over_s += span_s
            full_s += span_s if count >= policy.max_instances else 0.0
        step = _step(policy, work, count)
        since_s = (at - changed[0]).total_seconds() if changed else None
        cool_s = policy.scale_up.cooldown if step > 0 else policy.scale_down.cooldown
        if step and (since_s is None or since_s >= cool_s):
            longest = max(policy.scale_up.cooldown, policy.scale_down.cooldown)
            turns += bool(changed and (changed[1] > 0) != (step > 0) and (since_s or 0) < 2 * longest)
            count, changed, changes = count + step, (at, step), changes + 1
        counts.append((at, float(count)))
    return Played(tuple(counts), worst, over_s, full_s, changes, turns, used_s / 3600)


def _step(policy: AutoScaling, work: float, count: int) -> int:
    """How many more (or fewer) the load asks for now, within the limits; 0 for none."""
    target = policy.target_cpu_utilization
    if work / count > target:
        return min(policy.scale_up.adjustment, policy.max_instances - count)
    fewer = max(count + policy.scale_down.adjustment, 1, policy.min_instances)
    return fewer - count if work / fewer <= target else 0


def others(policy: AutoScaling) -> dict[str, AutoScaling]:
    """Policies near this one, to compare with."""
    up = policy.scale_up
    found = {
        "a target 10% lower": policy.model_copy(
            update={"target_cpu_utilization": max(10.0, policy.target_cpu_utilization - 10)}
        ),
        "half the cool-down upwards": policy.model_copy(
            update={"scale_up": ScaleStep(adjustment=up.adjustment, cooldown=up.cooldown / 2)}
        ),
    }
    if policy.min_instances > 1:
        found["a minimum of one less"] = policy.model_copy(update={"min_instances": policy.min_instances - 1})
    found["a minimum of one more"] = policy.model_copy(
        update={"min_instances": min(policy.min_instances + 1, policy.max_instances)}
    )
    return found


def scaled(load: Load, factor: float) -> Load:
    """The same load, so many times as large: what a good year or the other site's users bring."""
    return [(at, factor * work) for at, work in load]
