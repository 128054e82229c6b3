"""The command line's look at metrics, and the system file's conditions as other tools' rules."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import cli_intake
from flows.cli_read import JsonOption, SystemOption
from flows.engine import alertrules, costs, drillcosts, evaluation, eventloop, places, report, roles, runcost, system
from flows.engine.evaluation import Judged
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem
from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.cost.protocol import Cost
from tasks.errors import BadInput, SafetyRefusal
from tasks.metrics.prometheus import Prometheus, PrometheusSettings
from tasks.quantities import duration, show_duration

app = typer.Typer()
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)
COLOURS = {"ok": "green", "info": "cyan", "warning": "yellow", "critical": "bold red", "unknown": "magenta"}


def _load(name: str) -> LoadedSystem:
    places.set_defaults()
    return system.load(places.system_file(name))


@app.command()
def metrics(
    system_name: SystemOption,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for a warning and for an unknown too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the conditions of the system file now: ok, warning, critical or unknown, with the evidence.

    Exit 1 when something is critical. What is not measured, too old or no number is unknown, never fine.

    Example: `relight metrics --system lab`
    """
    judged = eventloop.run(_evaluated(_load(system_name)))
    found = evaluation.worst(judged)
    if as_json:
        print(json.dumps({"system": system_name, "outcome": found, "metrics": [j.as_json() for j in judged]}, indent=2))
    else:
        out.print(_table(judged))
        for text in dict.fromkeys(f"{j.metric.name}: {j.why}" for j in judged if j.outcome == "unknown"):
            out.print(Text(f"unknown {text}", "magenta"), soft_wrap=True)
        out.print(Text(f"all in all: {found}", COLOURS[found]))
    if found == "critical" or (strict and found != "ok"):
        raise typer.Exit(1)


async def _evaluated(loaded: LoadedSystem) -> tuple[Judged, ...]:
    components = Components(loaded, LoopClock())
    try:
        return await evaluation.evaluate(loaded, components)
    finally:
        await asyncio.shield(components.aclose())


def _table(judged: tuple[Judged, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "site", "value", "age", "outcome", "conditions"):
        table.add_column(name, justify="right" if name in ("value", "age") else "left", no_wrap=name != "conditions")
    for j in judged:
        r = j.reading
        value = "?" if r.value is None else shown(r.value, j.metric.unit)
        age = "" if r.age_s is None else show_duration(r.age_s)
        rules = ", ".join(x.text.removeprefix(j.metric.name).strip() + f" {x.severity}" for x in j.rules)
        outcome = Text(j.outcome, COLOURS[j.outcome])
        table.add_row(j.metric.name, r.site or "all", value, age, outcome, Text(rules or "watched only", "dim"))
    return table


def shown(value: float, unit: str) -> str:
    """A value with its unit, as people read it."""
    if unit == "s":
        return show_duration(value) if value >= 0.001 else f"{value * 1000:.2g}ms"
    if unit == "B/s":
        for name in ("B/s", "kB/s", "MB/s", "GB/s"):
            if abs(value) < 1000 or name == "GB/s":
                return f"{value:.3g} {name}"
            value /= 1000
    if unit == "USD/d":
        return f"{value:,.2f} USD/d"
    return f"{value:.1f}%" if unit == "%" else f"{value:g}"


@app.command()
def cost(
    system_name: SystemOption,
    standby: Annotated[
        str | None, typer.Option("--standby", help="The site that stands by; default: found out.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=2, max=365, help="How far to look back.")] = 28,
    run_id: Annotated[
        str | None, typer.Option("--run", help="A run id, or `last`: what this run or drill cost, instead.")
    ] = None,
    drills: Annotated[bool, typer.Option("--drills", help="What each drill cost, instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what the system costs by component, what its standby buys, and what must not be on spot; or what a run cost.

    A run's cost comes from `cost_monitoring.prices` of the system file; what has no price is unknown.

    Exit 1 when a finding is critical. Each call of AWS's Cost Explorer costs 0.01 USD; --run and --drills call nobody.

    Example: `relight cost --system shop --standby south`, `relight cost --system lab --drills`
    """
    if drills and run_id is not None:
        raise BadInput("--drills is of every drill and --run of one run; say one of them")
    if drills:
        _drill_costs(_load(system_name), as_json=as_json)
        return
    if run_id is not None:
        _run_cost(_load(system_name), run_id, as_json=as_json)
        return
    made = eventloop.run(_costs(_load(system_name), standby, days))
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        _print_cost(made)
    if any(f.severity == "critical" for f in made.findings):
        raise typer.Exit(1)


def _run_cost(loaded: LoadedSystem, run_id: str, *, as_json: bool) -> None:
    result = report.build(places.run_folder(run_id) / "journal.jsonl")
    if result.system != loaded.system.system:
        raise BadInput(f"run {result.run_id} is of {result.system}, not of {loaded.system.system}")
    costs_of = loaded.system.cost_monitoring
    made = runcost.cost_of(result, costs_of.prices if costs_of else None).as_json()
    if as_json:
        print(json.dumps({"run_id": result.run_id, "runbook": result.runbook, **made}, indent=2))
    else:
        out.print("\n".join(report.cost_lines(made)[3:]), soft_wrap=True)


def _drill_costs(loaded: LoadedSystem, *, as_json: bool) -> None:
    costs_of = loaded.system.cost_monitoring
    made = drillcosts.listed(loaded.system.system, costs_of.prices if costs_of else None)
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
        return
    if made.drills:
        table = Table(box=None, pad_edge=False)
        for name in ("began", "run", "runbook", "by", "verdict", "USD", "USD/h until ended"):
            table.add_column(name, justify="right" if name[0] == "U" else "left", no_wrap=name != "run")
        for d in made.drills:
            usd = "unknown" if d.cost["usd"] is None else f"{d.cost['usd']:.4f}"
            more = f"{d.goes_on_usd_h:.4f}" if d.goes_on_usd_h else ""
            table.add_row(d.started_at[:16].replace("T", " "), d.run_id, d.runbook, d.trigger, d.verdict, usd, more)
        out.print(table)
    for run, why in made.unread.items():
        out.print(Text(f"unknown  the journal of run {run} was not read: {why}", COLOURS["unknown"]), soft_wrap=True)
    total = f"{made.known_usd:.4f} USD" if made.usd is not None else f"unknown, {made.known_usd:.4f} USD of it known"
    count = f"{len(made.drills)} drill{'' if len(made.drills) == 1 else 's'}"
    out.print(Text(f"{count} in this state folder; in all: {total}", "bold"), soft_wrap=True)
    for why in dict.fromkeys(x["why"] for d in made.drills for x in d.cost["lines"] if x["usd"] is None):
        out.print(Text(f"unknown because {why}", COLOURS["unknown"]), soft_wrap=True)


async def _costs(loaded: LoadedSystem, standby: str | None, days: int) -> costs.CostReport:
    components = Components(loaded, LoopClock())
    try:
        found = components.of(Cost)
        if not found:
            raise BadInput(f"system {loaded.system.system} has no cost component; add one, say cost.cost_explorer")
        if standby is not None and standby not in loaded.system.sites:
            raise BadInput(f"no site {standby!r}; there are {', '.join(loaded.system.sites)}")
        site = standby or await _standing_by(loaded, components)
        return await costs.report(loaded.system, found[0][1], site, days)
    finally:
        await asyncio.shield(components.aclose())


async def _standing_by(loaded: LoadedSystem, components: Components) -> str:
    try:
        return (await roles.resolve(loaded.system, components, roles.Wish())).by_name["target"]
    except (BadInput, SafetyRefusal) as e:
        raise BadInput(f"which site stands by cannot be told; say --standby SITE ({e})") from e


def _print_cost(made: costs.CostReport) -> None:
    if made.day is not None:
        state = "estimated" if made.estimated else "final"
        out.print(
            Text(f"{made.system} cost {made.usd:,.2f} USD on {made.day} ({state}); standby: {made.standby}", "bold")
        )
    table = Table(box=None, pad_edge=False)
    for name in ("site", "component", "USD that day", "mean before"):
        table.add_column(name, justify="right" if name[0] in "Um" else "left", no_wrap=True)
    for r in made.rows:
        mean = "" if r.mean_usd is None else f"{r.mean_usd:,.2f}"
        table.add_row(r.site, r.component or "(no tag)", f"{r.usd:,.2f}", mean)
    out.print(table)
    for f in made.findings:
        out.print(Text.assemble((f.severity, COLOURS[f.severity]), f"  {f.title}"), soft_wrap=True)
        out.print(Text(f"  {f.evidence}{f'. {f.fix}' if f.fix else ''}", "dim"), soft_wrap=True)


@cli_intake.rules_app.command()
def export(
    system_name: SystemOption,
    form: Annotated[Literal["prometheus", "cloudwatch"], typer.Option("--format", help="Whose rules.")] = "prometheus",
    file: Annotated[Path | None, typer.Option("--out", help="Write to this file; default: print.")] = None,
    hold: Annotated[str, typer.Option("--for", help="How long a condition must be true.")] = "1m",
    every: Annotated[str, typer.Option("--every", help="How often it is looked at.")] = "15s",
    apply: Annotated[bool, typer.Option("--apply", help="cloudwatch: create or update the alarms.")] = False,
) -> None:
    """Render the conditions of the system file as Prometheus alerting rules or CloudWatch alarms.

    Example: `relight rules export --system lab --format prometheus --out relight.rules.yaml`
    """
    loaded = _load(system_name)
    hold_s, every_s = seconds_of("--for", hold), seconds_of("--every", every)
    if not every_s:
        raise BadInput(f"--every {every!r}: expected more than 0s")
    if apply and form != "cloudwatch":
        raise BadInput("--apply is for cloudwatch; Prometheus reads a file: give --out, and reload it")
    if form == "prometheus":
        made = eventloop.run(_prometheus(loaded, hold_s, every_s))
        text, left_out = made.text, made.left_out
    else:
        text, left_out = eventloop.run(_cloudwatch(loaded, hold_s, apply=apply))
    for line in alertrules.listed(left_out):
        err.print(line, style="yellow", soft_wrap=True)
    if file is None:
        print(text, end="")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        raise BadInput(f"cannot write {file}: {e.strerror}") from e


def seconds_of(option: str, text: str) -> float:
    """A duration as given to an option. Raises BadInput."""
    try:
        return duration(text)
    except ValueError as e:
        raise BadInput(f"{option} {text!r}: {e}") from None


async def _prometheus(loaded: LoadedSystem, hold_s: float, every_s: float) -> alertrules.Exported:
    """By the system's own queries, or the default ones where it has no Prometheus."""
    clock = LoopClock()
    found = Components(loaded, clock).of(Prometheus)
    around = Surroundings(loaded.system.system, "prometheus", tuple(loaded.system.sites), clock, lambda name: name)
    source: Prometheus = found[0][1] if found else Prometheus(PrometheusSettings(url="http://localhost"), around)
    return alertrules.prometheus(loaded.system, source, hold_s, every_s)


async def _cloudwatch(loaded: LoadedSystem, hold_s: float, *, apply: bool) -> tuple[str, dict[str, str]]:
    from flows.engine import alarms  # noqa: PLC0415 - boto3 takes its time, and only this needs it

    components = Components(loaded, LoopClock())
    try:
        result: Any = await alarms.export(loaded.system, components, hold_s, apply=apply)
        return result.text, dict(result.left_out)
    finally:
        await asyncio.shield(components.aclose())
