"""Readiness: would the runbooks of a system work now? On a schedule, against the live system; changes nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows import catchup
from flows.engine import readiness as engine
from flows.offers import Offer
from tasks.contract import Mode


class ReadinessOptions(BaseModel):
    """What to look at."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    runbooks: list[str] = Field(
        default_factory=list, description="Names of runbooks in that folder. None: every runbook there is."
    )
    mode: Mode = Field("graceful", description="As which kind of move the steps are observed.")


@flow(name="readiness", flow_run_name="readiness-{options.system}", persist_result=False)
async def readiness(options: ReadinessOptions) -> State[Any]:
    """Would the runbooks of a system work now?

    Observes **every step of every runbook** against the live system and changes nothing, as `relight ready` does. The
    first table says of each step what is so now, the second what every check found and what to do about it, with a
    score for each objective. The run fails, with the reasons, when a runbook would not work: a step that cannot be
    observed, an entry check that does not hold, a loss above the objective, a check that fails.
    """
    found = await engine.check(options.system, options.runbooks, options.mode)
    key = catchup.artifact_key("steps", "readiness", found.system.rstrip("/").rpartition("/")[2])
    rows = [asdict(row) for row in found.rows]
    scores = ", ".join(f"{s.objective} {s.points} of 100" for s in found.scores)
    said = "\n".join(found.reasons) or "ready"
    await acreate_table_artifact(rows, key=key, description=said)
    checks = [asdict(f) for f in found.findings]
    await acreate_table_artifact(checks, key=f"{key}-checks", description=f"{scores} ({found.trend})\n\n{said}")
    if found.ready:
        return Completed(message=f"ready: {len(found.rows)} steps were looked at")
    return Failed(name="Not ready", message="; ".join(found.reasons))


OFFERED = (Offer(readiness, ReadinessOptions, cron="*/30 * * * *"),)
