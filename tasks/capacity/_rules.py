"""The rules by which a group scales: limits, a cpu target, steps with cooldowns.

Sources: Auto Scaling API 2011-01-01, PutScalingPolicy, UpdateAutoScalingGroup; *EC2 Auto Scaling*, Simple scaling (the
only kind of policy with a cooldown of its own), Target tracking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tasks.capacity._asg import Looking
from tasks.capacity.protocol import Limits, Scaling
from tasks.errors import SafetyRefusal

TARGET, UP, DOWN = "relight-target-cpu", "relight-scale-up", "relight-scale-down"
"""Names of the policies that relight keeps; others are left alone."""


class ScalingRules(Looking):
    """Fulfils ``Elastic``."""

    async def scaling(self, site: str) -> tuple[Scaling, int]:
        group, policies = await self._group(site), await self._policies(site)
        target, up, down = policies.get(TARGET, {}), policies.get(UP, {}), policies.get(DOWN, {})
        config = target.get("TargetTrackingConfiguration") or {}
        return Scaling(
            group["MinSize"],
            group["MaxSize"],
            group.get("DefaultCooldown"),
            config.get("TargetValue"),
            up.get("ScalingAdjustment"),
            up.get("Cooldown"),
            down.get("ScalingAdjustment"),
            down.get("Cooldown"),
        ), int(group["DesiredCapacity"])

    async def set_scaling(self, site: str, wanted: Scaling) -> None:
        now, desired = await self.scaling(site)
        if desired > wanted.maximum:
            raise SafetyRefusal(
                f"{self._label(site)}: {desired} instances are asked for; a maximum of {wanted.maximum} would stop"
                " some of them. Scale in first, or raise the maximum."
            )
        name = self._site(site).group
        if (now.minimum, now.maximum, now.cooldown_s) != (wanted.minimum, wanted.maximum, wanted.cooldown_s):
            more = {} if wanted.cooldown_s is None else {"DefaultCooldown": wanted.cooldown_s}
            await self._do(
                site,
                f"UpdateAutoScalingGroup {name}",
                lambda c: c.update_auto_scaling_group(
                    AutoScalingGroupName=name, MinSize=wanted.minimum, MaxSize=wanted.maximum, **more
                ),
            )
        if now.target_cpu != wanted.target_cpu:
            config = {
                "PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"},
                "TargetValue": wanted.target_cpu,
            }
            rule = {"PolicyType": "TargetTrackingScaling", "TargetTrackingConfiguration": config}
            await self._policy(site, TARGET, rule if wanted.target_cpu is not None else None)
        if (now.up, now.up_cooldown_s) != (wanted.up, wanted.up_cooldown_s):
            await self._policy(site, UP, _step(wanted.up, wanted.up_cooldown_s))
        if (now.down, now.down_cooldown_s) != (wanted.down, wanted.down_cooldown_s):
            await self._policy(site, DOWN, _step(wanted.down, wanted.down_cooldown_s))

    async def live_limits(self, site: str) -> Limits:
        """MinSize and MaxSize, as the group has them now."""
        group = await self._group(site)
        return Limits(int(group["MinSize"]), int(group["MaxSize"]))

    async def set_limits(self, site: str, limits: Limits) -> None:
        """Raises SafetyRefusal where that would stop instances that are asked for."""
        now, _ = await self.scaling(site)
        await self.set_scaling(site, replace(now, minimum=limits.minimum, maximum=limits.maximum))

    async def _policy(self, site: str, policy: str, rule: dict[str, Any] | None) -> None:
        name = self._site(site).group
        if rule is None:
            await self._do(
                site,
                f"DeletePolicy {policy}",
                lambda c: c.delete_policy(AutoScalingGroupName=name, PolicyName=policy),
            )
        else:
            await self._do(
                site,
                f"PutScalingPolicy {policy}",
                lambda c: c.put_scaling_policy(AutoScalingGroupName=name, PolicyName=policy, **rule),
            )

    async def _policies(self, site: str) -> dict[str, dict[str, Any]]:
        name = self._site(site).group
        found = await self._ask(
            site,
            "DescribePolicies",
            lambda c: c.get_paginator("describe_policies").paginate(AutoScalingGroupName=name).build_full_result(),
        )
        return {p["PolicyName"]: p for p in found.get("ScalingPolicies", [])}

    async def _do(self, site: str, what: str, call: Callable[[Any], Any]) -> None:
        await self._ask(site, what, call, changes=True)


def _step(adjustment: int | None, cooldown_s: int | None) -> dict[str, Any] | None:
    """A simple scaling policy: the only kind with a cooldown of its own (*Simple scaling*)."""
    if adjustment is None:
        return None
    rule = {"PolicyType": "SimpleScaling", "AdjustmentType": "ChangeInCapacity", "ScalingAdjustment": adjustment}
    return rule if cooldown_s is None else {**rule, "Cooldown": cooldown_s}
