"""health.confirm_failure: no failover on the word of one witness."""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from tasks.capacity.protocol import Capacity
from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.database.protocol import Database
from tasks.errors import BadInput, Contradiction, SafetyRefusal
from tasks.health._application import Application, application
from tasks.health._evidence import Round, look
from tasks.health.protocol import Agents
from tasks.quantities import Duration

_KEPT_ROUNDS = 6
"""Rounds whose evidence goes to the journal: the last ones."""


class Look(NamedTuple):
    """One round and what it means for this check."""

    round: Round
    application: Application | None
    verdict: Literal["failed", "healthy", "unclear"]
    why: str

    def facts(self) -> Facts:
        app = {"application": self.application._asdict()} if self.application else {}
        return {**self.round.facts(), "verdict": self.verdict, **app}

    def table(self) -> str:
        return f"{self.round.table()}{f'; {self.application.summary}' if self.application else ''}"


@action("health.confirm_failure")
class ConfirmFailure(Action):
    """The failure of the site's primary is confirmed by independent evidence, in consecutive rounds.

    Every vantage point is asked at once, and the replicas how they see the primary. Only a primary that is dead or
    hung in ``times`` rounds in a row counts as failed; one that answers in any of them does not.
    """

    phase: ClassVar[Phase] = Phase.DETECT
    read_only: ClassVar[bool] = True

    site: Annotated[str, SiteParam()] = "failed"
    database: Annotated[str, ComponentParam("database")] = "database"
    vantages: Annotated[str | None, ComponentParam("health")] = Field(
        default=None, description="Agents in other places that look at the database too."
    )
    capacity: Annotated[str | None, ComponentParam("capacity")] = Field(
        default=None, description="Where the application's instances are asked for; needed unless require is database."
    )
    quorum: int | None = Field(
        default=None, ge=1, description="Vantage points that must see the failure; None: more than half of all."
    )
    times: int = Field(default=2, ge=1, le=20, description="Consecutive failed rounds.")
    every: Duration = Field(default=0.1, description="Pause between two rounds.")
    patience: Duration = Field(default=5.0, description="How long evidence may stay contradictory.")
    require: Literal["database", "application", "any"] = "database"

    @model_validator(mode="after")
    def _has_what_it_requires(self) -> ConfirmFailure:
        if self.require != "database" and self.capacity is None:
            raise ValueError(
                f"require: {self.require} needs capacity: the component whose instances are the application"
            )
        return self

    def least_timeout_s(self) -> float:
        return self.times * self.every

    async def observe(self, ctx: Context) -> Observation:
        """Up to ``times`` rounds; it stops at the first that is not a failure. Refuses nothing: ``apply`` does."""
        looks: list[Look] = []
        while len(looks) < self.times and (not looks or looks[-1].verdict == "failed"):
            looks.append(await self._paced(ctx, first=not looks))
        last = looks[-1]
        facts = _evidence(looks)
        if last.verdict == "failed":
            return Observation(holds=True, summary=f"{last.why}, {len(looks)} times in a row", facts=facts)
        wait = "nothing: this is no failure" if last.verdict == "healthy" else "look again until the evidence agrees"
        return Observation(holds=False, summary=last.why, changes=(wait,), facts=facts)

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        """Look again while the evidence is unclear: replicas need a moment to notice that a primary is gone."""
        if observation.facts["verdict"] == "healthy":
            raise self._refusal(observation.summary, observation.facts)
        patient_until = ctx.clock.monotonic() + self.patience
        looks: list[Look] = []
        while True:
            before_s = ctx.clock.monotonic()
            looks.append(await self._paced(ctx, first=not looks))
            last, streak = looks[-1], _streak(looks)
            if last.verdict == "healthy":
                raise self._refusal(last.why, _evidence(looks))
            if streak >= self.times:
                return _evidence(looks)
            now_s = ctx.clock.monotonic()
            # Another round must fit before the step is cut off, or nobody would hear what the evidence was.
            if ctx.left_s() < 1.5 * (now_s - before_s) + 0.1 or (streak == 0 and now_s >= patient_until):
                raise Contradiction(
                    f"{last.why}. Evidence: {last.table()}. Nothing was changed; look at what disagrees, "
                    "then decide by hand.",
                    **_evidence(looks),
                )
            ctx.report(f"{last.why}; looking again")

    async def confirm(self, ctx: Context) -> Observation:
        last = await self._look(ctx)
        return Observation(
            holds=last.verdict == "failed",
            summary=last.why,
            facts={"confirmed_at": last.round.at, "state": last.round.assessment.state},
        )

    async def _paced(self, ctx: Context, *, first: bool) -> Look:
        """A round, ``every`` after the one before: rounds of one instant are one witness."""
        if not first:
            await ctx.clock.sleep(self.every)
        return await self._look(ctx)

    async def _look(self, ctx: Context) -> Look:
        site = ctx.site(self.site)
        database: Database = ctx.component(self.database, Database)
        agents: Agents | None = ctx.component(self.vantages, Agents) if self.vantages else None
        if self.require == "database" or self.capacity is None:
            return self._judge(await look(database, agents, site, ctx.clock), None)
        capacity: Capacity = ctx.component(self.capacity, Capacity)
        seen, app = await asyncio.gather(look(database, agents, site, ctx.clock), application(capacity, site))
        return self._judge(seen, app)

    def _judge(self, seen: Round, app: Application | None) -> Look:
        verdict, why = self._judge_database(seen)
        if app is None:
            return Look(seen, app, verdict, why)
        if self.require == "any" and verdict == "failed":
            return Look(seen, app, verdict, why)
        if app.state == "down":
            return Look(seen, app, "failed", app.summary)
        if app.state == "silent":
            # An application whose control is silent is taken for failed only where its database certainly is.
            return Look(seen, app, "failed" if verdict == "failed" else "unclear", f"{app.summary}; {why}")
        if self.require == "any" and verdict == "unclear":
            return Look(seen, app, "unclear", why)
        return Look(seen, app, "healthy", app.summary)

    def _judge_database(self, seen: Round) -> tuple[Literal["failed", "healthy", "unclear"], str]:
        points = len(seen.views) + len(seen.absent)
        needed = self.quorum or points // 2 + 1
        if needed > points:
            raise BadInput(f"quorum {needed} can never be met: there are {points} vantage points in all")
        state, reasons = seen.assessment.state, "; ".join(seen.assessment.reasons)
        if state == "healthy":
            return "healthy", f"{seen.primary} is healthy: {reasons}"
        if state not in ("dead", "hung"):
            return "unclear", f"whether {seen.primary} failed cannot be told, the evidence is {state}: {reasons}"
        if seen.failing < needed:
            return (
                "unclear",
                f"{seen.primary} looks {state} from {seen.failing} of {points} vantage points, {needed} needed",
            )
        return "failed", f"{seen.primary} is {state}: {reasons}"

    def _refusal(self, why: str, facts: Facts) -> SafetyRefusal:
        return SafetyRefusal(f"{why}. There is nothing to fail over; for a planned move use mode graceful.", **facts)


def _streak(looks: list[Look]) -> int:
    """How many of the last looks were failures in a row."""
    count = 0
    for one in reversed(looks):
        if one.verdict != "failed":
            break
        count += 1
    return count


def _evidence(looks: list[Look]) -> Facts:
    """``detected_at`` is the begin of the first round of the failures in a row that the looks end with."""
    streak, last = _streak(looks), looks[-1]
    return {
        "primary": last.round.primary,
        "state": last.round.assessment.state,
        "verdict": last.verdict,
        "detected_at": looks[-streak].round.at if streak else None,
        "rounds": [one.facts() for one in looks[-_KEPT_ROUNDS:]],
    }
