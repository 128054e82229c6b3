"""People decide: N of M, by name, on figures, within a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.database.actions import Promote
from tasks.errors import BadInput, MissingSecret, NotApproved, RelightError, SafetyRefusal
from tasks.health.actions import ConfirmFailure
from tasks.people._tally import Question, Tally, tally
from tasks.people.protocol import Directory
from tasks.quantities import show_duration

__all__ = ["Approve"]

LOOK_S = 0.2
"""How often it is looked whether somebody answered."""
TELL_S = 5.0
ESTIMATE_S = 3.0
"""How long people wait for the estimate of the loss before they are asked without it."""
RESERVED_S = 5.0
"""Of the step's time-out, at the end: for looking at the failure again. At most a fifth of it."""


@action("people.approve")
class Approve(Action):
    """Enough people said yes, by name, after they were shown what would be lost and how much time is left.

    Changes nothing of the system. One no, or too few answers in time, is NotApproved: the run ends refused. What was
    approved is a failure that was seen before people were asked; where ``failed`` names its site, it is looked at again
    after their answer, since it may be over.
    """

    phase: ClassVar[Phase] = Phase.APPROVE
    read_only: ClassVar[bool] = True

    at_least: int = Field(default=1, ge=0, le=20, description="How many different people; 0: nobody is asked.")
    who: tuple[str, ...] = Field(
        default=(), description="Names or groups of the directory; none: everybody whom it names as approver."
    )
    on_timeout: Literal["refuse"] = Field(default="refuse", description="Silence is never a yes.")
    people: Annotated[str, ComponentParam("people")] = "people"
    database: Annotated[str | None, ComponentParam("database")] = Field(
        default=None, description="Whose loss is estimated and shown before the decision."
    )
    site: Annotated[str, SiteParam()] = Field(default="target", description="Where its primary would be.")
    failed: Annotated[str | None, SiteParam()] = Field(
        default=None, description="The site whose failure is confirmed again after the answer, in a forced run."
    )

    def least_timeout_s(self) -> float:
        return 2.0 if self.at_least else 0.0

    def most_s(self) -> float | None:
        return None if self.at_least else 0.0

    async def observe(self, ctx: Context) -> Observation:
        """Raises NotApproved after a no, BadInput where too few people could answer at all."""
        if not self.at_least:
            return Observation(holds=True, summary="nobody is asked (at_least: 0)", facts={"asked": 0})
        directory = ctx.component(self.people, Directory)
        may = self._may(directory)
        if not directory.vouches_for_ui():
            await self._able(directory, may)
        return self._seen(await self._heard(ctx, directory, may), may)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        directory = ctx.component(self.people, Directory)
        may = self._may(directory)
        began = ctx.clock.monotonic()
        figures = await self._figures(ctx)
        wait_s = ctx.left_s() - min(RESERVED_S, 0.2 * ctx.left_s())
        until, last = ctx.clock.monotonic() + wait_s, ctx.clock.utc() + timedelta(seconds=wait_s)
        ctx.hearing.note(
            "approval_wanted",
            at_least=self.at_least,
            who=list(may),
            ui=directory.vouches_for_ui(),
            until=last.isoformat(timespec="seconds"),
            figures=figures,
        )
        told = -TELL_S
        while True:
            found = await self._heard(ctx, directory, may)
            seen, now = self._seen(found, may), ctx.clock.monotonic()
            if seen.holds:
                return {**seen.facts, "figures": figures, "waited_s": round(now - began, 3)}
            if now >= until:
                raise NotApproved(
                    f"not approved: {seen.summary} within {show_duration(now - began)}. Nothing was changed by this"
                    f" step; to ask again: relight resume {ctx.run.run_id}",
                    **seen.facts,
                    timed_out=True,
                )
            if now - told >= TELL_S:
                told = now
                ctx.report(f"{seen.summary}; {show_duration(until - now)} left to answer")
            await ctx.clock.sleep(min(LOOK_S, max(0.01, until - now)))

    async def confirm(self, ctx: Context) -> Observation:
        """What people said yes to is still so."""
        seen = await self.observe(ctx)
        if not self.failed or not self.database or not self.at_least or ctx.run.mode != "forced":
            return seen
        ctx.report("approved; looking at the failure again")
        check = ConfirmFailure(site=self.failed, database=self.database)
        again = await check.observe(ctx)
        try:
            facts = again.facts if again.holds else await check.apply(ctx, again)
        except SafetyRefusal as e:
            raise SafetyRefusal(
                f"approved, but the failure is not confirmed any more: {e}. Nothing was changed.", **e.facts
            ) from e
        return seen.model_copy(update={"facts": {**seen.facts, "failure_again": facts}})

    def _may(self, directory: Directory) -> tuple[str, ...]:
        people = directory.approvers()
        known = {p.name for p in people} | {g for p in people for g in p.groups}
        unknown = [w for w in self.who if w not in known]
        if unknown:
            raise BadInput(
                f"{self.people} knows no {', '.join(unknown)}; it knows {', '.join(sorted(known)) or 'nobody'}"
            )
        may = tuple(p.name for p in people if not self.who or {p.name, *p.groups} & set(self.who))
        if len(may) < self.at_least:
            raise BadInput(
                f"{self.at_least} people have to approve, and {len(may)} may ({', '.join(may) or 'nobody'}): name more"
                f" of them in component {self.people}"
            )
        return may

    async def _able(self, directory: Directory, may: tuple[str, ...]) -> None:
        """Raises MissingSecret where nothing that enough of them sign could be checked here."""
        missing = []
        for name in may:
            try:
                await directory.secret(name)
            except BadInput as e:
                missing.append(str(e))
        if len(may) - len(missing) < self.at_least:
            raise MissingSecret(
                f"{self.at_least} people have to approve, and what they sign can be checked for"
                f" {len(may) - len(missing)} only: {'; '.join(missing)}"
            )

    async def _heard(self, ctx: Context, directory: Directory, may: tuple[str, ...]) -> Tally:
        question = Question(ctx.run.run_id, ctx.hearing.step, self.at_least, may, directory.vouches_for_ui())
        found = await tally(question, ctx.hearing.said(), directory.secret)
        for one in found.judged:
            ctx.hearing.note(
                "approval", digest=one.said.digest, counted=not one.against, against=one.against, **one.facts()
            )
        return found

    def _seen(self, found: Tally, may: tuple[str, ...]) -> Observation:
        yes = found.yes
        facts: Facts = {"asked": self.at_least, "who": list(may), "approved": [y.facts() for y in yes]}
        if found.no is not None:
            why = f": {found.no.why}" if found.no.why else ""
            raise NotApproved(
                f"not approved: {found.no.by} said no{why}. The no stands in this run; a new run asks anew.",
                **facts,
                rejected=found.no.facts(),
            )
        names = ", ".join(y.by for y in yes)
        if len(yes) >= self.at_least:
            return Observation(holds=True, summary=f"approved by {names}", facts=facts)
        some = f"{len(yes)} of {self.at_least} approved{f' ({names})' if names else ''}"
        left = [m for m in may if m not in {y.by for y in yes}]
        ask = f"ask {', '.join(left)}; {self.at_least - len(yes)} more must say yes"
        return Observation(holds=False, summary=some, changes=(ask,), facts=facts)

    async def _figures(self, ctx: Context) -> Facts:
        """What people should know before they decide. What cannot be told is said so."""
        standing = ctx.hearing.standing()
        return {
            "loss": await self._loss(ctx),
            "left_s": {c: round(s, 1) for c, s in standing.left_s.items()},
            "would_undo": list(standing.would_undo),
            "would_stay": list(standing.would_stay),
            "point_of_no_return": standing.point_of_no_return,
        }

    async def _loss(self, ctx: Context) -> Facts | None:
        if self.database is None:
            return None
        try:
            async with asyncio.timeout(min(ESTIMATE_S, ctx.left_s())):
                seen = await Promote(site=self.site, component=self.database).observe(ctx)
        except TimeoutError:
            return {"component": self.database, "text": f"cannot be told within {ESTIMATE_S:g} s"}
        except RelightError as e:
            return {"component": self.database, "text": f"cannot be told: {e}"}
        rpo = seen.facts.get("rpo") or {}
        text = "; ".join(rpo.get("reasons", ())) or seen.summary
        kept = {k: rpo.get(k) for k in ("bound_s", "lag_bytes", "proven_zero", "verdict")}
        return {"component": self.database, "text": text, **kept}
