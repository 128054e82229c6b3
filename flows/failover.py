"""Failover: move a system from its failed site to the target site. The steps are in the system's runbook."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows import catchup, window
from flows.engine import launch, preview
from flows.engine.roles import Wish
from flows.offers import Offer


class FailoverOptions(BaseModel):
    """What to move, and how. Leave the sites empty to let relight find out which one failed."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    runbook: str = Field("failover", description="Name of the runbook in that folder.")
    act: Literal["execute", "plan"] = Field(
        "execute", description="plan: observe every step and show what would be done; changes nothing."
    )
    mode: Literal["forced", "graceful"] = Field(
        "forced", description="forced: the site failed. graceful: a planned switchover that loses nothing."
    )
    leave: str = Field("", description="The site to leave, if it cannot be told from what is observed.")
    to: str = Field("", description="The site to go to, where there are several.")
    waive_loss: str = Field(
        "", description="Accept a loss above the RPO: your name and why. It is recorded in the journal and the report."
    )

    approvals: int = Field(
        0, ge=0, le=20, description="How many people must say yes before anything is cut off. 0: as the runbook says."
    )

    @classmethod
    def of_head(cls, head: dict[str, Any]) -> FailoverOptions:
        """The options that a run was started with, from the first record of its journal."""
        return cls(
            system=head["files"]["system"],
            runbook=head["files"]["runbook"],
            mode=head["mode"],
            leave=head["roles"].get("failed", ""),
            to=head["roles"].get("target", ""),
            waive_loss=head["waivers"].get("loss", ""),
            approvals=int(head.get("vars", {}).get("approvals", 0)),
        )

    def request(self, trigger: str, prefect_flow_run_id: str = "") -> launch.Request:
        """These options as the engine takes them."""
        return launch.Request(
            system=self.system,
            runbook=self.runbook,
            mode=self.mode,
            wish=Wish(self.leave or None, self.to or None),
            waivers={"loss": self.waive_loss} if self.waive_loss else {},
            trigger=trigger,
            vars={"approvals": str(self.approvals)} if self.approvals else {},
            prefect_flow_run_id=prefect_flow_run_id,
        )


@flow(name="failover", flow_run_name="{options.runbook}-{options.system}", persist_result=False)
async def failover(options: FailoverOptions) -> State[Any]:
    """Move a system from its failed site to the target site.

    Detects, fences, promotes, redirects traffic, scales up replacements, verifies, updates DNS: the steps of the
    system's `failover.yaml`, each a task run here. The engine does not wait for this window: with the Prefect server
    gone the run goes on, and its journal is complete. Tried again after a crash, it goes on with the run that it had
    started, under the same run id.
    """
    return await act(options.act, options.request("prefect", str(flow_run.id or "")))


async def act(how: Literal["execute", "plan"], request: launch.Request) -> State[Any]:
    """Inside a flow: what its option ``act`` says. The plan as an artifact; or the run, to its end."""
    if how == "plan":
        return await plan(request)
    return catchup.final_state(await window.run(request))


async def plan(request: launch.Request) -> State[Any]:
    """Inside a flow: what every step would do, as an artifact. Changes nothing."""
    ready, roles, previews = await preview.observe(request)
    title = (
        f"Plan of {ready.plan.runbook} of {ready.plan.system}, {roles.by_name['failed']} → {roles.by_name['target']}"
    )
    key = catchup.artifact_key("plan", ready.plan.runbook, ready.plan.system)
    text = f"# {title} ({request.mode})\n\n{preview.markdown(previews)}\n\nNothing was changed."
    await acreate_markdown_artifact(text, key=key, description=f"{title}. Nothing was changed.")
    get_run_logger().info("the plan is on the tab Artifacts; nothing was changed")
    return Completed(message="planned; nothing was changed")


OFFERED = (Offer(failover, FailoverOptions),)
