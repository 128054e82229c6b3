"""Update: a new release of the application on every server, one at a time. The steps are in the system's runbook."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from flows.engine import launch
from flows.failover import act
from flows.offers import Offer


class UpdateOptions(BaseModel):
    """What to update, and to which release."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    version: str = Field("2", min_length=1, description="The release to go to; it must be there already.")
    act: Literal["execute", "plan"] = Field(
        "execute", description="plan: observe every step and show what would be done; changes nothing."
    )

    def request(self, trigger: str, prefect_flow_run_id: str = "") -> launch.Request:
        """These options as the engine takes them."""
        return launch.Request(
            system=self.system,
            runbook="update",
            mode="graceful",
            trigger=trigger,
            vars={"version": self.version},
            prefect_flow_run_id=prefect_flow_run_id,
        )


@flow(name="update", flow_run_name="update-{options.system}-{options.version}", persist_result=False)
async def update(options: UpdateOptions) -> State[Any]:
    """Bring a release to every application server, without a lost request.

    Staging first where the system has it, with a load test; then the standby site; then one **canary** on the active
    site, compared with the servers beside it; then the whole active site, and more servers where a threshold is
    crossed. Each server is drained, restarted, proven and only then used again. Whatever fails, at any stage, every
    server **goes back by itself** to the release that it ran before, and the run ends as failed with the time that
    took. The steps are in the system's `update.yaml`.
    """
    return await act(options.act, options.request("prefect", str(flow_run.id or "")))


OFFERED = (Offer(update, UpdateOptions),)
