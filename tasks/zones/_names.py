"""Names and types as a runbook gives them, and the look at what a name would lead to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tasks.contract import Context
from tasks.errors import LostCompare, UnhealthyTarget
from tasks.zones._probe import probe

Rdtype = Literal["A", "AAAA", "CNAME"]


def _dotted(name: str) -> str:
    return name.lower().rstrip(".") + "."


FullName = Annotated[str, Field(min_length=1), AfterValidator(_dotted)]
"""Absolute; the trailing dot may be left out."""


async def need_healthy(ctx: Context, targets: tuple[str, ...], text: str, name: str, timeout_s: float) -> list[str]:
    """Every one of ``targets`` answers probe ``text`` as ``name``. Raises UnhealthyTarget."""
    looks = await asyncio.gather(*(probe(ctx.network, text, target, name, timeout_s) for target in targets))
    sick = [f"{look.address} ({look.why})" for look in looks if not look.healthy]
    if sick:
        raise UnhealthyTarget(
            f"{name} is not pointed at {', '.join(sick)}: not healthy. Bring it up first.", unhealthy=sick
        )
    return list(targets)


def moved(component: str, old: Mapping[str, bool], now: Mapping[str, bool]) -> LostCompare:
    """The error for switches that somebody else flipped."""
    return LostCompare(
        f"{component}: expected the switches to be {dict(old)}, found {dict(now)}. Somebody else flipped them. Find out"
        " who, then run again.",
        found=dict(now),
    )
