"""What of a load balancer sends to a pool: the forward actions of its listeners and rules, and how to change them.

Sources: Elastic Load Balancing API 2015-12-01, ModifyListener, ModifyRule, ForwardActionConfig; *Application Load
Balancers*, Listeners, Weighted target groups (weights 0 to 999; stickiness of groups outlives a weight of 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import BadInput


@dataclass(frozen=True)
class Route:
    """One place that forwards to the pool: a listener's default action, or one of its rules.

    ``actions``: all of them as they were read; ``weights``: target group ARN -> weight of the forward action.
    """

    arn: str
    default: bool
    label: str
    actions: tuple[dict[str, Any], ...]
    weights: Mapping[str, int]
    sticky_s: int = 0
    """For how long a client keeps its target group, whatever the weights say."""

    def weighing(self, weights: Mapping[str, int]) -> list[dict[str, Any]]:
        """The actions that give the groups these weights, everything else as it was."""
        return [_weighed(a, weights) if a["Type"] == "forward" else _kept(a) for a in self.actions]


def route(arn: str, actions: list[dict[str, Any]], *, default: bool, label: str) -> Route | None:
    """None where nothing is forwarded."""
    forward = next((a for a in actions if a["Type"] == "forward"), None)
    if forward is None:
        return None
    config = forward.get("ForwardConfig") or {}
    groups = config.get("TargetGroups") or [{"TargetGroupArn": forward["TargetGroupArn"], "Weight": 1}]
    sticky = config.get("TargetGroupStickinessConfig") or {}
    return Route(
        arn,
        default,
        label,
        tuple(actions),
        {g["TargetGroupArn"]: int(g.get("Weight", 1)) for g in groups},
        int(sticky.get("DurationSeconds", 0)) if sticky.get("Enabled") else 0,
    )


def of_pool(every: list[Route], groups: Mapping[str, str], label: str) -> list[Route]:
    """Those that forward to one of ``groups`` (ARN -> name). Raises BadInput for none, and for one that is shared."""
    mine = [r for r in every if set(r.weights) & set(groups)]
    if not mine:
        raise BadInput(
            f"{label}: no listener or rule forwards to {', '.join(groups.values())}; put every group of the pool into"
            " the forward action, the standing-by ones with weight 0, so that their targets are checked"
        )
    for found in mine:
        foreign = [a.rpartition("/")[0].rpartition("/")[2] for a in found.weights if a not in groups]
        if foreign:
            raise BadInput(
                f"{label}: {found.label} also forwards to {', '.join(foreign)}, which the pool does not have; name it"
                " in groups, or take it out of the action"
            )
    return mine


def _weighed(action: dict[str, Any], weights: Mapping[str, int]) -> dict[str, Any]:
    config = dict(action.get("ForwardConfig") or {})
    config["TargetGroups"] = [{"TargetGroupArn": arn, "Weight": weight} for arn, weight in weights.items()]
    rest = {k: v for k, v in action.items() if k not in ("TargetGroupArn", "ForwardConfig")}
    return {**rest, "ForwardConfig": config}


def _kept(action: dict[str, Any]) -> dict[str, Any]:
    """A secret is not read back, so it must be said that it stays (AuthenticateOidcActionConfig)."""
    if action["Type"] != "authenticate-oidc":
        return action
    config = {k: v for k, v in action["AuthenticateOidcConfig"].items() if k != "ClientSecret"}
    return {**action, "AuthenticateOidcConfig": {**config, "UseExistingClientSecret": True}}
