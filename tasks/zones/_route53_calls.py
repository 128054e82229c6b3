"""What relight asks of Route 53's API, at the pace that it takes: list, change, look at a change, look at the zone."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential, wait_random

from tasks.aws import Aws
from tasks.clock import Clock
from tasks.errors import NotYet, Rejected
from tasks.zones import protocol
from tasks.zones._rfc2136_settings import RDTYPES
from tasks.zones._route53_settings import ZoneSettings

T = TypeVar("T")
WINDOW_S = 1.1
"""In which so many requests may go out: a second, and what their ways to Route 53 may differ by."""
_SENT: dict[tuple[str, int], deque[float]] = {}
"""(account, requests a second) -> ``monotonic()`` of as many latest turns of this process, some still to come."""


class Pace:
    """No more than so many requests in any second; the first few at once.

    Route 53 takes five requests a second from one account, whoever makes them (developer guide, *Quotas*).
    """

    def __init__(self, clock: Clock, account: str, per_s: int) -> None:
        self._clock, self._sent = clock, _SENT.setdefault((account, per_s), deque(maxlen=per_s))

    async def turn(self) -> None:
        """Return when a request may be sent. No await between look and note: nobody else gets the same turn."""
        now, sent = self._clock.monotonic(), self._sent
        at = max(now, sent[0] + WINDOW_S) if len(sent) == sent.maxlen else now
        sent.append(at)
        if at > now:
            await self._clock.sleep(at - now)


REQUESTS = 16
"""Of one move of a record set (look, look again, change, read back, and some looks at the change); held by a test."""


class Paces:
    """Fulfils ``tasks.zones.protocol.Paced``."""

    _settings: ZoneSettings

    def pace(self) -> protocol.Pace:
        sets = sum(bool(getattr(routed, t)) for routed in self._settings.names.values() for t in RDTYPES)
        return protocol.Pace(sets * REQUESTS, float(self._settings.requests_per_s))


@dataclass(frozen=True)
class HostedZone:
    """``name`` absolute. ``recovery``: AcceleratedRecoveryStatus; empty where botocore or Route 53 says nothing."""

    name: str
    private: bool
    servers: tuple[str, ...]
    recovery: str
    skew_s: float


class Route53Api:
    """The calls of one hosted zone. Each is sent again, with growing waits, while Route 53 asks to come back later."""

    def __init__(self, settings: ZoneSettings, component: str, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._aws = Aws(settings, component)
        self._pace = Pace(clock, settings.profile or "", settings.requests_per_s)
        self._under_way: dict[tuple[str, ...], asyncio.Task[Any]] = {}

    async def aclose(self) -> None:
        await self._aws.aclose()

    async def hosted_zone(self) -> HostedZone:
        """Raises Rejected where there is no such zone or it is not called as the settings say."""
        return await self._shared(("zone",), self._zone)

    async def _zone(self) -> HostedZone:
        settings = self._settings
        found = await self._asked("looking at the hosted zone", lambda r: r.get_hosted_zone(Id=settings.hosted_zone))
        zone = found["HostedZone"]
        name = zone["Name"].lower()
        if name != settings.zone:
            raise Rejected(
                f"hosted zone {settings.hosted_zone} is {name}, and the system file calls it {settings.zone}: check"
                " hosted_zone and zone, nothing is changed before they agree"
            )
        date = found["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
        return HostedZone(
            name=name,
            private=bool(zone.get("Config", {}).get("PrivateZone")),
            servers=tuple(s.lower().rstrip(".") + "." for s in found.get("DelegationSet", {}).get("NameServers", ())),
            recovery=str(zone.get("Features", {}).get("AcceleratedRecoveryStatus", "")),
            skew_s=_skew_s(date, self._clock.utc()) if date else 0.0,
        )

    async def records(self, name: str, rdtype: str = "") -> list[dict[str, Any]]:
        """The record sets at ``name`` (of ``rdtype``, or all), as boto3 has them. Calls at one moment share one."""
        return await self._shared(("list", name, rdtype), partial(self._listed, name, rdtype))

    async def _shared(self, key: tuple[str, ...], call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task: asyncio.Task[T] | None = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(call())
            task.add_done_callback(lambda _done: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _listed(self, name: str, rdtype: str) -> list[dict[str, Any]]:
        """Page by page, in Route 53's order (labels reversed), until another name or type comes."""
        found: list[dict[str, Any]] = []
        start: dict[str, str] = {"StartRecordName": name} | ({"StartRecordType": rdtype} if rdtype else {})
        while True:
            asked = {"HostedZoneId": self._settings.hosted_zone, **start}
            page = await self._asked(f"listing {name}", partial(_list, asked))
            for record in page["ResourceRecordSets"]:
                if _unescaped(record["Name"]) != name or (rdtype and record["Type"] != rdtype):
                    return found
                found.append(record)
            if not page["IsTruncated"]:
                return found
            start = {
                f"Start{key.removeprefix('Next')}": page[key]
                for key in ("NextRecordName", "NextRecordType", "NextRecordIdentifier")
                if page.get(key)
            }
            if _unescaped(start["StartRecordName"]) != name:
                return found

    async def change(self, what: str, batch: dict[str, Any]) -> str:
        """Send a change batch; all of it happens or nothing. Returns the change's id.

        Raises EffectUnknown, Rejected with ``code`` (InvalidChangeBatch, InvalidInput: nothing was changed), NotYet.
        """
        asked = {"HostedZoneId": self._settings.hosted_zone, "ChangeBatch": batch}
        said = await self._asked(what, lambda r: r.change_resource_record_sets(**asked), changes=True)
        return str(said["ChangeInfo"]["Id"])

    async def in_sync(self, change: str) -> bool:
        """Every name server has the change. Raises Unreachable, NotYet, Rejected for an id that Route 53 forgot."""
        said = await self._asked(f"looking at change {change}", lambda r: r.get_change(Id=change))
        return bool(said["ChangeInfo"]["Status"] == "INSYNC")

    async def pause(self) -> None:
        """Between two looks at a change: ``poll`` to 2.5 times as long, so that many engines do not look together."""
        await self._clock.sleep(self._settings.poll * random.uniform(1.0, 2.5))  # noqa: S311 - jitter

    async def _asked(self, what: str, call: Callable[[Any], T], *, changes: bool = False) -> T:
        client = await self._aws.client("route53", self._settings.region)

        async def once() -> T:
            await self._pace.turn()
            return await self._aws.call(what, lambda: call(client), changes=changes)

        return await self._patiently(once)

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        async for attempt in AsyncRetrying(
            sleep=self._clock.sleep,
            stop=stop_after_delay(self._settings.patience),
            wait=wait_exponential(multiplier=0.3, max=4) + wait_random(0, 0.3),
            retry=retry_if_exception_type(NotYet),
            reraise=True,
        ):
            with attempt:
                return await once()
        raise AssertionError("tenacity returns or raises")


def _list(asked: dict[str, str], client: Any) -> dict[str, Any]:
    page: dict[str, Any] = client.list_resource_record_sets(**asked)
    return page


def _skew_s(date: str, now: datetime) -> float:
    """The sender's clock minus ours, from the Date of its answer (whole seconds; RFC 9110 section 5.6.7: in GMT)."""
    said = parsedate_to_datetime(date)
    return ((said if said.tzinfo else said.replace(tzinfo=UTC)) - now).total_seconds()


def _unescaped(name: str) -> str:
    r"""A name as Route 53 lists it, without its escapes: ``\052.example.`` (octal) is ``*.example.``."""
    parts = name.lower().split("\\")
    return parts[0] + "".join(chr(int(p[:3], 8)) + p[3:] for p in parts[1:])
