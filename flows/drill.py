"""Game day: break the lab under load, recover it, count what the clients lost. By hand, from the Prefect UI."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows import window
from flows.engine import gameday, launch, report
from flows.engine.following import EngineThread
from flows.offers import Offer


class DrillOptions(BaseModel):
    """What to break, and how to recover."""

    model_config = ConfigDict(extra="forbid")

    fault: Literal["kill-primary", "hang-primary", "site-gone", "none"] = Field(
        "kill-primary", description="What is broken under load; none for a planned switchover."
    )
    mode: Literal["forced", "graceful"] = Field("forced", description="graceful goes with fault none.")
    synchronous: bool = Field(default=True, description="Synchronous replication: no acknowledged write may be lost.")
    approvals: int = Field(0, ge=0, le=20, description="How many people must say yes; 0: nobody is asked.")
    keep: bool = Field(default=False, description="Leave the lab running afterwards, to look around.")


@flow(name="drill", flow_run_name="drill-{options.fault}", persist_result=False)
async def drill(options: DrillOptions) -> State[Any]:
    """Bring up the two-site lab on this machine, break it under load, run the failover, show what was lost."""
    logger = get_run_logger()
    loop = asyncio.get_running_loop()

    def follow(request: launch.Request) -> report.Report:
        shown: Future[report.Report] = asyncio.run_coroutine_threadsafe(
            window.show(EngineThread(request).start()), loop
        )
        return shown.result()

    asked = gameday.Drill(
        fault=options.fault,
        mode=options.mode,
        synchronous=options.synchronous,
        keep=options.keep,
        approvals=options.approvals,
    )
    result = await asyncio.to_thread(gameday.drill, asked, follow, logger.info)
    await window.artifacts(result)
    return Completed(message=result.verdict) if result.exit_code == 0 else Failed(message=result.reason)


OFFERED = (Offer(drill, DrillOptions),)
