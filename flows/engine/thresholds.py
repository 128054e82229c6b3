"""The configuration sections of the scaling plan, loadable as written there. Percentages are 0-100, times seconds."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.quantities import ConditionText, Duration, ThresholdText

Severity = Literal["info", "warning", "critical"]


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Levels(Strict):
    """A metric's two thresholds, in the same unit."""

    warning: ThresholdText
    critical: ThresholdText

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.warning, self.critical
        if low.unit != high.unit:
            raise ValueError("warning and critical are in different units")
        if isinstance(low.value, float) and isinstance(high.value, float) and low.value > high.value:
            raise ValueError("warning is above critical")
        return self


class Scaling(Strict):
    """``scaling``: what load is too much."""

    cpu: Levels | None = None
    memory: Levels | None = None
    latency: Levels | None = None
    errors: Levels | None = None


class Range(Strict):
    """``min`` to ``max``, both included."""

    min: int = Field(ge=0)
    max: int = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class AutoVacuum(Strict):
    """``threshold``: changed rows before a table is vacuumed."""

    enabled: bool
    threshold: int = Field(ge=0)


class DatabaseSizing(Strict):
    """``database``: replicas, pool and autovacuum."""

    read_replicas: Range | None = None
    connection_pool: Range | None = None
    auto_vacuum: AutoVacuum | None = None


class Alert(Strict):
    """A named condition over one metric."""

    name: str
    condition: ConditionText
    severity: Severity


class Prices(Strict):
    """US dollars: of an application instance an hour, of a GiB between sites. What is not given is unknown."""

    instance_hour: float | None = Field(default=None, ge=0)
    transfer_gib: float | None = Field(default=None, ge=0)


class Monitoring(Strict):
    """``monitoring``, ``database_monitoring`` and ``cost_monitoring``.

    Attributes:
        metrics: what is watched; a metric without an alert too.
        alerts: conditions over metrics.
        thresholds: name -> value, for conditions that compare with a name (``daily_cost > threshold``).
        recovery_without_standby: how long it would take to recover with nothing standing ready, for what that costs.
        prices: what the cost of a run is computed from.
    """

    metrics: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    thresholds: dict[str, ThresholdText] = Field(default_factory=dict)
    recovery_without_standby: Duration | None = None
    prices: Prices | None = None
