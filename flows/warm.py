"""A runner that waits for its one run: a process of its own, started and imported before it is needed.

It reads one request from its standard input and answers as soon as that has begun. Then it is on its own: whatever
becomes of the process that started it, the run goes on, and a run that crashes takes nobody with it. Two kinds of
request: a run of the engine (``handover``), which begins at once and is shown in Prefect beside; and a flow run that
somebody started in Prefect, ``{"flow_run_id": …, "key": "flow/deployment"}``, claimed already.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from flows.engine import flowruns, places, view
from flows.engine.following import EngineThread
from flows.engine.handover import unpack
from tasks import catalog
from tasks.errors import RelightError
from tasks.secrets import redact

LOG = "engine.log"
"""What the run says, in its folder."""


def main() -> None:
    """Import, say that it is ready, wait, run, leave."""
    places.set_defaults()
    catalog.actions()
    for name in catalog.provider_names():
        catalog.provider(name)
    window = _window()
    _answer({"ready": os.getpid()})
    line = sys.stdin.readline()
    if not line:  # whoever started us is gone, and nobody asked for a run
        os._exit(0)
    if line.startswith('{"flow_run_id"'):
        _flow_run(json.loads(line))
    _run(line, window)


def _flow_run(asked: dict[str, str]) -> None:
    from flows import running  # noqa: PLC0415 - imported already, by _window

    with flowruns.hold(asked["flow_run_id"]):
        _answer({"run_id": asked["flow_run_id"]})
        _to_log(flowruns.log_file(asked["flow_run_id"]))
        os.close(1)
        code = running.run(asked["flow_run_id"], asked["key"])
    sys.stderr.flush()
    os._exit(code)


def _run(line: str, window: Callable[[EngineThread], None] | None) -> None:
    try:
        engine = EngineThread(unpack(line))
    except RelightError as e:
        _answer({"error": redact(str(e)), "exit_code": e.exit_code})
        os._exit(e.exit_code)
    signal.signal(signal.SIGTERM, lambda *_: engine.halt())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine.start(view.Progress(Console(file=sys.stderr, highlight=False, markup=False)))
    first = engine.after(0)
    if not first:
        error = engine.result.exception()
        _answer({"error": redact(str(error)), "exit_code": getattr(error, "exit_code", 1)})
        os._exit(1)
    run_id = first[0]["run_id"]
    _to_log(places.state_home() / "runs" / run_id / LOG)
    _answer({"run_id": run_id})
    os.close(1)
    if window is not None:
        window(engine)
    try:
        code = engine.result.result().exit_code
    except RelightError as e:
        sys.stderr.write(redact(str(e)) + "\n")
        code = e.exit_code
    sys.stderr.flush()
    os._exit(code)


def _window() -> Callable[[EngineThread], None] | None:
    if not os.environ.get("PREFECT_API_URL"):
        return None
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # over two seconds, which is what this process waits with beforehand
    from flows import offers, running, window  # noqa: PLC0415

    offers.offered()
    running.warm_up()
    return window.open_beside


def _answer(what: dict[str, object]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _to_log(path: Path) -> None:
    """Standard error goes to the run's own log from now on: nobody may be there to read it."""
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)
    os.close(log)
