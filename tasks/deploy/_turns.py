"""Which server is replaced when: the decisions of a rolling update, without any doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.errors import SafetyRefusal


@dataclass(frozen=True)
class Seen:
    """One instance: runs, says this version, is ready to serve."""

    running: bool
    version: str | None = None
    ready: bool = False


@dataclass(frozen=True)
class Turns:
    """``replace``: those on another version, in order. ``extra``: one more that is started first and stopped last."""

    replace: tuple[str, ...]
    extra: str | None = None


def turns(fleet: Mapping[str, Seen], version: str, minimum: int, maximum: int) -> Turns:
    """Servers that do not serve go first: they cost nobody anything. With no server to spare, one is added first.

    Raises SafetyRefusal where one would have to be added and none may be.
    """
    other = [n for n, s in fleet.items() if s.running and not (s.version == version and s.ready)]
    order = tuple(sorted(other, key=lambda n: fleet[n].ready))
    serving = sum(s.running and s.ready for s in fleet.values())
    if not any(fleet[n].ready for n in order) or serving > minimum:
        return Turns(order)
    idle = [n for n, s in fleet.items() if not s.running]
    running = len(fleet) - len(idle)
    if not idle or running >= maximum:
        raise SafetyRefusal(
            f"{serving} servers serve and {minimum} must, so one has to be started before one is replaced; but"
            f" {running} run already of at most {maximum}. Raise the maximum, or lower the minimum."
        )
    return Turns(order, idle[0])
