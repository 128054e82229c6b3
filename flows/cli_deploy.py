"""``relight deploy``: registers the flows on a Prefect server, with their forms and schedules."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from flows.cli_read import JsonOption
from flows.engine import prefectserver
from tasks.errors import BadInput, RelightError

app = typer.Typer()
out = Console(highlight=False, markup=False)


class NotRegistered(RelightError):
    """Prefect's server did not take the deployments."""


@app.command()
def deploy(
    systems: Annotated[
        list[str] | None,
        typer.Option("--system", "-s", help="Make schedules for these; default: those of ./runbooks."),
    ] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Of the schedules, for example Europe/Berlin; default: UTC.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Register failover, failback, drill, readiness … on the Prefect server: forms, texts, tags, schedules.

    Doing it again changes nothing. What people paused or added in the UI stays as it is; nothing is ever deleted.
    `relight serve` does the same by itself; this is for servers whose runs go to a work pool.

    Example: `relight deploy --system lab --timezone Europe/Berlin`, `relight deploy --dry-run --json`
    """
    url = prefectserver.adopt()
    if not url:
        raise BadInput("no Prefect server: set PREFECT_API_URL, or start relight's own with `relight serve`")
    changes = asyncio.run(_apply(tuple(systems or ()), timezone, write=not dry_run))
    if as_json:
        print(json.dumps({"api": url, "dry_run": dry_run, "deployments": [asdict(c) for c in changes]}, indent=2))
        return
    for change in changes:
        what = f" ({', '.join(change.changed)})" if change.changed else ""
        pool = f", in work pool {change.pool}" if change.pool else ""
        out.print(f"{change.key}: {'would be ' if dry_run else ''}{change.did}{what}{pool}", soft_wrap=True)
    out.print(f"{len(changes)} deployments at {url}", style="green", soft_wrap=True)


async def _apply(systems: tuple[str, ...], timezone: str | None, *, write: bool) -> list:  # type: ignore[type-arg]
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - over a second

    from flows import calls, deployments  # noqa: PLC0415 - as above

    try:
        async with get_client() as client:
            return await deployments.apply(client, systems, timezone, write=write)
    except RelightError:
        raise
    except calls.AWAY as e:
        raise NotRegistered(f"Prefect's server at {prefectserver.adopt()}: {type(e).__name__}: {e}") from e
