"""What an action that asks people is given: who said what, how the run stands, and a way to have it written down.

The engine keeps what people hand in (files in the run's folder); an action reads no file on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

Noted = Literal["approval_wanted", "approval"]


@dataclass(frozen=True)
class Said:
    """Something that was handed in for a step. Nothing of it is checked yet.

    Attributes:
        digest: names it: the same words handed in twice are one.
        token: signed (``tasks.tokens``); empty where nobody signed and ``via`` alone vouches for it.
        words: what an unsigned one says: ``run``, ``step``, ``decision``, ``by``, ``why``.
        via: how it came: ``cli``, ``ui``.
        heard_at: when this engine first saw it. A resumed one sees everything anew.
    """

    digest: str
    token: str
    words: Mapping[str, str]
    via: str
    heard_at: datetime


@dataclass(frozen=True)
class Standing:
    """How the run stands at this moment, for whoever has to decide.

    Attributes:
        left_s: component -> seconds until its recovery time objective has gone by; negative afterwards.
        would_undo, would_stay: what an abort would put back, and what it would leave as it is.
        point_of_no_return: the step that lies ahead; None where there is none.
    """

    left_s: Mapping[str, float] = field(default_factory=dict)
    would_undo: tuple[str, ...] = ()
    would_stay: tuple[str, ...] = ()
    point_of_no_return: str | None = None


class Hearing(Protocol):
    """One step's ear for people."""

    @property
    def step(self) -> str:
        """The id of the step that asks."""
        ...

    def said(self) -> tuple[Said, ...]:
        """Everything handed in for this step so far, in the order in which it was heard."""
        ...

    def standing(self) -> Standing: ...

    def note(self, kind: Noted, **body: Any) -> None:
        """Journal that people are asked (``approval_wanted``), or what became of something said (``approval``).

        Saying the same of the same thing again writes nothing. Raises JournalUnwritable, LeaseHeld.
        """
        ...


class Silence:
    """Nobody can be heard: a plan, a look. What is noted is dropped."""

    step = ""

    def said(self) -> tuple[Said, ...]:
        return ()

    def standing(self) -> Standing:
        return Standing()

    def note(self, kind: Noted, **body: Any) -> None:
        """Nothing is written down."""
