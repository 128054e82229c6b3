"""``relight serve``: the supervisor, and Prefect's deployments where a server is set."""

from __future__ import annotations

import os
import signal
import sys
import threading

import typer
from rich.console import Console

from flows.engine import supervisor
from flows.engine.keeping import Kept

app = typer.Typer()
err = Console(stderr=True, highlight=False, markup=False)


def _say(text: str) -> None:
    err.print(text, soft_wrap=True)


@app.command()
def serve() -> None:
    """Resume every run whose engine died, within 2 s, until stopped. With PREFECT_API_URL also offer the flows there.

    A run that dies again and again without getting further is left to people after 5 deaths; `relight pause` holds
    everything. The Prefect server may be down, hang, or come later: runs are supervised all the same, and what it
    missed is shown once it is back.

    Example: `relight serve`, `PREFECT_API_URL=http://127.0.0.1:4200/api relight serve`
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
    try:
        supervisor.Supervisor(supervisor.home(), _say).go(stop)
    finally:
        if prefect is not None:
            prefect.stop()
    _say("stopped; runs that were resumed go on")
