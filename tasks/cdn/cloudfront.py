"""One CloudFront distribution with an origin (or an origin group) in each site.

CloudFront's control plane is in us-east-1 alone: with that region gone nothing here can be changed, while what is
deployed goes on being served; origin groups fail over by themselves (GET, HEAD and OPTIONS). Sources: CloudFront API
2020-05-31, UpdateDistribution (If-Match, PreconditionFailed), CreateInvalidation (CallerReference); *CloudFront*,
High availability with origin failover.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.aws import Account, Aws
from tasks.cdn._by_hand import Lines
from tasks.cdn._pointers import Pointers
from tasks.cdn.protocol import Edge
from tasks.contract import Surroundings
from tasks.errors import BadInput, LostCompare, Rejected
from tasks.marks import owned, pairs

T = TypeVar("T")
CONTROL_PLANE = "us-east-1"
_STALE = ("PreconditionFailed", "InvalidIfMatchVersion")
_LOOKED_AT = 20
"""Newest invalidations that are looked at: their list does not tell the caller reference."""


class Origin(BaseModel):
    """A site's origin. ``id``: of an origin or an origin group; ``check``: URL that shows that it is healthy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    check: str | None = Field(default=None, pattern=r"^https?://")


class CloudFrontSettings(Account):
    """``distribution``: its id; it carries the tag ``relight:system``.

    ``group``: an origin group whose first member is switched, with ``sites`` naming its members; None: the origin (or
    group) that each cache behaviour points to is switched.
    """

    distribution: str
    group: str | None = None
    sites: dict[str, Origin] = Field(min_length=1)


class CloudFront(Lines):
    """Fulfils ``tasks.cdn.protocol.Cdn``."""

    Settings: ClassVar[type[BaseModel]] = CloudFrontSettings
    _settings: CloudFrontSettings

    def __init__(self, settings: CloudFrontSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._aws = Aws(settings, around.component)
        self._site_of = {o.id: s for s, o in settings.sites.items()}
        label = f"{around.component}: distribution {settings.distribution}"
        self._pointers = Pointers(label, settings.group, frozenset(self._site_of))

    async def aclose(self) -> None:
        """Close the clients."""
        await self._aws.aclose()

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    def control_plane(self) -> str:
        return CONTROL_PLANE

    def check(self, site: str) -> str | None:
        return self._origin(site).check

    async def edge(self) -> Edge:
        answer = await self._distribution()
        distribution, version = answer["Distribution"], answer["ETag"]
        config = distribution["DistributionConfig"]
        origins = self._pointers.origins(config)
        sites = {self._site_of.get(o) for o in origins.values()}
        return Edge(
            f"distribution {self._settings.distribution}",
            sites.pop() if len(sites) == 1 else None,
            origins,
            distribution["Status"] == "Deployed",
            version,
        )

    async def switch(self, site: str, version: str) -> None:
        answer = await self._distribution()
        if answer["ETag"] != version:
            raise self._lost(version, answer["ETag"])
        config = copy.deepcopy(answer["Distribution"]["DistributionConfig"])
        self._pointers.point(config, self._origin(site).id)
        try:
            await self._ask(
                f"UpdateDistribution to {site}",
                lambda c: c.update_distribution(
                    Id=self._settings.distribution, IfMatch=version, DistributionConfig=config
                ),
                changes=True,
            )
        except Rejected as e:
            if e.facts.get("code") in _STALE:
                raise self._lost(version, "another") from e
            raise

    async def invalidate(self, reference: str, paths: Sequence[str]) -> None:
        await self._distribution()
        batch = {"Paths": {"Quantity": len(paths), "Items": list(paths)}, "CallerReference": reference}
        await self._ask(
            f"CreateInvalidation {reference}",
            lambda c: c.create_invalidation(DistributionId=self._settings.distribution, InvalidationBatch=batch),
            changes=True,
        )

    async def invalidated(self, reference: str) -> bool | None:
        where = self._settings.distribution
        answer = await self._ask(
            "ListInvalidations", lambda c: c.list_invalidations(DistributionId=where, MaxItems=str(_LOOKED_AT))
        )
        for summary in answer["InvalidationList"].get("Items") or []:
            found = await self._ask("GetInvalidation", _getting(where, summary["Id"]))
            if found["Invalidation"]["InvalidationBatch"]["CallerReference"] == reference:
                return bool(found["Invalidation"]["Status"] == "Completed")
        return None

    async def _distribution(self) -> dict[str, Any]:
        """Raises SafetyRefusal for one that is not marked."""
        where = self._settings.distribution
        answer: dict[str, Any] = await self._ask(f"GetDistribution {where}", lambda c: c.get_distribution(Id=where))
        arn = answer["Distribution"]["ARN"]
        tags = await self._ask("ListTagsForResource", lambda c: c.list_tags_for_resource(Resource=arn))
        label = f"{self._around.component}: distribution {where}"
        owned(label, pairs(tags["Tags"].get("Items") or []), self._around.system)
        return answer

    def _lost(self, expected: str, found: str) -> LostCompare:
        return LostCompare(
            f"{self._around.component}: distribution {self._settings.distribution} was changed by somebody else:"
            f" expected version {expected}, found {found}; nothing was changed. Look again."
        )

    def _origin(self, site: str) -> Origin:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(
                f"{self._around.component}: no origin for site {site!r}; there is one for: {known}"
            ) from None

    async def _ask(self, what: str, call: Callable[[Any], T], *, changes: bool = False) -> T:
        client = await self._aws.client("cloudfront", CONTROL_PLANE)
        return await self._aws.call(what, lambda: call(client), changes=changes)


def _getting(distribution: str, invalidation: str) -> Callable[[Any], Any]:
    return lambda c: c.get_invalidation(DistributionId=distribution, Id=invalidation)


PROVIDER = CloudFront
