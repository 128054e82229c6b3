"""Before the worst day: would it work now, and what to do by hand when the engine itself is gone. Changes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.cli_read import FromOption, JsonOption, ModeOption, SystemOption, ToOption, VarOption, read_vars
from flows.engine import eventloop, launch, readiness, readyhistory, roles, system
from flows.engine import export as exporting
from flows.engine.places import runbook_file, system_file, system_folder
from tasks.errors import BadInput

app = typer.Typer()
out = Console(highlight=False, markup=False)
STYLES = {"ok": "green", "warning": "yellow", "unknown": "magenta", "failing": "bold red"}


@app.command()
def ready(
    system_name: SystemOption,
    name: Annotated[
        str | None, typer.Argument(metavar="[RUNBOOK]", help="Only this runbook; default: every one of the system.")
    ] = None,
    mode: ModeOption = "graceful",
    variables: VarOption = None,
    as_json: JsonOption = False,
    history: Annotated[
        bool, typer.Option("--history", help="What was found before, newest last; looks at nothing.")
    ] = False,
) -> None:
    """Observe every step and ask every check against the live system: would it work now? Exit 1 if not, with fixes.

    Example: `relight ready --system lab`, `relight ready failover --system lab --json`
    """
    if history:
        _history(system_name, as_json=as_json)
        return
    if name:
        runbook_file(name, system_folder(system_name))  # a typo is bad input, not a system that is not ready
    found = eventloop.run(readiness.check(system_name, [name] if name else (), mode, read_vars(variables)))
    if as_json:
        print(json.dumps(as_document(found), indent=2, default=str))
    else:
        _show(found)
    if not found.ready:
        raise typer.Exit(1)


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="RUNBOOK", help="A runbook's name, or a path.")],
    system_name: SystemOption,
    mode: ModeOption = "forced",
    leave: FromOption = None,
    to: ToOption = None,
    variables: VarOption = None,
    file: Annotated[Path | None, typer.Option("--out", help="Write it there; default: standard output.")] = None,
) -> None:
    """Write the break-glass runbook: numbered commands with resolved addresses, for when relight itself is gone.

    Example: `relight export failover --system lab --out failover-lab.md`
    """
    request = launch.Request(system_name, name, mode, roles.Wish(leave, to), vars=read_vars(variables))
    text = exporting.markdown(eventloop.run(exporting.export(request)))
    if file is None:
        print(text, end="")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        raise BadInput(f"cannot write {file}: {e.strerror}") from e
    out.print(f"{len(exporting.commands_of(text))} commands in {file}", soft_wrap=True)


def as_document(found: readiness.Readiness) -> dict[str, object]:
    """What ``ready --json`` prints."""
    return {
        "ready": found.ready,
        "reasons": list(found.reasons),
        "trend": found.trend,
        "scores": {s.objective: s.points for s in found.scores},
        "findings": [asdict(f) for f in found.findings],
        "steps": [asdict(r) for r in found.rows],
        "calls": {step: list(whom) for step, whom in found.calls.items()},
    }


def _show(found: readiness.Readiness) -> None:
    steps = [r for r in found.rows if r.against]
    table = Table("", "check", "what", "what to do", show_edge=False, box=None, pad_edge=False)
    order = list(readiness.WORTH)[::-1]
    for row in steps:
        table.add_row("failing", f"{row.runbook} {row.step}", row.says, "", style=STYLES["failing"])
    for f in sorted(found.findings, key=lambda f: order.index(f.level)):
        if f.level != "ok":
            about = " ".join(x for x in (f.component, f.site, f.check) if x)
            table.add_row(f.level, about, f.says, f.fix, style=STYLES[f.level])
    if table.row_count:
        out.print(table)
    well = sum(f.level == "ok" for f in found.findings)
    out.print(f"{len(found.rows)} steps looked at, {well} checks are well", style="dim")
    for score in found.scores:
        out.print(f"{score.objective}: {score.points} of 100", style="green" if score.points >= 50 else "red")
    if found.ready:
        out.print(f"ready ({found.trend})", style="bold green")
        return
    for reason in found.reasons:
        out.print(f"not ready: {reason}", style="red", soft_wrap=True)


def _history(system_name: str, *, as_json: bool) -> None:
    records = readyhistory.read(system.load(system_file(system_name)).system.system)
    if as_json:
        print(json.dumps([asdict(r) for r in records], indent=2))
        return
    before: dict[object, readyhistory.Looked] = {}
    for one in records:
        key = (one.runbooks, one.mode)
        scores = ", ".join(f"{name} {points}" for name, points in one.scores.items())
        state = "ready" if one.ready else f"not ready: {'; '.join(one.reasons)}"
        line = f"{one.at} {','.join(one.runbooks)} ({one.mode}) {readyhistory.trend(before.get(key), one)}: {scores}"
        out.print(f"{line}; {state}", style="green" if one.ready else "red", soft_wrap=True)
        before[key] = one
    if not records:
        out.print("nothing was looked at yet: relight ready --system …")
