"""Whose word counts. Pure but for the secrets it is handed: what was said in, who said yes and no out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import SecretStr, ValidationError

from tasks import tokens
from tasks.contract import Facts
from tasks.errors import BadInput, Rejected
from tasks.hearing import Said
from tasks.tokens import Words


@dataclass(frozen=True)
class Question:
    """What is asked: in which run, by which step, of whom. ``ui``: an unsigned name from the UI counts."""

    run: str
    step: str
    at_least: int
    may: tuple[str, ...]
    ui: bool


@dataclass(frozen=True)
class Judged:
    """One thing that was said. ``against``: why it does not count; empty where it does."""

    said: Said
    by: str
    decision: str
    why: str
    against: str = ""

    def facts(self) -> Facts:
        return {
            "by": self.by,
            "decision": self.decision,
            "comment": self.why,
            "via": self.said.via,
            "signed": bool(self.said.token),
            "heard_at": self.said.heard_at.isoformat(timespec="milliseconds"),
        }


@dataclass(frozen=True)
class Tally:
    """Everything that was said, judged in the order in which it was heard."""

    judged: tuple[Judged, ...]

    @property
    def yes(self) -> tuple[Judged, ...]:
        """One for each person."""
        return tuple(j for j in self.judged if not j.against and j.decision == "approve")

    @property
    def no(self) -> Judged | None:
        """The first who said no. It stands, whatever the same person says later."""
        return next((j for j in self.judged if not j.against and j.decision == "reject"), None)


async def tally(question: Question, said: Sequence[Said], secret: Callable[[str], Awaitable[SecretStr]]) -> Tally:
    """Judge what was ``said``. A secret that is missing is a reason like any other: nothing is raised."""
    judged: list[Judged] = []
    for one in said:
        found = await _judge(question, one, secret)
        spoken = [j for j in judged if not j.against and j.by == found.by]
        # who said yes may still say no; anything else said twice counts once
        if not found.against and spoken and (found.decision == "approve" or spoken[-1].decision == "reject"):
            found = _against(one, found.by, found.decision, f"{found.by} has answered already; one answer a person")
        judged.append(found)
    return Tally(tuple(judged))


async def _judge(question: Question, said: Said, secret: Callable[[str], Awaitable[SecretStr]]) -> Judged:
    try:
        words = tokens.read(said.token) if said.token else Words.model_validate(said.words)
    except (Rejected, ValidationError) as e:
        why = str(e) if isinstance(e, Rejected) else "it cannot be read"
        return _against(said, "unknown", "unknown", why)
    against = _misplaced(question, words, said) or await _forged(words, said, secret)
    if not against and said.heard_at >= datetime.fromtimestamp(words.expires, UTC):
        at = datetime.fromtimestamp(words.expires, UTC)
        against = f"it expired at {at:%H:%M:%S} UTC, and was seen at {said.heard_at:%H:%M:%S}; answer anew"
    return Judged(said, words.by, words.decision, words.why, against)


def _misplaced(question: Question, words: Words, said: Said) -> str:
    if words.run != question.run:
        return f"it is for run {words.run}, and this is {question.run}"
    if words.step != question.step:
        return f"it is for step {words.step}, and step {question.step} asks"
    if words.by not in question.may:
        return f"{words.by} may not approve here; {', '.join(question.may)} may"
    if not said.token and not (question.ui and said.via == "ui"):
        return "it is not signed, and the directory does not let an unsigned name count"
    return ""


async def _forged(words: Words, said: Said, secret: Callable[[str], Awaitable[SecretStr]]) -> str:
    if not said.token:
        return ""
    try:
        good = tokens.signed_by(said.token, await secret(words.by), words.by)
    except BadInput as e:  # MissingSecret is one
        return f"it cannot be checked: {e}"
    return "" if good else f"it was not signed with the secret of {words.by}"


def _against(said: Said, by: str, decision: str, why: str) -> Judged:
    return Judged(said, by, decision, "", why)
