"""Prometheus' HTTP API: one call, its result or why there is none."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from tasks import trust
from tasks.errors import Rejected, Unreachable
from tasks.metrics._promql import span
from tasks.quantities import Duration
from tasks.secrets import SecretRef, resolve
from tasks.variables import expand


class ApiSettings(BaseModel):
    """``url``: base URL, ``$VARIABLE`` expands at use. ``token``: a bearer token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    token: SecretRef | None = None
    timeout: Duration = Field(default=3.0, gt=0)


class Api:
    """One Prometheus."""

    def __init__(self, settings: ApiSettings, component: str) -> None:
        self._settings, self._component = settings, component
        # Without kept connections: one that the other side closed meanwhile looks like a lost answer.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(
            verify=trust.verify(settings.url), timeout=settings.timeout, trust_env=False, limits=limits
        )

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def vector(self, expr: str) -> list[Any]:
        return await self.ask("query", {"query": expr})

    async def ask(self, what: str, data: dict[str, str]) -> list[Any]:
        """The ``result`` of one API call. Raises Unreachable (no usable answer), Rejected."""
        url = f"{expand(self._settings.url).rstrip('/')}/api/v1/{what}"
        name = f"{self._component}: Prometheus at {url}"
        head = (
            {"Authorization": f"Bearer {resolve(self._settings.token).get_secret_value()}"}
            if self._settings.token
            else {}
        )
        limit_s = self._settings.timeout
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._client.post(url, data={**data, "timeout": span(limit_s)}, headers=head)
        except (httpx.HTTPError, TimeoutError) as e:
            raise Unreachable(f"{name} does not answer within {limit_s:g} s ({str(e) or type(e).__name__})") from e
        try:
            body = answer.json()
            if body["status"] == "success" and isinstance(body["data"]["result"], list):
                return list(body["data"]["result"])
            said = f"{body.get('errorType')}: {body.get('error')}"
        except (ValueError, KeyError, TypeError):
            said = f"HTTP {answer.status_code}, and no answer of a Prometheus"
        if answer.status_code in (400, 401, 403, 404, 422):
            raise Rejected(f"{name} refused {data['query']!r}: {said}; set queries or token of the component")
        raise Unreachable(f"{name}: {said}")
