"""The section ``auto_scaling`` of the scaling plan, loadable as written there. Percentages are 0-100, times seconds."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.capacity.protocol import Scaling
from tasks.quantities import Change, Duration, Percent


class ScaleStep(BaseModel):
    """One direction of scaling: how many instances, and how long nothing more happens afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adjustment: Change
    cooldown: Duration


class AutoScaling(BaseModel):
    """``auto_scaling``: limits and steps of the application servers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_instances: int = Field(ge=0)
    max_instances: int = Field(ge=1)
    target_cpu_utilization: Percent
    cooldown_period: Duration
    scale_up: ScaleStep
    scale_down: ScaleStep

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_instances > self.max_instances:
            raise ValueError("min_instances is above max_instances")
        if self.scale_up.adjustment <= 0 or self.scale_down.adjustment >= 0:
            raise ValueError("scale_up adjusts by a positive number, scale_down by a negative one")
        return self

    def scaling(self) -> Scaling:
        """As a provider takes it."""
        return Scaling(
            self.min_instances,
            self.max_instances,
            round(self.cooldown_period),
            self.target_cpu_utilization,
            self.scale_up.adjustment,
            round(self.scale_up.cooldown),
            self.scale_down.adjustment,
            round(self.scale_down.cooldown),
        )
