"""An approval in the Prefect UI: the flow run pauses with a form, and what is submitted becomes an answer of the run.

Only a picture, as everything of the window: the engine waits for the answer, wherever it comes from, and never for
Prefect. An answer by another way ends the pause; one that does not count leaves the run paused, and the form says why.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from prefect.client.orchestration import get_client
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Running
from pydantic import Field, create_model

from flows import calls
from flows.engine import approvals, asking, journal
from flows.engine.asking import Asking
from tasks import tokens
from tasks.errors import RelightError

POLL_S = 1
SENT_S = 2.0
"""How long the form may wait until the log says where it is."""
HEARD_S = 10.0
"""How long the engine may take to say what it made of an answer, before the form is shown again."""
LONGER_S = 120
"""By how much the pause outlasts the asking: Prefect must not end the flow run on its own."""


class Forms:
    """The forms of one run, one at a time: a flow run has one pause."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn = asyncio.Lock()
        self._open: dict[str, asyncio.Task[None]] = {}
        self._shown = False

    def open(self, step: str) -> None:
        """Show a form for ``step`` until enough was said. For a step that is shown already: nothing."""
        if step not in self._open or self._open[step].done():
            self._open[step] = asyncio.create_task(self._show(step))

    async def close(self, step: str) -> None:
        """The asking of ``step`` is over: take its form away, and let the flow run run. Raises what Prefect raises.

        For a step without a form: looks once whether a pause came late. A server that is busy may take one back to
        front: it was asked for before the answer, and is there after it.
        """
        task = self._open.pop(step, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await unpause(looks=2)
        elif self._shown and not self._open:
            await unpause(looks=1)

    async def close_all(self) -> None:
        """The run is over."""
        for step in list(self._open):
            await self.close(step)

    async def _show(self, step: str) -> None:
        note = ""
        async with self._turn:
            if (found := self._asking(step)) is not None:
                get_run_logger().warning(_where(self.folder.name, found))
                # a page that is open reads no more of the log once the flow run is paused
                await asyncio.to_thread(APILogWorker.drain_all, timeout=SENT_S)
            while (found := self._asking(step)) is not None:
                self._shown = True
                left_s = (datetime.fromisoformat(found.until) - datetime.now(UTC)).total_seconds()
                try:
                    given: Any = await apause_flow_run(
                        wait_for_input=form(found, note, self._what()),
                        timeout=int(max(0.0, left_s)) + LONGER_S,
                        poll_interval=POLL_S,
                        key=f"{step}-{secrets.token_hex(4)}",
                    )
                except calls.AWAY as e:
                    note = f"Prefect's server lost it ({type(e).__name__}); say it again"
                    await asyncio.sleep(POLL_S)
                    continue
                note = await self._handed_in(found, given)

    def _asking(self, step: str) -> Asking | None:
        records = journal.read(self.folder / "journal.jsonl").records
        return next((a for a in asking.open_now(records) if a.step == step), None)

    def _what(self) -> str:
        """What people say yes to."""
        head = journal.read(self.folder / "journal.jsonl").records[0]
        moved = f"{head['roles'].get('failed')} → {head['roles'].get('target')}"
        return f"{head['runbook']} of {head['system']}, {moved} ({head['mode']})"

    async def _handed_in(self, found: Asking, given: Any) -> str:
        """Why what was ``given`` does not count; empty where it does, or where that is not known yet."""
        answer, wrong = answer_of(self.folder.name, found, given, datetime.now(UTC))
        if wrong:
            return wrong
        try:
            digest = approvals.hand_in(self.folder, found.step, answer, "ui")
        except RelightError as e:
            return str(e)
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARD_S):
                while self._asking(found.step) is not None:
                    records = journal.read(self.folder / "journal.jsonl").records
                    made = asking.judged(records, found.step, digest)
                    if made is not None:
                        return str(made["against"])
                    await asyncio.sleep(0.1)
        return ""


def form(found: Asking, note: str = "", what: str = "") -> type[RunInput]:
    """What the UI shows: the figures as Markdown, and fields that fit what counts here. It is written once and read
    for as long as it is open, so its times are those of the clock.
    """
    lines = asking.lines(found, None)
    text = "\n".join((f"### {what or found.step}: yes or no?", "", *(f"- {line}" for line in lines)))
    fields: dict[str, Any] = {
        "decision": (
            Literal["approve", "reject"],
            Field(description="approve: the run goes on at once. reject: it ends as refused."),
        ),
        # a drop-down of those who may; who else is named is refused by the server already
        "name": (Literal[found.who], Field(description="Who you are.")),
        "comment": (str, Field(default="", max_length=tokens.MOST_WHY, description="Recorded with the answer.")),
    }
    if not found.ui:
        how = "What you signed: relight approve RUN --step STEP --as NAME --sign. Never the secret itself."
        fields["token"] = (str, Field(pattern=r"^\s*relight1\.", max_length=tokens.MOST_TOKEN, description=how))
    shown: type[RunInput] = create_model("Approval", __base__=RunInput, **fields)
    return shown.with_initial_data(description=f"**Your answer does not count: {note}**\n\n{text}" if note else text)


def _where(run: str, found: Asking) -> str:
    """Where to answer: the newer of Prefect's UIs keeps the form in a menu."""
    return (
        f"{found.step}: paused, {found.at_least} of {', '.join(found.who)} must say yes. Answer with Resume"
        f" (in the menu ⋮ at the top right), or in a shell: relight approve {run} --step {found.step} --as NAME"
    )


def answer_of(run: str, found: Asking, given: Any, now: datetime) -> tuple[dict[str, Any], str]:
    """What the form was given, as an answer; and why it is none, where its parts say different things."""
    if found.ui:
        expires = int((now + timedelta(seconds=tokens.FOR.total_seconds())).timestamp())
        said = {"run": run, "step": found.step, "decision": given.decision, "by": given.name}
        return {"words": {**said, "expires": expires, "nonce": secrets.token_hex(8), "why": given.comment}}, ""
    try:
        words = tokens.read(given.token)
    except RelightError as e:
        return {}, str(e)
    if (words.decision, words.by) != (given.decision, given.name):
        return {}, f"the token says {words.decision} by {words.by}, the form {given.decision} by {given.name}"
    return {"token": given.token.strip()}, ""


async def unpause(looks: int) -> None:
    """Let the flow run run, where it is paused: the answer came another way."""
    async with get_client() as client:
        for _ in range(looks):  # a pause that was on its way when it was taken back may arrive a moment later
            now = await client.read_flow_run(flow_run.id)
            if now.state is not None and now.state.is_paused():
                await client.set_flow_run_state(flow_run.id, Running(message="answered"), force=True)
            await asyncio.sleep(0.2)
