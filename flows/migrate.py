"""Migrate: changes of the database's schema, each first on a copy. The steps are in the system's runbook."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.engine import launch
from flows.failover import act
from flows.offers import Offer
from tasks.migrations.actions import WAIVER


class MigrateOptions(BaseModel):
    """Which phase of the migrations, and, for a contract, which release needs nothing of what it takes away."""

    model_config = ConfigDict(extra="forbid")

    system: str = Field("lab", description="Name of the system (a folder of runbooks with a system.yaml).")
    phase: Literal["expand", "contract"] = Field(
        "expand", description="expand: only adds; before an update. contract: takes away what is left; after it."
    )
    release: str = Field("", description="contract: the release that every application server must run by now.")
    act: Literal["execute", "plan"] = Field(
        "execute", description="plan: show what is pending and what would be refused; changes nothing."
    )
    waive_old_release: str = Field(
        "",
        description="contract: go on although a server runs another release: your name and why. It is recorded in the"
        " journal and the report.",
    )

    @model_validator(mode="after")
    def _release_said(self) -> MigrateOptions:
        if self.phase == "contract" and not self.release:
            raise ValueError("a contract needs release: what every application server must run by now, say 2")
        return self

    def request(self, trigger: str, prefect_flow_run_id: str = "") -> launch.Request:
        """These options as the engine takes them."""
        return launch.Request(
            system=self.system,
            runbook="migrate",
            mode="graceful",
            trigger=trigger,
            vars={"phase": self.phase} | ({"release": self.release} if self.release else {}),
            waivers={WAIVER: self.waive_old_release} if self.waive_old_release else {},
            prefect_flow_run_id=prefect_flow_run_id,
        )


@flow(name="migrate", flow_run_name="migrate-{options.system}-{options.phase}", persist_result=False)
async def migrate(options: MigrateOptions) -> State[Any]:
    """Apply the pending migrations of one phase, each first on a copy of the real data.

    **expand** before an update: it only adds, so that the release that runs and the next one both work. **contract**
    after it: refused while a server of another release than `release` runs.

    A file is applied wholly or not at all. Who waits for its lock waits a second at most: a lock that is not had is
    given up and tried for again, and in the end the run **fails and says who holds it**, with the file's part of the
    database as it was. The steps are in the system's `migrate.yaml`.
    """
    return await act(options.act, options.request("prefect", str(flow_run.id or "")))


OFFERED = (Offer(migrate, MigrateOptions),)
