"""The command line's word of a person: to a run that asks, or to an alert whose run waits for one."""

from __future__ import annotations

import getpass
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli_intake import known_history
from flows.engine import alive, approvals, asking, eventloop, journal, places, system
from flows.engine.asking import Asking
from flows.engine.journal import Record
from flows.intake import asked
from tasks import tokens
from tasks.errors import BadInput, NotApproved, Rejected
from tasks.people.directory import DirectorySettings
from tasks.quantities import duration, show_duration
from tasks.secrets import resolve

app = typer.Typer()
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)
HEARD_S = 5.0
"""How long to wait for the engine to say what it made of an answer. It looks several times a second."""


@dataclass(frozen=True)
class Answer:
    """What the options say."""

    by: str
    decision: tokens.Decision
    why: str
    secret: str
    expires: timedelta


@app.command()
def approve(
    target: Annotated[str, typer.Argument(metavar="RUN|EVENT", help="A run id, `last`, or an event's number.")],
    step: Annotated[
        str, typer.Option("--step", help="The step that asks; needed where several do, or with --sign.")
    ] = "",
    by: Annotated[str, typer.Option("--as", "--who", help="Who says it; default: the user of this terminal.")] = "",
    no: Annotated[bool, typer.Option("--no", help="Say no: the run ends refused, or is not started.")] = False,
    why: Annotated[str, typer.Option("--why", help="Recorded with the answer.")] = "",
    token: Annotated[str, typer.Option("--token", help="Hand in what an approver signed elsewhere; - reads it.")] = "",
    sign: Annotated[bool, typer.Option("--sign", help="Only print a token, to be handed in at the engine.")] = False,
    secret: Annotated[
        str, typer.Option("--secret", help="env:NAME or file:PATH of what you sign with; default: as the system says.")
    ] = "",
    expires: Annotated[str, typer.Option("--expires", help="How long the token can be handed in.")] = "15m",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say yes (or no) to a run that asks for it, or start a run whose alert waits for a person.

    Needs no Prefect server. An approver elsewhere signs with `--sign`, and whoever is at the engine hands the token in
    with `--token`. For an event's number the gates are asked again first; what they refuse, an approval does not pass.

    Example: `relight approve last --as alice`, `relight approve RUN --token relight1.…`, `relight approve 12`,
    `relight approve RUN --step approve --as alice --sign --secret file:key`
    """
    if target.isdecimal():
        if token or sign or step:
            raise BadInput(f"event {target}: it is answered with yes or --no; --step, --token and --sign are for runs")
        _event(int(target), Answer(by or _user(), "reject" if no else "approve", why, "", timedelta()), as_json=as_json)
        return
    try:
        lasts = timedelta(seconds=duration(expires))
    except ValueError as e:
        raise BadInput(f"--expires {expires!r}: {e}") from None
    answer = Answer(by or _user(), "reject" if no else "approve", why, secret, lasts)
    if sign:
        _sign(target, step, answer, as_json=as_json)
        return
    _run(target, step, answer, token, as_json=as_json)


def _user() -> str:
    return os.environ.get("SUDO_USER") or getpass.getuser()


# ---- a run that asks ----


def _sign(target: str, step: str, answer: Answer, *, as_json: bool) -> None:
    """A token for a run of this machine or of another one. Nothing is sent anywhere."""
    run, where = target, answer.secret
    if target == "last" or not step or not where:
        folder = places.run_folder(target)
        records = journal.read(folder / "journal.jsonl").records
        run, step = folder.name, step or _open(folder, records, "").step
        where = where or _reference(records, answer.by)
    wish = tokens.Wish(run, step, answer.decision, answer.by, datetime.now(UTC) + answer.expires, answer.why)
    signed = tokens.mint(wish, resolve(where))
    if as_json:
        print(json.dumps({"token": signed, "expires": wish.expires.isoformat(timespec="seconds"), "by": wish.by}))
    else:
        print(signed)


def _run(target: str, step: str, answer: Answer, token: str, *, as_json: bool) -> None:
    folder = places.run_folder(target)
    records = journal.read(folder / "journal.jsonl").records
    open_ = _open(folder, records, step)
    if token:
        token = _readable(typer.get_text_stream("stdin").read() if token == "-" else token)  # noqa: S105 - a dash
    else:
        err.print("\n".join(asking.lines(open_, datetime.now(UTC))), style="dim", soft_wrap=True)
        until = datetime.now(UTC) + answer.expires
        secret = resolve(answer.secret or _reference(records, answer.by))
        token = tokens.mint(tokens.Wish(folder.name, open_.step, answer.decision, answer.by, until, answer.why), secret)
    digest = approvals.hand_in(folder, open_.step, {"token": token}, "cli")
    found = _made_of(folder, open_.step, digest)
    _told(folder, open_, found, as_json=as_json)


def _readable(token: str) -> str:
    try:
        tokens.read(token)
    except Rejected as e:
        raise BadInput(str(e)) from e
    return token.strip()


def _open(folder: Path, records: tuple[Record, ...], step: str) -> Asking:
    found = asking.open_now(records)
    fitting = [a for a in found if step in ("", a.step)]
    if len(fitting) == 1:
        return fitting[0]
    if not found:
        raise BadInput(f"run {folder.name} asks nobody now; see relight status {folder.name}")
    names = ", ".join(a.step for a in found)
    raise BadInput(f"run {folder.name}: no step {step!r} asks; {names} does" if step else f"say --step: one of {names}")


def _reference(records: tuple[Record, ...], name: str) -> str:
    """Where the secret of ``name`` is, as the run's system file says."""
    head = next(journal.of_type(records, "run_started"))
    loaded = system.load(places.system_file(head["files"]["system"]))
    for settings in loaded.settings.values():
        if isinstance(settings, DirectorySettings):
            one = settings.approvers.get(name)
            if one is not None and one.secret is not None:
                return one.secret
            known = ", ".join(n for n, a in settings.approvers.items() if a.secret) or "nobody"
            raise BadInput(f"no approver {name!r} with a secret; {known}. Say who you are with --as")
    raise BadInput(f"system {loaded.system.system} has no people; say --secret")


def _made_of(folder: Path, step: str, digest: str) -> Record | None:
    """What the engine made of the answer; None where it has not said within HEARD_S, or none lives."""
    deadline, pause = time.monotonic() + HEARD_S, Event()
    while True:
        lives = alive.alive(folder)
        records = journal.read(folder / "journal.jsonl").records
        found = asking.judged(records, step, digest)
        if found is not None or not lives or time.monotonic() > deadline:
            return found
        pause.wait(0.05)


def _told(folder: Path, open_: Asking, found: Record | None, *, as_json: bool) -> None:
    """Raises NotApproved where the answer does not count."""
    records = journal.read(folder / "journal.jsonl").records
    left = [a for a in asking.open_now(records) if a.step == open_.step]
    said = {"run_id": folder.name, "step": open_.step, "open": bool(left), "yes": list(left[0].yes) if left else []}
    counted = found["counted"] if found else None
    if as_json:
        against = found["against"] if found else "no engine has looked at it yet"
        print(json.dumps({**said, "counted": counted, "against": against}))
    if found is not None and not counted:
        if as_json:
            raise typer.Exit(NotApproved.exit_code)
        raise NotApproved(f"the answer does not count: {found['against']}. It is recorded.")
    if as_json:
        return
    if found is None:
        out.print(f"kept; nobody goes on with run {folder.name} now. It counts when: relight resume {folder.name}")
        return
    decision = {"approve": "yes", "reject": "no"}[found["decision"]]
    more = f"{len(left[0].yes)} of {left[0].at_least} so far" if left else "that is enough: the run goes on"
    out.print(Text(f"{found['by']} said {decision}; {more if decision == 'yes' else 'the run ends refused'}", "bold"))


def show(records: tuple[Record, ...], run_id: str, now: datetime) -> list[Text]:
    """What ``relight status`` says of the approvals that are open."""
    parts: list[Text] = []
    for one in asking.open_now(records):
        waited = show_duration((now - datetime.fromisoformat(one.asked_at)).total_seconds())
        parts.append(Text(f"Step {one.step} waits for people since {waited}", "bold yellow"))
        parts += [Text(f"  {line}") for line in asking.lines(one, now)]
        parts.append(Text(f"  answer: relight approve {run_id} --step {one.step} --as NAME   (or --no)"))
    return parts


# ---- an alert whose run waits ----


def _event(event_id: int, answer: Answer, *, as_json: bool) -> None:
    history = known_history()
    entry = history.entry(event_id)
    if answer.decision == "reject":
        eventloop.run(asked.decline(entry, history, answer.by, answer.why))
        if as_json:
            print(json.dumps({"event": event_id, "run_id": None, "declined_by": answer.by}))
        else:
            out.print(f"{answer.by} said no; no run is started for event {event_id}", soft_wrap=True)
        return
    run_id = eventloop.run(asked.approve(entry, history, answer.by, lambda text: out.print(text, soft_wrap=True)))
    if as_json:
        print(json.dumps({"event": event_id, "run_id": run_id, "approved_by": answer.by}))
    else:
        out.print(f"{answer.by} approved; run {run_id}. Look at it: relight status {run_id}", soft_wrap=True)
