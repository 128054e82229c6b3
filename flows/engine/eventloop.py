"""Runs a coroutine to its end without being held up by what it left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from flows.engine.plan import GRACE_S

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, but calls that were abandoned (hung in a thread, deaf to cancellation) are left behind.

    ``asyncio.run`` waits for them without end, and so would undo every time-out at the very last.
    """
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=GRACE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        if not asyncio.all_tasks(loop):
            loop.close()
