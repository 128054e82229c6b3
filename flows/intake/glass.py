"""Breaking the glass: two people pass what gates say, with a reason, and it is kept for good."""

from __future__ import annotations

import asyncio

from flows.intake import gates
from flows.intake.desk import Desk, rule_of
from flows.intake.history import Entry
from flows.intake.inbox import Inbox
from tasks.errors import BadInput, SafetyRefusal


async def broken(desk: Desk, inbox: Inbox, entry: Entry, people: tuple[str, str], why: str) -> str:
    """Start the run that an event asks for, whatever the breakable gates say; its id.

    Raises BadInput where the two are one or say nothing, SafetyRefusal where a gate that nothing passes is against it.
    """
    who, second = (p.strip() for p in people)
    if not who or not second or who.casefold() == second.casefold() or not why.strip():
        raise BadInput("breaking the glass takes two people and a reason: --who, --second (somebody else), --why")
    loaded, rule = rule_of(desk, entry)
    if any(e.run_id for e in desk.history.of_episode(entry.event.episode_key)):
        raise SafetyRefusal("this episode began a run already; go on with that one")
    decision = await desk.judged(entry.event, rule, loaded, 5.0)
    never = [s for s in decision.said if s.answer in ("refuse", "hold") and not gates.breakable(s)]
    glass = {
        "who": who,
        "second": second,
        "why": why,
        "gates": [s.gate for s in decision.said if s.answer != "pass" and gates.breakable(s)],
        "refused": [f"{s.gate}: {s.why}" for s in never],
    }
    note = {"event": entry.id, "alert": entry.event.subject(), **glass}
    await asyncio.wrap_future(inbox.note("break-glass", note, desk.now()))
    if never:
        raise SafetyRefusal(f"nothing passes this: {'; '.join(glass['refused'])}")
    desk.page(entry.event, f"{who} and {second} broke the glass ({', '.join(glass['gates']) or 'nothing held'}): {why}")
    return await desk.by_hand(entry, {**decision.document(), "break_glass": glass}, loaded, rule, who)
