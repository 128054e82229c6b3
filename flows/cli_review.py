"""``relight review``: the four regular reviews of the scaling plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.cli_read import JsonOption, SystemOption
from flows.engine import eventloop
from flows.reviews.finding import TITLES, Kind, Review
from tasks.errors import BadInput
from tasks.quantities import duration

app = typer.Typer()
out = Console(highlight=False, markup=False)
COLOURS = {"critical": "bold red", "warning": "yellow", "unknown": "magenta", "info": "cyan"}


@app.command()
def review(
    kind: Annotated[Kind, typer.Argument(help="Which one.")],
    system_name: SystemOption,
    apply: Annotated[bool, typer.Option("--apply", help="Do the safe fixes, within a maintenance window.")] = False,
    window: Annotated[
        str | None, typer.Option("--window", help="How far to look back, say 24h; default by the kind.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="A folder for a copy of the report.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Review a system: findings by severity with evidence and the exact fix, charts, what changed since the last one.

    weekly: performance. monthly: capacity. quarterly: scaling strategy. annual: infrastructure. Reads only; `--apply`
    vacuums what is due. The report is HTML, Markdown and JSON. Exit 1 when something is critical.

    Example: `relight review weekly --system lab --out /tmp/review`
    """
    from flows.reviews import run  # noqa: PLC0415 - only this command needs its modules, and they are many

    asked = run.Asked(kind, system_name, apply, folder, _seconds(window))
    made = eventloop.run(run.make(asked))
    if as_json:
        print(json.dumps({**made.review.as_json(), "folder": str(made.folder)}, indent=2))
    else:
        _print(made.review, (folder or made.folder) / "review.html")
    if made.review.worst == "critical":
        raise typer.Exit(1)


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else duration(text)
    except ValueError as e:
        raise BadInput(f"--window {text}: {e}") from e


def _print(made: Review, page: Path) -> None:
    out.print(Text(f"{TITLES[made.kind]} of {made.system}: {made.verdict}", "bold"))
    for f in made.findings:
        fresh = Text(" (new)", "bold") if f.key in made.new else Text("")
        out.print(Text.assemble((f"{f.severity:8}", COLOURS[f.severity]), f"  {f.title}", fresh), soft_wrap=True)
        if f.outcome:
            out.print(Text(f"          {f.outcome}", "green" if f.outcome == "done" else "yellow"), soft_wrap=True)
    for gone in made.gone:
        out.print(Text.assemble(("gone    ", "green"), f"  {gone}"), soft_wrap=True)
    if made.applied:
        out.print(Text(made.applied, "bold"), soft_wrap=True)
    out.print(Text(f"the whole of it: {page}", "dim"), soft_wrap=True)
