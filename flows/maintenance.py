"""The regular reviews: weekly performance, monthly capacity, quarterly scaling strategy, annual audit."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows import catchup
from flows.offers import Offer
from flows.reviews import render, run
from flows.reviews.finding import TITLES
from tasks.quantities import Duration


class MaintenanceOptions(BaseModel):
    """What to look at, and whether to do what is safe."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    period: Literal["weekly", "monthly", "quarterly", "annual"] = Field(
        "weekly", description="weekly: performance. monthly: capacity. quarterly: scaling strategy. annual: audit."
    )
    apply: bool = Field(
        default=False,
        description="Do the safe fixes (vacuum and analyze where due), only while a maintenance window of the system is"
        " open. Its triggers are held meanwhile; it stops when something is critical.",
    )
    window: Duration | None = Field(None, description="How far to look back, say 24h. Default: by the period.")


@flow(name="maintenance", flow_run_name="{options.period}-review-{options.system}", persist_result=False)
async def maintenance(options: MaintenanceOptions) -> State[Any]:
    """Review a system, as `relight review` does.

    Findings by severity, each with its evidence and the **exact fix**; charts; what changed since the last one of
    its kind. Reads only, unless *apply* is on. The run fails when a finding is critical, so that an automation can
    page.
    """
    made = await run.make(run.Asked(options.period, options.system, options.apply, window_s=options.window))
    name = made.review.system
    await acreate_markdown_artifact(
        render.markdown(made.review),
        key=catchup.artifact_key("review", options.period, name),
        description=f"{TITLES[options.period]} of {name}: {made.review.verdict}",
    )
    await acreate_link_artifact(
        (made.folder / "review.html").as_uri(),
        link_text="the report with its charts, on the machine that wrote it",
        key=catchup.artifact_key("page", options.period, name),
    )
    if made.review.worst == "critical":
        return Failed(name="Critical findings", message=made.review.verdict)
    return Completed(message=made.review.verdict)


OFFERED = (
    Offer(maintenance, MaintenanceOptions, "weekly-performance-review", {"period": "weekly"}, "0 6 * * 1"),
    Offer(maintenance, MaintenanceOptions, "monthly-capacity-planning", {"period": "monthly"}, "0 6 1 * *"),
    Offer(maintenance, MaintenanceOptions, "quarterly-scaling-review", {"period": "quarterly"}, "0 7 2 1,4,7,10 *"),
    Offer(maintenance, MaintenanceOptions, "annual-infrastructure-audit", {"period": "annual"}, "0 7 15 1 *"),
)
