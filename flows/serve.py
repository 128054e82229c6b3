"""Offers the flows as deployments of a Prefect server and runs what is started there."""

from __future__ import annotations

from typing import cast

from prefect import serve as prefect_serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows.drill import DrillOptions, drill
from flows.failover import FailoverOptions, failover


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
