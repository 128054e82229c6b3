"""Which server is replaced when: the decisions of a rolling update, without any doing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


@dataclass(frozen=True)
class Bounds:
    """How many must serve, and how many may run."""

    minimum: int
    maximum: int


def turns(fleet: Mapping[str, Seen], version: str, bounds: Bounds, must_run: Collection[str] = ()) -> Turns:
    """Servers that do not serve go first: they cost nobody anything, and serve by the time that the others go.

    With none to spare, one is added before all. ``must_run``: those that ran before the update; one of them that does
    not was stopped by a run that died. Raises SafetyRefusal where one would have to be added and none may be.
    """
    meant = {n: s for n, s in fleet.items() if s.running or n in must_run}
    other = [n for n, s in meant.items() if not (s.running and s.version == version and s.ready)]
    order = tuple(sorted(other, key=lambda n: fleet[n].ready))
    serving = sum(s.running and s.ready for s in fleet.values()) + sum(not fleet[n].ready for n in order)
    if not any(fleet[n].ready for n in order) or serving > bounds.minimum:
        return Turns(order)
    idle = [n for n in fleet if n not in meant]
    if not idle or len(meant) >= bounds.maximum:
        raise SafetyRefusal(
            f"{serving} servers can serve and {bounds.minimum} must, so one has to be started before that; but"
            f" {len(meant)} run already of at most {bounds.maximum}. Raise the maximum, or lower the minimum."
        )
    return Turns(order, idle[0])
