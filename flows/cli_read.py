"""The half of the command line that only reads: files, live systems, journals. Changes nothing anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flows.cli_approve import show as open_approvals
from flows.engine import (
    alive,
    asking,
    eventloop,
    journal,
    launch,
    notify,
    outlook,
    places,
    preview,
    readygate,
    report,
    roles,
    safety,
    supervisor,
    view,
)
from flows.engine import validate as validation
from flows.engine.findings import InvalidFiles
from flows.engine.state import FINISHED, RunState, fold
from flows.intake import rules
from tasks import catalog
from tasks.contract import Mode, Undoable
from tasks.errors import BadInput, RelightError
from tasks.secrets import redact

app = typer.Typer()
journal_app = typer.Typer(
    help="Look at a run's journal.\n\nExample: `relight journal verify last`", no_args_is_help=True
)
app.add_typer(journal_app, name="journal")

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)

SystemOption = Annotated[str, typer.Option("--system", "-s", help="A system's name (a folder of runbooks) or path.")]
ModeOption = Annotated[Mode, typer.Option("--mode", help="forced: the site failed; graceful: a planned move.")]
FromOption = Annotated[str | None, typer.Option("--from", help="The site to leave, if it cannot be told.")]
ToOption = Annotated[str | None, typer.Option("--to", help="The site to go to, where there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
VarOption = Annotated[
    list[str] | None, typer.Option("--var", help="NAME=VALUE: another value of one of the runbook's vars.")
]
RunArgument = Annotated[str, typer.Argument(help="A run id, or `last`.")]


def read_vars(asked: list[str] | None) -> dict[str, str]:
    """``--var NAME=VALUE`` as given. Raises BadInput."""
    found: dict[str, str] = {}
    for one in asked or []:
        name, equals, value = one.partition("=")
        if not name or not equals:
            raise BadInput(f"--var {one!r}: expected NAME=VALUE, for example approvals=1")
        found[name] = value
    return found


WAIVERS = ("loss", "fence", safety.WAIVER, "safety-rules", readygate.WAIVER)
"""Rules that a person may waive by name."""


def read_waivers(asked: list[str] | None) -> dict[str, str]:
    """``--waive RULE=WHO AND WHY`` as given. Raises BadInput."""
    found: dict[str, str] = {}
    for one in asked or []:
        rule, _, why = one.partition("=")
        if rule not in WAIVERS or not why.strip():
            raise BadInput(f"--waive {one!r}: expected RULE=who and why, with RULE one of {', '.join(WAIVERS)}")
        found[rule] = why.strip()
    return found


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


@app.command()
def validate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders; default: ./runbooks.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check system and runbook files; print every finding, not the first.

    Example: `relight validate runbooks/lab`
    """
    asked = paths or [Path("runbooks") if Path("runbooks").is_dir() else places.data("runbooks")]
    findings, files = validation.validate_paths(asked, {rules.FILE: rules.check})
    errors = sum(f.severity == "error" for f in findings)
    if as_json:
        _print_json({"files": files, "errors": errors, "findings": [f.model_dump() for f in findings]})
    else:
        for finding in findings:
            out.print(str(finding), style="red" if finding.severity == "error" else "yellow", soft_wrap=True)
        warnings = len(findings) - errors
        out.print(f"{len(files)} files: {errors} errors, {warnings} warnings", style="red" if errors else "green")
    if errors:
        raise typer.Exit(2)


@app.command()
def plan(
    name: Annotated[str, typer.Argument(metavar="RUNBOOK", help="A runbook's name, or a path.")],
    system_name: SystemOption,
    mode: ModeOption = "forced",
    leave: FromOption = None,
    to: ToOption = None,
    variables: VarOption = None,
    as_json: JsonOption = False,
) -> None:
    """Observe every step against the live system and say what would be done. Changes nothing.

    Example: `relight plan failover --system lab`
    """
    request = launch.Request(system_name, name, mode, roles.Wish(leave, to), vars=read_vars(variables))
    ready, found, previews = eventloop.run(preview.observe(request))
    if as_json:
        _print_json(plan_json(ready, found, previews))
        return
    for warning in ready.warnings:
        err.print(str(warning), style="yellow", soft_wrap=True)
    by_name = found.by_name
    title = f"{name} of {system_name} ({mode}): {by_name['failed']} → {by_name['target']}; nothing was changed"
    out.print(view.plan_view(title, previews, ready.plan.worst_end_s))


def plan_json(ready: launch.Ready, found: roles.Roles, previews: list[preview.Preview]) -> dict[str, Any]:
    """What ``plan --json`` prints."""
    return {
        "runbook": ready.plan.runbook,
        "system": ready.plan.system,
        "mode": ready.plan.mode,
        "digest": ready.plan.digest,
        "roles": dict(found.by_name),
        "roles_evidence": found.evidence,
        "point_of_no_return": ready.plan.point_of_no_return,
        "objectives": {
            s.restores: {
                "rto_s": ready.rto_s.get(s.restores),
                "worst_case_s": round(ready.plan.worst_end_s[s.id], 3),
                "critical_path": ready.plan.critical_path(s.id),
            }
            for s in ready.plan.steps
            if s.restores
        },
        "warnings": [w.model_dump() for w in ready.warnings],
        "steps": [
            {
                **p.step.describe(),
                **_seen_json(p),
                "worst_end_s": round(ready.plan.worst_end_s[p.step.id], 3),
            }
            for p in previews
        ],
    }


@app.command()
def status(
    run_id: RunArgument = "last",
    observe: Annotated[
        bool | None,
        typer.Option("--observe/--no-observe", help="Look at the live system; default: unless the run is over."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a run stands: what was done, what is true now, what remains, what an abort would put back, and when it
    will be over at worst.

    Example: `relight status last`, `relight status last --no-observe --json`
    """
    folder = places.run_folder(run_id)
    records = journal.read(folder / "journal.jsonl").records
    result, ahead = report.build(folder / "journal.jsonl"), outlook.of(records, datetime.now(UTC))
    lives, state = alive.alive(folder), fold(records)
    look = state.ended not in FINISHED if observe is None else observe
    if as_json:
        now, why = _now(records, state) if look else ([], "not looked at")
        seen = {"engine_alive": lives, "now": [_seen_json(p) for p in now], "now_unknown": why}
        seen["notifications"] = notify.sent(folder)
        seen["approvals"] = [asdict(a) for a in asking.open_now(records)]
        _print_json({**json.loads(result.to_json()), **seen, "outlook": ahead.model_dump()})
        return
    out.print(view.report_view(result))
    if state.ended is None:
        out.print(Text(_engine(folder, lives=lives), "bold"))
    for line in open_approvals(records, folder.name, datetime.now(UTC)):
        out.print(line, soft_wrap=True)
    out.print(view.outlook_view(result, ahead))
    for one in notify.sent(folder):
        if not one["ok"]:
            out.print(f"not told: {one['event']} to {one['to']}: {one['why']}", style="yellow", soft_wrap=True)
    if look:
        out.print(view.now_view(*_now(records, state)))


def _now(records: tuple[journal.Record, ...], state: RunState) -> tuple[list[preview.Preview], str]:
    """What is true now, or why that cannot be told: a status must answer whatever is broken."""
    head = next(journal.of_type(records, "run_started"), None)
    if head is None:
        return [], "the run never began"
    try:
        return eventloop.run(preview.observe_run(head, state)), ""
    except (RelightError, InvalidFiles) as e:
        return [], redact(str(e))


def _engine(folder: Path, *, lives: bool) -> str:
    if lives:
        return "Its engine lives."
    care = supervisor.care_of(folder)
    if care.gave_up:
        return f"No engine has it, and the supervisor left it to people: {care.gave_up}"
    return "No engine has it. Where `relight serve` runs, it is resumed by itself within 2 s."


def _seen_json(p: preview.Preview) -> dict[str, Any]:
    return {
        "id": p.step.id,
        "holds": p.seen.holds if p.seen else None,
        "now": p.seen.summary if p.seen else None,
        "changes": list(p.seen.changes) if p.seen else [],
        "facts": p.seen.facts if p.seen else {},
        "error": str(p.error) if p.error else None,
    }


@app.command(name="report")
def show_report(
    run_id: RunArgument = "last",
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Print the report of a run, computed from its journal.

    Example: `relight report last --markdown > report.md`
    """
    result = report.build(places.run_folder(run_id) / "journal.jsonl")
    if as_json:
        print(result.to_json())
    elif as_markdown:
        print(report.markdown(result))
    else:
        out.print(view.report_view(result))


@app.command()
def actions(as_json: JsonOption = False) -> None:
    """List every action with its parameters.

    Example: `relight actions --json`
    """
    listed = [
        {
            "action": name,
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
            "phase": cls.phase.value,
            "read_only": cls.read_only,
            "irreversible": cls.irreversible,
            "reversible": issubclass(cls, Undoable),
            "parameters": ", ".join(sorted(f.alias or n for n, f in cls.model_fields.items())),
        }
        for name, cls in catalog.actions().items()
    ]
    if as_json:
        _print_json(listed)
        return
    for one in listed:
        out.print(Text.assemble((str(one["action"]), "bold"), f"  {one['summary']}  ", (str(one["parameters"]), "dim")))


@journal_app.command()
def verify(run_id: RunArgument = "last", as_json: JsonOption = False) -> None:
    """Check the hash chain of a run's journal.

    Example: `relight journal verify last`
    """
    path = places.run_folder(run_id) / "journal.jsonl"
    found = journal.read(path)
    if as_json:
        _print_json(
            {"path": str(path), "records": len(found.records), "head_sha256": found.head, "torn_bytes": len(found.torn)}
        )
    else:
        torn = f"; a torn last line of {len(found.torn)} bytes" if found.torn else ""
        out.print(f"{path}: {len(found.records)} records, chain holds, last {found.head}{torn}", soft_wrap=True)
