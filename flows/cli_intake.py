"""The command line's look into what came in, what was decided, and what would be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.engine import eventloop, launch, places
from flows.intake import body, rules
from flows.intake.desk import Desk
from flows.intake.event import Auth, Delivery, Event, Refused, normalise
from flows.intake.history import Entry, History, stored
from flows.intake.inbox import FILE
from flows.intake.rules import Loaded
from tasks.errors import BadInput, LeaseHeld

app = typer.Typer()
inbox_app = typer.Typer(
    help="What alerts came in, and what was decided about them.\n\nExample: `relight inbox list`", no_args_is_help=True
)
rules_app = typer.Typer(
    help="The rules by which alerts start runs (triggers.yaml).\n\nExample: `relight rules score`", no_args_is_help=True
)
app.add_typer(inbox_app, name="inbox")
app.add_typer(rules_app, name="rules")

out = Console(highlight=False, markup=False)
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
COLOURS = {"run": "green", "start": "green", "ask": "yellow", "hold": "yellow", "refused": "red", "not started": "red"}


def known_history() -> History:
    """The inbox of this machine. Raises BadInput where there is none."""
    file = places.state_home() / FILE
    if not file.exists():
        raise BadInput(f"no inbox yet ({file}): alerts are taken by relight serve")
    return History(file)


def _json(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "delivery": entry.delivery,
        "outcome": entry.outcome,
        "run_id": entry.run_id,
        "fresh": entry.fresh,
        "event": json.loads(entry.event.model_dump_json()),
        "decision": entry.decision,
    }


@inbox_app.command(name="list")
def list_(
    most: Annotated[int, typer.Option("--most", min=1, help="How many.")] = 30, as_json: JsonOption = False
) -> None:
    """The newest events and what was decided about each.

    Example: `relight inbox list --most 10`
    """
    entries = known_history().entries(most)
    if as_json:
        print(json.dumps([_json(e) for e in entries], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "received (UTC)", "kind", "outcome", "alert", "run"):
        table.add_column(name, no_wrap=name not in ("alert", "run"), overflow="fold")
    for e in entries:
        when = f"{e.event.received_at:%m-%d %H:%M:%S}"
        outcome = Text(e.outcome or "open", COLOURS.get(e.outcome, "dim"))
        title = e.event.title or e.event.fingerprint
        table.add_row(str(e.id), when, e.event.kind, outcome, title, e.run_id)
    out.print(table)


@inbox_app.command()
def show(event_id: Annotated[int, typer.Argument(metavar="EVENT")], as_json: JsonOption = False) -> None:
    """One event: what it says, and what every gate said.

    Example: `relight inbox show 12`
    """
    entry = known_history().entry(event_id)
    if as_json:
        print(json.dumps(_json(entry), indent=2))
        return
    event = entry.event
    out.print(Text(event.subject(), "bold"))
    out.print(
        f"started {event.started_at.isoformat()} ({event.started_at_basis}), {event.age_s:.1f} s old when it came"
    )
    out.print(f"labels: {', '.join(f'{k}={v}' for k, v in sorted(event.labels.items())) or 'none'}", soft_wrap=True)
    _print_decision(entry.decision)
    out.print(f"outcome: {entry.outcome or 'open'} {entry.run_id}")


@inbox_app.command()
def replay(event_id: Annotated[int, typer.Argument(metavar="EVENT")], as_json: JsonOption = False) -> None:
    """Read an event's delivery again, by the rules of now, and say what would be decided. Changes nothing.

    Example: `relight inbox replay 12`
    """
    history = known_history()
    endpoint, headers, raw, at = stored(history.file, history.entry(event_id).delivery)
    loaded = rules.load_all()
    _print_would(_would(loaded, endpoint, raw, headers, at, history), as_json=as_json)


@rules_app.command(name="test")
def try_(
    payload: Annotated[Path, typer.Option("--payload", help="A file with the body that a sender posts.")],
    endpoint: Annotated[str, typer.Option("--endpoint", help="Which endpoint it comes to.")],
    systems: Annotated[list[str] | None, typer.Option("--system", "-s", help="Only the rules of these.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would happen if a body came in now, and why. Changes nothing; its sender counts as recognised.

    Example: `relight rules test --endpoint alertmanager --payload firing.json -s lab`
    """
    if not payload.is_file():
        raise BadInput(f"no file {payload}")
    file = places.state_home() / FILE
    history = History(file) if file.exists() else None
    loaded = rules.load_all(tuple(systems or ()))
    _print_would(_would(loaded, endpoint, payload.read_bytes(), {}, datetime.now(UTC), history), as_json=as_json)


def _would(
    loaded: list[Loaded], endpoint: str, raw: bytes, headers: dict[str, str], at: datetime, history: History | None
) -> list[dict[str, Any]]:
    from flows.intake import service  # noqa: PLC0415 - a web server's modules take longer to read than most commands

    found = service.endpoints(loaded, "127.0.0.1")
    if endpoint not in found:
        raise BadInput(f"no endpoint {endpoint!r}; there are {', '.join(sorted(found)) or 'none'}")
    sender = found[endpoint]
    delivery = Delivery(endpoint, raw, at, headers)
    try:
        parsed = body.strict_json(raw)
        events = [normalise(a, delivery, _RECOGNISED, sender.name) for a in sender.read(parsed, delivery)]
    except Refused as e:
        raise BadInput(f"this would be answered with {e.status}: {e}") from e
    return eventloop.run(_judged(loaded, events, history))


_RECOGNISED = Auth(method="assumed", verified=True)


class _NoHistory(History):
    """Where nothing ever came in."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))

    def fired_after(self, number: int) -> list[tuple[int, Event]]:
        return []

    def begun(self, event: Event, since: datetime) -> tuple[datetime, ...]:
        return ()

    def firing(self, episode: str) -> bool:
        return True

    def last_seen(self, endpoint: str, alertname: str) -> datetime | None:
        return None


async def _judged(loaded: list[Loaded], events: list[Event], history: History | None) -> list[dict[str, Any]]:
    from flows.intake import service  # noqa: PLC0415 - see _would

    async def never(_request: launch.Request) -> str:
        raise LeaseHeld("this only says what would be; it starts nothing")

    one = Desk(None, history or _NoHistory(), loaded, never)
    try:
        return [{"alert": e.subject(), **await service.would(one, e)} for e in events]
    finally:
        await one.watches.aclose()


def _print_would(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for one in found:
        out.print(Text(one["alert"], "bold"))
        if one.get("rule") is None:
            out.print("  no rule is about it: it would be kept, and nothing more")
            continue
        out.print(f"  rule {one['rule']} of {one['system']} ({one['stage']}): {one['run']}")
        _print_decision(one)


def _print_decision(decision: dict[str, Any] | None) -> None:
    if decision is None:
        out.print("  nothing was decided yet")
        return
    if "gates" not in decision:
        out.print(f"  {decision.get('why', '')}")
        return
    colours = {"pass": "green", "hold": "yellow", "needs-approval": "yellow", "refuse": "red"}
    for number, g in enumerate(decision["gates"], 1):
        line = Text.assemble(f"  {number:>2} {g['gate']:<13} ", (f"{g['answer']:<15}", colours[g["answer"]]), g["why"])
        out.print(line, soft_wrap=True)
    out.print(Text(f"  all in all: {decision['answer']}; outcome: {decision['outcome']}", "bold"))
