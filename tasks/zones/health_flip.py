"""Switches that are small objects which Route 53 health checks watch: no control plane and no cluster.

A site is on while the object of its switch says ``state=on``. Its health check (type HTTPS_STR_MATCH, search string
``state=on``) reads the object; the name's failover or weighted record sets have that health check. Route 53's checkers
see a flip within interval times threshold (10 s x 1 at best; developer guide, *How Route 53 determines the status of
health checks*). An object says ``state=on epoch=7 owner=relight``; one that says something else is not ours and is
never overwritten. Every PUT carries the ETag that was read (If-Match), so it is a compare-and-set with the epoch in it
(S3 user guide, *Conditional writes*). Keep a site's object in a region that is not the site's own: it must be possible
to turn the site off while its region is gone. While the bucket itself is gone, its site counts as off.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from tasks.aws import Account, Aws
from tasks.contract import Surroundings
from tasks.errors import EffectUnknown, LeaseHeld, LostCompare, Rejected, RelightError, Unreachable
from tasks.zones._names import FullName, moved
from tasks.zones._switches import Switch, Switches
from tasks.zones.protocol import Flipping

_TEXT = re.compile(r"state=(on|off) epoch=(\d{1,18}) owner=relight\n?", re.ASCII)
_MOST_BYTES = 256
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
"""Codes of a conditional write that found another object than it was told (S3 API reference, PutObject)."""


class SwitchObject(Switch):
    """A site's object. ``region``: the bucket's, not the site's."""

    region: str
    bucket: str = Field(min_length=3)
    key: str = Field(min_length=1)


class FlipSettings(Account):
    """Of ``zones.health_flip``. ``names``: that have record sets with these objects' health checks."""

    names: tuple[FullName, ...] = Field(min_length=1)
    sites: dict[str, SwitchObject] = Field(min_length=2)


@dataclass(frozen=True)
class _Seen:
    on: bool
    epoch: int | None
    etag: str | None
    """None: there is no object yet, which a health check takes for off."""


class HealthFlip(Switches[SwitchObject]):
    """Fulfils ``tasks.zones.protocol.Switchboard``."""

    Settings: ClassVar[type[BaseModel]] = FlipSettings

    def __init__(self, settings: FlipSettings, around: Surroundings) -> None:
        super().__init__(around.component, settings.names, settings.sites)
        self._settings = settings
        self._aws = Aws(settings, around.component)

    async def aclose(self) -> None:
        await self._aws.aclose()

    def needs(self) -> tuple[str, ...]:
        return tuple(f"s3 in {o.region} for {site}" for site, o in self._settings.sites.items())

    async def states(self) -> Mapping[str, bool]:
        return {site: switch.on for site, switch in (await self._all()).items()}

    async def flip(self, old: Mapping[str, bool], new: Mapping[str, bool], by: Flipping) -> None:
        """What is to be on first, then what is to be off: in between both are, and never none."""
        self.must_leave_one(new)
        now = await self._all()
        newest = max((s.epoch for s in now.values() if s.epoch is not None), default=None)
        if newest is not None and newest > by.epoch:
            raise _newer(self._component, newest, by.epoch)
        states = {s: w.on for s, w in now.items()}
        if states not in (old, new):
            raise moved(self._component, old, states)
        for wanted in (True, False):
            sites = [s for s, on in new.items() if on is wanted and now[s].on != on]
            await asyncio.gather(*(self._put(s, now[s], by.epoch, on=wanted) for s in sites))

    async def _all(self) -> dict[str, _Seen]:
        found = await asyncio.gather(*(self._get(s) for s in self._settings.sites))
        return dict(zip(self._settings.sites, found, strict=True))

    async def _get(self, site: str) -> _Seen:
        place = self.switch(site)
        client = await self._aws.client("s3", place.region)

        def read() -> tuple[str, str]:
            answer = client.get_object(Bucket=place.bucket, Key=place.key)
            with answer["Body"] as body:
                return body.read(_MOST_BYTES).decode("utf-8", "replace"), answer["ETag"]

        try:
            text, etag = await self._aws.call(f"reading the switch of {site}", read)
        except Rejected as e:
            if e.facts.get("code") == "NoSuchKey":
                return _Seen(on=False, epoch=None, etag=None)
            raise
        match = _TEXT.fullmatch(text)
        if match is None:
            raise Rejected(
                f"{self._component}: s3://{place.bucket}/{place.key} is no switch of relight: expected"
                f' "state=on epoch=N owner=relight", found {text[:60]!r}. It is left alone; find out whose it is.'
            )
        return _Seen(on=match[1] == "on", epoch=int(match[2]), etag=etag)

    async def _put(self, site: str, seen: _Seen, epoch: int, *, on: bool) -> None:
        place = self.switch(site)
        client = await self._aws.client("s3", place.region)
        only: dict[str, Any] = {"IfMatch": seen.etag} if seen.etag else {"IfNoneMatch": "*"}
        body = f"state={'on' if on else 'off'} epoch={epoch} owner=relight\n".encode()
        what = {"Bucket": place.bucket, "Key": place.key, "Body": body, "ContentType": "text/plain"}
        # a checker must not be given an old one by anything in between
        what["CacheControl"] = "no-store"
        name = f"turning {site} {'on' if on else 'off'}"
        try:
            await self._aws.call(name, lambda: client.put_object(**what, **only), changes=True)
        except EffectUnknown as e:
            await self._settle(site, epoch, e, on=on)
        except Rejected as e:
            if e.facts.get("code") not in _LOST:
                raise
            await self._settle(site, epoch, e, on=on)

    async def _settle(self, site: str, epoch: int, e: RelightError, *, on: bool) -> None:
        """Read what is true after an answer that does not tell. Returns when ours is in."""
        try:
            now = await self._get(site)
        except (Unreachable, Rejected) as again:
            raise EffectUnknown(f"{e.message}; and it cannot be read: {again}") from again
        if (now.on, now.epoch) == (on, epoch):
            return
        if now.epoch is not None and now.epoch > epoch:
            raise _newer(self._component, now.epoch, epoch) from e
        if isinstance(e, EffectUnknown):
            raise e
        raise LostCompare(f"{self._component}: somebody else wrote the switch of {site}: it is {now}") from e


def _newer(component: str, theirs: int, epoch: int) -> LeaseHeld:
    return LeaseHeld(
        f"{component}: the switches were last written by epoch {theirs}; this run is epoch {epoch}, no longer the"
        " newest. Look for the newer run.",
        epoch=epoch,
    )


PROVIDER = HealthFlip
