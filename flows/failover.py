"""Failover: move a system from its failed site to the target site. The steps are in the system's runbook."""

from __future__ import annotations

import json
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows import window
from flows.engine import launch, preview
from flows.engine.roles import Wish


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

    @classmethod
    def of(cls, request: launch.Request) -> FailoverOptions:
        """The options that a request of the command line stands for."""
        return cls(
            system=request.system,
            runbook=request.runbook,
            mode=request.mode,
            leave=request.wish.leave or "",
            to=request.wish.to or "",
            waive_loss=request.waivers.get("loss", ""),
        )

    def request(self, trigger: str) -> launch.Request:
        """These options as the engine takes them."""
        return launch.Request(
            system=self.system,
            runbook=self.runbook,
            mode=self.mode,
            wish=Wish(self.leave or None, self.to or None),
            waivers={"loss": self.waive_loss} if self.waive_loss else {},
            trigger=trigger,
        )


@flow(name="failover", flow_run_name="{options.runbook}-{options.system}", persist_result=False)
async def failover(options: FailoverOptions) -> State[Any]:
    """Move a system from its failed site to the target site.

    Detects, fences, promotes, redirects traffic, scales up replacements, verifies, updates DNS: the steps of the
    system's `failover.yaml`, each a task run here. The engine does not wait for this window: with the Prefect server
    gone the run goes on, and its journal is complete.
    """
    request = options.request(trigger="prefect")
    if options.act == "plan":
        return await _plan(request)
    result = await window.show(window.engine_for(request))
    message = f"{result.verdict}: {result.reason}" if result.reason else result.verdict
    if result.exit_code == 0:
        return Completed(message=message)
    return Failed(name=result.verdict.replace("_", " ").capitalize(), message=message)


async def _plan(request: launch.Request) -> State[Any]:
    ready, roles, previews = await preview.observe(request)
    lines = [f"- **{p.step.id}** ({p.step.action.name}): {p.seen.summary if p.seen else p.error}" for p in previews]
    text = "\n".join((f"# Plan of {request.runbook}", json.dumps(dict(roles.by_name)), *lines, "Nothing was changed."))
    await acreate_markdown_artifact(text, key=f"{ready.plan.runbook}-{ready.plan.system}-plan")
    return Completed(message="planned; nothing was changed")
