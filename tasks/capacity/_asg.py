"""Looks at one Auto Scaling group a site. Sources: Auto Scaling API 2011-01-01; *EC2 Auto Scaling*, Lifecycle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.aws import Account, Aws
from tasks.capacity.protocol import Limits
from tasks.contract import Facts, Surroundings
from tasks.errors import BadInput, NotYet, Rejected
from tasks.marks import owned, pairs
from tasks.quotas import service_quota

T = TypeVar("T")
ON_THE_WAY = ("Pending", "Pending:Wait", "Pending:Proceed", "InService")
BLOCKING = ("Launch", "AddToLoadBalancer")
"""Processes without which a group that is asked to grow does not (*Suspend and resume processes*)."""
ON_DEMAND = "L-1216C47A"
"""Service Quotas' code of *Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances*, in vCPUs."""
_NO_CAPACITY = (
    "InsufficientInstanceCapacity",
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "do not have sufficient",
)
_NO_QUOTA = ("VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "more vCPU capacity than")


class GroupSettings(BaseModel):
    """One site's Auto Scaling group, in its own region."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    group: str


class AutoScalingSettings(Account):
    """The groups carry the tag ``relight:system``.

    Attributes:
        resume: suspended processes that growing needs are resumed; otherwise they are a reason to stop.
        balanced: an instance is ready when each target group of its Auto Scaling group says so too.
        vcpus: of one instance, for the comparison with the account's quota.
    """

    sites: dict[str, GroupSettings] = Field(min_length=1)
    minimum: int = Field(default=1, ge=0)
    maximum: int = Field(ge=1)
    resume: bool = False
    balanced: bool = False
    vcpus: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _are_ordered(self) -> AutoScalingSettings:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class Looking:
    """Reads. Every look at a group checks whose it is."""

    def __init__(self, settings: AutoScalingSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._aws = Aws(settings, around.component)

    async def aclose(self) -> None:
        """Close the clients."""
        await self._aws.aclose()

    def limits(self, site: str) -> Limits:
        self._site(site)
        return Limits(self._settings.minimum, self._settings.maximum)

    async def explain(self, site: str) -> Facts:
        group, failure = await asyncio.gather(self._group(site), self._failure(site))
        warm = await self._ask(
            site, "DescribeWarmPool", lambda c: c.describe_warm_pool(AutoScalingGroupName=self._site(site).group)
        )
        pool = warm.get("WarmPoolConfiguration")
        return {
            "group": group["AutoScalingGroupName"],
            "region": self._site(site).region,
            "desired": group["DesiredCapacity"],
            "max_size": group["MaxSize"],
            "suspended": suspended(group),
            "zones": sorted(group.get("AvailabilityZones", [])),
            "types": types(group),
            "warm_pool": {"state": pool.get("PoolState"), "instances": len(warm.get("Instances", []))}
            if pool
            else None,
            "last_launch_failed": failure,
        }

    async def quota(self, site: str) -> tuple[float, float]:
        """*Running On-Demand Standard instances* of the site's region (Service Quotas), whatever else runs there."""
        may, _ = await service_quota(self._aws, self._site(site).region, "ec2", ON_DEMAND)
        return may, float(self._settings.maximum * self._settings.vcpus)

    async def _group(self, site: str) -> dict[str, Any]:
        """Raises SafetyRefusal for a group that is not marked, BadInput for none."""
        where = self._site(site)
        answer = await self._ask(
            site,
            f"DescribeAutoScalingGroups {where.group}",
            lambda c: c.describe_auto_scaling_groups(AutoScalingGroupNames=[where.group]),
        )
        if not answer["AutoScalingGroups"]:
            raise BadInput(f"{self._label(site)}: there is no such group in {where.region}")
        group: dict[str, Any] = answer["AutoScalingGroups"][0]
        owned(self._label(site), pairs(group.get("Tags", [])), self._around.system)
        return group

    async def _failure(self, site: str) -> str | None:
        """Why the newest launch that has ended did not succeed, as AWS says it."""
        answer = await self._ask(
            site,
            "DescribeScalingActivities",
            lambda c: c.describe_scaling_activities(AutoScalingGroupName=self._site(site).group, MaxRecords=20),
        )
        for activity in answer["Activities"]:  # newest first
            if "Launching" in activity.get("Description", "") and activity["StatusCode"] in ("Successful", "Failed"):
                return str(activity.get("StatusMessage", "?")) if activity["StatusCode"] == "Failed" else None
        return None

    async def _raise_why_not(self, site: str, group: Mapping[str, Any]) -> None:
        """A launch that failed, told with what to do. Raises NotYet (AWS tries again by itself) or Rejected."""
        why = await self._failure(site)
        if why is None:
            return
        zones, kinds = ", ".join(sorted(group["AvailabilityZones"])), ", ".join(types(group)) or "of its template"
        label = self._label(site)
        if any(mark in why for mark in _NO_QUOTA):
            raise Rejected(
                f"{label}: the account may not run more in {self._site(site).region}: {why}. Ask for more of Service"
                " Quotas L-1216C47A, or use types of another quota.",
                reason=why,
            )
        if any(mark in why for mark in _NO_CAPACITY):
            raise NotYet(
                f"{label}: AWS has no capacity for it: {why}. The group uses zones {zones} and types {kinds}: add other"
                " zones or instance types to it (MixedInstancesPolicy). AWS tries again by itself.",
                reason=why,
            )
        raise NotYet(f"{label}: the last launch failed: {why}. AWS tries again by itself.", reason=why)

    async def _healthy_behind(self, site: str, group: Mapping[str, Any]) -> list[set[str]]:
        """Instances that pass the check, for each target group of the Auto Scaling group."""
        if not self._settings.balanced:
            return []
        client = await self._aws.client("elbv2", self._site(site).region)

        async def healthy(arn: str) -> set[str]:
            answer = await self._aws.call(
                "DescribeTargetHealth", lambda: client.describe_target_health(TargetGroupArn=arn)
            )
            found = answer["TargetHealthDescriptions"]
            return {d["Target"]["Id"] for d in found if d["TargetHealth"]["State"] == "healthy"}

        return list(await asyncio.gather(*(healthy(a) for a in group.get("TargetGroupARNs", []))))

    async def _ask(self, site: str, what: str, call: Callable[[Any], T], *, changes: bool = False) -> T:
        client = await self._aws.client("autoscaling", self._site(site).region)
        return await self._aws.call(what, lambda: call(client), changes=changes)

    def _label(self, site: str) -> str:
        where = self._site(site)
        return f"{self._around.component}: Auto Scaling group {where.group} of {site}"

    def _site(self, site: str) -> GroupSettings:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._around.component}: no site {site!r} in its settings; known: {known}") from None


def suspended(group: Mapping[str, Any]) -> list[str]:
    """Names of the processes that do not run."""
    return sorted(p["ProcessName"] for p in group.get("SuspendedProcesses", []))


def types(group: Mapping[str, Any]) -> list[str]:
    """Instance types that the group may use, as far as the group itself says."""
    template = (group.get("MixedInstancesPolicy") or {}).get("LaunchTemplate") or {}
    named = [o["InstanceType"] for o in template.get("Overrides", []) if "InstanceType" in o]
    return sorted({*named, *(i["InstanceType"] for i in group.get("Instances", []) if i.get("InstanceType"))})


def runs(instance: Mapping[str, Any]) -> bool:
    """It runs or is about to, and is not to be replaced. Instances of a warm pool do not count."""
    return instance["LifecycleState"] in ON_THE_WAY and instance["HealthStatus"].lower() == "healthy"
