"""``relight serve``: the supervisor, and what it keeps up: the receiver, Prefect's server, the flows offered there."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Annotated

import typer
from rich.console import Console

from flows.engine import prefectserver, standby, supervisor
from flows.engine.keeping import Kept
from flows.intake.listening import host_and_port
from tasks.errors import BadInput

app = typer.Typer()
err = Console(stderr=True, highlight=False, markup=False)


def _say(text: str) -> None:
    err.print(text, soft_wrap=True)


ListenOption = Annotated[str, typer.Option("--listen", help="HOST:PORT for alerts (the webhook endpoints).")]


@app.command()
def serve(
    listen: ListenOption = "127.0.0.1:8420",
    receiver: Annotated[bool, typer.Option("--receiver/--no-receiver", help="Take alerts.")] = True,
    systems: Annotated[
        list[str] | None,
        typer.Option("--system", "-s", help="Take alerts and make schedules for these only; default: every one found."),
    ] = None,
    prefect: Annotated[
        bool, typer.Option("--prefect/--no-prefect", help="Offer the flows in Prefect, with its UI.")
    ] = True,
    prefect_port: Annotated[
        int | None,
        typer.Option(
            "--prefect-port", min=1, max=65535, help="Of Prefect's own server; default: the first free from 4200 on."
        ),
    ] = None,
) -> None:
    """Take alerts and start runs by the rules in triggers.yaml; resume every run whose engine died, within 2 s.

    The flows are offered in Prefect: on the server that is configured (PREFECT_API_URL, or Prefect's active profile),
    else on one of its own, which is started here, on SQLite and loopback, and ends with this command.

    A run that dies again and again without getting further is left to people after 5 deaths; `relight pause` holds
    everything. The Prefect server may be down, hang, or come later: runs are supervised all the same, and what it
    missed is shown once it is back.

    Example: `relight serve`, `relight serve --no-prefect`, `PREFECT_API_URL=http://127.0.0.1:4200/api relight serve`
    """
    began = time.time()
    host_and_port(listen)  # here, where it ends the command: the receiver would only be started again and again
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    named = tuple(systems or ())
    kept = _prefect(began, named, prefect_port) if prefect else []
    if not prefect:
        os.environ.pop("PREFECT_API_URL", None)
        _say("--no-prefect: supervising runs only, without offering flows in Prefect")
    if receiver:
        command = [sys.executable, "-P", "-c", f"from flows.intake import service; service.main({listen!r}, {named!r})"]
        kept.append(Kept("the receiver of relight serve", command, _say))
    shared = tuple(str(file) for file in standby.watched(named))
    if shared:
        command = [sys.executable, "-P", "-c", f"from flows.engine import standby; standby.main({shared!r})"]
        kept.append(Kept("the watch over runs of other machines", command, _say))
    for one in kept:
        one.start()
    try:
        supervisor.Supervisor(supervisor.home(), _say).go(stop)
    finally:
        for one in reversed(kept):
            one.stop()
    _say("stopped; runs that were resumed go on")


def _prefect(began: float, systems: tuple[str, ...], port: int | None) -> list[Kept]:
    """What offers the flows, and relight's own server where none is configured. Raises BadInput."""
    kept = []
    url = prefectserver.configured()
    if not url:
        chosen = prefectserver.port_for(port)
        url = prefectserver.url_of(chosen)
        prefectserver.quick(os.environ)
        _say(f"no Prefect API is configured: starting Prefect's own server at {url}, in {prefectserver.home()}")
        log = prefectserver.home() / prefectserver.LOG
        kept.append(Kept(f"Prefect's server (its log: {log})", prefectserver.command(chosen), _say))
    elif port is not None:
        raise BadInput(f"--prefect-port is for relight's own server, and {url} is configured; drop one of them")
    os.environ["PREFECT_API_URL"] = url
    command = [sys.executable, "-P", "-c", f"from flows import serve; serve.main({began!r}, {systems!r})"]
    kept.append(Kept("the Prefect part of relight serve", command, _say))
    return kept
