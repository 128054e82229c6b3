"""pg-minor: PostgreSQL's minor version on every server. The steps are in the system's runbook."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from flows.engine import launch
from flows.failover import act
from flows.offers import Offer


class PgMinorOptions(BaseModel):
    """Which servers get the installed minor version, and whether the system changes its site for it."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    switchover: bool = Field(
        default=True,
        description="Off: standbys only; the primary keeps its version. On: then a planned switchover, so that the old"
        " primary gets it too; the system ends on its other site.",
    )
    restart: Literal["outdated", "all"] = Field(
        "outdated", description="all: restart servers that are up to date too, to rehearse it."
    )
    act: Literal["execute", "plan"] = Field(
        "execute", description="plan: show which server runs what, and what would be done; changes nothing."
    )

    def request(self, trigger: str, prefect_flow_run_id: str = "") -> launch.Request:
        """These options as the engine takes them: the runbook's switchover is what it does in mode graceful only."""
        return launch.Request(
            system=self.system,
            runbook="pg-minor",
            mode="graceful" if self.switchover else "forced",
            trigger=trigger,
            vars={"restart": self.restart},
            prefect_flow_run_id=prefect_flow_run_id,
        )


@flow(name="pg-minor", flow_run_name="pg-minor-{options.system}", persist_result=False)
async def pg_minor(options: PgMinorOptions) -> State[Any]:
    """Bring every PostgreSQL server to the minor version that its host has installed, without a lost write.

    Install the new packages on every host first, **without a restart**. Then:

    1. the standbys, one at a time: the next only when the one before streams again;
    2. a planned **switchover** to the other site;
    3. the old primary, as a standby.

    A primary is never restarted, and the system **ends on its other site**; `failback` brings it back. The steps are
    in the system's `pg-minor.yaml`.
    """
    return await act(options.act, options.request("prefect", str(flow_run.id or "")))


OFFERED = (Offer(pg_minor, PgMinorOptions),)
