"""Waiting for a condition inside a step: finite, jittered, and only for the errors that are named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from tasks.contract import Context
from tasks.errors import NotWaitedFor, NotYet, RelightError, Unreachable

T = TypeVar("T")
PIECE_S = 1.0
"""How long a pause is at most in which it is not noticed that the run stops."""


async def until(
    ctx: Context,
    probe: Callable[[], Awaitable[T]],
    *,
    first_s: float = 0.02,
    most_s: float = 0.5,
    on: tuple[type[RelightError], ...] = (NotYet,),
) -> T:
    """Call ``probe`` until it returns; it raises one of ``on`` to say "not yet".

    Waits ``first_s`` seconds at first, doubling with jitter up to ``most_s``. Where the next wait would reach the last
    50 ms before the attempt's deadline, it raises the probe's last error, so the step says *why* it was not yet true.
    Any other exception passes through at once.
    """
    return await _until(ctx.clock.sleep, probe, (first_s, most_s), on, ctx.left_s)


async def unless_over(
    ctx: Context,
    probe: Callable[[], Awaitable[T]],
    *,
    most_s: float = 0.5,
    on: tuple[type[RelightError], ...] = (NotYet,),
) -> T:
    """As ``until``, for what a run that stops can do without: then it is waited for a moment only.

    Never for what takes a hold off clients: that is tried to the end, whatever became of the rest.
    Then raises NotWaitedFor.
    """

    def left_s() -> float:
        return min(ctx.left_s(), ctx.patience_s())

    async def sleep(seconds: float) -> None:
        """In pieces: the run may stop at the beginning of a long one."""
        until_s = ctx.clock.monotonic() + seconds
        while (rest_s := min(until_s - ctx.clock.monotonic(), left_s())) > 0:
            await ctx.clock.sleep(min(rest_s, PIECE_S))

    try:
        return await _until(sleep, probe, (0.02, most_s), on, left_s)
    except on as e:
        if ctx.patience_s() < ctx.left_s():
            raise NotWaitedFor(f"{e.message}; not waited for any longer, as the run stops", **e.facts) from e
        raise


async def _until(
    sleep: Callable[[float], Awaitable[None]],
    probe: Callable[[], Awaitable[T]],
    pauses_s: tuple[float, float],
    on: tuple[type[RelightError], ...],
    left_s: Callable[[], float],
) -> T:
    first_s, most_s = pauses_s

    def out_of_time(state: RetryCallState) -> bool:
        return left_s() - state.upcoming_sleep <= 0.05

    async for attempt in AsyncRetrying(
        sleep=sleep,
        stop=out_of_time,
        wait=wait_exponential(multiplier=first_s, max=most_s) + wait_random(0, first_s),
        retry=retry_if_exception_type(on),
        reraise=True,
    ):
        with attempt:
            return await probe()
    raise AssertionError("tenacity returns or raises")


LOOKS = 3
AGAIN_S = 0.2


async def insisted(ctx: Context, ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` returns, asked again where nothing answers: one lost packet is no dead server.

    Raises Unreachable after ``LOOKS`` times, or when there is no time left for another one as long as the last.
    """
    for look in range(1, LOOKS + 1):
        began = ctx.clock.monotonic()
        try:
            return await ask()
        except Unreachable:
            took_s = ctx.clock.monotonic() - began
            if look == LOOKS or ctx.left_s() < 2 * (took_s + AGAIN_S):
                raise
        await ctx.clock.sleep(AGAIN_S)
    raise AssertionError("the last look returns or raises")
