"""Which kind of cost a usage type of AWS is. The names are those of the Cost and Usage Report's ``UsageType``."""

from __future__ import annotations

import re

from tasks.cost.protocol import Kind

# In this order: EBS:VolumeUsage is storage although it ends on Usage; NatGateway-Bytes is bandwidth.
KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("bandwidth", re.compile(r"DataTransfer|DataProcessing-Bytes|-Bytes\b|Bytes-(In|Out|Internet)|Out-Bytes|In-Bytes")),
    ("storage", re.compile(r"Storage|EBS:|Snapshot|Backup|TimedStorage")),
    (
        "instance",
        re.compile(r"BoxUsage|SpotUsage|InstanceUsage|Multi-AZUsage|DedicatedUsage|ServerlessV2Usage|LoadBalancerUsage"
                   r"|LCUUsage|NatGateway-Hours|NodeUsage|Fargate|HeavyUsage"),
    ),
)  # fmt: skip
SPOT = re.compile(r"SpotUsage")
HOURS = re.compile(r"BoxUsage|SpotUsage")
"""Of EC2: one unit is one hour of one instance."""


def kind(usage: str) -> Kind:
    """``USE1-BoxUsage:t3.large`` -> ``instance``."""
    return next((k for k, pattern in KINDS if pattern.search(usage)), "other")
