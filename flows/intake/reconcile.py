"""Finds what a sender lost: asks its own API what fires, and puts what the inbox does not know into it.

Alertmanager and Grafana do not keep a notification that could not be delivered for long; CloudWatch acts on a change of
state only, and a lost post of SNS is never sent again. What is found goes the same way as a delivery, with the same
episode key, so nothing is decided about twice. Absence is an end only when it is seen twice in a row.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx

from flows.intake.episodes import Episodes
from flows.intake.event import Auth, Delivery, Event, Malformed, Unavailable, normalise
from flows.intake.inbox import Inbox
from flows.intake.source import Source
from tasks.aws import Account, Aws
from tasks.errors import RelightError

EVERY_S, PROPOSED_S = 300.0, 30.0
"""How often, and how often while a run is proposed or waits for a person."""
TICK_S = 1.0
ANSWER_S = 10.0
AUTH = Auth(method="poll", verified=True, replay_protected=True)

Poll = Callable[[Source], Awaitable[list[dict[str, Any]]]]
"""Everything that fires or is not well now, as bodies that this source's webhook might have sent."""


class PollFailed(RelightError):
    """A sender's API did not say what fires."""

    retryable = True


async def alertmanager(source: Source) -> list[dict[str, Any]]:
    """Alertmanager's ``GET /api/v2/alerts`` (api/v2/openapi.yaml): every alert, silenced and inhibited ones too."""
    base = str(source.settings.api).rstrip("/")
    try:
        async with httpx.AsyncClient(timeout=ANSWER_S) as client:
            answer = await client.get(f"{base}/api/v2/alerts", params={"active": "true"})
            answer.raise_for_status()
            found = answer.json()
    except (httpx.HTTPError, ValueError) as e:
        raise PollFailed(f"{base}/api/v2/alerts: {e}") from e
    if not isinstance(found, list):
        raise PollFailed(f"{base}/api/v2/alerts: expected a list of alerts")
    keys = ("labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint")
    alerts = [
        {**{k: one.get(k) for k in keys}, "status": "firing"}
        for one in found
        if isinstance(one, dict) and (one.get("status") or {}).get("state") != "suppressed"
    ]
    return [{"version": "4", "status": "firing", "receiver": "poll", "alerts": [one]} for one in alerts]


async def cloudwatch(source: Source) -> list[dict[str, Any]]:
    """CloudWatch's ``DescribeAlarms`` of each region that a topic of the endpoint is in, as SNS would tell it."""
    aws = Aws(Account(), f"reconcile {source.settings.source}")
    found: list[dict[str, Any]] = []
    try:
        for region, topics in _regions(source).items():
            client = await aws.client("cloudwatch", region)
            # without AlarmTypes it returns metric alarms only (CloudWatch API reference)
            listing = client.get_paginator("describe_alarms").paginate(AlarmTypes=["MetricAlarm", "CompositeAlarm"])
            pages: list[dict[str, Any]] = await aws.call(f"DescribeAlarms in {region}", partial(list, listing))
            for page in pages:
                for alarm in (*page.get("MetricAlarms", ()), *page.get("CompositeAlarms", ())):
                    told = [t for t in topics if t in alarm.get("AlarmActions", ())]
                    if told and alarm.get("StateValue") == "ALARM" and not alarm.get("ActionsSuppressedBy"):
                        found.append(_notification(alarm, region, told[0]))
    finally:
        await aws.aclose()
    return found


def _regions(source: Source) -> dict[str, list[str]]:
    """Region -> topics (``arn:aws:sns:REGION:ACCOUNT:NAME``)."""
    found: dict[str, list[str]] = {}
    for topic in source.settings.topics:
        parts = str(topic).split(":")
        if len(parts) == 6:
            found.setdefault(parts[3], []).append(str(topic))
    return found


def _notification(alarm: dict[str, Any], region: str, topic: str) -> dict[str, Any]:
    changed = alarm.get("StateTransitionedTimestamp") or alarm["StateUpdatedTimestamp"]
    message = {
        "AlarmName": alarm["AlarmName"],
        "AlarmDescription": alarm.get("AlarmDescription"),
        "AWSAccountId": str(alarm["AlarmArn"]).split(":")[4],
        "NewStateValue": alarm["StateValue"],
        "NewStateReason": alarm.get("StateReason", ""),
        "StateChangeTime": changed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000",
        "Region": region,
        "AlarmArn": alarm["AlarmArn"],
        "OldStateValue": "",
        "Trigger": {},
    }
    return {
        "Type": "Notification",
        "TopicArn": topic,
        "Message": json.dumps(message),
        "Timestamp": datetime.now(UTC).isoformat(),
    }


POLLS: dict[str, Poll] = {"alertmanager": alertmanager, "sns": cloudwatch}
"""Source -> how it is asked. A source with ``api`` or ``topics`` in its settings is, unless that is empty."""


def polled(source: Source) -> bool:
    """Can this endpoint be asked?"""
    return source.settings.source in POLLS and bool(
        getattr(source.settings, "api", "") or getattr(source.settings, "topics", ())
    )


@dataclass
class Reconciler:
    """Asks every endpoint that can be asked, again and again.

    Attributes:
        found: called after something was put into the inbox.
        good: endpoint -> when it was asked last and answered; trouble: endpoint -> why it did not.
    """

    endpoints: dict[str, Source]
    inbox: Inbox
    episodes: Episodes
    found: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda _text: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    good: dict[str, datetime] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)
    """Episodes that were not there when their sender was asked last."""

    async def go(self) -> None:
        """Until cancelled."""
        asked: dict[str, float] = {}
        while True:
            for name, source in self.endpoints.items():
                every_s = PROPOSED_S if self.episodes.proposing() else EVERY_S
                if polled(source) and time.monotonic() - asked.get(name, float("-inf")) >= every_s:
                    asked[name] = time.monotonic()
                    await self.ask(name)
            await asyncio.sleep(TICK_S)

    async def ask(self, name: str) -> int:
        """Ask one endpoint now; how many events were put into the inbox. Raises nothing of the world's."""
        source = self.endpoints[name]
        try:
            events = self._read(name, source, await POLLS[source.settings.source](source))
            put = [await self._put(delivery, event) for delivery, event in self._news(name, events)]
        except (RelightError, Malformed, Unavailable) as e:
            if self.trouble.get(name) != str(e):
                self.say(f"endpoint {name} cannot be reconciled: {e}")
            self.trouble[name] = str(e)
            return 0
        self.trouble.pop(name, None)
        self.good[name] = self.now()
        if any(put):
            self.found()
        return sum(put)

    def _read(self, name: str, source: Source, bodies: list[dict[str, Any]]) -> list[tuple[Delivery, Event]]:
        found = []
        for one in bodies:
            delivery = Delivery(name, json.dumps(one).encode(), self.now(), method="POLL")
            found += [(delivery, normalise(a, delivery, AUTH, source.name)) for a in source.read(one, delivery)]
        # the watchdog says that deliveries arrive: asking for it would hide that they do not
        watchdog = source.settings.watchdog
        wanted = [(d, e) for d, e in found if not watchdog or e.labels.get("alertname") != watchdog]
        return [(d, self.episodes.of_its_episode(e)) for d, e in wanted]

    def _news(self, name: str, events: list[tuple[Delivery, Event]]) -> list[tuple[Delivery, Event]]:
        """What the inbox does not know: episodes that began, or that it knows in part only; and those that are over."""
        fire = {e.episode_key for _, e in events}
        news = [(d, e) for d, e in events if e.kind == "firing" and self.episodes.wanting(e.episode_key)]
        open_, watchdog = self.episodes.open(name), self.endpoints[name].settings.watchdog
        mine = {k: e for k, e in open_.items() if not watchdog or e.labels.get("alertname") != watchdog}
        gone = {key: e for key, e in mine.items() if key not in fire}
        for key, event in gone.items():
            if key in self._missing:  # an alert is also away for a moment while its monitor is restarted
                note = {"reconciled": "its sender does not name it any more", "fingerprint": event.fingerprint}
                delivery = Delivery(name, json.dumps({**note, "episode": key}).encode(), self.now(), method="POLL")
                ended = {"kind": "resolved", "received_at": self.now(), "observed_at": self.now(), "age_s": 0.0}
                news.append((delivery, event.model_copy(update={**ended, "auth": AUTH})))
        self._missing = (self._missing - set(open_)) | set(gone)
        return news

    async def _put(self, delivery: Delivery, event: Event) -> bool:
        key = f"poll {hashlib.sha256(delivery.body).hexdigest()}"
        kept = await asyncio.wrap_future(self.inbox.keep(delivery, key, (event,)))
        if kept.new:
            self.say(f"endpoint {delivery.endpoint}: {event.subject()} was not delivered; found by asking")
        return kept.new
