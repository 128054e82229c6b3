"""CloudWatch by GetMetricData, and its alarms. Fulfils ``Metrics`` and ``Counted`` of ``tasks.metrics.protocol``.

Relied on (CloudWatch API reference): *GetMetricData* pages by ``NextToken``, gives each result a ``StatusCode``
(``PartialData`` goes on with the next page), and the timestamp of a value is the start of its period. *PutMetricAlarm*
replaces an alarm of the same name as a whole and takes ``Tags`` only when it creates; *TagResource* is for later. An
action of another region is refused (``Invalid region … specified``), so each alarm gets those of its own.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import BaseModel

from tasks.contract import Surroundings
from tasks.errors import BadInput, NotYet, Rejected, Unreachable
from tasks.metrics._alarming import Alarming, CloudWatchSettings
from tasks.metrics._alarms import Alarm, keep, request
from tasks.metrics._cloudwatch import Formula, Stat, formulas, tallies
from tasks.metrics.protocol import CATALOGUE, Counts, Reading, Series, metric, unknown
from tasks.quantities import show_duration

Samples = dict[datetime, float]


class CloudWatch(Alarming):
    """CloudWatch in the region of each site."""

    Settings: ClassVar[type[BaseModel]] = CloudWatchSettings

    def __init__(self, settings: CloudWatchSettings, around: Surroundings) -> None:
        super().__init__(settings, around)
        self._formulas = {s: {**formulas(at), **settings.formulas} for s, at in settings.sites.items()}

    def metrics(self) -> tuple[str, ...]:
        return tuple(n for n in CATALOGUE if any(n in f for f in self._formulas.values()))

    async def now(self, metric: str, over_s: float | None = None) -> tuple[Reading, ...]:
        """``over_s``: the newest period that began within it, so nothing from before is in the value."""
        period_s = self._settings.period
        if over_s is not None and over_s < 2 * period_s:
            raise BadInput(
                f"{self._around.component}: {metric} is asked over {over_s:g} s, and its period is {period_s} s. Only"
                f" from {2 * period_s} s on there is always a whole period within the time: raise `over` and `for`."
            )
        return tuple(await asyncio.gather(*(self._now(metric, site, over_s) for site in self._around.sites)))

    async def series(self, metric: str, window_s: float, step_s: float) -> tuple[Series, ...]:
        period_s = max(self._settings.period, 60 * round(step_s / 60))
        found = []
        for site in self._around.sites:
            formula = self._formula(metric, site)
            if formula is not None:
                samples = await self._computed(site, formula, window_s, period_s)
                found.append(Series(metric, site, tuple(sorted(samples.items())), float(period_s)))
        return tuple(s for s in found if s.samples)

    def _formula(self, name: str, site: str) -> Formula | None:
        known = metric(name)
        return self._formulas.get(site, {}).get(known.name if known else name)

    async def _now(self, name: str, site: str, over_s: float | None = None) -> Reading:
        formula, period_s = self._formula(name, site), self._settings.period
        if formula is None:
            return unknown(name, (site,), "not-measured", f"{self._around.component} has no formula for it at {site}")[
                0
            ]
        query = formula.expression()
        window_s = 2 * self._settings.stale_after + 2 * period_s
        try:
            # far enough back that a sample which is too old is told from none at all
            samples = await self._computed(site, formula, window_s, period_s)
        except (Unreachable, NotYet) as e:
            return unknown(name, (site,), "no-answer", e.message, query)[0]
        if not samples:
            why = "CloudWatch has no sample of every part of it"
            if counted := formula.of_requests():
                why = f"no requests in the last {show_duration(window_s)}, or a load balancer of another name: only for"
                why += f" requests does CloudWatch have {counted}, and it has none"
            return unknown(name, (site,), "no-data", why, query)[0]
        at = max(samples)
        if over_s is not None and at < self._around.clock.utc() - timedelta(seconds=over_s):
            why = f"no period of {period_s} s that began in the last {over_s:g} s has a sample yet"
            return Reading(name, site, "no-data", at=at, why=why, query=query)
        reach_s = (self._around.clock.utc() - at).total_seconds()
        age_s = max(0.0, reach_s - period_s)
        if age_s > self._settings.stale_after:
            why = f"its newest sample is {age_s:.0f} s old, more than {self._settings.stale_after:g} s"
            return Reading(name, site, "stale", at=at, age_s=age_s, why=why, query=query)
        return Reading(name, site, "ok", samples[at], at, age_s, query=query, reach_s=reach_s)

    async def _computed(self, site: str, formula: Formula, window_s: float, period_s: int) -> Samples:
        """The formula at every time at which all its parts have a sample."""
        end = self._around.clock.utc()
        parts = await self._parts(site, stats_of(formula), (end - timedelta(seconds=window_s), end), period_s)
        needed = [f"a{i}" for i, s in enumerate(formula.add) if not s.absent_is_zero] + (["o"] if formula.over else [])
        times = set.intersection(*(set(parts[n]) for n in needed)) if needed else set().union(*parts.values())
        found: Samples = {}
        for at in times:
            added = [parts[f"a{i}"].get(at, 0.0) for i in range(len(formula.add))]
            value = formula.value(added, parts["o"].get(at) if formula.over else None, period_s)
            if value is not None:
                found[at] = value
        return found

    async def counted(self, site: str, since: datetime) -> tuple[Counts, Counts]:
        """A period in which nothing was requested of a group is in its counts as none."""
        both = tallies(self._settings.sites[site]) if site in self._settings.sites else None
        if both is None:
            raise BadInput(
                f"{self._around.component}: what is compared at {site} is not named; it needs load_balancer,"
                " target_group (the canary's) and beside"
            )
        period_s, end = self._settings.period, self._around.clock.utc()
        start = datetime.fromtimestamp(since.timestamp() // period_s * period_s, UTC)
        stats = {f"{side}{n}": s for side, f in zip("ct", both, strict=True) for n, s in stats_of(f).items()}
        parts = await self._parts(site, stats, (start, max(end, start + timedelta(seconds=period_s))), period_s)
        canary, beside = (_counts({n[1:]: v for n, v in parts.items() if n[0] == side}) for side in "ct")
        return canary, beside

    async def _parts(
        self, site: str, stats: dict[str, Stat], span: tuple[datetime, datetime], period_s: int
    ) -> dict[str, Samples]:
        """Id of each statistic -> its samples. ``span``: from, to. Raises Unreachable, NotYet, Rejected."""
        asked: dict[str, Any] = {
            "MetricDataQueries": [data_query(name, stat, period_s) for name, stat in stats.items()],
            "StartTime": span[0],
            "EndTime": span[1],
            "ScanBy": "TimestampDescending",
        }
        client = await self._cloudwatch(site)
        what = f"GetMetricData of {site}"
        found: dict[str, Samples] = defaultdict(dict)
        while True:
            answer = await self._aws.call(what, lambda: client.get_metric_data(**asked))
            for result in answer["MetricDataResults"]:
                self._check(what, result)
                pairs = zip(result["Timestamps"], result["Values"], strict=True)
                found[result["Id"]].update({at.astimezone(UTC): float(value) for at, value in pairs})
            if not answer.get("NextToken"):
                return found
            asked["NextToken"] = answer["NextToken"]

    def _check(self, what: str, result: dict[str, Any]) -> None:
        code = result.get("StatusCode", "Complete")
        said = "; ".join(str(m.get("Value", "")) for m in result.get("Messages", ()))
        if code == "Forbidden":
            raise Rejected(f"{self._around.component}: {what}: {code} {said}; see deployments/iam for the policy")
        if code == "InternalError":
            raise Unreachable(f"{self._around.component}: {what}: {code} {said}")

    def alarm(self, alarm: Alarm) -> dict[str, Any] | None:
        """The PutMetricAlarm request of ``alarm``; None where its site has no formula for its metric."""
        formula = self._formula(alarm.metric, alarm.site)
        if formula is None:
            return None
        period_s = self._settings.period
        queries = [data_query(n, s, period_s, returned=False) for n, s in stats_of(formula).items()]
        math = {"Id": "value", "Expression": formula.expression(), "Label": alarm.metric, "ReturnData": True}
        return request(alarm, [*queries, math], period_s, self._actions(alarm.site))

    async def put(self, alarm: Alarm) -> str:
        """Create or update it: ``created``, ``updated`` or ``same``. Raises SafetyRefusal for somebody else's alarm."""
        wanted = self.alarm(alarm)
        if wanted is None:
            raise BadInput(f"{self._around.component} has no formula for {alarm.metric} at {alarm.site}")
        return await keep(self._aws, await self._cloudwatch(alarm.site), wanted)


def stats_of(formula: Formula) -> dict[str, Stat]:
    """By the ids of its expression."""
    return {f"a{i}": s for i, s in enumerate(formula.add)} | ({"o": formula.over} if formula.over else {})


def _counts(parts: dict[str, Samples]) -> Counts:
    """Of an error rate's parts. A failed connection may be no request: there are never more errors than requests."""
    requests = round(sum(parts.get("o", {}).values()))
    errors = round(sum(v for name, some in parts.items() if name != "o" for v in some.values()))
    return Counts(max(requests, 0), min(errors, max(requests, 0)))


def data_query(name: str, stat: Stat, period_s: int, *, returned: bool = True) -> dict[str, Any]:
    """One MetricDataQuery."""
    dimensions = [{"Name": k, "Value": v} for k, v in stat.dimensions.items()]
    of = {"Namespace": stat.namespace, "MetricName": stat.name, "Dimensions": dimensions}
    return {
        "Id": name,
        "MetricStat": {"Metric": of, "Period": period_s, "Stat": stat.statistic},
        "ReturnData": returned,
    }


PROVIDER = CloudWatch
