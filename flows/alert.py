"""Alert: asks people in the UI whether the run of an alert that waits for a person is to start."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field, create_model

from flows import approval, calls
from flows.engine import places
from flows.intake import asked
from flows.intake.episodes import Episodes
from flows.intake.history import Entry, History
from flows.intake.inbox import FILE
from flows.offers import Offer
from tasks import tokens
from tasks.errors import BadInput, LeaseHeld, SafetyRefusal

DEPLOYMENT = "alert/alert"


class AlertOptions(BaseModel):
    """Which alert."""

    model_config = ConfigDict(extra="forbid")

    event: int = Field(
        0,
        ge=0,
        description="The number of an event that waits for a person, as in `relight inbox list`; 0: the oldest.",
    )


@flow(name="alert", flow_run_name="alert-{options.event}", persist_result=False)
async def alert(options: AlertOptions) -> State[Any]:
    """Ask a person whether the run of an alert is to start.

    `relight serve` starts this by itself for **each alert that waits for a person**: the flow run pauses, and its form
    shows what would be started and what the gates say. *approve* asks every gate again and starts the run; *reject*
    starts none. Answered elsewhere (`relight approve EVENT`), ended or too late, it takes its form away.
    """
    history = History(places.state_home() / FILE)
    number, note = options.event or next((e.id for e in Episodes(history).asked()), 0), ""
    if not number:
        return Completed(message="no alert waits for a person")
    while asked.waits(entry := history.entry(number)):
        question = asked.question(entry, history)
        get_run_logger().warning(f"{question.title}: a person is asked; or: relight approve {entry.id} --as NAME")
        try:
            given = await _given(form(question, note), question.until, entry, history)
        except calls.AWAY as e:
            note = f"Prefect's server lost it ({type(e).__name__}); say it again"
            await asyncio.sleep(approval.POLL_S)
            continue
        if given is None:
            continue
        said, note = await handed_in(entry, history, given, get_run_logger().info)
        if said:
            return Completed(message=said)
    why = (entry.decision or {}).get("why", "")
    return Completed(
        message=f"event {entry.id} waits for nobody: {entry.outcome or 'open'}{f' ({why})' if why else ''}"
    )


async def handed_in(entry: Entry, history: History, given: Any, say: asked.Say) -> tuple[str, str]:
    """What came of an answer; or, where it does not count, nothing and why.

    Raises what starting the run raises, LeaseHeld too: a yes that started nothing must not look like one that did.
    """
    try:
        if given.decision == "reject":
            await asked.decline(entry, history, given.name, given.comment)
            return f"{given.name} said no; no run is started", ""
        run_id = await asked.approve(entry, history, given.name, say)
    except LeaseHeld:
        raise
    except (BadInput, SafetyRefusal) as e:  # somebody was faster, it is too late, or a gate refuses
        return "", str(e)
    return f"{given.name} approved; run {run_id}", ""


async def _given(shown: type[RunInput], until: datetime, entry: Entry, history: History) -> Any:
    """What the form was given; None where the alert waits no longer. Raises what Prefect raises."""
    left_s = max(0.0, (until - datetime.now(UTC)).total_seconds())
    paused = asyncio.create_task(
        apause_flow_run(
            wait_for_input=shown,
            timeout=int(left_s) + approval.LONGER_S,
            poll_interval=approval.POLL_S,
            key=f"event-{secrets.token_hex(4)}",
        )
    )
    while not paused.done():
        await asyncio.wait({paused}, timeout=approval.POLL_S)
        if not paused.done() and not asked.waits(history.entry(entry.id)):
            paused.cancel()
            await asyncio.gather(paused, return_exceptions=True)
            await approval.unpause(looks=2)
            return None
    return paused.result()


def form(question: asked.Question, note: str = "") -> type[RunInput]:
    """What the UI shows. Who may press it may start the same run from its deployment, so a name is enough here; what
    the runbook itself asks people for is asked in the run.
    """
    lines = (*question.lines, f"not approved, unless somebody says yes by {question.until:%H:%M:%S} UTC")
    text = "\n".join((f"### {question.title}: yes or no?", "", *(f"- {line}" for line in lines)))
    fields: dict[str, Any] = {
        "decision": (
            Literal["approve", "reject"],
            Field(description="approve: starts the run. reject: starts none."),
        ),
        "name": (str, Field(min_length=1, max_length=100, pattern=r"\S", description="Who you are; it is recorded.")),
        "comment": (str, Field(default="", max_length=tokens.MOST_WHY, description="Recorded with the answer.")),
    }
    shown: type[RunInput] = create_model("Alert", __base__=RunInput, **fields)
    return shown.with_initial_data(description=f"**Not started: {note}**\n\n{text}" if note else text)


class Asker:
    """Has a flow run made for each alert that waits for a person, once."""

    def __init__(self) -> None:
        self._made: set[int] = set()

    async def look(self, client: PrefectClient, deployment: UUID) -> None:
        """Raises what Prefect's client raises; what was not made is made at the next look."""
        file = places.state_home() / FILE
        if not file.exists():
            return
        try:
            waiting = Episodes(History(file)).asked()
        except sqlite3.Error:  # the receiver is writing, or has yet to make its tables
            return
        for entry in waiting:
            if entry.id not in self._made:
                at = entry.event.received_at
                key = f"event-{entry.id}-{at:%Y%m%dT%H%M%S%f}"
                new = calls.New(f"alert-{entry.id}", key, datetime.now(UTC), {"options": {"event": entry.id}})
                await calls.create(client, deployment, new)
                self._made.add(entry.id)


OFFERED = (Offer(alert, AlertOptions),)
