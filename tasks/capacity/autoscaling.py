"""Instances of an EC2 Auto Scaling group a site, each in its own region.

Growing never lowers what the group was asked for already; a launch that failed for want of capacity or quota is told
with what to do. Sources: Auto Scaling API 2011-01-01 (SetDesiredCapacity, UpdateAutoScalingGroup, PutScalingPolicy,
StartInstanceRefresh, RollbackInstanceRefresh, ResumeProcesses).
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from pydantic import BaseModel

from tasks.capacity._asg import BLOCKING, ON_DEMAND, AutoScalingSettings, runs, suspended
from tasks.capacity._rules import ScalingRules
from tasks.capacity.protocol import Instance, Refresh, Rolling
from tasks.errors import BadInput, Rejected
from tasks.manual import aws
from tasks.quotas import Allowance, in_use, service_quota


class AutoScaling(ScalingRules):
    """Fulfils ``Capacity``, ``Elastic``, ``Refreshing`` and ``Quoted``."""

    Settings: ClassVar[type[BaseModel]] = AutoScalingSettings

    async def instances(self, site: str) -> tuple[Instance, ...]:
        group = await self._group(site)
        behind = await self._healthy_behind(site, group)
        return tuple(
            Instance(
                i["InstanceId"],
                site,
                i["InstanceId"],
                running=runs(i),
                ready=runs(i)
                and i["LifecycleState"] == "InService"
                and all(i["InstanceId"] in healthy for healthy in behind),
            )
            for i in group["Instances"]
        )

    async def allowances(self, active: str, target: str) -> tuple[Allowance, ...]:
        """Of vCPUs on demand in the target's region, for as many instances as serve at ``active`` now."""
        region = self._site(target).region
        here, there, (limit, metric) = await asyncio.gather(
            self.instances(active), self.instances(target), service_quota(self._aws, region, "ec2", ON_DEMAND)
        )
        used = await in_use(self._aws, region, metric, self._around.clock.utc())
        need = max(sum(i.ready for i in here), self.limits(target).minimum)
        more = max(0, need - sum(i.running for i in there)) * self._settings.vcpus
        return (Allowance(f"vCPUs on demand in {region}", limit, used, float(more), f"ec2 {ON_DEMAND}"),)

    async def scale(self, site: str, count: int) -> None:
        limits = self.limits(site)
        if not limits.minimum <= count <= limits.maximum:
            raise BadInput(
                f"{self._around.component}: {count} instances at {site} asked for; allowed are {limits.minimum} to"
                f" {limits.maximum} (minimum and maximum in the system file)"
            )
        group = await self._group(site)
        running, desired = sum(runs(i) for i in group["Instances"]), int(group["DesiredCapacity"])
        if count >= running:
            await self._must_launch(site, group)
            if desired >= count and running < count:
                await self._raise_why_not(site, group)
            count = max(count, desired)
        if count != desired:
            await self._ask_for(site, group, count)

    async def _ask_for(self, site: str, group: dict[str, Any], count: int) -> None:
        name = group["AutoScalingGroupName"]
        if count < group["MinSize"]:
            raise Rejected(f"{self._label(site)}: its MinSize is {group['MinSize']}, {count} instances were asked for")
        if count > group["MaxSize"]:
            await self._do(
                site,
                f"UpdateAutoScalingGroup {name} to {count}",
                lambda c: c.update_auto_scaling_group(AutoScalingGroupName=name, MaxSize=count, DesiredCapacity=count),
            )
        else:
            await self._do(
                site,
                f"SetDesiredCapacity {name} to {count}",
                lambda c: c.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=count, HonorCooldown=False),
            )

    async def _must_launch(self, site: str, group: dict[str, Any]) -> None:
        stopped = [p for p in suspended(group) if p in BLOCKING]
        if not stopped:
            return
        if not self._settings.resume:
            raise Rejected(
                f"{self._label(site)}: {', '.join(stopped)} suspended, so it cannot grow. Resume them, or say resume:"
                " true in the settings of the component.",
                suspended=stopped,
            )
        name = group["AutoScalingGroupName"]
        await self._do(
            site,
            f"ResumeProcesses {name} {' '.join(stopped)}",
            lambda c: c.resume_processes(AutoScalingGroupName=name, ScalingProcesses=stopped),
        )

    def scale_line(self, site: str, count: int) -> tuple[str, str]:
        """See ``tasks.capacity.manual.ByHand``. Its maximum is what the system file allows: the count must fit."""
        where, most = self._site(site), self.limits(site).maximum
        group = ("--auto-scaling-group-name", where.group)
        words = ("update-auto-scaling-group", *group, "--max-size", str(most), "--desired-capacity", str(count))
        return aws(where.region, self._settings.profile, "autoscaling", *words), "(nothing; exit status 0)"

    # ---- another version of everything ----

    async def versions(self, site: str) -> dict[str, str]:
        group = await self._group(site)
        return {i["InstanceId"]: str((i.get("LaunchTemplate") or {}).get("Version", "?")) for i in group["Instances"]}

    async def newest_refresh(self, site: str) -> Refresh | None:
        name = self._site(site).group
        answer = await self._ask(
            site,
            "DescribeInstanceRefreshes",
            lambda c: c.describe_instance_refreshes(AutoScalingGroupName=name, MaxRecords=1),
        )
        for found in answer["InstanceRefreshes"]:
            template = (found.get("DesiredConfiguration") or {}).get("LaunchTemplate") or {}
            return Refresh(
                found["InstanceRefreshId"],
                found["Status"],
                int(found.get("PercentageComplete", 0)),
                str(template.get("Version", "?")),
                str(found.get("StatusReason", "")),
            )
        return None

    async def start_refresh(self, site: str, how: Rolling) -> None:
        group, going = await self._group(site), await self.newest_refresh(site)
        if going is not None and going.going:
            if going.version == how.version and going.status != "RollbackInProgress":
                return  # this one, whose reply was lost, or somebody else's to the same version
            raise Rejected(
                f"{self._label(site)}: refresh {going.name} to version {going.version} is {going.status}; wait for"
                " it, or cancel it"
            )
        if "InstanceRefresh" in suspended(group):
            raise Rejected(f"{self._label(site)}: process InstanceRefresh is suspended; resume it first")
        template = _template(group)
        if template is None:
            raise BadInput(f"{self._label(site)} has no launch template, so there are no versions to go to")
        await self._do(
            site,
            f"StartInstanceRefresh {group['AutoScalingGroupName']} to version {how.version}",
            lambda c: c.start_instance_refresh(
                AutoScalingGroupName=group["AutoScalingGroupName"],
                DesiredConfiguration={
                    "LaunchTemplate": {"LaunchTemplateId": template["LaunchTemplateId"], "Version": how.version}
                },
                Preferences={
                    "MinHealthyPercentage": how.minimum_healthy,
                    "MaxHealthyPercentage": how.maximum_healthy,
                    "InstanceWarmup": how.warmup_s,
                    "SkipMatching": True,
                    "ScaleInProtectedInstances": "Wait",
                    "StandbyInstances": "Wait",
                },
            ),
        )

    async def roll_back(self, site: str) -> None:
        name = (await self._group(site))["AutoScalingGroupName"]
        await self._do(
            site,
            f"RollbackInstanceRefresh {name}",
            lambda c: c.rollback_instance_refresh(AutoScalingGroupName=name),
        )


def _template(group: dict[str, Any]) -> dict[str, Any] | None:
    mixed = (group.get("MixedInstancesPolicy") or {}).get("LaunchTemplate") or {}
    found = group.get("LaunchTemplate") or mixed.get("LaunchTemplateSpecification")
    return dict(found) if found else None


PROVIDER = AutoScaling
