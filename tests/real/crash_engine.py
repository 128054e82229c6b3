"""An engine that dies: runs (or resumes) a run and is killed by SIGKILL right after its journal's N-th record.

    python crash_engine.py N RUNBOOK MODE [RUN_ID]

Of the system that ``CRASH_SYSTEM`` names, else of the lab. Records of before a resume count too. Exit status: of the
run, or -9.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from flows.engine import eventloop, launch, places


def main() -> None:
    last, book, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    seen = 0

    def record(_record: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    places.set_defaults()
    heard = launch.Listeners(record=record)
    if len(sys.argv) > 4:
        result = eventloop.run(launch.resume(sys.argv[4], heard))
    else:
        system = os.environ.get("CRASH_SYSTEM", "lab")
        result = eventloop.run(launch.run(launch.Request(system, book, mode, trigger="crash"), heard))  # type: ignore[arg-type]
    os._exit(result.exit_code)


main()
