"""AWS Cost Explorer. Fulfils ``tasks.cost.protocol.Cost``, and ``tasks.metrics.protocol.Metrics`` for the cost metrics.

Relied on (Cost Explorer API reference): *GetCostAndUsage* takes two ``GroupBy`` at most, pages by ``NextPageToken``,
and ``End`` is exclusive; a tag's key in a result is ``KEY$VALUE``, with nothing behind ``$`` where nothing is tagged;
data is up to a day late, and ``Estimated`` until the bill is final. *GetAnomalies* finds those that ended in its
interval. Each request costs 0.01 USD (AWS pricing), so what was read is kept for ``keep_for``. Tags count only from the
day on which they were activated as cost allocation tags.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from tasks.aws import Account, Aws
from tasks.contract import Surroundings
from tasks.cost._usage import SPOT, kind
from tasks.cost.protocol import Advice, Anomaly, Spend
from tasks.errors import NotYet, Rejected, Unreachable
from tasks.metrics.protocol import Reading, Series, unknown
from tasks.quantities import Duration

METRICS = {
    "instance_cost": "instance",
    "storage_cost": "storage",
    "bandwidth_cost": "bandwidth",
    "daily_cost": "",
}
"""Metric -> kind of spend; empty: all of it."""


class CostExplorerSettings(Account):
    """``*_tag``: the cost allocation tags by which a system, a site and a component are told."""

    region: str = "us-east-1"
    """Where Cost Explorer itself is; it knows the cost of every region."""
    system_tag: str = "relight:system"
    site_tag: str = "relight:site"
    component_tag: str = "relight:component"
    keep_for: Duration = Field(default=3600.0, ge=0)


class CostExplorer:
    """The account's Cost Explorer."""

    Settings: ClassVar[type[BaseModel]] = CostExplorerSettings

    def __init__(self, settings: CostExplorerSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._aws = Aws(settings, around.component)
        self._kept: dict[int, tuple[float, tuple[Spend, ...]]] = {}
        self._reading = asyncio.Lock()

    async def aclose(self) -> None:
        await self._aws.aclose()

    # ---- cost ----

    async def spend(self, days: int) -> tuple[Spend, ...]:
        async with self._reading:  # four metrics ask at once, and each request costs money
            now_s = self._around.clock.monotonic()
            kept = self._kept.get(days)
            if kept is None or now_s - kept[0] > self._settings.keep_for:
                sites = await asyncio.gather(*(self._spent(site, days) for site in self._around.sites))
                found = tuple(sorted((s for of in sites for s in of), key=lambda s: (s.day, s.site, s.component)))
                kept = self._kept[days] = (now_s, found)
            return kept[1]

    async def anomalies(self, days: int) -> tuple[Anomaly, ...]:
        today = self._today()
        interval = {"StartDate": str(today - timedelta(days=days)), "EndDate": str(today)}
        found = []
        async for page in self._pages("get_anomalies", {"DateInterval": interval}):
            for one in page["Anomalies"]:
                causes = [", ".join(str(v) for k, v in c.items() if k != "Impact") for c in one.get("RootCauses", ())]
                impact = one["Impact"]
                found.append(
                    Anomaly(
                        id=one["AnomalyId"],
                        what="; ".join(causes) or one.get("DimensionValue", ""),
                        started=one.get("AnomalyStartDate", ""),
                        ended=one.get("AnomalyEndDate"),
                        usd=float(impact.get("TotalImpact", impact["MaxImpact"])),
                        expected_usd=impact.get("TotalExpectedSpend"),
                    )
                )
        return tuple(found)

    async def advice(self) -> tuple[Advice, ...]:
        s = self._settings
        asked = {
            "Service": "AmazonEC2",
            "Filter": {"Tags": {"Key": s.system_tag, "Values": [self._around.system]}},
            "Configuration": {"RecommendationTarget": "SAME_INSTANCE_FAMILY", "BenefitsConsidered": True},
        }
        found = []
        async for page in self._pages("get_rightsizing_recommendation", asked):
            found += [self._advised(one) for one in page.get("RightsizingRecommendations", ())]
        return tuple(found)

    def _advised(self, one: dict[str, Any]) -> Advice:
        current = one["CurrentInstance"]
        tags = {t["Key"]: (t.get("Values") or [""])[0] for t in current.get("Tags", ())}
        targets = one.get("ModifyRecommendationDetail", {}).get("TargetInstances", ())
        best = max(targets, key=lambda t: float(t.get("EstimatedMonthlySavings", 0)), default=None)
        end = one.get("TerminateRecommendationDetail", {})
        saves = best.get("EstimatedMonthlySavings", 0) if best else end.get("EstimatedMonthlySavings", 0)
        return Advice(
            resource=current.get("ResourceId", ""),
            site=tags.get(self._settings.site_tag, ""),
            component=tags.get(self._settings.component_tag, ""),
            now=_type(current),
            to=_type(best) if best else "",
            usd_a_month=float(current.get("MonthlyCost", 0)),
            saves_usd_a_month=float(saves),
            why=", ".join(one.get("FindingReasonCodes", ())),
        )

    async def _spent(self, site: str, days: int) -> list[Spend]:
        s, today = self._settings, self._today()
        tags = {s.system_tag: self._around.system, s.site_tag: site}
        asked = {
            "TimePeriod": {"Start": str(today - timedelta(days=days)), "End": str(today)},
            "Granularity": "DAILY",
            "Metrics": ["UnblendedCost", "UsageQuantity"],
            "Filter": {"And": [{"Tags": {"Key": k, "Values": [v]}} for k, v in tags.items()]},
            "GroupBy": [{"Type": "TAG", "Key": s.component_tag}, {"Type": "DIMENSION", "Key": "USAGE_TYPE"}],
        }
        found = []
        async for page in self._pages("get_cost_and_usage", asked):
            for result in page["ResultsByTime"]:
                day = date.fromisoformat(result["TimePeriod"]["Start"][:10])
                estimated = bool(result.get("Estimated"))
                found += [self._one(day, site, group, estimated=estimated) for group in result.get("Groups", ())]
        return found

    def _one(self, day: date, site: str, group: dict[str, Any], *, estimated: bool) -> Spend:
        tag, usage = group["Keys"]
        cost, quantity = group["Metrics"]["UnblendedCost"], group["Metrics"].get("UsageQuantity", {})
        if cost["Unit"] != "USD":
            raise Rejected(f"{self._around.component}: the bill is in {cost['Unit']}; amounts are expected in USD")
        return Spend(
            day=day,
            site=site,
            component=tag.partition("$")[2],
            kind=kind(usage),
            usage=usage,
            usd=float(cost["Amount"]),
            quantity=float(quantity.get("Amount", 0.0)),
            spot=bool(SPOT.search(usage)),
            estimated=estimated,
        )

    async def _pages(self, operation: str, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        client = await self._aws.client("ce", self._settings.region)
        more = dict(asked)
        while True:
            page = await self._aws.call(operation, lambda: getattr(client, operation)(**more))
            yield page
            if not page.get("NextPageToken"):
                return
            more["NextPageToken"] = page["NextPageToken"]

    def _today(self) -> date:
        return self._around.clock.utc().astimezone(UTC).date()

    # ---- as metrics ----

    def metrics(self) -> tuple[str, ...]:
        return tuple(METRICS)

    async def now(self, metric: str, over_s: float | None = None) -> tuple[Reading, ...]:
        """Of the whole system, the last whole day for which there is a bill; older than two days is too old."""
        query = f"GetCostAndUsage, {self._settings.system_tag}={self._around.system}, {METRICS[metric] or 'all'}"
        try:
            spent = await self.spend(DAYS)
        except (Unreachable, NotYet) as e:
            return unknown(metric, ("",), "no-answer", e.message, query)
        if not spent:
            why = f"no cost is tagged {self._settings.system_tag}={self._around.system}, or it is not billed yet"
            return unknown(metric, ("",), "no-data", why, query)
        day = max(s.day for s in spent)
        wanted = METRICS[metric]
        usd = sum(s.usd for s in spent if s.day == day and wanted in ("", s.kind))
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        age_s = max(0.0, (self._around.clock.utc() - end).total_seconds())
        if age_s > STALE_S:
            return (Reading(metric, "", "stale", at=end, age_s=age_s, why=f"the newest bill is of {day}", query=query),)
        estimated = "estimated" if any(s.estimated for s in spent if s.day == day) else "final"
        return (Reading(metric, "", "ok", round(usd, 6), end, age_s, f"{day}, {estimated}", query=query),)

    async def series(self, metric: str, window_s: float, step_s: float) -> tuple[Series, ...]:
        """One sample a day, at its end, whatever ``step_s``."""
        spent, wanted = await self.spend(max(1, round(window_s / 86400))), METRICS[metric]
        by_day: dict[date, float] = {s.day: 0.0 for s in spent}
        for s in spent:
            by_day[s.day] += s.usd if wanted in ("", s.kind) else 0.0
        samples = [(datetime(d.year, d.month, d.day, tzinfo=UTC) + timedelta(days=1), v) for d, v in by_day.items()]
        return (Series(metric, "", tuple(sorted(samples)), 86400.0),) if samples else ()


DAYS = 7
STALE_S = 2 * 86400.0


def _type(instance: dict[str, Any]) -> str:
    return str(instance.get("ResourceDetails", {}).get("EC2ResourceDetails", {}).get("InstanceType", ""))


PROVIDER = CostExplorer
