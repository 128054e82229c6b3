"""The command line's part of trust: how right the rules were, and two people who pass them."""

from __future__ import annotations

import asyncio
import getpass
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from flows.cli_intake import JsonOption, known_history, rules_app
from flows.cli_metrics import seconds_of
from flows.engine import eventloop
from flows.intake import glass, rules, score
from flows.intake.desk import Desk
from flows.intake.history import Entry, History
from flows.intake.inbox import Inbox
from flows.intake.warm import Warm
from tasks.errors import BadInput

app = typer.Typer()
out = Console(highlight=False, markup=False)

EventArgument = Annotated[int, typer.Argument(metavar="EVENT", help="See relight inbox list.")]


@rules_app.command(name="score")
def score_(
    within: Annotated[
        str, typer.Option("--within", help="How soon a person acts, or an alert ends by itself.")
    ] = "15m",
    as_json: JsonOption = False,
) -> None:
    """How right each rule would have been, month by month: what it would have started, and how that turned out.

    Right: a person marked it so, or ran the same runbook within the time. Wrong: a person marked it so, or the alert
    ended by itself within it. Open: nobody can tell.

    Example: `relight rules score --within 15m`
    """
    span = timedelta(seconds=seconds_of("--within", within))
    known = {rule.id: (one.system, rule.run) for one in rules.load_all() for rule in one.triggers.rules}
    rows = score.table(score.shadows(known_history()), known, score.by_people(), span)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("rule", "month", "start", "ask", "refuse", "right", "wrong", "open", "precision"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        precise = "unknown" if row["precision"] is None else f"{row['precision']:.0%}"
        counts = [str(row[n]) for n in ("start", "ask", "refuse", "right", "wrong", "open")]
        table.add_row(row["rule"], row["month"], *counts, precise)
    out.print(table if rows else "no rule has decided about anything yet")


@rules_app.command()
def mark(
    event_id: EventArgument,
    verdict: Annotated[Literal["right", "wrong"], typer.Argument(help="What the rule would have done was …")],
    why: Annotated[str, typer.Option("--why", help="For whoever reads the score.")] = "",
    who: Annotated[str, typer.Option("--who", help="Who says so; default: the user of this terminal.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Say whether what a rule would have done was right. The last word counts.

    Example: `relight rules mark 12 wrong --why "the monitor's own disk was full"`
    """
    history = known_history()
    entry = history.entry(event_id)
    if "rule" not in (entry.decision or {}):
        raise BadInput(f"no rule decided about event {event_id}; there is nothing to mark")
    inbox = Inbox(history.file)
    try:
        by = who or getpass.getuser()
        inbox.mark(event_id, verdict, by, why, datetime.now(UTC)).result()
    finally:
        inbox.close()
    if as_json:
        print(json.dumps({"event": event_id, "verdict": verdict, "who": by, "why": why}))
    else:
        out.print(f"event {event_id}: {verdict}")


@app.command(name="break-glass")
def break_glass(
    event_id: EventArgument,
    second: Annotated[str, typer.Option("--second", help="The second person, who agrees.")],
    why: Annotated[str, typer.Option("--why", help="Why; kept for good.")],
    who: Annotated[str, typer.Option("--who", help="Who does it; default: the user of this terminal.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Two people pass what the gates say about an alert, and start its run. It is kept for good, and people are paged.

    Nothing passes the kill switch, a run under way, an alert that is no fit one, missing evidence, or a failback.

    Example: `relight break-glass 12 --who "J. Doe" --second "A. Roe" --why "ticket 12"`
    """
    history = known_history()
    people = (who or getpass.getuser(), second)
    found = eventloop.run(_broken(history.entry(event_id), history, people, why))
    if as_json:
        print(json.dumps(found))
    else:
        out.print(f"run {found['run_id']}. Look at it: relight status {found['run_id']}", soft_wrap=True)


async def _broken(entry: Entry, history: History, people: tuple[str, str], why: str) -> dict[str, Any]:
    inbox = Inbox(history.file)
    warm = Warm(lambda text: out.print(text, soft_wrap=True))
    desk = Desk(inbox, history, rules.load_all(), warm.start)
    try:
        run_id = await glass.broken(desk, inbox, entry, people, why)
        return {"event": entry.id, "run_id": run_id, "who": people[0], "second": people[1], "why": why}
    finally:
        await asyncio.shield(warm.close())
        await desk.watches.aclose()
        inbox.close()
