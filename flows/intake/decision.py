"""What a gate says, and what all of them come to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Answer = Literal["pass", "hold", "needs-approval", "refuse"]
ORDER: tuple[Answer, ...] = ("refuse", "hold", "needs-approval", "pass")
"""What weighs more comes first."""
WOULD = {"pass": "start", "needs-approval": "ask", "hold": "hold", "refuse": "refuse"}


@dataclass(frozen=True)
class Said:
    """One gate's answer.

    Attributes:
        again_s: when it may be asked again, where it holds.
        page: a person should look at this now, whatever the stage: signals that disagree, for one.
    """

    gate: str
    answer: Answer
    why: str
    again_s: float = 0.0
    page: bool = False


@dataclass(frozen=True)
class Decision:
    """All that the gates said, and what it comes to.

    Attributes:
        stage: of the rule, no further than its system allows.
        evidence: what was seen of the system itself, as it goes into the record.
    """

    rule: str
    stage: str
    said: tuple[Said, ...]
    at: datetime
    evidence: dict[str, Any] | None = None

    @property
    def answer(self) -> Answer:
        return min((s.answer for s in self.said), key=ORDER.index, default="pass")

    @property
    def again_s(self) -> float:
        return max((s.again_s for s in self.said if s.answer == "hold"), default=0.0)

    @property
    def pages(self) -> tuple[str, ...]:
        """What a person should look at now."""
        return tuple(s.why for s in self.said if s.page)

    @property
    def outcome(self) -> str:
        """``start``, ``hold``, ``ask`` (a person is asked), ``refused``, or ``shadow`` (noted, nothing more).

        In shadow mode a gate that holds is waited for as well: what would have been done is known only then.
        """
        if self.answer == "hold":
            return "hold"
        if self.stage in ("off", "observe"):
            return "shadow"
        if self.answer == "pass":
            return "start" if self.stage == "auto" else "ask"
        return {"refuse": "refused", "needs-approval": "ask"}[self.answer]

    def document(self) -> dict[str, Any]:
        """As it is kept, journaled with the run, and printed.

        ``would``: what the gates come to at stage auto, but for the one that says that the rule is not.
        """
        others = [s.answer for s in self.said if s.gate != "enabled"]
        would = WOULD[min(others, key=ORDER.index, default="pass")]
        return {
            "rule": self.rule,
            "stage": self.stage,
            "at": self.at.isoformat(timespec="milliseconds"),
            "answer": self.answer,
            "outcome": self.outcome,
            "would": would,
            "gates": [{"gate": s.gate, "answer": s.answer, "why": s.why} for s in self.said],
            **({"page": list(self.pages)} if self.pages else {}),
            **({"evidence": self.evidence} if self.evidence else {}),
        }
