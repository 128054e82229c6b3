"""People by hand."""

from __future__ import annotations

from typing import Any

from tasks.contract import Context
from tasks.manual import Command, Manual, NoManual


async def approve(action: Any, _ctx: Context) -> list[Command | NoManual]:
    """Words, not commands."""
    if not action.at_least:
        return [NoManual("nobody has to be asked here; where your rules say otherwise, ask now")]
    return [NoManual(f"ask {action.at_least} people who may decide, and write down who said yes and when")]


MANUAL: dict[str, Manual] = {"people.approve": approve}
