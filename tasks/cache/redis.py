"""Redis as a cache, one a site. Key ``relight:system`` says whose it is, ``relight:flushed`` which run emptied it last.

Sources: redis.io, commands FLUSHDB, SCAN (every key that is there all the time is seen), UNLINK, ROLE, MULTI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from tasks.cache._fetching import fetched
from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.marks import MARK, owned
from tasks.network import split
from tasks.quantities import Duration
from tasks.secrets import SecretRef, redact, resolve
from tasks.variables import expand

T = TypeVar("T")
FLUSHED = "relight:flushed"
_BATCH = 1000


class RedisSite(BaseModel):
    """One site's Redis. ``fill``: URL whose ``{key}`` is replaced; getting it makes the application fill that key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    tls: bool = False
    fill: str | None = Field(default=None, pattern=r"^https?://.*\{key\}")


class RedisSettings(BaseModel):
    """``prefix``: of the keys that are a cache; empty: the whole database is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = Field(default=3.0, gt=0)
    user: str | None = None
    password: SecretRef | None = None
    database: int = Field(default=0, ge=0)
    prefix: str = ""
    sites: dict[str, RedisSite] = Field(min_length=1)


class RedisCache:
    """Fulfils ``tasks.cache.protocol.Cache``."""

    Settings: ClassVar[type[BaseModel]] = RedisSettings

    def __init__(self, settings: RedisSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    def sites(self) -> tuple[str, ...]:
        return tuple(self._settings.sites)

    async def flushed_by(self, site: str) -> str | None:
        async def look(redis: Redis) -> str | None:
            await self._marked(site, redis)
            found = await redis.get(FLUSHED)
            return None if found is None else str(found)

        return await self._with(site, "reading", look)

    async def flush(self, site: str, run_id: str) -> None:
        async def forget(redis: Redis) -> None:
            await self._marked(site, redis)
            await _must_be_master(self._label(site), redis)
            if self._settings.prefix:
                await _unlink(redis, self._settings.prefix)
                await redis.set(FLUSHED, run_id)
                return
            # One transaction: it never stands there unmarked.
            async with redis.pipeline(transaction=True) as all_or_nothing:
                all_or_nothing.flushdb(asynchronous=True)
                all_or_nothing.mset({MARK: self._around.system, FLUSHED: run_id})
                await all_or_nothing.execute()

        await self._with(site, "flushing", forget, changes=True)

    async def has(self, site: str, key: str) -> bool:
        async def look(redis: Redis) -> bool:
            return bool(await redis.exists(self._settings.prefix + key))

        return await self._with(site, f"looking for {key}", look)

    async def warm(self, site: str, key: str) -> None:
        fill = self._site(site).fill
        if fill is None:
            raise BadInput(f"{self._label(site)}: no fill in its settings, so nothing is known that fills {key!r}")
        await fetched("GET", expand(fill).replace("{key}", quote(key)), None, self._settings.timeout)

    async def _marked(self, site: str, redis: Redis) -> None:
        found = await redis.get(MARK)
        owned(self._label(site), {} if found is None else {MARK: str(found)}, self._around.system)

    async def _with(self, site: str, what: str, do: Callable[[Redis], Awaitable[T]], *, changes: bool = False) -> T:
        """Run ``do`` on a connection of its own; redis-py's errors as ours."""
        label, timeout_s = self._label(site), self._settings.timeout
        lost: type[RelightError] = EffectUnknown if changes else Unreachable
        redis = self._client(site)
        try:
            try:
                await redis.ping()
            except BusyLoadingError as e:
                raise NotYet(f"{label} is loading its data") from e
            except (AuthenticationError, NoPermissionError) as e:
                raise Rejected(f"{label} lets this user not in: {redact(str(e))}") from e
            except (RedisError, OSError) as e:
                raise Unreachable(f"{label}: no connection for {what}: {redact(str(e)) or type(e).__name__}") from e
            return await do(redis)
        except ReadOnlyError as e:
            raise Rejected(f"{label} is a replica: {e}") from e
        except (NoPermissionError, ResponseError) as e:
            raise Rejected(f"{label} refused {what}: {redact(str(e))}") from e
        except (RedisError, OSError) as e:
            why = redact(str(e)) or type(e).__name__
            raise lost(f"{label}: no answer to {what} within {timeout_s:g} s ({why})") from e
        finally:
            await redis.aclose()

    def _client(self, site: str) -> Redis:
        where = self._site(site)
        try:
            host, port = split(expand(where.address))
        except ValueError as e:
            raise BadInput(f"{self._around.component}: address of {site}: {e}") from e
        more: dict[str, Any] = {} if self._settings.user is None else {"username": self._settings.user}
        if self._settings.password is not None:
            more["password"] = resolve(self._settings.password).get_secret_value()
        return Redis(
            host=host,
            port=port,
            db=self._settings.database,
            ssl=where.tls,
            decode_responses=True,
            socket_connect_timeout=self._settings.timeout,
            socket_timeout=self._settings.timeout,
            retry=Retry(NoBackoff(), 0),  # the engine tries again, and says so
            single_connection_client=True,
            **more,
        )

    def _label(self, site: str) -> str:
        return f"{self._around.component}: Redis of {site} at {expand(self._site(site).address)}"

    def _site(self, site: str) -> RedisSite:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._around.component}: no cache in site {site!r}; there is one in: {known}") from None


async def _unlink(redis: Redis, prefix: str) -> None:
    batch: list[str] = []
    pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix) + "*"
    async for key in redis.scan_iter(match=pattern, count=_BATCH):
        if key in (MARK, FLUSHED):
            continue
        batch.append(key)
        if len(batch) == _BATCH:
            await redis.unlink(*batch)
            batch.clear()
    if batch:
        await redis.unlink(*batch)


async def _must_be_master(label: str, redis: Redis) -> None:
    role = await redis.role()
    name = role[0] if isinstance(role, list) else role.get("role", role)
    if str(name) != "master":
        raise Rejected(f"{label} is a {name}, not a master; nothing was flushed. Promote it first.")


PROVIDER = RedisCache
