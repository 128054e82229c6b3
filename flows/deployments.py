"""Makes the deployments on a Prefect server what the flows offer, and says what changed. Twice changes nothing more.

Deletes nothing, and leaves alone what people decide on the server: deployments of others, pauses of deployments and
schedules, schedules that were added there, the work pool, and time zones unless one is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule

from flows import calls, offers
from flows.offers import Wanted


@dataclass(frozen=True)
class Change:
    """What was, or would be, done to one deployment.

    Attributes:
        key: ``flow/deployment``. did: changed: the parts that differed, schedules as ``schedule SLUG``.
        id: empty where it is not there yet. pool: the work pool it is in; its runs are for that pool's workers.
    """

    key: str
    did: str
    changed: tuple[str, ...] = ()
    id: str = ""
    pool: str = ""


async def apply(
    client: PrefectClient, systems: tuple[str, ...] = (), timezone: str | None = None, *, write: bool = True
) -> list[Change]:
    """Register everything that is offered; without ``write`` only say what would change.

    Raises BadInput for a system or time zone that is none, and what Prefect's client raises.
    """
    found = offers.systems_for(systems)
    wanted = [offers.wanted(offer, found) for offer in offers.offered()]
    for want in wanted:  # all are checked before any is written
        for cron, _, _ in want.schedules.values():
            offers.schedule_of(cron, timezone)
    return [await _one(client, want, timezone, write=write) for want in wanted]


async def _one(client: PrefectClient, want: Wanted, timezone: str | None, *, write: bool) -> Change:
    there = await calls.deployment(client, want.flow, want.name)
    if there is None:
        made = str(await _create(client, want, timezone)) if write else ""
        return Change(want.key, "created", tuple(f"schedule {slug}" for slug in want.schedules), made)
    differs = _differs(want, there)
    if differs and write:
        await client.update_deployment(there.id, DeploymentUpdate(**{name: _fields(want)[name] for name in differs}))
    slugs = await _schedules(client, want, there, timezone, write=write)
    changed = (*differs, *slugs)
    pool = there.work_pool_name or ""
    return Change(want.key, "changed" if changed else "unchanged", changed, str(there.id), pool)


def _fields(want: Wanted) -> dict[str, Any]:
    return {
        "description": want.description,
        "tags": list(want.tags),
        "parameters": want.parameters,
        "entrypoint": want.entrypoint,
        "version": want.version,
        "parameter_openapi_schema": want.parameter_schema,
        "enforce_parameter_schema": True,
    }


def _differs(want: Wanted, there: DeploymentResponse) -> tuple[str, ...]:
    return tuple(name for name, value in _fields(want).items() if _plain(getattr(there, name)) != value)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_unset=True) if hasattr(value, "model_dump") else value


async def _create(client: PrefectClient, want: Wanted, timezone: str | None) -> UUID:
    flow_id = await client.create_flow_from_name(want.flow)
    schedules = [
        DeploymentScheduleCreate(
            schedule=offers.schedule_of(cron, timezone), active=active, parameters=parameters, slug=slug
        )
        for slug, (cron, parameters, active) in want.schedules.items()
    ]
    return await client.create_deployment(flow_id=flow_id, name=want.name, schedules=schedules, **_fields(want))


async def _schedules(
    client: PrefectClient, want: Wanted, there: DeploymentResponse, timezone: str | None, *, write: bool
) -> tuple[str, ...]:
    by_slug = {one.slug: one for one in there.schedules if one.slug}
    changed = []
    for slug, (cron, parameters, active) in want.schedules.items():
        known = by_slug.get(slug)
        if known is None:
            changed.append(f"schedule {slug}")
            if write:
                new = DeploymentScheduleCreate(
                    schedule=offers.schedule_of(cron, timezone), active=active, parameters=parameters, slug=slug
                )
                await client.create_deployment_schedules(there.id, [new])
        elif not _same(known, cron, parameters, timezone):
            changed.append(f"schedule {slug}")
            if write:
                zone = timezone or getattr(known.schedule, "timezone", None)
                schedule = offers.schedule_of(cron, zone)
                await client.update_deployment_schedule(there.id, known.id, schedule=schedule, parameters=parameters)
    return tuple(changed)


def _same(known: DeploymentSchedule, cron: str, parameters: dict[str, Any], timezone: str | None) -> bool:
    schedule = known.schedule
    if not isinstance(schedule, CronSchedule) or schedule.cron != cron or known.parameters != parameters:
        return False
    return timezone is None or (schedule.timezone or "UTC") == timezone
