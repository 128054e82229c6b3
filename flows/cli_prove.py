"""``relight prove``: the runbook against a simulated world in which everything goes wrong."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flows.cli_read import JsonOption, SystemOption, read_vars, read_waivers
from flows.engine import prove as proving
from flows.engine import schedule as schedules
from flows.engine.report import seconds
from flows.engine.simulate import Story
from tasks.contract import Mode

app = typer.Typer()
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)

MODES: dict[str, tuple[Mode, ...]] = {"all": ("forced", "graceful"), "forced": ("forced",), "graceful": ("graceful",)}


@app.command()
def prove(
    name: Annotated[str, typer.Argument(metavar="RUNBOOK", help="A runbook's name, or a path.")],
    system_name: SystemOption,
    mode: Annotated[str, typer.Option("--mode", help="forced, graceful or all.")] = "all",
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", help="What is broken; default: all that the runbook is for.")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Play every n-th fault; crashes always all.")] = 1,
    depth: Annotated[int, typer.Option("--depth", min=0, help="Schedules of 2 to 4 deviations to draw a case.")] = 200,
    most: Annotated[
        int,
        typer.Option("--most", min=0, help="At most so many faults a case, evenly of all, crashes too. 0: no limit."),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws and the jitter.")] = 1,
    replay: Annotated[str | None, typer.Option("--replay", help="Play one schedule, for example kill@37.")] = None,
    variables: Annotated[
        list[str] | None, typer.Option("--var", help="NAME=VALUE of the runbook's vars, for this proof.")
    ] = None,
    waive: Annotated[
        list[str] | None, typer.Option("--waive", help="RULE=who and why, as `relight run` takes it.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes.")] = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:
    """Prove a runbook: every crash point, fault, second engine and return of the dead site, in a simulated world.

    Exit 1 when an invariant was broken; each comes with the shortest schedule that breaks it.

    Example: `relight prove failover --system lab`,
    `relight prove failover -s lab --mode forced --scenario hang-primary --replay 'kill@37'`
    """
    if mode not in MODES:
        raise typer.BadParameter(f"expected forced, graceful or all, got {mode!r}", param_hint="--mode")
    question = proving.Question(
        system_name,
        name,
        MODES[mode],
        tuple(scenario or ()),
        every,
        depth,
        seed,
        tuple(read_vars(variables).items()),
        tuple(read_waivers(waive).items()),
        most,
    )
    if replay is not None:
        _, story = proving.replay(question, schedules.parse(replay))
        _show_story(story, as_json=as_json)
        raise typer.Exit(1 if story.violations else 0)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"proving {name}", total=None)
        proof = proving.prove(question, jobs, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        print(json.dumps(proof_json(proof), indent=2))
    else:
        _show(proof)
    raise typer.Exit(0 if proof.holds else 1)


def proof_json(proof: proving.Proof) -> dict[str, Any]:
    """What ``prove --json`` prints."""
    return {
        "runbook": proof.question.runbook,
        "system": proof.question.system,
        "seed": proof.question.seed,
        "holds": proof.holds,
        "schedules": proof.tally.explored,
        "crash_points": proof.tally.crashes,
        "seconds": round(proof.seconds, 1),
        "cases": proof.cases,
        "passed_over": proof.passed_over,
        "verdicts": dict(proof.tally.verdicts),
        "two_writers_accepted": proof.tally.accepted,
        "violations": [asdict(v) for v in proof.tally.violations.values()],
        "worst_rto": {component: asdict(w) for component, w in proof.tally.worst.items()},
    }


def _show(proof: proving.Proof) -> None:
    tally = proof.tally
    for case, why in proof.passed_over.items():
        out.print(f"passed over: {case}: {why}", style="dim", soft_wrap=True)
    for case, events in proof.cases.items():
        out.print(f"explored: {case} ({events} events when nothing goes wrong)")
    counts = ", ".join(f"{n} {verdict}" for verdict, n in tally.verdicts.most_common())
    out.print(f"{tally.explored} schedules ({tally.crashes} with a crash) in {seconds(proof.seconds)}: {counts}")
    table = Table(title="Worst recovery", title_justify="left")
    for head in ("component", "seen", "in", "longest step", "by time-outs", "bounded by"):
        table.add_column(head)
    for component, w in tally.worst.items():
        where = f"{w.scenario} {w.schedule or 'nothing else'}"
        table.add_row(component, seconds(w.seen_s), where, w.step, seconds(w.bound_s), w.bound_step)
    out.print(table)
    for v in tally.violations.values():
        out.print(f"VIOLATION {v.invariant}", style="bold red", soft_wrap=True)
        out.print(f"  {v.times} schedules; shortest: {'; '.join(v.where) or 'nothing goes wrong'}", soft_wrap=True)
        given = "".join(f" --waive {rule}={shlex.quote(why)}" for rule, why in proof.question.waivers)
        again = f"--mode {v.mode} --scenario {v.scenario} --seed {v.seed} --replay '{v.schedule}'{given}"
        out.print(f"  again: relight prove {proof.question.runbook} -s {proof.question.system} {again}", soft_wrap=True)
    if tally.accepted:
        said = "what the waiver of the fence accepts: two nodes took writes, or might have"
        out.print(f"{said}, in {tally.accepted} schedules", style="yellow", soft_wrap=True)
    if proof.holds:
        out.print("no invariant was broken", style="bold green")


def _show_story(story: Story, *, as_json: bool) -> None:
    happened = [f"{kind} at event {event.at}: {event.what}" for kind, event in story.happened]
    if as_json:
        found: dict[str, Any] = {"verdicts": story.verdicts, "violations": story.violations, "accepted": story.accepted}
        found |= {"happened": happened, "end": story.end}
        print(json.dumps({**found, "events": [f"{e.at} {e.kind} {e.what}" for e in story.trace]}, indent=2))
        return
    for event in story.trace:
        out.print(f"{event.at:>5} {event.kind:<7} {event.what}", style="dim", soft_wrap=True)
    for line in happened:
        out.print(line, style="yellow", soft_wrap=True)
    out.print(f"verdicts: {', '.join(story.verdicts)}", soft_wrap=True)
    for what in story.accepted:
        out.print(f"accepted by the waiver of the fence: {what}", style="yellow", soft_wrap=True)
    for violation in story.violations:
        out.print(f"VIOLATION {violation}", style="bold red", soft_wrap=True)
    if not story.violations:
        out.print("no invariant was broken", style="bold green")
