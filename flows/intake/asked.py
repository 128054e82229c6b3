"""A person's word to an alert whose run waits for one, wherever it was said: in a shell, or in the Prefect UI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from flows.engine import launch
from flows.intake import rules
from flows.intake.desk import Desk, rule_of
from flows.intake.history import Entry, History
from flows.intake.inbox import Inbox
from flows.intake.rules import Loaded
from flows.intake.warm import Warm
from tasks.errors import BadInput, RelightError

Say = Callable[[str], None]


def waits(entry: Entry) -> bool:
    """Nobody has answered yet, and it is not too late."""
    return entry.outcome == "ask"


async def approve(entry: Entry, history: History, who: str, say: Say) -> str:
    """Ask the gates again, and start the run; its id.

    Raises BadInput where nothing waits, and SafetyRefusal as ``Desk.approved``.
    """
    _must_wait(entry, history)
    inbox, warm = Inbox(history.file), Warm(say)
    desk = Desk(inbox, history, _rules(entry), warm.start)
    try:
        return await desk.approved(entry, who)
    finally:
        await asyncio.shield(warm.close())
        await desk.watches.aclose()
        inbox.close()


async def decline(entry: Entry, history: History, who: str, why: str) -> None:
    """No run is started for this episode. Raises BadInput where nothing waits."""
    _must_wait(entry, history)
    decision = {**(entry.decision or {}), "why": f"{who} said no{f': {why}' if why else ''}"}
    inbox = Inbox(history.file)
    try:
        await asyncio.wrap_future(inbox.decide(entry.id, decision, "not approved"))
    finally:
        inbox.close()


def _must_wait(entry: Entry, history: History) -> None:
    now = history.entry(entry.id)
    if not waits(now):
        raise BadInput(f"event {entry.id} does not wait for an approval: its outcome is {now.outcome or 'open'}")


def _rules(entry: Entry) -> list[Loaded]:
    """Of the system that it was decided for: ``relight serve`` may have been given others than are found by name."""
    folder = (entry.decision or {}).get("system")
    return rules.load_all((folder,) if folder else ())


@dataclass(frozen=True)
class Question:
    """What a person is asked. ``lines``: what would be started, and what each gate says that does not just pass."""

    title: str
    lines: tuple[str, ...]
    until: datetime


def question(entry: Entry, history: History) -> Question:
    """What ``entry`` asks. Raises SafetyRefusal where no rule is about it any more."""
    event = entry.event
    loaded, rule = rule_of(Desk(None, history, _rules(entry), _never), entry)
    left = f", leaving {event.labels[rule.site_label]}" if event.labels.get(rule.site_label or "") else ""
    said = [g for g in (entry.decision or {}).get("gates", []) if g["answer"] != "pass"]
    lines = (
        f"yes starts {rule.run} of {loaded.system} ({rule.mode}{left}); every gate is asked again first",
        f"it fires since {event.started_at:%Y-%m-%d %H:%M:%S} UTC, and came at {event.received_at:%H:%M:%S} UTC",
        *(f"{g['gate']} ({g['answer']}): {g['why']}" for g in said),
    )
    return Question(event.subject(), lines, event.received_at + timedelta(seconds=loaded.triggers.gates.approve_within))


async def _never(_request: launch.Request) -> str:
    raise RelightError("a question starts nothing")
