"""The command line: what acts. (What only reads is in ``cli_read``.) Every error ends here as one line and a code."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import subprocess
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from flows import (
    cli_approve,
    cli_deploy,
    cli_intake,
    cli_metrics,
    cli_prove,
    cli_read,
    cli_ready,
    cli_review,
    cli_rules,
    cli_safety,
    cli_serve,
)
from flows.cli_read import (
    FromOption,
    JsonOption,
    ModeOption,
    RunArgument,
    SystemOption,
    ToOption,
    VarOption,
    read_vars,
    read_waivers,
)
from flows.engine import abort as abort_request
from flows.engine import (
    eventloop,
    gameday,
    launch,
    outlook,
    places,
    prefectserver,
    report,
    roles,
    standby,
    takeover,
    view,
)
from flows.engine import following as tail
from flows.engine.findings import InvalidFiles
from flows.engine.following import EngineThread, follow
from flows.intake import alertdrill
from tasks.errors import BadInput, RelightError
from tasks.secrets import redact

app = typer.Typer(
    name="relight",
    help="Bring a dark site back: plan, run and prove disaster-recovery runbooks.\n\nExample: `relight plan failover"
    " --system lab`, then `relight run failover --system lab`",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit codes: 0 success, 1 failed or an objective missed, 2 bad usage or bad input, 3 refused by a safety"
    " rule.",
)
app.add_typer(cli_read.app)
app.add_typer(cli_prove.app)
app.add_typer(cli_ready.app)
app.add_typer(cli_serve.app)
app.add_typer(cli_safety.app)
app.add_typer(cli_intake.app)
app.add_typer(cli_rules.app)
app.add_typer(cli_approve.app)
app.add_typer(cli_metrics.app)
app.add_typer(cli_review.app)
app.add_typer(cli_deploy.app)


out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)

FULL = frozenset((errno.ENOSPC, errno.EIO, errno.EPIPE, errno.EDQUOT))
"""Of an output: it takes no more."""
UNUSABLE = frozenset((errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT))
"""What people did to a folder or its disk; anything else that goes wrong there is a bug."""
WINDOW_S = 10.0
"""How long to wait, after a run ended, for Prefect to take in the rest."""


def main() -> None:
    """Entry point: the CLI's border, where errors become exit codes."""
    places.set_defaults()
    try:
        app()
    except SystemExit as e:
        _leave(e.code if isinstance(e.code, int) else 0 if e.code is None else 1)
    except InvalidFiles as e:
        for finding in e.findings:
            err.print(redact(str(finding)), style="red", soft_wrap=True)
        _leave(2)
    except RelightError as e:
        err.print(f"relight: {redact(str(e))}", style="red", soft_wrap=True)
        _leave(e.exit_code)
    except KeyboardInterrupt:
        err.print("relight: interrupted", style="red")
        _leave(130)
    except Exception as e:  # noqa: BLE001 - the CLI's border
        told, code = _of_the_machine(e) or (f"a bug: {type(e).__name__}; {_kept(traceback.format_exc())}", 1)
        err.print(f"relight: {told}", style="red", soft_wrap=True)
        _leave(code)


def _of_the_machine(e: Exception) -> tuple[str, int] | None:
    """What to say of an output that takes no more, or of a state folder that is none, and the exit code."""
    if not isinstance(e, OSError):
        return None
    home = places.state_home()
    if e.filename is None and e.errno in FULL:
        what = f"its output, or its state in {home}"
        return f"{what} cannot be written: {e.strerror}. A run that began goes by its journal: relight status", 1
    if isinstance(e.filename, str) and Path(e.filename).is_relative_to(home) and e.errno in UNUSABLE:
        return f"cannot use {e.filename}: {e.strerror}; relight keeps its state in {home}, see RELIGHT_STATE", 2
    return None


def _kept(text: str) -> str:
    """Where the traceback is; itself, where no file can be written."""
    folder = places.state_home() / "crashes"
    file = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(redact(text), encoding="utf-8")
    except OSError as e:
        return f"its traceback cannot be kept in {folder} ({e.strerror}):\n{redact(text)}"
    return f"the traceback is in {file}"


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started us (`>&-`)
            try:
                stream.flush()
            except OSError as e:  # a full disk, or nobody reads any more
                code = code or 1
                with contextlib.suppress(OSError):
                    os.write(2, f"relight: its output cannot be written: {e.strerror}\n".encode())
    # Not sys.exit: a call that hangs in a thread, or Prefect's exit hooks for a server that is gone, would hold the
    # process for minutes. What matters is on disk.
    os._exit(code)


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="RUNBOOK", help="A runbook's name, or a path.")],
    system_name: SystemOption,
    mode: ModeOption = "forced",
    leave: FromOption = None,
    to: ToOption = None,
    waive: Annotated[
        list[str] | None, typer.Option("--waive", help="RULE=who and why, for example loss='J. Doe, ticket 12'.")
    ] = None,
    incident: Annotated[str | None, typer.Option("--incident-started", help="ISO 8601; default: now.")] = None,
    variables: VarOption = None,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="No person asks (cron, a hook): cool-down and velocity cap count.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not use a Prefect server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a runbook for real.

    Example: `relight run failover --system lab`
    """
    wish, waivers = roles.Wish(leave, to), read_waivers(waive)
    request = launch.Request(
        system_name,
        name,
        mode,
        wish,
        waivers,
        _time(incident),
        trigger="cli",
        automatic=automatic,
        vars=read_vars(variables),
    )
    _finish(_follow(request, offline=offline), as_json=as_json)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # the first and last hours of all years are none in UTC
        raise BadInput(f"--incident-started {text!r}: expected ISO 8601, for example 2026-11-23T22:00:00Z") from None
    if found.tzinfo is None:
        raise BadInput(f"--incident-started {text!r} has no time zone; write it with Z or +01:00")
    if found > datetime.now(UTC):
        raise BadInput(f"--incident-started {text!r} is in the future")
    return found


def _follow(request: launch.Request | str, *, offline: bool) -> report.Report:
    """Run (or resume, given a run id) with live progress; in Prefect's window too when a server is configured."""
    window = _window if not offline and prefectserver.adopt() else None
    if window:
        # the terminal shows the run itself; Prefect's own log lines go to its server only
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    engine = EngineThread(request, _ask if err.is_terminal else None)
    result, shown = follow(engine, view.Progress(err), window, WINDOW_S)
    if not shown:
        # Prefect's own exit hooks would wait minutes for a server that hangs; the journal has everything
        err.print("Prefect's server did not take in the whole run in time; the journal has it", soft_wrap=True)
    return result


def _window(engine: EngineThread) -> None:
    from flows import window  # noqa: PLC0415 - Prefect takes over a second to import, while the run goes on

    window.open_beside(engine)


def _ask(step: Any, error: RelightError) -> bool:
    return typer.confirm(f"step {step.id} failed: {error}. Try it again?", err=True)


def _finish(result: report.Report, *, as_json: bool) -> None:
    if as_json:
        print(result.to_json())
    else:
        out.print(view.report_view(result))
    raise typer.Exit(result.exit_code)


@app.command()
def resume(
    run_id: RunArgument = "last",
    offline: Annotated[bool, typer.Option("--offline", help="Do not use a Prefect server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that stopped or died, under its own id. What is true already is passed.

    Example: `relight resume last`
    """
    _finish(_follow(run_id, offline=offline), as_json=as_json)


@app.command("take-over")
def take_over(
    system_name: Annotated[str, typer.Argument(metavar="SYSTEM", help="Its name, or its folder.")],
    lost: Annotated[str, typer.Option("--lost", hidden=True, help="The run that `relight serve` found.")] = "",
    offline: Annotated[bool, typer.Option("--offline", help="Do not use a Prefect server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on here with the last run of a system, whose own machine is lost. `relight serve` does it by itself.

    For systems whose lease is in a shared store, which names the run. Refused while its engine lives. The run gets a
    new id and journal here; sites, waivers and the start of the incident are those of the lost one.

    Example: `relight take-over shop`
    """
    request = eventloop.run(standby.request(system_name, lost=bool(lost)))
    if lost and request.cause[takeover.CAUSE] != lost:
        raise BadInput(f"the last run of {system_name} is {request.cause[takeover.CAUSE]} now, not {lost}")
    _finish(_follow(request, offline=offline), as_json=as_json)


@app.command()
def abort(
    run_id: RunArgument = "last",
    why: Annotated[str, typer.Option("--why", help="Recorded, with who you are.")] = "not said",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be put back.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not use a Prefect server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a run go back: what it did is undone, newest first, as `status` says. Refused behind its point of no return.

    A run whose engine lives is told to; one that died or stopped is taken up for it. Exit code 0: all was put back.

    Example: `relight abort last --dry-run`, `relight abort last --why "false alarm, J. Doe" --yes`
    """
    folder = places.run_folder(run_id)
    ahead = outlook.going_back(folder)
    if dry_run and as_json:
        print(ahead.model_dump_json(indent=2))
    else:
        err.print(view.going_back_view(ahead))
    if dry_run:
        return
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Make run {folder.name} go back?", err=True)):
        raise BadInput("nothing was asked of the run; say --yes where nobody can be asked")
    abort_request.ask(folder, getpass.getuser(), why, datetime.now(UTC))
    result = tail.aborted(folder, view.Progress(err), lambda: _follow(folder.name, offline=offline))
    if as_json:
        print(result.to_json())
    else:
        out.print(view.report_view(result))
    raise typer.Exit(0 if result.verdict == "undone" else result.exit_code or 1)


@app.command()
def drill(
    fault: Annotated[
        str, typer.Option("--fault", help="What to break: see `relight lab fault list`; or none.")
    ] = "kill-primary",
    mode: ModeOption = "forced",
    synchronous: Annotated[bool, typer.Option("--sync/--async", help="The lab's replication.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab running.")] = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Start a Prefect server too and show the run in it.")
    ] = False,
    system_name: Annotated[str, typer.Option("--system", "-s", help="Only the lab can be broken.")] = "lab",
    trigger: Annotated[
        Literal["cli", "alert"], typer.Option("--trigger", help="alert: by Prometheus, Alertmanager and the receiver.")
    ] = "cli",
    offline: Annotated[bool, typer.Option("--offline", help="Do not use a Prefect server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Break the lab under load, recover it, and count what the clients lost.

    Example: `relight drill --fault site-gone`, `relight drill --trigger alert`
    """
    asked = gameday.Drill(
        fault=fault, mode=mode, synchronous=synchronous, keep=keep, prefect=prefect, system=system_name
    )

    def say(text: str) -> None:
        err.print(f"· {text}", style="dim")

    if trigger == "alert":
        if fault == "none" or mode == "graceful" or not synchronous:
            raise BadInput("an alert starts no planned move (none, graceful), and no run that may lose data (--async)")
        result = gameday.drill(asked, alertdrill.followed(view.Progress(err)), say, lambda: alertdrill.receiving(say))
    else:
        result = gameday.drill(asked, lambda request: _follow(request, offline=offline), say)
    _finish(result, as_json=as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def lab(context: typer.Context) -> None:
    """The real two-site system on this machine: up, down, status, fault, heal, load.

    Example: `relight lab up`, `relight lab fault kill-primary`, `relight lab down`
    """
    script = places.data("deployments") / "lab" / "lab.py"
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)


if __name__ == "__main__":  # python -m flows.cli: the same, not nothing and 0
    main()
