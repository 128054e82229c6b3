"""Vantage agents over HTTP: the application servers of each site, asked for what they see of the database.

``GET url`` answers ``{"site": …, "at": …, "nodes": {"west-pg1": {"reach": "answers" | "refused" | "silent",
"in_recovery": …, "system_identifier": …, "timeline": …, "detail": …}}}``.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import trust
from tasks.contract import Surroundings
from tasks.database.protocol import NodeView, Reach
from tasks.errors import BadInput, Rejected, Unreachable
from tasks.quantities import Duration
from tasks.variables import expand


class HttpAgentsSettings(BaseModel):
    """One URL a place (usually a site)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: dict[str, str] = Field(min_length=1)
    timeout: Duration = 1.0


class _Seen(BaseModel):
    """One node in an agent's answer; what it says beyond this is ignored."""

    reach: Reach
    detail: str = ""
    in_recovery: bool | None = None
    read_only: bool | None = None
    system_identifier: str | None = None
    timeline: int | None = None


class _Answer(BaseModel):
    nodes: dict[str, _Seen]


class HttpAgents:
    """Fulfils ``tasks.health.protocol.Agents``."""

    Settings: ClassVar[type[BaseModel]] = HttpAgentsSettings

    def __init__(self, settings: HttpAgentsSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component

    def places(self) -> tuple[str, ...]:
        return tuple(self._settings.urls)

    async def look(self, place: str) -> tuple[NodeView, ...]:
        if place not in self._settings.urls:
            raise BadInput(f"{self._component}: no agent {place!r}; known: {', '.join(self._settings.urls)}")
        url = expand(self._settings.urls[place])
        name = f"{self._component}: agent of {place} at {url}"
        try:
            async with (
                asyncio.timeout(self._settings.timeout),
                httpx.AsyncClient(verify=trust.verify(url), timeout=self._settings.timeout, trust_env=False) as client,
            ):
                answer = await client.get(url)
        except httpx.InvalidURL as e:
            raise BadInput(f"{name}: {e}") from e
        except (httpx.HTTPError, TimeoutError) as e:
            raise Unreachable(f"{name}: no answer ({str(e) or type(e).__name__})") from e
        if answer.status_code != 200:
            raise Rejected(f"{name}: HTTP {answer.status_code}, expected 200")
        try:
            seen = _Answer.model_validate_json(answer.content).nodes
        except ValidationError as e:
            first = e.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            raise Rejected(f"{name}: its answer is of no use: {at}: {first['msg']}") from e
        return tuple(
            NodeView(
                node,
                "",
                s.reach,
                why=s.detail,
                in_recovery=s.in_recovery,
                read_only=s.read_only,
                system_identifier=s.system_identifier,
                timeline=s.timeline,
            )
            for node, s in sorted(seen.items())
        )

    async def aclose(self) -> None:
        """Nothing is held open between calls."""


PROVIDER = HttpAgents
