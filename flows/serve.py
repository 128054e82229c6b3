"""The part of ``relight serve`` that needs Prefect: offers the flows and runs what is started there.

A process of its own, started and kept up by the supervisor: whatever Prefect does, the supervisor goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import cast

from prefect import serve as prefect_serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows.drill import DrillOptions, drill
from flows.engine import places
from flows.failover import FailoverOptions, failover


def main() -> None:
    """Offer until stopped, or until the supervisor is gone."""
    threading.Thread(target=_end_with_the_supervisor, name="relight-orphan", daemon=True).start()
    places.set_defaults()
    serve()


def _end_with_the_supervisor() -> None:
    # Its end of our standard input closes when it dies, however it dies. The runs that we started go on: killed, a
    # runner of Prefect does not take its flow runs down, as it does when it ends in good order.
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def serve() -> None:
    """Register failover and drill, then run until stopped. The deployments stay when this process ends."""
    offered = (
        failover.to_deployment(
            "failover",
            description="Move a system to its other site. See the runbook for the steps.",
            parameters={"options": FailoverOptions().model_dump()},
            tags=["relight"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
        drill.to_deployment(
            "drill",
            description="Break the lab on this machine under load, recover it, and count what the clients lost.",
            parameters={"options": DrillOptions().model_dump()},
            tags=["relight"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
    )
    # outside an event loop these are deployments, not coroutines (prefect's async_dispatch)
    prefect_serve(*(cast("RunnerDeployment", one) for one in offered), pause_on_shutdown=False)
