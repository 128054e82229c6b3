"""A schedule: what goes wrong, and at which event. Text that a person can keep: ``kill@37,stale@41``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.errors import BadInput
from tasks.simulation import CHANGE_FAULTS, CRASHES, READ_FAULTS, Event

HAPPENINGS = ("return", "second", "pause", "abort")
"""What happens beside the engine: the dead site comes back, a second engine starts, the engine stands still (SIGSTOP)
past its lease while another takes over, a person tells the run to go back."""
KINDS = tuple(dict.fromkeys((*READ_FAULTS, *CHANGE_FAULTS, *(c for cs in CRASHES.values() for c in cs), *HAPPENINGS)))


@dataclass(frozen=True, order=True)
class Deviation:
    """``kind`` happens at event ``at`` (from 1)."""

    at: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}@{self.at}"


Schedule = tuple[Deviation, ...]
"""In the order of the events; no two at one event."""


def parse(text: str) -> Schedule:
    """The schedule that ``show`` gave. Raises BadInput."""
    found: list[Deviation] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind, _, at = part.partition("@")
        if kind not in KINDS or not at.isdecimal() or int(at) < 1:
            raise BadInput(f"{part!r} is no deviation; expected KIND@EVENT, with KIND one of {', '.join(KINDS)}")
        found.append(Deviation(int(at), kind))
    if len({d.at for d in found}) < len(found):
        raise BadInput(f"{text!r}: two deviations at one event")
    return tuple(sorted(found))


def show(schedule: Iterable[Deviation]) -> str:
    """As text; ``nothing goes wrong`` is empty."""
    return ",".join(map(str, schedule))


def deviations(event: Event) -> tuple[str, ...]:
    """Everything that can go wrong at ``event``."""
    faults = READ_FAULTS if event.kind == "read" else CHANGE_FAULTS if event.kind == "change" else ()
    return (*faults, *CRASHES[event.kind], *HAPPENINGS)


def singles(trace: Sequence[Event]) -> list[Schedule]:
    """Every schedule with one deviation from a run with this trace."""
    return [(Deviation(e.at, kind),) for e in trace for kind in deviations(e)]
