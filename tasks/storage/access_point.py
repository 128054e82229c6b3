"""S3 Multi-Region Access Point: one name before the buckets of all sites, led to the active ones by failover controls.

Requests go to one control Region after the other, from a random one on, until one answers: failover controls are
served from five (GetMultiRegionAccessPointRoutes, SubmitMultiRegionAccessPointRoutes), so that losing one is no matter.
A route is active (100) or passive (0); at least one must be active, and a change takes up to two minutes to take
effect. There is no compare-and-set: routes are compared right before the request, and the run's lease is what keeps
two engines apart. An access point has no tags: its ARN and exactly its buckets stand in the system file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.aws import Account, Aws
from tasks.contract import Surroundings
from tasks.errors import BadInput, Contradiction, EffectUnknown, NotYet, RelightError, Unreachable
from tasks.manual import Command, aws

T = TypeVar("T")
CONTROL = ("us-east-1", "us-west-2", "ap-southeast-2", "ap-northeast-1", "eu-west-1")
"""Regions of the failover controls; the buckets may be anywhere."""
_TRY_ELSEWHERE = (Unreachable, EffectUnknown, NotYet)


class Route(BaseModel):
    """One site's bucket behind the access point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str = Field(min_length=3)
    region: str


class AccessPointSettings(Account):
    """Of ``storage.access_point``.

    Attributes:
        arn: of the access point, ``arn:aws:s3::ACCOUNT:accesspoint/ALIAS.mrap``.
        sites: each with its bucket: all that the access point has, and no other.
        control_regions: of failover controls, where a partition has others, or some must be left out.
    """

    arn: str = Field(pattern=r"^arn:aws[a-z-]*:s3::\d{12}:accesspoint/[a-z0-9]+\.mrap$")
    sites: dict[str, Route] = Field(min_length=2)
    control_regions: tuple[str, ...] = Field(default=CONTROL, min_length=1)

    @model_validator(mode="after")
    def _one_each(self) -> AccessPointSettings:
        if len({r.bucket for r in self.sites.values()}) < len(self.sites):
            raise ValueError("two sites have the same bucket")
        return self


class AccessPoint:
    """Fulfils ``tasks.storage.protocol.Routed``."""

    Settings: ClassVar[type[BaseModel]] = AccessPointSettings

    def __init__(self, settings: AccessPointSettings, around: Surroundings) -> None:
        self._settings, self._component = settings, around.component
        self._aws = Aws(settings, around.component)
        self._who = {"AccountId": settings.arn.split(":")[4], "Mrap": settings.arn}
        self._asked_at: str | None = None
        """The Region that took the last change: it is read back from another one."""

    async def aclose(self) -> None:
        await self._aws.aclose()

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    async def active(self) -> Mapping[str, bool]:
        answer = await self._anywhere(
            "reading the routes", lambda c: c.get_multi_region_access_point_routes(**self._who)
        )
        have = {r["Bucket"]: (r.get("Region"), int(r["TrafficDialPercentage"]) > 0) for r in answer["Routes"]}
        wanted = {r.bucket: r.region for r in self._settings.sites.values()}
        if {b: region for b, (region, _) in have.items()} != wanted:
            found = ", ".join(f"{b} ({region})" for b, (region, _) in sorted(have.items())) or "none"
            raise Contradiction(
                f"{self._component}: the access point {self._settings.arn} leads to {found}; the system file says "
                f"{', '.join(f'{b} ({r})' for b, r in sorted(wanted.items()))}. Nothing is changed before they agree."
            )
        return {site: have[route.bucket][1] for site, route in self._settings.sites.items()}

    async def route(self, old: Mapping[str, bool], new: Mapping[str, bool]) -> None:
        if not any(new.values()) or set(new) != set(self._settings.sites):
            raise BadInput(f"{self._component}: {dict(new)} must name each site, and at least one as active")
        now = await self.active()
        if now == new:
            return
        if now != old:
            raise Contradiction(
                f"{self._component}: the routes are {dict(now)}, not {dict(old)}; somebody changed them"
            )
        updates = [
            {"Bucket": r.bucket, "Region": r.region, "TrafficDialPercentage": 100 if new[s] else 0}
            for s, r in self._settings.sites.items()
        ]
        await self._anywhere(
            "changing the routes",
            lambda c: c.submit_multi_region_access_point_routes(**self._who, RouteUpdates=updates),
            changes=True,
        )

    def route_lines(self, site: str) -> list[Command]:
        """See ``tasks.storage.manual.RoutesByHand``."""
        dials = [
            f"Bucket={r.bucket},Region={r.region},TrafficDialPercentage={100 if s == site else 0}"
            for s, r in self._settings.sites.items()
        ]
        regions, words = (
            self._settings.control_regions,
            ("--account-id", self._who["AccountId"], "--mrap", self._settings.arn),
        )
        submit = ("s3control", "submit-multi-region-access-point-routes", *words, "--route-updates", *dials)
        get = ("s3control", "get-multi-region-access-point-routes", *words, "--output", "text")
        others = f"Without an answer, any other of these regions: {', '.join(regions[1:])}."
        return [
            Command(aws(regions[0], self._settings.profile, *submit), "(nothing; exit status 0)", others),
            Command(
                aws(regions[-1], self._settings.profile, *get), f"100 behind the bucket of {site}, 0 behind others"
            ),
        ]

    async def _anywhere(self, what: str, call: Callable[[Any], T], *, changes: bool = False) -> T:
        """In one Region after the other; the whole state is set, so asking again after a lost reply doubles nothing.

        Raises what the last one did, EffectUnknown where one of them may have done it.
        """
        regions = list(self._settings.control_regions)
        random.shuffle(regions)
        regions.sort(key=lambda r: r == self._asked_at)  # the one that took the change comes last
        unknown: RelightError | None = None
        for left, region in zip(reversed(range(len(regions))), regions, strict=True):
            client = await self._aws.client("s3control", region)
            try:
                found = await self._aws.call(f"{what} in {region}", partial(call, client), changes=changes)
            except _TRY_ELSEWHERE as e:
                unknown = unknown or (e if isinstance(e, EffectUnknown) else None)
                if not left:
                    raise unknown or e from e
            else:
                self._asked_at = region if changes else self._asked_at
                return found
        raise AssertionError("the last Region answers or raises")


PROVIDER = AccessPoint
