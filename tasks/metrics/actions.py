"""Checks of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from tasks.catalog import action
from tasks.contract import Action, ComponentParam, Context, Facts, Observation, Phase, SiteParam
from tasks.errors import Breached, NotYet
from tasks.metrics.protocol import Metrics, Reading, known_names, metric
from tasks.quantities import Duration, ThresholdText, show_duration
from tasks.waiting import until


@dataclass
class _Breach:
    """How long a value was known and not below, without a break and with nothing in it from before ``began_s``."""

    began_s: float
    since_s: float | None = None

    def lasts_s(self, asked_s: float, reach_s: float | None) -> float:
        """By a look at ``asked_s`` that reaches so far back; None: nobody knows how far, so it proves no breach."""
        if reach_s is None or asked_s - reach_s < self.began_s:
            return 0.0
        self.since_s = asked_s if self.since_s is None else self.since_s
        return asked_s - self.since_s

    def ends(self) -> None:
        self.since_s = None


@action("metrics.within")
class Within(Action):
    """A metric of a site stays below a threshold for a time. What is unknown (no data, stale, no answer) is not below.

    Right after a change say ``over``: a rate or quantile over the source's own window is still mostly of before it.
    A value that is known and not below for ``breach_after``, all of it since the step began, fails at once
    (Breached), so that going back does not wait for the time-out.
    ``observe`` looks once, and never holds: only the step itself, which looks until the value was below for the whole
    time without a break, can tell.
    """

    phase: ClassVar[Phase] = Phase.VERIFY
    read_only: ClassVar[bool] = True

    metric: str = Field(description="cpu_usage, request_latency, error_rate, …")
    below: ThresholdText = Field(description="In the metric's own unit: 85%, 1000ms, 60s, a bare number.")
    site: Annotated[str, SiteParam()] = Field(default="target", description="Whose value.")
    for_: Duration = Field(default=10.0, alias="for", description="How long it must hold without a break.")
    over: Duration | None = Field(
        default=None,
        gt=0,
        description="How far back each look reaches; the source's own where none is given. At most as long as for.",
    )
    breach_after: Duration | None = Field(
        default=None,
        gt=0,
        description="Not below for so long, without a break, fails at once; as long as for by default.",
    )
    every: Duration = Field(default=1.0, gt=0, description="How often to look.")
    component: Annotated[str, ComponentParam("metrics")] = "metrics"

    @model_validator(mode="after")
    def _fits(self) -> Within:
        found = metric(self.metric)
        if found is None:
            raise ValueError(f"no metric {self.metric!r}; known: {', '.join(known_names())}")
        if self.below.unit == "name":
            raise ValueError("below needs a number with its unit, not a name")
        if self.below.unit != (found.unit if found.unit in ("%", "s") else ""):
            raise ValueError(f"{self.metric} is measured in {found.unit or 'a bare number'}; {self.below} is not")
        if self.over is not None and self.over > self.for_:
            raise ValueError(
                f"over ({show_duration(self.over)}) is longer than for ({show_duration(self.for_)}): the last look"
                " would still reach back to before this check began, and what was then would dilute what is now"
            )
        return self

    def least_timeout_s(self) -> float:
        return self.for_ + self.every

    async def observe(self, ctx: Context) -> Observation:
        reading = await self._look(ctx)
        change = f"watch {self.metric} for {show_duration(self.for_)}"
        return Observation(
            holds=False, summary=self._say(reading), changes=(change,), facts={"reading": facts(reading)}
        )

    async def apply(self, ctx: Context, observation: Observation) -> Facts | None:
        since: float | None = None
        worst: float | None = None
        breach = _Breach(ctx.clock.monotonic())

        async def held() -> Facts:
            nonlocal since, worst
            asked_s = ctx.clock.monotonic()
            reading = await self._look(ctx)
            now_s = ctx.clock.monotonic()
            if not self._passes(reading):
                since, worst = None, None
                self._judge(breach, reading, asked_s)
                raise NotYet(self._say(reading), reading=facts(reading))
            breach.ends()
            since = now_s if since is None else since
            worst = max(reading.value or 0.0, worst or 0.0)
            ctx.report(f"{self._say(reading)}, for {show_duration(now_s - since)} of {show_duration(self.for_)}")
            if now_s - since < self.for_:
                raise NotYet(f"{self._say(reading)}, but only for {show_duration(now_s - since)}")
            return {"held_s": round(now_s - since, 3), "worst": worst, "reading": facts(reading)}

        return await until(ctx, held, first_s=self.every, most_s=self.every)

    async def confirm(self, ctx: Context) -> Observation:
        reading = await self._look(ctx)
        return Observation(holds=self._passes(reading), summary=self._say(reading), facts={"reading": facts(reading)})

    def _judge(self, breach: _Breach, reading: Reading, asked_s: float) -> None:
        """Of a look that did not pass. Raises Breached for a clear breach; what is unknown is none."""
        if not reading.known:
            breach.ends()
            return
        lasts_s = breach.lasts_s(asked_s, reading.reach_s if self.over is None else self.over)
        if lasts_s >= self._breach_after_s:
            raise Breached(
                f"{self._say(reading)}, for {show_duration(lasts_s)} without a break since this step began; after"
                f" {show_duration(self._breach_after_s)} that is a breach, and it is not waited for any longer",
                reading=facts(reading),
                below=self.below.value,
                breached_s=round(lasts_s, 3),
            )

    @property
    def _breach_after_s(self) -> float:
        return max(self.for_, self.over or 0.0) if self.breach_after is None else self.breach_after

    async def _look(self, ctx: Context) -> Reading:
        site = ctx.site(self.site)
        readings = await ctx.component(self.component, Metrics).now(self.metric, self.over)
        mine = [r for r in readings if r.site in (site, "")]
        return mine[0] if mine else Reading(self.metric, site, "no-data", why=f"the source knows no site {site}")

    def _passes(self, reading: Reading) -> bool:
        return reading.known and float(reading.value or 0.0) < float(self.below.value)

    def _say(self, reading: Reading) -> str:
        where = f"{self.metric} of {reading.site or 'the system'}"
        limit = f"{self.below.value:g}{self.below.unit}" if isinstance(self.below.value, float) else self.below.value
        if not reading.known:
            return f"{where} is unknown ({reading.state}: {reading.why}); it should be below {limit}"
        sign = "below" if self._passes(reading) else "not below"
        return f"{where} is {reading.value:.4g}{self.below.unit}, {sign} {limit}"


def facts(reading: Reading) -> Facts:
    """A reading as evidence."""
    return {
        "metric": reading.metric,
        "site": reading.site,
        "state": reading.state,
        "value": reading.value,
        "at": reading.at.isoformat() if reading.at else None,
        "age_s": None if reading.age_s is None else round(reading.age_s, 3),
        "subject": reading.subject,
        "why": reading.why,
        "query": reading.query,
    }
