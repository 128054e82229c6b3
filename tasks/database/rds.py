"""RDS for PostgreSQL with read replicas, across regions too. The service moves the instances, SQL tells the truth.

Fulfils ``Database``, ``Witnessed`` and ``Drained``. What is different from servers of one's own, and why (API Reference
2014-10-31; RDS User Guide, *Working with read replicas*, *Stopping a DB instance*):

* A fence has no host to kill. An instance that has replicas cannot be stopped, so the means are: the security group
  ``quarantine`` that admits nobody, then a reboot that ends what is connected; or, weaker and in planned runs,
  ``default_transaction_read_only`` in the instance's own parameter group. Both go through the control plane of the
  instance's own region: with that away nothing is proven, and only the waiver ``fence`` goes on.
* ``SwitchoverReadReplica`` is for Oracle only. A planned switch is: end the writes, let the replica catch up, promote.
* A replica cannot be pointed at another primary: it is made anew (``rejoin``). The instance it replaces is renamed and
  kept, never deleted.
* Commits never wait for a replica in another region, so a loss of nothing is only proven after a drain.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import ClassVar

from pydantic import BaseModel

from tasks.contract import Surroundings
from tasks.database._managed import Unit, must_be_available, settled
from tasks.database._managed_by_hand import RdsByHand
from tasks.database._proof import prove
from tasks.database._rds_instances import Instances
from tasks.database._rds_settings import RdsSettings
from tasks.database._reading import one
from tasks.database._reviewing import Reviewing
from tasks.database._session import Connection
from tasks.database.protocol import NodeView
from tasks.errors import Contradiction, EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.quotas import Allowance


class Rds(RdsByHand, Reviewing):
    """One DB instance a node."""

    Settings: ClassVar[type[BaseModel]] = RdsSettings

    def __init__(self, settings: RdsSettings, around: Surroundings) -> None:
        self._instances = Instances(settings, around)
        super().__init__(settings, dict(settings.nodes), self._instances, around)

    async def quiesce(self, node: str) -> int:
        found = await self._instances.mine(node)
        if found.replica:
            raise Rejected(f"{node} is a replica: it takes no writes, and there is nothing to fence")
        await self._end_writes(found)  # the last round found nobody, so no write can be behind what is read now

        async def work(connection: Connection) -> int:
            return int((await one(connection, "SELECT pg_current_wal_insert_lsn() - '0/0' AS lsn"))["lsn"])

        return await self._on(node, work)

    async def view(self, node: str, vantage: str | None = None) -> NodeView:
        """As SQL tells. Whom a replica follows is told by RDS: the address in its WAL receiver is of no use outside."""
        seen = await super().view(node, vantage)
        if not seen.in_recovery:
            return seen
        try:
            found = await self._instances.find(node)
        except RelightError:
            return seen
        return seen if found is None or found.source in (None, "?") else replace(seen, upstream=found.source)

    async def allowances(self, active: str, target: str) -> tuple[Allowance, ...]:
        """The promotion needs no instance; the way back does: a replica is made beside the one that it takes the place
        of, where ``active`` was.
        """
        return await self._instances.allowances(active)

    async def promote(self, node: str) -> None:
        """``PromoteReadReplica`` in the replica's own region, then until RDS and SQL both say that it is a primary.

        Told twice, RDS refuses; an instance that is ``modifying`` may be on its way already, so that is "not yet".
        """
        found = await self._instances.mine(node)
        must_be_available(found)
        if not found.replica:
            raise Rejected(f"{node} is no replica any more; observe again before anything else is done")
        mine = await self._check_promotable(node)
        if mine.in_recovery and await self._starts_read_only(node):
            await self._instances.set_read_only(found, on=False)  # it was fenced once, before it became a replica
            await self._until_read_only(node, on=False)
        await self._instances.promote(found)

        async def look() -> tuple[Unit, NodeView]:
            return await self._instances.mine(node), await super(Rds, self).view(node)

        def done(seen: tuple[Unit, NodeView]) -> bool:
            return seen[0].status == "available" and not seen[0].replica and seen[1].in_recovery is False

        try:
            last = await settled(look, done, self._access.promote_timeout, self._access.poll)
        except RelightError as e:
            raise EffectUnknown(f"{node} was told to promote itself; how that goes is not known: {e.message}") from e
        if not done(last):
            raise EffectUnknown(
                f"{node} was told to promote itself and is {last[0].status} after {self._access.promote_timeout:g} s;"
                " it may still become a primary. Look at its events in RDS."
            )

    async def _check_promotable(self, node: str) -> NodeView:
        """Identity and role by SQL, beside those of every other node. Raises Contradiction, Rejected, Unreachable."""
        views = {n: await super(Rds, self).view(n) for n in self.nodes()}
        mine = views.pop(node)
        if mine.reach != "answers":
            raise Unreachable(f"{node} does not answer: {mine.why}")
        if not mine.in_recovery:
            raise Rejected(f"{node} is no replica any more; observe again before anything else is done")
        strangers = [n for n, v in views.items() if v.system_identifier not in (None, mine.system_identifier)]
        if strangers:
            raise Contradiction(f"{node} is another database than {', '.join(strangers)}. Check the addresses.")
        writing = [n for n, v in views.items() if v.in_recovery is False and not v.read_only]
        if writing:
            raise Contradiction(f"{', '.join(writing)} takes writes as primary; {node} is not promoted beside it")
        return mine

    async def follow(self, node: str, upstream: str) -> None:
        """RDS cannot do that. Raises Rejected with what to do."""
        raise Rejected(
            f"RDS cannot point {node} at {upstream}: a replica keeps the source it was made from. database.rejoin makes"
            " it anew and keeps the old instance under another name."
        )

    async def rejoin(self, node: str, upstream: str) -> str:
        """Make the node anew as a replica of ``upstream``. What it was is renamed and kept, with its fence.

        Each part is looked at before it is done: NotYet says what RDS is at work on, and the next attempt goes on.
        """
        source = await self._one_primary(upstream, but=node)
        up = await self._instances.mine(upstream)
        if not up.backup_days:
            raise Rejected(f"{up.name} keeps no backups, so RDS makes no replica of it: set its retention first")
        found = await self._instances.find(node)
        if found is not None and found.source == upstream:
            before = await self._instances.retired(node)
            how = _copied(before.name) if before else "it followed already"
            return await self._comes_up(node, upstream, how)
        kept = ""
        if found is not None:
            found = await self._instances.mine(node)
            self._check_expendable(await self.view(node), source)
            if not found.replica and not (await prove(self, node)).fenced:
                raise Contradiction(f"{node} may still take writes as a primary; fence it first (database.fence)")
            must_be_available(found)
            kept = f"{found.name[:40]}-{self._around.clock.utc():%Y%m%d%H%M%S}"
            await self._instances.tag(found, retired=node)
            await self._instances.rename(found, kept)
            gone = await settled(
                lambda: self._instances.find(node), lambda i: i is None, self._access.change_timeout, self._access.poll
            )
            if gone is not None:
                raise NotYet(f"{found.name} is to be renamed to {kept}, and is {gone.status}")
        old = await self._instances.retired(node)
        await self._instances.replicate(node, up, old)
        return await self._comes_up(node, upstream, _copied(kept or (old.name if old else "")))

    async def _comes_up(self, node: str, upstream: str, how: str) -> str:
        async def look() -> Unit | None:
            return await self._instances.find(node)

        def up(found: Unit | None) -> bool:
            return found is not None and found.status == "available"

        found = await settled(look, up, self._access.build_timeout, self._access.poll)
        if not up(found):
            raise NotYet(
                f"{node} is made a replica of {upstream} by RDS, and is {found.status if found else 'not there'}"
            )
        return how


class Restarting(Rds):
    """The same, with what ``Restartable`` asks."""

    async def restart(self, node: str) -> None:
        """``RebootDBInstance``; of a Multi-AZ instance with failover to its standby."""
        found = await self._instances.mine(node)
        must_be_available(found)
        await self._instances.reboot(found, failover=found.multi_az)

    async def started_at(self, node: str) -> datetime:
        async def work(connection: Connection) -> datetime:
            at: datetime = (await one(connection, "SELECT pg_postmaster_start_time() AS at"))["at"]
            return at

        return await self._ask(node, work)


def _copied(kept: str) -> str:
    return f"copy; what it was is kept as {kept}, delete it when nobody needs it" if kept else "copy"


PROVIDER = Restarting
