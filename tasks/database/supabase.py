"""Supabase: PostgreSQL that Supabase runs, through its Management API and SQL. Fulfils ``Database``, ``Restorable`` …

What Supabase lets nobody do, and what to do instead (supabase.com/docs, *Read Replicas*, *Backups*, *Network*):

* A read replica cannot be promoted by its user. ``database.promote`` says so in the plan. The ways around: restore the
  project to a point in time (``database.restore``), or keep a logical replica on RDS or on servers of one's own as the
  component that is promoted.
* There is no host to kill. The fence is ``default_transaction_read_only`` for the database, and its clients ended,
  those of the HTTP API too, since all of them are sessions of the database. Proof is that test writes are refused.
* A restore is of the whole project, in place: it is away meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import ClassVar, Literal, TypeVar

import psycopg
from psycopg import sql
from pydantic import BaseModel, Field

from tasks.contract import Surroundings
from tasks.database._managed import END_CLIENTS, settled
from tasks.database._nodes import Address, NodeSettings, PostgresSettings
from tasks.database._reading import one
from tasks.database._session import Connection, Server, ask, said
from tasks.database._sizes import PoolLimits
from tasks.database._standing import Standing
from tasks.database._supabase_api import Access, Api, Project
from tasks.database.protocol import Backups, WriteProbe
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected
from tasks.quantities import Duration
from tasks.secrets import SecretRef

T = TypeVar("T")
HEALTHY = "ACTIVE_HEALTHY"
BROKEN = ("INIT_FAILED", "RESTORE_FAILED", "ACTIVE_UNHEALTHY")

INSTEAD = (
    "Supabase lets nobody promote a read replica. Restore the project (database.restore), or promote a logical replica"
    " that runs elsewhere: name that component in this step."
)


class SupabaseNode(BaseModel):
    """The primary, or the replica of one region. ``address``: its direct connection or its pooler's session port."""

    model_config = {"frozen": True, "extra": "forbid"}

    site: str
    region: str
    address: Address
    ways: dict[str, Address] = Field(default_factory=dict, alias="from")


class SupabaseSettings(BaseModel):
    """As in ``docs/aws.md``, *Supabase*."""

    model_config = {"frozen": True, "extra": "forbid"}

    project: str = Field(pattern="^[a-z]{20}$")
    """Its ref."""
    name: str
    """Its name: nothing is changed where the ref leads to a project of another name."""
    organization: str
    token: SecretRef
    api: str = "https://api.supabase.com"
    primary: str
    """The node that is the project's own database."""
    database: str = "postgres"
    user: str = "postgres"
    password: SecretRef | None = None
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "require"
    connect_timeout: Duration = 2.0
    query_timeout: Duration = 5.0
    stale_after: Duration = 65.0
    timeout: Duration = 10.0
    """Of one call of the API."""
    poll: Duration = Field(default=5.0, gt=0)
    patience: Duration = 15.0
    """A rate limit that ends so soon is waited for; a longer one is "not yet"."""
    build_timeout: Duration = 3600.0
    """Of a replica, and of a restore; the step's own time-out is usually shorter."""
    nodes: dict[str, SupabaseNode] = Field(min_length=1)


class Supabase(Standing):
    """One project."""

    Settings: ClassVar[type[BaseModel]] = SupabaseSettings

    def __init__(self, settings: SupabaseSettings, around: Surroundings) -> None:
        s = settings
        nodes = {
            name: NodeSettings.model_validate({"site": n.site, "address": n.address, "from": n.ways})
            for name, n in s.nodes.items()
        }
        super().__init__(
            PostgresSettings.model_validate(
                {k: getattr(s, k) for k in ("database", "user", "password", "sslmode", "connect_timeout")}
                | {"query_timeout": s.query_timeout, "stale_after": s.stale_after, "nodes": nodes}
            ),
            around,
        )
        if s.primary not in s.nodes:
            raise BadInput(f"{around.component}: primary is {s.primary!r}, the nodes are {', '.join(s.nodes)}")
        self._supabase = s
        access = Access(s.api, s.token, s.timeout, s.patience, around.component)
        self.api = Api(access, s.project, s.organization)

    def cannot(self, verb: str) -> str:
        """See ``Limited``."""
        return INSTEAD if verb == "promote" else ""

    async def _mine(self) -> Project:
        """The project, checked for its name. Raises Rejected."""
        found = await self.api.project()
        if found.name != self._supabase.name:
            raise Rejected(
                f"project {found.ref} is named {found.name!r}, expected {self._supabase.name!r}: nothing was changed"
            )
        return found

    async def fence(self, node: str, *, orderly: bool) -> str:
        """See the head of this module. Undone by ``unfence``."""
        if node != self._supabase.primary:
            raise Rejected(f"{node} is a replica: it takes no writes, and there is nothing to fence")
        await self._mine()
        await self._read_only(on=True)

        async def end(connection: Connection) -> int:
            return len(await (await connection.execute(END_CLIENTS)).fetchall())

        left = await settled(lambda: self._on(node, end), lambda n: not n, self._supabase.query_timeout, 0.02)
        if left:
            raise Rejected(f"{left} clients of {node} do not end; end them by hand")
        return "default_transaction_read_only for the database, clients ended"

    async def unfence(self, node: str) -> None:
        await self._no_successor(node)
        await self._mine()
        await self._read_only(on=False)

    async def _read_only(self, *, on: bool) -> None:
        async def work(connection: Connection) -> None:
            name = sql.Identifier(self._supabase.database)
            text = (
                "ALTER DATABASE {} SET default_transaction_read_only = on"
                if on
                else ("ALTER DATABASE {} RESET default_transaction_read_only")
            )
            await connection.execute(sql.SQL(text).format(name))

        await self._on(self._supabase.primary, work, may_write=True)

    async def _on(self, node: str, work: Callable[[Connection], Awaitable[T]], *, may_write: bool = False) -> T:
        server = self._server(node)
        if may_write:
            options = f"{server.options} -c default_transaction_read_only=off".strip()
            server = Server(**{**vars(server), "options": options})
        try:
            return await ask(server, work)
        except psycopg.Error as e:
            raise Rejected(f"{node}: {said(e)}") from e

    async def promote(self, node: str) -> None:
        raise Rejected(f"{node} cannot be promoted: {INSTEAD}")

    async def follow(self, node: str, upstream: str) -> None:
        """A replica follows its project's primary, and no other."""
        if upstream != self._supabase.primary:
            raise Rejected(f"{node} can only follow {self._supabase.primary}, the project's own database")
        await self.rejoin(node, upstream)

    async def rejoin(self, node: str, upstream: str) -> str:
        """A replica in the node's region: set up where there is none; one that is broken is removed first."""
        if upstream != self._supabase.primary or node == upstream:
            raise Rejected(f"{node} can only follow {self._supabase.primary}, the project's own database")
        region = self._supabase.nodes[node].region
        found = await self._replica(region)
        how = "it followed already"
        if found and found[1] in BROKEN:
            await self._mine()
            await self.api.remove_replica(found[0])
            gone = await settled(
                lambda: self._replica(region), lambda r: r is None, self._supabase.build_timeout, self._supabase.poll
            )
            if gone is not None:
                raise NotYet(f"the broken replica of {region} is being removed, and is {gone[1]}")
            found = None
        if found is None:
            await self._mine()
            await self.api.set_up_replica(region)
            how = "set up anew"

        def healthy(replica: tuple[str, str] | None) -> bool:
            return replica is not None and replica[1] == HEALTHY

        last = await settled(lambda: self._replica(region), healthy, self._supabase.build_timeout, self._supabase.poll)
        if not healthy(last):
            raise NotYet(f"the replica of {region} is {last[1] if last else 'not there'}, expected {HEALTHY}")
        return how

    async def remove(self, node: str) -> None:
        """Remove the replica of the node's region, where there is one."""
        if node == self._supabase.primary:
            raise Rejected(f"{node} is the project's own database, no replica")
        found = await self._replica(self._supabase.nodes[node].region)
        if found is not None:
            await self._mine()
            await self.api.remove_replica(found[0])

    async def _replica(self, region: str) -> tuple[str, str] | None:
        """(identifier, status) of the replica in ``region``."""
        return next(((r.identifier, r.status) for r in await self.api.replicas() if r.region == region), None)

    async def aclose(self) -> None:
        await self.api.aclose()


class Restoring(Supabase):
    """The same, with what ``Restorable`` asks."""

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        """That nothing listens proves nothing here: Supabase starts a dead server by itself."""
        tried = await super().try_write(node, vantage)
        if tried.outcome != "gone":
            return tried
        return replace(tried, outcome="silent", detail=f"{tried.detail}; Supabase may start it again at any moment")

    async def backups(self) -> Backups:
        return await self.api.backups()

    def restores(self) -> str:
        return self._supabase.primary

    async def restore(self, to: datetime) -> None:
        """Begin a restore to a point in time; one that is going on is left alone. Then until the project is healthy."""
        project = await self._mine()
        if project.status != "RESTORING":
            kept = await self.api.backups()
            if not kept.point_in_time:
                raise Rejected(
                    f"project {project.ref} has no point-in-time recovery, and the API restores nothing else: restore a"
                    " daily backup in the dashboard, or buy the add-on before it is needed"
                )
            if (kept.earliest and to < kept.earliest) or (kept.latest and to > kept.latest):
                raise Rejected(f"{to} is outside of what is kept: {kept.earliest} to {kept.latest}")
            await self.api.restore_to(to)

        async def look() -> str:
            return (await self.api.project()).status

        last = await settled(
            look, lambda s: s in (HEALTHY, "RESTORE_FAILED"), self._supabase.build_timeout, self._supabase.poll
        )
        if last == "RESTORE_FAILED":
            raise Rejected(f"the restore of project {project.ref} to {to} failed; ask Supabase's support")
        if last != HEALTHY:
            raise EffectUnknown(f"project {project.ref} was told to restore itself to {to}, and is {last}")

    async def restart(self, node: str) -> None:
        """Of the primary."""
        if node != self._supabase.primary:
            raise Rejected("only the project's own database can be restarted")
        await self._mine()
        await self.api.restart()

    async def started_at(self, node: str) -> datetime:
        """When its server started, as it says itself. Raises Unreachable."""

        async def work(connection: Connection) -> datetime:
            at: datetime = (await one(connection, "SELECT pg_postmaster_start_time() AS at"))["at"]
            return at

        return await self._ask(node, work)


MOST_CONNECTIONS = 3000
"""Of ``default_pool_size`` (API reference, *Updates project's supavisor config*)."""
ROOM = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS room
"""


class Pooled(Restoring):
    """The same, with what ``SizedPool`` asks of the project's pooler (Supavisor).

    It has one number for the project, ``default_pool_size``: server connections for each user and database. It keeps no
    minimum.
    """

    async def pool_limits(self, site: str) -> PoolLimits:
        """0 where Supabase chooses the size, by the project's compute. A site with a replica has a pooler of that."""
        identifier = None
        if site != self._own_site:
            region = next((n.region for n in self._supabase.nodes.values() if n.site == site), "")
            replica = await self._replica(region)
            if replica is None:
                raise Rejected(f"the project has no replica in {site}, and so no pooler there")
            identifier = replica[0]
        size = int((await self.api.pooler(identifier))["default_pool_size"] or 0)
        return PoolLimits(None, size, size)

    async def set_pool_limits(self, site: str, limits: PoolLimits) -> str:
        """Raises Rejected for more connections than the database takes, EffectUnknown for another answer."""
        if site != self._own_site:
            raise Rejected(f"Supabase sizes the pooler of the project's own database, which is in {self._own_site}")
        if not 1 <= limits.size <= MOST_CONNECTIONS:
            raise BadInput(f"a pool of {limits.size} connections; Supabase takes 1 to {MOST_CONNECTIONS}")
        room = await self._ask(self._supabase.primary, _room)
        if limits.size > room:
            raise Rejected(
                f"a pool of {limits.size} connections is more than the {room} that {self._supabase.primary} takes from"
                " clients (max_connections less what is reserved); nothing was changed. Lower connection_pool.max, or"
                " give the project more compute."
            )
        await self._mine()
        answered = await self.api.set_pool_size(limits.size)
        if answered != limits.size:
            raise EffectUnknown(f"the pooler was told to have {limits.size} connections, and answers {answered}")
        return f"default_pool_size = {limits.size} by the Management API; kept until it is changed again"

    @property
    def _own_site(self) -> str:
        return self._supabase.nodes[self._supabase.primary].site


async def _room(connection: Connection) -> int:
    return int((await one(connection, ROOM))["room"])


PROVIDER = Pooled
