"""Schema changes in two phases: rehearsed on a copy of the real data first, then applied to the primary."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tenacity.stop import stop_base

from tasks.capacity.protocol import Capacity
from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, SiteParam, Undoable
from tasks.database._proof import look, streams, the_primary
from tasks.database.protocol import Database
from tasks.deploy.protocol import Releases
from tasks.errors import BadInput, NotYet, Rejected, SafetyRefusal
from tasks.migrations.protocol import Applied, File, Limits, Migrations, Target
from tasks.quantities import Duration

MIB = 2**20
WAIVER = "old-release"


class _Migrating(Action):
    """What both actions share."""

    phase_of: Literal["expand", "contract"] = Field(alias="phase", description="expand: only adds; contract: the rest.")
    big: int = Field(default=64, ge=0, description="MiB from which a table is big.")
    lock_timeout: Duration = Field(default=1.0, gt=0, description="How long a lock is waited for; all queue meanwhile.")
    statement_timeout: Duration = Field(default=30.0, gt=0, description="Of each statement that is in a transaction.")
    build_timeout: Duration = Field(default=3600.0, gt=0, description="Of one that runs CONCURRENTLY.")
    component: Annotated[str, ComponentParam("migrations")] = "migrations"

    def _limits(self) -> Limits:
        return Limits(self.lock_timeout, self.statement_timeout, self.build_timeout)

    async def _found(self, ctx: Context) -> tuple[str, str, tuple[File, ...]]:
        """The primary, its system identifier, and the files that are still to be applied.

        Raises BadInput where files and record do not fit, SafetyRefusal where it is not one database.
        """
        kept = ctx.component(self.component, Migrations)
        views = await look(ctx.component(kept.database(), Database))
        primary = the_primary(views)
        identity = primary.system_identifier or ""
        strangers = [n for n, v in views.items() if v.system_identifier not in (None, primary.system_identifier)]
        if not identity or strangers:
            raise SafetyRefusal(
                f"{primary.node} has system identifier {identity or 'unknown'}, and {', '.join(strangers) or 'nobody'}"
                " another one: these are not the same database. Nothing was applied."
            )
        return primary.node, identity, pending(kept.files(), await kept.applied(primary.node), self.phase_of)


def pending(files: tuple[File, ...], applied: tuple[Applied, ...], phase: str) -> tuple[File, ...]:
    """Pure. Files of ``phase`` that are not applied, in order. Raises BadInput where files and record do not fit."""
    known = {(f.number, f.phase): f for f in files}
    done = {(a.number, a.phase): a for a in applied if a.state == "applied"}
    for a in applied:
        file = known.get((a.number, a.phase))
        if file is None:
            raise BadInput(
                f"{a.number:04d}_{a.title}.{a.phase}.sql was applied at {a.at}, and its file is gone. Put it back: the"
                " folder is the history of the schema."
            )
        if file.sha256 != a.sha256 and a.state == "applied":
            raise BadInput(
                f"{file.name} was changed after it was applied at {a.at} (sha256 {a.sha256[:12]}… then,"
                f" {file.sha256[:12]}… now). Put it back as it was, and make the change in a new file."
            )
    left = tuple(f for f in files if f.phase == phase and (f.number, f.phase) not in done)
    newest = max((n for n, p in done if p == phase), default=0)
    if behind := [f.name for f in left if f.number < newest]:
        raise BadInput(f"{', '.join(behind)} came after {newest:04d} was applied; give it a number above {newest:04d}")
    if phase == "contract" and left:
        open_ = [f.name for f in files if f.phase == "expand" and f.number <= left[-1].number]
        open_ = [f.name for f in files if f.name in open_ and (f.number, "expand") not in done]
        if open_:
            raise BadInput(f"{left[-1].name} comes after {', '.join(open_)}, which is not applied yet")
    return left


@action("migrations.rehearse")
class Rehearse(_Migrating):
    """The pending files of a phase went well on a copy of the real data, in bounds; the copy is gone again."""

    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()] = Field(default="target", description="Whose replica is copied, if one streams.")
    most_blocked: Duration = Field(default=1.0, gt=0, description="How long writes of a table may wait for a file.")

    async def observe(self, ctx: Context) -> Observation:
        node, identity, files = await self._found(ctx)
        kept = ctx.component(self.component, Migrations)
        risks = await kept.risks(node, files, self.big * MIB)
        if risks:
            raise SafetyRefusal(
                "; ".join(str(r) for r in risks) + ". Nothing was applied. Write it another way, or let the file say"
                f" so: -- relight: accept {risks[0].rule}: why it is well here",
                risks=[str(r) for r in risks],
            )
        facts: Facts = {"primary": node, "system_identifier": identity, "pending": [f.name for f in files]}
        if not files:
            return Observation(holds=True, summary=f"no {self.phase_of} file is pending", facts=facts)
        changes = tuple(f"try {f.name} on a copy that is removed afterwards" for f in files)
        return Observation(holds=False, summary=f"{len(files)} to rehearse", changes=changes, facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        node, _, files = await self._found(ctx)
        kept = ctx.component(self.component, Migrations)
        views = await look(ctx.component(kept.database(), Database))
        near = [n for n, v in views.items() if v.site == ctx.site(self.site) and streams(v, views[node])]
        found = await kept.rehearse(next(iter(near), node), files, self._limits(), ctx.report)
        if wrong := self._wrong(files, found):
            raise SafetyRefusal("on a copy of the real data: " + "; ".join(wrong) + ". Nothing was applied.", **found)
        return found

    def _wrong(self, files: tuple[File, ...], found: Facts) -> list[str]:
        accepted, wrong = {f.name: f.accepted for f in files}, []
        for m in found["measured"]:
            for table, size in m["rewritten"].items():
                if size >= self.big * MIB and not {"rewrite", "change-type"} & set(accepted[m["file"]]):
                    wrong.append(f"{m['file']} rewrote {table} ({size / MIB:.1f} MiB); accept it by name: rewrite")
            for table, lock in m["locks"].items():
                if lock["held_s"] > self.most_blocked and "long-lock" not in accepted[m["file"]]:
                    wrong.append(
                        f"{m['file']} held {lock['mode']} on {table} for {lock['held_s']:.2f} s,"
                        f" {self.most_blocked:g} s are allowed; accept it by name: long-lock"
                    )
        return wrong

    async def confirm(self, ctx: Context) -> Observation:
        """The copy is gone: no folder of it is left."""
        left = ctx.component(self.component, Migrations).left_behind()
        return Observation(holds=not left, summary=f"rehearsed; left behind: {', '.join(left) or 'nothing'}")


@action("migrations.apply")
class Apply(_Migrating, Undoable):
    """Every file of the phase is applied to the primary and recorded there: each wholly or not at all.

    Applies only what an earlier step rehearsed, byte for byte. A contract is refused while an application server of
    another release than ``release`` runs. Undo takes back what this run applied, where each has a down file.
    """

    after: ClassVar[tuple[str, ...]] = ("migrations.rehearse",)

    tries: int = Field(default=5, ge=1, le=100, description="How often a lock is tried for, with pauses between.")
    pause: Duration = Field(default=2.0, gt=0, description="The first pause; doubles, at random, up to 30 s.")
    release: str = Field(default="", description="contract: what every application server must run.")
    old_releases: Literal["refuse", "allow"] = "refuse"
    releases: Annotated[str, ComponentParam("deploy")] = "releases"
    capacity: Annotated[str, ComponentParam("capacity")] = "capacity"

    @model_validator(mode="after")
    def _release_known(self) -> Apply:
        if self.phase_of == "contract" and not self.release and self.old_releases == "refuse":
            raise ValueError("a contract needs release: what every application server must run; or old_releases: allow")
        return self

    async def observe(self, ctx: Context) -> Observation:
        node, identity, files = await self._found(ctx)
        facts: Facts = {
            "primary": node,
            "system_identifier": identity,
            "pending": [f.name for f in files],
            "applied": [f"{a.number:04d} {a.phase} {a.state}" for a in await self._kept(ctx).applied(node)],
        }
        if not files:
            said = f"every {self.phase_of} file is applied at {node}"
            return Observation(holds=True, summary=said, facts=facts)
        changes = tuple(f"apply {f.name} to {node}" for f in files)
        said = f"{len(files)} {self.phase_of} file{'s' if len(files) > 1 else ''} not applied at {node}"
        return Observation(holds=False, summary=said, changes=changes, facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts:
        node, identity, files = await self._found(ctx)
        if (node, identity) != (observation.facts["primary"], observation.facts["system_identifier"]):
            raise SafetyRefusal(
                f"the primary is {node} ({identity}) now and was {observation.facts['primary']} when it was looked at;"
                " nothing was applied. Start again when the move is over."
            )
        self._rehearsed(ctx, files)
        if self.phase_of == "contract":
            await self._no_old_release(ctx)
        tried: dict[str, int] = {}
        for file in files:
            tried[file.name] = await self._tried(ctx, Target(node, identity, ctx.run.run_id), file)
        return {"tries": tried, "run": ctx.run.run_id}

    def _rehearsed(self, ctx: Context, files: tuple[File, ...]) -> None:
        known: dict[str, str] = {}
        for facts in ctx.facts_of("migrations.rehearse"):
            known |= facts.get("rehearsed") or {}
        if strange := [f.name for f in files if known.get(f.name) != f.sha256]:
            raise SafetyRefusal(
                f"{', '.join(strange)} was not rehearsed as it is now; nothing was applied. Start a new run."
            )

    async def _no_old_release(self, ctx: Context) -> None:
        waived = ctx.run.waivers.get(WAIVER)
        if self.old_releases == "allow" or waived:
            return
        releases, capacity = ctx.component(self.releases, Releases), ctx.component(self.capacity, Capacity)
        old: dict[str, Any] = {}
        for site in sorted(set(ctx.roles.values())):
            for one in await capacity.instances(site):
                version = (await releases.ask(one.address)).version if one.running else self.release
                if version != self.release:
                    old[one.name] = version
        if old:
            told = ", ".join(f"{n} runs {v or 'nobody knows what'}" for n, v in old.items())
            raise SafetyRefusal(
                f"{told}, and this contract is for release {self.release}: what it takes away may still be used."
                f" Nothing was applied. Finish the update, or say who answers for it: --waive {WAIVER}='who, why'",
                servers=old,
            )

    async def _tried(self, ctx: Context, to: Target, file: File) -> int:
        """Until the lock is had; how often it was tried for. Between two tries those who queued go through."""
        number = 0
        async for attempt in AsyncRetrying(
            sleep=ctx.clock.sleep,
            stop=_Stop(ctx, self.tries, self.lock_timeout),
            wait=wait_random_exponential(multiplier=self.pause, max=30),
            retry=retry_if_exception_type(NotYet),
            reraise=True,
        ):
            with attempt:
                number = attempt.retry_state.attempt_number
                ctx.report(f"{file.name} to {to.node}" + (f", try {number} of {self.tries}" if number > 1 else ""))
                ctx.guard()
                await self._kept(ctx).apply(to, file, self._limits())
        return number

    async def confirm(self, ctx: Context) -> Observation:
        """The record, read back on a connection of its own; a replica's, where one streams, is only told."""
        return await self.observe(ctx)

    async def undo(self, ctx: Context, evidence: Facts) -> None:
        kept = self._kept(ctx)
        views = await look(ctx.component(kept.database(), Database))
        primary = the_primary(views)
        if primary.system_identifier != evidence["system_identifier"]:
            raise SafetyRefusal(f"{primary.node} is another database than the one that was changed")
        mine = {(a.number, a.phase) for a in await kept.applied(primary.node) if a.run == ctx.run.run_id}
        files = [f for f in reversed(kept.files()) if (f.number, f.phase) in mine]
        for file in files:
            if file.down is None:
                raise Rejected(
                    f"{file.name} has no down file, so it stays applied"
                    + ("; a release that knows nothing of it still works" if file.phase == "expand" else "")
                )
            ctx.guard()
            target = Target(primary.node, str(evidence["system_identifier"]), ctx.run.run_id)
            await kept.apply(target, file, self._limits(), back=True)

    def _kept(self, ctx: Context) -> Migrations:
        return ctx.component(self.component, Migrations)


class _Stop(stop_base):
    """After so many tries, or where the next one would not end before the attempt does."""

    def __init__(self, ctx: Context, tries: int, lock_s: float) -> None:
        self._ctx, self._tries, self._lock_s = ctx, stop_after_attempt(tries), lock_s

    def __call__(self, retry_state: Any) -> bool:
        needs_s = retry_state.upcoming_sleep + self._lock_s + 0.5
        return self._tries(retry_state) or self._ctx.left_s() <= needs_s
