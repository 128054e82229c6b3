"""CloudWatch's settings, its composite alarms, and whom alarms tell. Sources: see ``_alarms`` and ``_topics``."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.aws import Account, Aws
from tasks.contract import Surroundings
from tasks.metrics._alarms import Composite, Suppressor, composite_request, keep, look
from tasks.metrics._cloudwatch import Formula, Site
from tasks.metrics._topics import is_topic, region_of, topic
from tasks.metrics.protocol import CATALOGUE, Muted, Topic
from tasks.quantities import Duration


class SuppressorSettings(BaseModel):
    """An alarm of the users' own that is in ALARM while there is maintenance; in each site's region, by its name.

    Attributes:
        wait: how long a composite alarm waits for it to go into ALARM before it acts.
        extension: how long it goes on to be silent after that alarm went out of ALARM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alarm: str = Field(min_length=1)
    wait: Duration = Field(default=60.0, ge=0)
    extension: Duration = Field(default=120.0, ge=0)


class CloudWatchSettings(Account):
    """``sites``: where each site's metrics are. ``formulas``: metric -> formula, in place of the default."""

    sites: dict[str, Site] = Field(min_length=1)
    period: int = Field(default=60, ge=60, multiple_of=60)
    """Seconds; a metric with basic monitoring has one sample in 300."""
    stale_after: Duration = Field(default=600.0, gt=0)
    """After the end of the newest period."""
    formulas: dict[str, Formula] = Field(default_factory=dict)
    alarm_actions: tuple[str, ...] = ()
    """ARNs (an SNS topic a region, that relight's receiver is subscribed to) for exported alarms."""
    receiver: str | None = None
    """The URL of relight's endpoint, as it is subscribed; None: any HTTPS subscription counts."""
    suppressor: SuppressorSettings | None = None
    """Of composite alarms."""

    @field_validator("formulas")
    @classmethod
    def _named(cls, value: dict[str, Formula]) -> dict[str, Formula]:
        if wrong := [n for n in value if n not in CATALOGUE]:
            raise ValueError(f"no metric {', '.join(wrong)}; known: {', '.join(CATALOGUE)}")
        return value


class Alarming:
    """Composite alarms, and what is on the way of an alarm to the receiver. Fulfils ``Telling``."""

    def __init__(self, settings: CloudWatchSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._aws = Aws(settings, around.component)

    async def aclose(self) -> None:
        await self._aws.aclose()

    def composite(self, composite: Composite) -> dict[str, Any]:
        """The PutCompositeAlarm request."""
        s = self._settings.suppressor
        suppressor = Suppressor(s.alarm, round(s.wait), round(s.extension)) if s else None
        return composite_request(composite, suppressor, self._actions(composite.site))

    async def put_composite(self, composite: Composite) -> str:
        """As ``put``; the alarms of its rule must exist. Raises BadInput for a suppressor that does not."""
        return await keep(self._aws, await self._cloudwatch(composite.site), self.composite(composite))

    # ---- would an alarm reach the receiver? ----

    async def topics(self, site: str) -> tuple[Topic, ...] | None:
        if not self._settings.alarm_actions or site not in self._settings.sites:
            return None
        region, actions = self._settings.sites[site].region, self._actions(site)
        arns = [a for a in actions if is_topic(a)]
        if not arns:
            return None if actions else ()  # of what a Lambda function does with it, nothing is known here
        sts = await self._aws.client("sts", region)
        account = (await self._aws.call("GetCallerIdentity", sts.get_caller_identity))["Account"]
        sns = await self._aws.client("sns", region)
        source = f"arn:{arns[0].split(':')[1]}:cloudwatch:{region}:{account}:alarm:relight-{self._around.system}-"
        return tuple(await asyncio.gather(*(topic(self._aws, sns, a, source, self._settings.receiver) for a in arns)))

    async def muted(self, site: str) -> Muted | None:
        if self._settings.suppressor is None or site not in self._settings.sites:
            return None
        name = self._settings.suppressor.alarm
        found = await look(self._aws, await self._cloudwatch(site), name)
        return Muted(name, found["StateValue"] if found else None)

    def _actions(self, site: str) -> tuple[str, ...]:
        region = self._settings.sites[site].region
        return tuple(a for a in self._settings.alarm_actions if region_of(a) == region)

    async def _cloudwatch(self, site: str) -> Any:
        return await self._aws.client("cloudwatch", self._settings.sites[site].region)
