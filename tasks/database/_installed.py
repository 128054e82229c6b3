"""A minor update of the servers of a site, one standby at a time: what runs is what is installed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam
from tasks.database._proof import look, streams, the_primary, told
from tasks.database.protocol import Database
from tasks.errors import NotYet, RelightError, SafetyRefusal, Unreachable
from tasks.waiting import until


@dataclass(frozen=True)
class Version:
    """``running``: as the server says; ``installed``: what a start would run; ``replaced``: the running program's file
    is not the one that is installed, whatever their versions say.
    """

    running: str
    installed: str
    started: datetime
    replaced: bool

    @property
    def current(self) -> bool:
        return self.running == self.installed and not self.replaced


@runtime_checkable
class Installed(Protocol):
    """Servers whose programs are installed on a host that can be asked."""

    async def version(self, node: str) -> Version:
        """Raises Unreachable, Rejected."""
        ...

    async def restart_standby(self, node: str) -> None:
        """Stop and start it, and return when it streams again. Raises SafetyRefusal for a primary, NotYet, Rejected."""
        ...


@action("database.run_installed")
class RunInstalled(Action):
    """Every replica of the site runs the version that is installed on its host, and streams; a primary is left alone.

    One at a time: the next is stopped only when the one before streams again and says its new version. Where it is
    the synchronous standby, commits wait for as long as it is away.
    """

    site: Annotated[str, SiteParam()]
    restart: Literal["outdated", "all"] = Field(
        default="outdated", description="all: also those that run what is installed, if started before this run began."
    )
    component: Annotated[str, ComponentParam("database")] = "database"

    async def observe(self, ctx: Context) -> Observation:
        database, installed = ctx.component(self.component, Database), ctx.component(self.component, Installed)
        views = await look(database)
        primary = the_primary(views)
        nodes = [n for n in database.nodes(ctx.site(self.site)) if n != primary.node]
        since = datetime.fromisoformat(ctx.run.incident_started_at)
        found, old = dict[str, Facts](), list[str]()
        for node in nodes:
            try:
                v = await installed.version(node)
            except Unreachable as e:
                found[node] = {"error": e.message}
                old.append(node)
                continue
            found[node] = {"running": v.running, "installed": v.installed, "started": v.started.isoformat()}
            found[node] |= {"replaced": v.replaced}
            again = self.restart == "all" and v.started <= since
            if not v.current or again or not streams(views[node], primary):
                old.append(node)
        names = [f"{n} {f.get('running') or 'does not answer'}" for n, f in found.items()]
        left = f"; {primary.node} is the primary and left alone" if primary.site == ctx.site(self.site) else ""
        changes = tuple(f"restart {n}: {found[n].get('running')} → {found[n].get('installed')}" for n in old)
        facts: Facts = {"primary": primary.node, "versions": found, "old": old}
        summary = ("; ".join(names) or "no replica there") + left
        return Observation(holds=not old, summary=summary, changes=changes, facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        database, installed = ctx.component(self.component, Database), ctx.component(self.component, Installed)
        restarted: dict[str, Facts] = {}
        for node in observation.facts["old"]:
            primary = the_primary(await look(database))
            if node == primary.node:
                raise SafetyRefusal(f"{node} became the primary meanwhile; it is not restarted. Look again.")
            ctx.report(f"restarting {node}")
            ctx.guard()
            began = ctx.clock.monotonic()
            await installed.restart_standby(node)
            await until(ctx, lambda n=node, p=primary.node: self._back(ctx, n, p))  # type: ignore[misc]
            restarted[node] = {"away_s": round(ctx.clock.monotonic() - began, 3)}
        return {"restarted": restarted, "before": observation.facts["versions"]}

    async def _back(self, ctx: Context, node: str, primary: str) -> None:
        views = await look(ctx.component(self.component, Database))
        if not streams(views[node], views[primary]):
            raise NotYet(told(views[node]))
        v = await ctx.component(self.component, Installed).version(node)
        if not v.current:
            raise RelightError(
                f"{node} was restarted and runs {v.running}, but {v.installed} is installed: its start command runs"
                " another program. No other node was touched."
            )

    async def confirm(self, ctx: Context) -> Observation:
        return await self.observe(ctx)
