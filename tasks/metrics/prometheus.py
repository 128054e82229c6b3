"""Prometheus over its HTTP API. Fulfils ``tasks.metrics.protocol.Metrics``; also Mimir, Thanos and VictoriaMetrics.

Relied on (prometheus.io/docs/prometheus/latest/querying/api): ``POST /api/v1/query`` answers ``{"status": "success",
"data": {"resultType": "vector", "result": [{"metric": {…}, "value": [time, "text"]}]}}``; a refused query is HTTP 400
or 422 with ``error``; values are texts and may be ``NaN``, ``+Inf``. ``timestamp(v)`` gives the time of each sample; a
series whose target is gone is marked stale and is not in the result, one that nobody scrapes stays for five minutes.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator

from tasks.contract import Surroundings
from tasks.errors import BadInput, Unreachable
from tasks.metrics._prometheus_api import Api, ApiSettings
from tasks.metrics._promql import QUERIES, Query, Requests, span, tallied
from tasks.metrics._samples import ages, few, reaching
from tasks.metrics.protocol import CATALOGUE, Reading, Series, Served, metric, unknown
from tasks.quantities import Duration


class PrometheusSettings(ApiSettings):
    """As in ``runbooks/lab/system.yaml``, component ``metrics``."""

    window: Duration = Field(default=30.0, ge=1)
    """Over which rates and quantiles are computed; at least four scrape intervals."""
    stale_after: Duration = Field(default=30.0, gt=0)
    """Age of the oldest series behind a value at which the value counts as unknown."""
    site_label: str = Field(default="site", pattern=r"^[A-Za-z_]\w*$")
    whole_system: tuple[str, ...] = ()
    """Metrics whose query gives one value without a site."""
    requests: Requests = Requests()
    """How the servers of a site are told apart."""
    queries: dict[str, Query] = Field(default_factory=dict)
    """Metric -> query, in place of the default or beside it."""

    @field_validator("queries", "whole_system")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if wrong := [n for n in value if n not in CATALOGUE]:
            raise ValueError(f"no metric {', '.join(wrong)}; known: {', '.join(CATALOGUE)}")
        return value


class Prometheus:
    """One Prometheus that sees every site."""

    Settings: ClassVar[type[BaseModel]] = PrometheusSettings

    def __init__(self, settings: PrometheusSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._api = Api(settings, around.component)

    async def aclose(self) -> None:
        await self._api.aclose()

    def metrics(self) -> tuple[str, ...]:
        return tuple(n for n in CATALOGUE if n in self._settings.queries or n in QUERIES)

    def expression(self, name: str) -> str:
        """The PromQL of a metric. Raises BadInput for one that has none."""
        return self._query(name).expr

    @property
    def site_label(self) -> str:
        """The label of a series that names its site."""
        return self._settings.site_label

    def selector(self, name: str) -> str:
        """The raw series that a metric is computed from; empty where the settings name none."""
        return self._query(name).samples

    async def now(self, metric: str, over_s: float | None = None) -> tuple[Reading, ...]:
        sites = self._sites(metric)
        if _name(metric) not in self.metrics():
            return unknown(metric, sites, "not-measured", f"{self._around.component} has no query for {metric}")
        query, label = self._query(metric, over_s), self._settings.site_label
        template = (self._settings.queries.get(_name(metric)) or QUERIES[_name(metric)]).expr
        window_s = self._settings.window if over_s is None else over_s
        try:
            values, aged, short = await asyncio.gather(
                self._api.vector(query.expr),
                ages(self._api, label, query.samples),
                few(self._api, label, query.samples, over_s),
            )
        except Unreachable as e:
            return unknown(metric, sites, "no-answer", e.message, query.expr)
        return tuple(
            Reading(metric, site, "no-data", why=short[site], query=query.expr)
            if site in short
            else reaching(self._reading(metric, query.expr, site, values, aged), template, window_s)
            for site in sites
        )

    async def series(self, metric: str, window_s: float, step_s: float) -> tuple[Series, ...]:
        if not 0 < step_s <= window_s or window_s / step_s > 11_000:  # Prometheus' own limit of points
            raise BadInput(f"a window of {window_s:g} s in steps of {step_s:g} s: expected 1 to 11000 steps")
        end = self._around.clock.utc().timestamp()
        data = {"query": self.expression(metric), "start": f"{end - window_s:.3f}", "end": f"{end:.3f}"}
        result = await self._api.ask("query_range", {**data, "step": f"{step_s:g}"})
        found = []
        for one in result:
            pairs = [(datetime.fromtimestamp(float(t), UTC), float(v)) for t, v in one["values"]]
            good = tuple((at, value) for at, value in pairs if math.isfinite(value))
            if good:
                found.append(Series(metric, self._site_of(one), good, step_s))
        return tuple(found)

    async def served(self, site: str) -> dict[str, Served]:
        """Fulfils ``tasks.metrics.protocol.Requests``. One query, so that all of it is of one moment."""
        return tallied(
            await self._api.vector(self._settings.requests.expr(self._settings.site_label, site)),
            self._settings.requests,
        )

    def _sites(self, name: str) -> tuple[str, ...]:
        return ("",) if _name(name) in self._settings.whole_system else self._around.sites

    def _query(self, name: str, over_s: float | None = None) -> Query:
        key = _name(name)
        query, default = self._settings.queries.get(key), QUERIES.get(key)
        if query is None and default is not None:
            query = default.model_copy(update={"expr": default.expr.replace("by (site", f"by ({self.site_label}")})
        if query is None:
            raise BadInput(f"{self._around.component} has no query for {name}; it has {', '.join(self.metrics())}")
        if over_s is not None and "{window}" not in query.expr:
            raise BadInput(
                f"{self._around.component}: {name} is asked over {over_s:g} s, and its query has no {{window}}: it is"
                " of a moment. Leave `over` out."
            )
        window = span(self._settings.window if over_s is None else over_s)
        return Query(expr=query.expr.replace("{window}", window), samples=query.samples)

    def _reading(
        self, name: str, expr: str, site: str, values: list[Any], aged: dict[str, tuple[float, float]] | None
    ) -> Reading:
        mine = [v for v in values if self._site_of(v) == site]
        at_s, age_s = (aged or {}).get(site, (None, None))
        if not site and aged:
            at_s, age_s = max(aged.values(), key=lambda pair: pair[1])  # of the whole: the oldest of all sites
        at = None if at_s is None else datetime.fromtimestamp(at_s, UTC)
        if not mine:
            why = f"Prometheus has no value for {site or 'the system'}: no target answers, or nothing exports it"
            return Reading(name, site, "no-data", at=at, age_s=age_s, why=why, query=expr)
        if aged is not None and age_s is None:
            why = "Prometheus has a value, and none of the series that say how old it is: set samples of its query"
            return Reading(name, site, "stale", why=why, query=expr)
        if age_s is not None and age_s > self._settings.stale_after:
            why = f"its oldest sample is {age_s:.0f} s old, more than {self._settings.stale_after:g} s"
            return Reading(name, site, "stale", at=at, age_s=age_s, why=why, query=expr)
        numbers = [(float(v["value"][1]), v) for v in mine]
        if not all(math.isfinite(n) for n, _ in numbers):
            why = "its value is no number: nothing happened that it could be computed from"
            return Reading(name, site, "not-a-number", at=at, age_s=age_s, why=why, query=expr)
        value, worst = max(numbers, key=lambda pair: pair[0])
        subject = ",".join(f"{k}={v}" for k, v in sorted(worst["metric"].items()) if k != self._settings.site_label)
        return Reading(name, site, "ok", value, at, age_s, subject, query=expr)

    def _site_of(self, one: dict[str, Any]) -> str:
        return str(one["metric"].get(self._settings.site_label, ""))


def _name(name: str) -> str:
    found = metric(name)
    return found.name if found else name


PROVIDER = Prometheus
