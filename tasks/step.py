"""The only Prefect task: one run of it shows one step in the Prefect UI.

The engine acts in a thread of its own and never waits for Prefect; this task follows what the engine did. So a
Prefect server that is slow, hung or gone delays the picture, not the failover. Each attempt of the step is an attempt
of the task run: a failed one raises, and Prefect's retry waits for the engine's next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed


class StepFailed(Exception):
    """An attempt of the step failed; the message says why."""


@dataclass
class Shown:
    """What the engine tells of one step, waiting to be shown. Used only in the flow's event loop."""

    records: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


_shown: dict[tuple[str, str], Shown] = {}


def shown(run_id: str, step_id: str) -> Shown:
    """The queue of a step; made when first asked for."""
    return _shown.setdefault((run_id, step_id), Shown())


def forget(run_id: str) -> None:
    """Drop the queues of a run."""
    for key in [k for k in _shown if k[0] == run_id]:
        del _shown[key]


@task(cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=0)
async def step(run_id: str, step_id: str) -> State[Any]:
    """Follow one attempt of a step of a run to its end."""
    queue = shown(run_id, step_id).records
    while True:
        record = await queue.get()
        if record["type"] == "attempt_failed" and record["retry_in_s"] is not None:
            raise StepFailed(record["error"]["message"])
        if record["type"] == "closed":
            raise StepFailed("interrupted: the run stopped here; it can be resumed")
        if record["type"] != "outcome":
            continue
        if record["outcome"] in ("failed", "unknown", "undo_failed"):
            raise StepFailed(f"{record['outcome']}: {record['summary']}")
        return ended(record["outcome"], record["summary"])


def ended(outcome: str, summary: str) -> State[Any]:
    """How a step that did not fail is shown. One that was skipped did not happen, so it must not be green."""
    kind = Cancelled if outcome == "skipped" else Completed
    return kind(name=outcome.capitalize(), message=summary)
