"""``relight serve``: the supervisor, and Prefect's deployments where a server is set."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Annotated

import typer
from rich.console import Console

from flows.engine import supervisor
from flows.engine.keeping import Kept

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
        list[str] | None, typer.Option("--system", "-s", help="Take alerts for these only; default: every one found.")
    ] = None,
) -> None:
    """Take alerts and start runs by the rules in triggers.yaml; resume every run whose engine died, within 2 s.

    With PREFECT_API_URL it also offers the flows there.

    A run that dies again and again without getting further is left to people after 5 deaths; `relight pause` holds
    everything. The Prefect server may be down, hang, or come later: runs are supervised all the same, and what it
    missed is shown once it is back.

    Example: `relight serve --listen 127.0.0.1:8420`, `PREFECT_API_URL=http://127.0.0.1:4200/api relight serve`
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    prefect: Kept | None = None
    if os.environ.get("PREFECT_API_URL"):
        command = [sys.executable, "-P", "-c", "from flows import serve; serve.main()"]
        prefect = Kept("the Prefect part of relight serve", command, _say)
        prefect.start()
    else:
        _say("PREFECT_API_URL is not set: supervising runs only, without offering flows to a Prefect server")
    intake: Kept | None = None
    if receiver:
        call = f"service.main({listen!r}, {tuple(systems or ())!r})"
        command = [sys.executable, "-P", "-c", f"from flows.intake import service; {call}"]
        intake = Kept("the receiver of relight serve", command, _say)
        intake.start()
    try:
        supervisor.Supervisor(supervisor.home(), _say).go(stop)
    finally:
        for kept in (prefect, intake):
            if kept is not None:
                kept.stop()
    _say("stopped; runs that were resumed go on")
