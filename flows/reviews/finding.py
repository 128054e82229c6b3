"""What a review is made of: findings, tables, charts. JSON-able, so that the next review can say what changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

Severity = Literal["critical", "warning", "unknown", "info"]
Kind = Literal["weekly", "monthly", "quarterly", "annual"]
Language = Literal["sql", "shell", "text"]
ORDER: tuple[Severity, ...] = ("critical", "warning", "unknown", "info")
TITLES: dict[Kind, str] = {
    "weekly": "Performance review",
    "monthly": "Capacity planning",
    "quarterly": "Scaling strategy review",
    "annual": "Infrastructure audit",
}


@dataclass(frozen=True)
class Finding:
    """One thing that somebody should know.

    Attributes:
        key: the same for the same thing in the next review (``unused-index public.events_x``).
        title: what is so, in one line. evidence: the figures behind it, or why it cannot be told.
        fix: the exact SQL or command; text where it is for people to decide.
        safe: relight itself may do it, within a maintenance window, when asked: it blocks nobody and loses nothing.
        target: (component, node, table) of a safe fix.
        outcome: what became of a safe fix in this review, where it was asked for.
    """

    key: str
    severity: Severity
    title: str
    evidence: str
    fix: str = ""
    language: Language = "text"
    safe: bool = False
    target: tuple[str, ...] = ()
    detail: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class Table:
    """``rows``: as shown; numbers are aligned right where ``right`` names their column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a chart: (aware UTC, value) pairs; ``low`` and ``high``: its interval where it is a forecast."""

    name: str
    points: tuple[tuple[datetime, float], ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    forecast: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over time in one unit; ``limits``: name -> value, as a dashed line across."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    limits: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Review:
    """``facts``: what the review in one paragraph would begin with. ``previous``: when the last of its kind was."""

    kind: Kind
    system: str
    at: datetime
    findings: tuple[Finding, ...]
    facts: dict[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    previous: datetime | None = None
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    applied: str = ""

    @property
    def worst(self) -> Severity:
        found = [f.severity for f in self.findings]
        return min(found, key=ORDER.index) if found else "info"

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    @property
    def verdict(self) -> str:
        """In one line: ``1 critical, 3 warnings, 2 unknown, 4 notes``."""
        words = {"critical": "critical", "warning": "warnings", "unknown": "unknown", "info": "notes"}
        found = [f"{n} {words[s] if n != 1 else words[s].rstrip('s')}" for s in ORDER if (n := self.count(s))]
        return ", ".join(found) or "nothing found"

    def as_json(self) -> dict[str, Any]:
        """JSON-able, without the charts' points: the metrics have them."""
        return {
            "kind": self.kind,
            "system": self.system,
            "at": self.at.isoformat(),
            "verdict": self.verdict,
            "worst": self.worst,
            "facts": self.facts,
            "findings": [asdict(f) for f in self.findings],
            "tables": [asdict(t) for t in self.tables],
            "charts": [c.title for c in self.charts],
            "previous": self.previous.isoformat() if self.previous else None,
            "new": list(self.new),
            "gone": list(self.gone),
            "applied": self.applied,
        }


def ordered(findings: tuple[Finding, ...] | list[Finding]) -> tuple[Finding, ...]:
    """Worst first; within a severity as found."""
    return tuple(sorted(findings, key=lambda f: ORDER.index(f.severity)))
