"""Aurora global database: a cluster in each region, one of them writes. Fulfils ``Database`` and ``Witnessed``.

Sources: API Reference 2014-10-31 (``FailoverGlobalCluster``, ``SwitchoverGlobalCluster``, ``DescribeGlobalClusters``),
Aurora User Guide, *Using switchover or failover in Aurora Global Database*.

* There are no positions to compare. How far a secondary is, is a time: when its ``AuroraGlobalDBRPOLag`` was measured,
  less that lag. CloudWatch has it a minute or two late, and the loss is bounded by exactly that.
* Promotion is one call to the region that is recovered. Where the old primary is known to be read only and answers, it
  is a switchover, by which the service loses nothing. Otherwise it is a failover that may lose commits: what it may
  lose was judged before.
* The fence is the same as for RDS. The service ends the old primary's writes itself in a switchover, and in a failover
  only once it reaches it: with the region dark nothing is proven, and only the waiver ``fence`` goes on.
* The other clusters follow by themselves, and so does the old primary when its region is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar, TypeVar

import psycopg
from pydantic import BaseModel

from tasks.contract import Surroundings
from tasks.database._aurora_clusters import AuroraSettings, Clusters, Membership
from tasks.database._managed import must_be_available, settled
from tasks.database._managed_by_hand import AuroraByHand
from tasks.database._reading import one
from tasks.database._reviewing import Reviewing
from tasks.database._session import Broken, Connection, NoConnection, Server, ask, said
from tasks.database.protocol import Durability, NodeView
from tasks.errors import Contradiction, EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.variables import expand

T = TypeVar("T")

LOOKS = 3
"""How often the control plane is asked before its throttling is passed on."""
ROLE = """
SELECT pg_is_in_recovery() AS in_recovery, current_setting('default_transaction_read_only')::boolean AS read_only
"""


class Aurora(AuroraByHand, Reviewing):
    """One cluster a node."""

    Settings: ClassVar[type[BaseModel]] = AuroraSettings

    def __init__(self, settings: AuroraSettings, around: Surroundings) -> None:
        self._clusters, self._aurora = Clusters(settings, around), settings
        super().__init__(settings, dict(settings.nodes), self._clusters, around)

    def durability(self) -> Durability:
        return Durability("async", 0, ())

    async def live_durability(self, node: str) -> Durability:
        """A commit never waits for another region."""
        return self.durability()

    async def view(self, node: str, vantage: str | None = None) -> NodeView:
        """Role by SQL; whom it follows, and up to when it is complete, by the control plane of its own region.

        A secondary is asked at its reader endpoint, but only where the control plane says that it is one: the readers
        of a primary say of themselves that they are in recovery, too.
        """
        seen, told = await self._role(self._server(node, vantage), node), None
        reader = self._aurora.nodes[node].reader
        if seen.reach != "answers" and reader is not None:
            told, complete = await self._told(node, replica=True)
            if told is None or told.writer == node:
                return seen
            there = await self._role(self._reader(node, reader), node)
            if not there.in_recovery:
                return seen
            seen = there
        elif seen.in_recovery is not None:
            told, complete = await self._told(node, replica=seen.in_recovery)
        if told is None or not seen.in_recovery:
            return seen
        upstream = told.writer if told.writer in self.nodes() and told.writer != node else None
        return replace(seen, last_commit_at=complete, upstream=upstream, streaming=told.connected.get(node))

    async def _role(self, server: Server, node: str) -> NodeView:
        site = self.site_of(node)

        async def look(connection: Connection) -> dict[str, Any]:
            return await one(connection, ROLE)

        try:
            row = await ask(server, look)
        except NoConnection as e:
            return NodeView(node, site, e.reach, why=e.why)
        except Broken as e:
            return NodeView(node, site, "silent", why=e.message)
        except psycopg.Error as e:
            return NodeView(node, site, "answers", why=said(e))
        replica = bool(row["in_recovery"])
        read_only = None if replica else bool(row["read_only"])
        return NodeView(node, site, "answers", in_recovery=replica, read_only=read_only)

    def _reader(self, node: str, reader: str) -> Server:
        server, address = self._server(node), expand(reader)
        return Server(**{**vars(server), "address": address, "label": f"{node} ({address}, its reader)"})

    async def _on(self, node: str, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await super()._on(node, work)
        except NoConnection:
            reader = self._aurora.nodes[node].reader
            if reader is None:
                raise
            return await ask(self._reader(node, reader), work)

    async def _told(self, node: str, *, replica: bool) -> tuple[Membership | None, datetime | None]:
        """What the control plane says; None where it does not answer. Where it asks to come back later that is done
        ``LOOKS`` times, then it raises NotYet: a secondary must not look dead for that.
        """
        region = self._aurora.nodes[node].region
        for left in reversed(range(LOOKS)):
            try:
                told = await self._clusters.membership(region)
                complete = await self._clusters.complete_until(node, self._around.clock.utc()) if replica else None
            except NotYet:
                if not left:
                    raise
                await asyncio.sleep(self._access.poll)
            except RelightError:
                break
            else:
                return told, complete
        return None, None

    async def promote(self, node: str) -> None:
        """See the Protocol, and the head of this module for which of the two calls it is."""
        region = self._aurora.nodes[node].region
        unit, before = await self._clusters.mine(node), await self._clusters.membership(region)
        if before.moving:
            raise NotYet(f"the global database is {before.moving} already; waiting for that")
        must_be_available(unit)
        if before.writer == node:
            raise Rejected(f"{node} is the writer of the global database already; observe again")
        if node not in before.arns:
            raise Rejected(f"{unit.name} is no member of {self._aurora.global_cluster}, so it cannot be its writer")
        lossy = await self._loses(node, before)
        if await self._starts_read_only(node):
            await self._clusters.set_read_only(unit, on=False)  # it was fenced once, before it became a secondary
            await self._until_read_only(node, on=False)
        await self._clusters.switch(region, before.arns[node], lossy=lossy)

        async def look() -> tuple[Membership, NodeView]:
            return await self._clusters.membership(region), await self.view(node)

        def done(seen: tuple[Membership, NodeView]) -> bool:
            return seen[0].writer == node and not seen[0].moving and seen[1].in_recovery is False

        try:
            last = await settled(look, done, self._access.promote_timeout, self._access.poll)
        except RelightError as e:
            raise EffectUnknown(f"{node} was told to become the writer; how that goes is not known: {e.message}") from e
        if not done(last):
            what = last[0].moving or f"the writer is {last[0].writer}"
            raise EffectUnknown(
                f"{node} was told to become the writer; after {self._access.promote_timeout:g} s {what}"
            )

    async def _loses(self, node: str, before: Membership) -> bool:
        """Whether only a failover is possible. Raises Contradiction while another cluster takes writes."""
        mine = await self.view(node)
        if mine.in_recovery is not True:
            raise Unreachable(f"{node} does not answer as a secondary: {mine.why or mine.reach}")
        views = [await self.view(n) for n in self.nodes() if n != node]
        writing = [v.node for v in views if v.in_recovery is False and not v.read_only]
        if writing:
            raise Contradiction(f"{', '.join(writing)} takes writes as primary; {node} is not promoted beside it")
        drained = [v.node for v in views if v.in_recovery is False and v.read_only]
        return before.writer not in drained

    async def follow(self, node: str, upstream: str) -> None:
        """The service does it. Raises NotYet until it has, Rejected where ``upstream`` does not write."""
        seen = await self._clusters.membership(self._aurora.nodes[upstream].region)
        if seen.writer != upstream:
            raise Rejected(f"{upstream} is not the writer of the global database, {seen.writer or 'nobody'} is")
        if node not in seen.connected:
            raise Rejected(
                f"{node} is no member of {self._aurora.global_cluster}: add a secondary cluster in its region first"
            )
        if seen.moving or seen.connected[node] is False:
            raise NotYet(f"Aurora is bringing {node} back itself ({seen.moving or 'it is not connected yet'})")

    async def rejoin(self, node: str, upstream: str) -> str:
        """After a failover Aurora makes the old primary a secondary again once its region is back: wait for that."""

        async def look() -> str:
            try:
                await self.follow(node, upstream)
            except NotYet as e:
                return e.message
            return ""

        left = await settled(look, lambda why: not why, self._access.build_timeout, self._access.poll)
        if left:
            raise NotYet(left)
        unit = await self._clusters.mine(node)
        group, before = self._aurora.nodes[node].quarantine, unit.groups_before_fence()
        if group is not None and unit.security_groups == (group,) and before not in ((), (group,)):
            await self._clusters.change_groups(unit, before)  # it is a secondary now, and may be read
        return "by Aurora itself"


PROVIDER = Aurora
