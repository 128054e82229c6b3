"""HTTP caches (Varnish, nginx, a CDN's shield), one a site: flushed by one request, warmed by GET.

A hit is told by ``Cache-Status`` (RFC 9211), by a header that the settings name, or by ``Age`` above 0 (RFC 9111 5.1).
An HTTP cache keeps no record of who flushed it: a step that is run again by another process flushes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.cache._fetching import fetched
from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, Rejected, Unreachable
from tasks.quantities import Duration
from tasks.variables import expand


class HttpSite(BaseModel):
    """One site's cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://[^/]+$", description="Scheme, host and port; keys are paths below it.")


class HttpCacheSettings(BaseModel):
    """Attributes:
    host: the public name, for the Host header.
    flush_method, flush_path: the request by which the cache forgets everything (in Varnish, a ban by its VCL).
    hit_header, hit_value: a header whose value starts so on a hit; None: Cache-Status or Age.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = Field(default=5.0, gt=0)
    host: str | None = None
    flush_method: str = Field(default="BAN", pattern=r"^[A-Z]+$")
    flush_path: str = Field(default="/", pattern="^/")
    hit_header: str | None = None
    hit_value: str = "HIT"
    sites: dict[str, HttpSite] = Field(min_length=1)


class HttpCache:
    """Fulfils ``tasks.cache.protocol.Cache``."""

    Settings: ClassVar[type[BaseModel]] = HttpCacheSettings

    def __init__(self, settings: HttpCacheSettings, around: Surroundings) -> None:
        self._settings, self._component = settings, around.component
        self._flushed: dict[str, str] = {}

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    async def flushed_by(self, site: str) -> str | None:
        self._url(site, "/")
        return self._flushed.get(site)

    async def flush(self, site: str, run_id: str) -> None:
        url = self._url(site, self._settings.flush_path)
        try:
            await self._fetch(self._settings.flush_method, url)
        except Unreachable as e:
            if not e.facts.get("sent"):
                raise
            raise EffectUnknown(e.message) from e
        except Rejected as e:
            raise Rejected(
                f"{e.message}; let the cache take {self._settings.flush_method} from this host (flush_method,"
                " flush_path in the settings, an ACL in the cache)",
                **e.facts,
            ) from e
        self._flushed[site] = run_id

    async def has(self, site: str, key: str) -> bool:
        try:
            return self._hit(await self._fetch("GET", self._url(site, key)))
        except Rejected:  # no good answer is nothing to keep
            return False

    async def warm(self, site: str, key: str) -> None:
        await self._fetch("GET", self._url(site, key))

    async def _fetch(self, method: str, url: str) -> Mapping[str, str]:
        return await fetched(method, url, self._settings.host, self._settings.timeout)

    def _hit(self, headers: Mapping[str, str]) -> bool:
        if self._settings.hit_header is not None:
            return headers.get(self._settings.hit_header, "").startswith(self._settings.hit_value)
        if "cache-status" in headers:
            last = headers["cache-status"].rpartition(",")[2]  # the cache that is nearest to us comes last
            return "hit" in [p.strip() for p in last.split(";")[1:]]
        age = headers.get("age", "0")
        return age.isdecimal() and int(age) > 0

    def _url(self, site: str, key: str) -> str:
        if site not in self._settings.sites:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._component}: no cache in site {site!r}; there is one in: {known}")
        if not key.startswith("/"):
            raise BadInput(f"{self._component}: key {key!r}; expected a path that starts with /")
        return expand(self._settings.sites[site].url) + key


PROVIDER = HttpCache
