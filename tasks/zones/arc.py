"""Route 53 ARC routing controls: on/off switches on a cluster with five endpoints, each in another region.

Each call goes to one endpoint after the other, from a random one on, until one answers (ARC developer guide, *Best
practices for routing control*). All switches are set in one request, so safety rules judge the end state. ARC has no
compare-and-set: the states are compared right before the request, and somebody who flips in that very moment is not
noticed; the lease is what keeps two engines apart.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.aws import Account, Aws
from tasks.contract import Surroundings
from tasks.errors import (
    EffectUnknown,
    NotYet,
    Rejected,
    RelightError,
    SafetyRefusal,
    Unreachable,
)
from tasks.variables import expand
from tasks.zones._names import FullName, moved
from tasks.zones._switches import Switch, Switches
from tasks.zones.protocol import Flipping

T = TypeVar("T")
_SERVICE = "route53-recovery-cluster"
_TRY_ELSEWHERE = (Unreachable, EffectUnknown, NotYet)


class Endpoint(BaseModel):
    """One of a cluster's five, as ``aws route53-recovery-control-config describe-cluster`` prints them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    url: str


class Control(Switch):
    """A site's routing control."""

    arn: str = Field(pattern=r"^arn:aws[a-z-]*:route53-recovery-control::\d{12}:controlpanel/\w+/routingcontrol/\w+$")


class ArcSettings(Account):
    """Of ``zones.arc``.

    Attributes:
        endpoints: of the cluster, written down here so that nothing has to be looked up on the day.
        names: that have failover or weighted record sets with these controls' health checks.
        sites: each with its control.
        override: safety rules (ARNs) that are overridden where a run waives ``safety-rules`` by name, and else never.
    """

    endpoints: tuple[Endpoint, ...] = Field(min_length=1, max_length=5)
    names: tuple[FullName, ...] = Field(min_length=1)
    sites: dict[str, Control] = Field(min_length=2)
    override: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_each(self) -> ArcSettings:
        if len({c.arn for c in self.sites.values()}) < len(self.sites):
            raise ValueError("two sites have the same routing control")
        return self


class Arc(Switches[Control]):
    """Fulfils ``tasks.zones.protocol.Switchboard``."""

    Settings: ClassVar[type[BaseModel]] = ArcSettings

    def __init__(self, settings: ArcSettings, around: Surroundings) -> None:
        super().__init__(around.component, settings.names, settings.sites)
        self._settings = settings
        self._aws = Aws(settings, around.component)

    async def aclose(self) -> None:
        await self._aws.aclose()

    def needs(self) -> tuple[str, ...]:
        return tuple(f"any one of {len(self._settings.endpoints)}: {e.region}" for e in self._settings.endpoints)

    async def states(self) -> Mapping[str, bool]:
        found = await asyncio.gather(*(self._state(c.arn) for c in self._settings.sites.values()))
        return dict(zip(self._settings.sites, found, strict=True))

    async def flip(self, old: Mapping[str, bool], new: Mapping[str, bool], by: Flipping) -> None:
        self.must_leave_one(new)
        now = await self.states()
        if now == new:
            return
        if now != old:
            raise moved(self._component, old, now)
        entries = [
            {"RoutingControlArn": self.switch(s).arn, "RoutingControlState": "On" if on else "Off"}
            for s, on in new.items()
        ]
        asked: dict[str, Any] = {"UpdateRoutingControlStateEntries": entries}
        if by.override and self._settings.override:
            asked["SafetyRulesToOverride"] = list(self._settings.override)
        try:
            await self._anywhere("flipping", lambda c: c.update_routing_control_states(**asked), changes=True)
        except (EffectUnknown, NotYet) as e:
            if await self._states_or(e) != new:
                raise
        except Rejected as e:
            raise await self._refused(e, old, new) from e

    async def _refused(self, e: Rejected, old: Mapping[str, bool], new: Mapping[str, bool]) -> RelightError:
        """A no may be of a safety rule, of its waiting period, or of somebody who flips at this moment."""
        if e.facts.get("code") not in ("ConflictException", "ValidationException"):
            return e
        now = await self._states_or(e)
        if now not in (old, new):
            return moved(self._component, old, now)
        said = e.message.lower()
        if "rule" in said and "wait" not in said:
            return SafetyRefusal(
                f"{self._component}: a safety rule of ARC said no, nothing was flipped: {e.message}. Change what it"
                ' asks for, or run again with --waive safety-rules="WHO AND WHY" and the rule\'s ARN under override.',
                code=e.facts["code"],
            )
        return NotYet(f"{self._component}: {e.message}; ARC takes no change in a safety rule's waiting period")

    async def _states_or(self, e: RelightError) -> Mapping[str, bool]:
        try:
            return await self.states()
        except _TRY_ELSEWHERE as again:
            raise EffectUnknown(f"{e.message}; and the states cannot be read: {again}") from again

    async def _state(self, arn: str) -> bool:
        said = await self._anywhere(f"asking for {arn}", lambda c: c.get_routing_control_state(RoutingControlArn=arn))
        return bool(said["RoutingControlState"] == "On")

    async def _anywhere(self, what: str, call: Callable[[Any], T], *, changes: bool = False) -> T:
        """At one endpoint after the other. Raises what the last one did, or at once what another could not change."""
        endpoints = list(self._settings.endpoints)
        random.shuffle(endpoints)
        unknown: RelightError | None = None
        for left, endpoint in zip(reversed(range(len(endpoints))), endpoints, strict=True):
            client = await self._aws.client(_SERVICE, endpoint.region, expand(endpoint.url))
            try:
                return await self._aws.call(f"{what} at {endpoint.region}", partial(call, client), changes=changes)
            except _TRY_ELSEWHERE as e:
                unknown = unknown or (e if isinstance(e, EffectUnknown) else None)
                if not left:
                    raise unknown or e from e
        raise AssertionError("the last endpoint answers or raises")


PROVIDER = Arc
