"""Supabase's Management API, the part that recovery needs (supabase.com/docs/reference/api; v1).

Bearer token, JSON, 60 requests a minute for one user: 429 says in ``Retry-After`` when to come back, and until then
nothing is sent. Paths and shapes are those of the published types of npm ``supabase-management-js`` 2.0.2.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from tasks.database.protocol import Backups
from tasks.errors import EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.secrets import redact, resolved

PAGE = 100


@dataclass(frozen=True)
class Project:
    ref: str
    name: str
    region: str
    status: str


@dataclass(frozen=True)
class Replica:
    """A database of the project besides its primary."""

    identifier: str
    region: str
    status: str


@dataclass(frozen=True)
class Access:
    """Where, as whom, and how long a call may take. ``patience_s``: a rate limit that ends so soon is waited for."""

    url: str
    token: str
    timeout_s: float
    patience_s: float
    component: str


class Transport:
    """Requests of one project. Raises Unreachable, NotYet, Rejected, and EffectUnknown where something may change."""

    def __init__(self, access: Access, project: str, organization: str) -> None:
        self._access, self._ref, self._organization = access, project, organization
        self._free_at = 0.0
        self._client: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _change(self, method: str, path: str, body: Any, *, changes: bool = True) -> Any:
        return await self._ask(method, f"/v1/projects/{self._ref}/{path}", body=body, changes=changes)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str | list[str]] | None = None,
        body: Any = None,
        changes: bool = False,
    ) -> Any:
        lost: type[RelightError] = EffectUnknown if changes else Unreachable
        name = f"{self._access.component}: {method} {path}"
        await self._rate(name)
        if self._client is None:
            self._client = httpx.AsyncClient(base_url=self._access.url, timeout=self._access.timeout_s)
        headers = {"Authorization": f"Bearer {(await resolved(self._access.token)).get_secret_value()}"}
        try:
            answer = await self._client.request(method, path, params=query, json=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as e:
            raise Unreachable(f"{name}: no connection ({type(e).__name__} {e})") from e
        except httpx.TransportError as e:
            raise lost(f"{name}: no answer ({type(e).__name__} {e})") from e
        return self._read(answer, name, lost)

    def _read(self, answer: httpx.Response, name: str, lost: type[RelightError]) -> Any:
        code = answer.status_code
        if code == 429:
            wait_s = _seconds(answer.headers.get("Retry-After"))
            self._free_at = asyncio.get_running_loop().time() + wait_s
            raise NotYet(f"{name}: Supabase's limit is reached (60 requests a minute); again in {wait_s:g} s")
        if code >= 500:
            raise lost(f"{name} failed on the other side, HTTP {code} ({_said(answer)})", code=code)
        if code in (401, 403):
            raise Rejected(f"{name} is not allowed, HTTP {code} ({_said(answer)}); look at the token", code=code)
        if code >= 400:
            raise Rejected(f"{name} was refused, HTTP {code} ({_said(answer)})", code=code)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as e:
            raise lost(f"{name}: the answer is no JSON, HTTP {code}") from e

    async def _rate(self, name: str) -> None:
        """Nothing is sent before Supabase said that it may be."""
        left_s = self._free_at - asyncio.get_running_loop().time()
        if left_s > self._access.patience_s:
            raise NotYet(f"{name}: Supabase asked to wait; {left_s:.0f} s are left")
        if left_s > 0:
            await asyncio.sleep(left_s)


class Doors(Transport):
    """Who gets in, and how: pooler, bans, networks."""

    async def pooler(self, replica: str | None = None) -> dict[str, Any]:
        """Settings of the primary's pooler, or of a replica's (by its identifier): ``pool_mode``,
        ``default_pool_size``, and ``max_client_conn``, which only Supabase changes, with the project's compute.
        """
        rows = await self._ask("GET", f"/v1/projects/{self._ref}/config/database/pooler")
        mine = [r for r in rows if (r["identifier"] == replica if replica else r["database_type"] == "PRIMARY")]
        if not mine:
            raise Rejected(f"{self._access.component}: Supabase tells no pooler of {replica or 'the primary'}")
        found: dict[str, Any] = mine[0]
        return found

    async def set_pool_size(self, size: int) -> int | None:
        """The size that it answers with; documented are 0 to 3000."""
        answer = await self._change("PATCH", "config/database/pooler", {"default_pool_size": size})
        found: int | None = (answer or {}).get("default_pool_size")
        return found

    async def bans(self) -> tuple[str, ...]:
        """Addresses that were shut out after too many wrong passwords."""
        raw = await self._change("POST", "network-bans/retrieve", None, changes=False)
        return tuple(raw["banned_ipv4_addresses"])

    async def unban(self, addresses: tuple[str, ...]) -> None:
        await self._change("DELETE", "network-bans", {"ipv4_addresses": list(addresses)})

    async def admitted(self) -> tuple[str, ...]:
        """Networks that may connect to the database and its pooler; empty: all may."""
        raw = await self._ask("GET", f"/v1/projects/{self._ref}/network-restrictions")
        config = raw["config"]
        return (*config.get("dbAllowedCidrs", ()), *config.get("dbAllowedCidrsV6", ()))

    async def admit(self, networks: tuple[str, ...]) -> None:
        four, six = [n for n in networks if ":" not in n], [n for n in networks if ":" in n]
        body = {"dbAllowedCidrs": four, "dbAllowedCidrsV6": six}
        await self._change("POST", "network-restrictions/apply", body)


class Api(Doors):
    """The project itself: its state, its replicas, its backups."""

    async def project(self) -> Project:
        raw = await self._ask("GET", f"/v1/projects/{self._ref}")
        return Project(raw["ref"], raw["name"], raw["region"], raw["status"])

    async def health(self) -> dict[str, str]:
        """Service -> COMING_UP, ACTIVE_HEALTHY or UNHEALTHY."""
        query: dict[str, str | list[str]] = {"services": ["db", "pooler"]}
        rows = await self._ask("GET", f"/v1/projects/{self._ref}/health", query=query)
        return {row["name"]: row["status"] for row in rows}

    async def replicas(self) -> tuple[Replica, ...]:
        """Of all pages of the organization's projects, those of this one."""
        offset = 0
        while True:
            query: dict[str, str | list[str]] = {"offset": str(offset), "limit": str(PAGE)}
            page = await self._ask("GET", f"/v1/organizations/{self._organization}/projects", query=query)
            for project in page["projects"]:
                if project["ref"] == self._ref:
                    found = [d for d in project["databases"] if d["type"] == "READ_REPLICA"]
                    return tuple(Replica(d["identifier"], d["region"], d["status"]) for d in found)
            offset += PAGE
            if offset >= page["pagination"]["count"]:
                raise Rejected(
                    f"{self._access.component}: organization {self._organization} has no project {self._ref}; look at"
                    " the system file"
                )

    async def set_up_replica(self, region: str) -> None:
        await self._change("POST", "read-replicas/setup", {"read_replica_region": region})

    async def remove_replica(self, identifier: str) -> None:
        await self._change("POST", "read-replicas/remove", {"database_identifier": identifier})

    async def backups(self) -> Backups:
        raw = await self._ask("GET", f"/v1/projects/{self._ref}/database/backups")
        physical = raw.get("physical_backup_data") or {}
        done = [_moment(b["inserted_at"]) for b in raw["backups"] if b["status"] == "COMPLETED"]
        return Backups(
            point_in_time=bool(raw["pitr_enabled"]),
            earliest=_unix(physical.get("earliest_physical_backup_date_unix")),
            latest=_unix(physical.get("latest_physical_backup_date_unix")),
            completed=tuple(sorted(done, reverse=True)),
        )

    async def restore_to(self, moment: datetime) -> None:
        """The project's own database becomes what it was at ``moment``; everything later is gone."""
        body = {"recovery_time_target_unix": int(moment.timestamp())}
        await self._change("POST", "database/backups/restore-pitr", body)

    async def restart(self) -> None:
        """The database restarts: the API has it as a part of a change of configuration."""
        await self._change("PUT", "config/database/postgres", {"restart_database": True})


def _said(answer: httpx.Response) -> str:
    return redact(answer.text[:200])


def _seconds(text: str | None) -> float:
    """Of a ``Retry-After`` header in seconds (RFC 9110 section 10.2.3); a minute where it says none."""
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return 60.0


def _unix(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
