"""Whose a thing in an account is. relight changes only what carries the tag ``relight:system`` of the system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.errors import SafetyRefusal

MARK = "relight:system"


def pairs(tags: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """``[{"Key": …, "Value": …}]`` as most of AWS has it -> a dict."""
    return {str(t["Key"]): str(t.get("Value", "")) for t in tags}


def owned(label: str, tags: Mapping[str, str], system: str) -> None:
    """Raises SafetyRefusal where ``label`` is not marked as a part of ``system``."""
    have = tags.get(MARK)
    if have != system:
        found = f"its tag {MARK} is {have!r}" if have else f"it has no tag {MARK}"
        raise SafetyRefusal(
            f"{label} is not marked as a part of system {system}: {found}. relight touches only what is marked; tag it"
            f" {MARK}={system} if it is yours."
        )
