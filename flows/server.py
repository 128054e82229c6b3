"""Prefect's own server on SQLite, for those who have none: a process that ``relight serve`` keeps up.

Gone when the supervisor is, however that ended; the database outlives both (SQLite in WAL mode survives a kill).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from flows.engine import alive, prefectserver

LOOK_S = 0.5
LOG_BYTES = 10 << 20


def main(port: int) -> None:
    """Serve on ``port`` until the supervisor is gone. Stands by while another one serves this folder."""
    threading.Thread(target=_end_with_the_supervisor, name="relight-orphan", daemon=True).start()
    folder = prefectserver.home()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pause = threading.Event()
    while True:
        with alive.sole(folder, prefectserver.LOCK) as mine:
            if mine:
                _serve(folder, port)
                return
        pause.wait(LOOK_S)


def _serve(folder: Path, port: int) -> None:
    (folder / prefectserver.FILE).unlink(missing_ok=True)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(prefectserver.settings(folder, port))
    _to_log(folder / prefectserver.LOG)
    prefectserver.prepare(folder)
    # only now: Prefect reads its settings when it is imported
    import uvicorn  # noqa: PLC0415
    from prefect.server.api.server import create_app  # noqa: PLC0415

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                prefectserver.note(folder, port)

    app = create_app(final=True)  # type: ignore[no-untyped-call, unused-ignore]
    Server(uvicorn.Config(app, host=prefectserver.HOST, port=port, log_level="warning", timeout_keep_alive=5)).run()


def _to_log(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    if path.exists() and path.stat().st_size > LOG_BYTES:
        flags |= os.O_TRUNC
    log = os.open(path, flags, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end_with_the_supervisor() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)
