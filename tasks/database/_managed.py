"""Databases that AWS runs: how they are fenced without a host, whatever stands behind a node (an instance, a cluster).

Means, strongest first. The *quarantine*: a security group that admits nobody, then a restart that ends what is still
connected (open connections outlive a change of groups). *Read only*: ``default_transaction_read_only`` in the node's
own parameter group, the counterpart of ALTER SYSTEM: dynamic, of its region only, and not replicated as ALTER DATABASE
would be; clients are ended after it. A client may undo the second for itself (``SET``), the first only an operator.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import psycopg

from tasks.aws import Aws
from tasks.contract import Surroundings
from tasks.database._rds_settings import DataNode, SqlAccess, for_sql
from tasks.database._reading import one
from tasks.database._session import Connection, ask, said
from tasks.database._standing import Standing
from tasks.database.protocol import WriteProbe
from tasks.errors import EffectUnknown, NotYet, Rejected, RelightError, Unreachable

T = TypeVar("T")

OWNER = "relight:system"
FENCED = "relight:fenced"
"""The security groups that a fenced node had, separated by spaces."""
FENCED_AT = "relight:fenced-at"
"""When its new groups were in force, ``-`` before that; a restart after it ended every connection."""
READ_ONLY = "default_transaction_read_only"

END_CLIENTS = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity a
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
  AND NOT (application_name = 'relight' AND usename = current_user)
  AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = a.usename AND r.rolsuper)
"""
"""Every client but relight itself and the service's own superuser (rdsadmin), whom nobody else may end."""


@dataclass(frozen=True)
class Unit:
    """What stands behind a node, as its region's control plane has it at one moment.

    ``source``: the node that it replicates, ``?`` for one that is none of ours. ``settled``: its groups are in force.
    ``writer``: the instance that a restart is of.
    """

    node: str
    region: str
    name: str
    arn: str
    status: str
    engine: str
    version: str
    source: str | None
    security_groups: tuple[str, ...]
    settled: bool
    parameter_group: str
    writer: str
    tags: dict[str, str]
    backup_days: int = 0
    multi_az: bool = False
    shape: dict[str, Any] = field(default_factory=dict)
    """Class, subnet group and key, as ``create_db_instance_read_replica`` takes them."""

    @property
    def replica(self) -> bool:
        return self.source is not None

    def groups_before_fence(self) -> tuple[str, ...]:
        """Those that it has, where it was not fenced."""
        return tuple(self.tags[FENCED].split()) if self.tags.get(FENCED) else self.security_groups

    def fenced_at(self) -> datetime | None:
        """None where that cannot be told."""
        try:
            return datetime.fromisoformat(self.tags.get(FENCED_AT, "")).astimezone(UTC)
        except ValueError:
            return None


class ControlPlane(Protocol):
    """The calls that a fence needs. Each goes to the region of the node that it is about."""

    async def find(self, node: str) -> Unit | None: ...

    async def mine(self, node: str) -> Unit:
        """The unit, checked for what it must be before it is changed. Raises Rejected if it is not."""
        ...

    async def set_read_only(self, unit: Unit, *, on: bool) -> None: ...

    async def admits_nobody(self, unit: Unit, group: str) -> bool: ...

    async def change_groups(self, unit: Unit, groups: Iterable[str]) -> None: ...

    async def tag(self, unit: Unit, **tags: str) -> None: ...

    async def reboot(self, unit: Unit) -> None: ...

    async def restarted_since(self, unit: Unit, at: datetime) -> bool: ...

    async def aclose(self) -> None: ...


def read_only_parameter(unit: Unit, *, on: bool) -> dict[str, str]:
    """As a change of a parameter group takes it. Raises Rejected for a default group, which cannot be changed."""
    if unit.parameter_group.startswith("default."):
        raise Rejected(f"{unit.name} uses {unit.parameter_group}, which cannot be changed: give it a group of its own")
    return {"ParameterName": READ_ONLY, "ParameterValue": "1" if on else "0", "ApplyMethod": "immediate"}


class Regional:
    """Calls that are the same for an instance and for a cluster."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws

    async def admits_nobody(self, unit: Unit, group: str) -> bool:
        """Security group ``group`` has no rule that lets anything in."""
        ec2 = await self._aws.client("ec2", unit.region)
        found = await self._aws.call(
            f"describing {group}", lambda: ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        )
        return not found[0]["IpPermissions"]

    async def tag(self, unit: Unit, **tags: str) -> None:
        """Keys are without their prefix ``relight:``, ``_`` for ``-``."""
        rds = await self._aws.client("rds", unit.region)
        pairs = [{"Key": f"relight:{k.replace('_', '-')}", "Value": v} for k, v in tags.items()]
        await self._aws.call(
            f"tagging {unit.name}", lambda: rds.add_tags_to_resource(ResourceName=unit.arn, Tags=pairs), changes=True
        )

    async def reboot(self, unit: Unit, *, failover: bool = False) -> None:
        """Its writer: readers write nothing. ``failover``: its Multi-AZ standby takes over."""
        rds = await self._aws.client("rds", unit.region)
        more = {"ForceFailover": True} if failover else {}
        await self._aws.call(
            f"rebooting {unit.writer}",
            lambda: rds.reboot_db_instance(DBInstanceIdentifier=unit.writer, **more),
            changes=True,
        )

    async def restarted_since(self, unit: Unit, at: datetime) -> bool:
        """AWS noted that its writer was restarted after ``at`` (event RDS-EVENT-0006)."""
        rds = await self._aws.client("rds", unit.region)

        def ask() -> list[dict[str, Any]]:
            pages = rds.get_paginator("describe_events").paginate(
                SourceIdentifier=unit.writer, SourceType="db-instance", StartTime=at, EventCategories=["availability"]
            )
            return [event for page in pages for event in page["Events"]]

        events = await self._aws.call(f"events of {unit.writer}", ask)
        return any("restarted" in e.get("Message", "").lower() and e["Date"] >= at for e in events)

    async def aclose(self) -> None:
        """Close every client."""
        await self._aws.aclose()


def must_be_ours(unit: Unit, system: str, engine: str, version: str | None) -> Unit:
    """``unit``, where its mark and its engine are as expected. Raises Rejected."""
    if unit.tags.get(OWNER) != system:
        has = f"has {unit.tags[OWNER]!r}" if OWNER in unit.tags else "has no such tag"
        raise Rejected(
            f"{unit.name} in {unit.region} is not marked as ours: expected the tag {OWNER} = {system!r}, it {has}."
            " Nothing was changed. Tag it if relight may operate it."
        )
    if unit.engine != engine or (version and not f"{unit.version}.".startswith(f"{version}.")):
        expected = f"{engine}{' ' + version if version else ''}"
        raise Rejected(f"{unit.name} runs {unit.engine} {unit.version}, expected {expected}; nothing was changed")
    return unit


def must_be_available(unit: Unit) -> None:
    """Raises NotYet while the service is at work on it."""
    if unit.status != "available":
        raise NotYet(f"{unit.name} in {unit.region} is {unit.status}, expected available; AWS is at work on it")


async def settled(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], limit_s: float, every_s: float) -> T:
    """Look again until what is found is ``good``; after ``limit_s`` seconds the last finding, good or not."""
    clock = asyncio.get_running_loop()
    until = clock.time() + limit_s
    while True:
        found = await look()
        if good(found) or clock.time() + every_s >= until:
            return found
        await asyncio.sleep(every_s)


async def tagged(control: ControlPlane, unit: Unit, **tags: str) -> None:
    """Tag it; where the answer was lost, looking tells. Raises NotYet where the tags are not there."""
    try:
        await control.tag(unit, **tags)
    except EffectUnknown as e:
        now = (await control.mine(unit.node)).tags
        if any(now.get(f"relight:{key.replace('_', '-')}") != value for key, value in tags.items()):
            raise NotYet(f"{e.message}; {unit.name} does not have its tags yet") from e


class Managed(Standing):
    """Reads by SQL, fences through the control plane. Base of ``database.rds`` and ``database.aurora``."""

    def __init__(
        self, access: SqlAccess, nodes: dict[str, DataNode], control: ControlPlane, around: Surroundings
    ) -> None:
        super().__init__(for_sql(access, nodes), around)
        self._access, self._at, self._control = access, nodes, control

    async def try_write(self, node: str, vantage: str) -> WriteProbe:
        """As SQL has it; but that nothing listens proves nothing here: the service starts a dead server by itself."""
        tried = await super().try_write(node, vantage)
        if tried.outcome != "gone":
            return tried
        return replace(tried, outcome="silent", detail=f"{tried.detail}; AWS may start it again at any moment")

    async def ask_host(self, node: str) -> WriteProbe | None:
        """What AWS says of it. ``gone``: it is stopped, or nobody is admitted and it was restarted since."""
        address = f"AWS in {self._at[node].region}"

        def probe(outcome: Any, detail: str) -> WriteProbe:
            return WriteProbe("host", node, outcome, detail, address)

        try:
            found = await self._control.find(node)
            if found is None:
                return probe("silent", f"{address} has nothing of this name, which proves nothing")
            if found.status == "stopped":
                return probe("gone", f"{address} says that {found.name} is stopped")
            if await self._quarantined(found):
                return probe("gone", f"{address} says that {found.name} admits nobody, and was restarted since")
        except RelightError as e:
            return probe("silent", e.message)
        return probe("runs", f"{address} says that {found.name} is {found.status}")

    async def _quarantined(self, found: Unit) -> bool:
        group, since = self._at[found.node].quarantine, found.fenced_at()
        if group is None or since is None or found.security_groups != (group,) or not found.settled:
            return False
        return (
            found.status == "available"
            and await self._control.admits_nobody(found, group)
            and await self._control.restarted_since(found, since)
        )

    async def fence(self, node: str, *, orderly: bool) -> str:
        """Forced: the quarantine where one is set up, else read only. Orderly: read only, since replicas must still
        receive everything. See the Protocol.
        """
        found = await self._control.mine(node)
        if found.replica:
            raise Rejected(f"{node} is a replica, not a primary: it takes no writes, and there is nothing to fence")
        group = self._at[node].quarantine
        failed = "no quarantine is set up" if group is None else ""
        if group is not None and not orderly:
            try:
                await self._quarantine(found, group)
                return f"security group {group}, which admits nobody, and a restart"
            except Rejected as e:
                failed = e.message
        try:
            await self._end_writes(found)
        except (Unreachable, Rejected, EffectUnknown) as e:
            raise Unreachable(
                f"no means fenced {node}: {failed + '; ' if failed else ''}{e.message}. Set up a quarantine, or let"
                " somebody cut its network.",
                node=node,
            ) from e
        return f"{READ_ONLY} in {found.parameter_group}, clients ended"

    async def _quarantine(self, found: Unit, group: str) -> None:
        """Nobody is admitted, and what was connected is ended. Each part is looked at before it is done, so that it can
        be gone on with from wherever an earlier attempt ended.
        """
        if not await self._control.admits_nobody(found, group):
            raise Rejected(f"security group {group} lets somebody in; a quarantine must have no rule. Empty it")
        if found.security_groups != (group,):
            # No time yet: what was connected before is only ended by a restart after the groups are in force.
            await tagged(self._control, found, fenced=" ".join(found.groups_before_fence()), fenced_at="-")
            with contextlib.suppress(EffectUnknown):  # looking tells
                await self._control.change_groups(found, (group,))

        async def look() -> Unit:
            return await self._control.mine(found.node)

        def in_force(unit: Unit) -> bool:
            return unit.security_groups == (group,) and unit.settled and unit.status == "available"

        limit_s, every_s = self._access.change_timeout, self._access.poll
        seen = await settled(look, in_force, limit_s, every_s)
        if not in_force(seen):
            raise NotYet(f"{found.name} is {seen.status}, its security groups are {', '.join(seen.security_groups)}")
        if await self._quarantined(seen):
            return
        await tagged(self._control, seen, fenced_at=self._around.clock.utc().isoformat(timespec="seconds"))
        with contextlib.suppress(EffectUnknown):
            await self._control.reboot(seen)

        async def gone() -> bool:
            return await self._quarantined(await look())

        if not await settled(gone, bool, limit_s, every_s):
            raise NotYet(f"{found.name} was told to restart, and AWS has no event yet that says it did")

    async def _end_writes(self, found: Unit) -> None:
        """Read only for every session that begins from now on, and those that had begun are ended."""
        node = found.node
        await self._control.set_read_only(found, on=True)
        await self._until_read_only(node, on=True)

        async def work(connection: Connection) -> list[int]:
            if (await one(connection, "SELECT pg_is_in_recovery() AS yes"))["yes"]:
                raise Rejected(f"{node} is a replica: it takes no writes, and there is nothing to fence")
            ended = await (await connection.execute(END_CLIENTS)).fetchall()
            return [row["pid"] for row in ended]

        left = await settled(lambda: self._on(node, work), lambda pids: not pids, self._access.query_timeout, 0.02)
        if left:
            raise Rejected(f"clients of {node} do not end: process ids {', '.join(map(str, left))}. End them by hand.")

    async def _until_read_only(self, node: str, *, on: bool) -> None:
        """Until a session that begins now has it. Raises NotYet after ``change_timeout``."""
        limit_s, every_s = self._access.change_timeout, self._access.poll
        if await settled(lambda: self._starts_read_only(node), lambda now: now is on, limit_s, every_s) is not on:
            raise NotYet(f"{READ_ONLY} of {node} is not {'on' if on else 'off'} after {limit_s:g} s")

    async def _starts_read_only(self, node: str) -> bool:
        async def work(connection: Connection) -> bool:
            row = await one(connection, "SELECT current_setting('default_transaction_read_only')::boolean AS now")
            return bool(row["now"])

        return await self._on(node, work)

    async def _on(self, node: str, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await ask(self._server(node), work)
        except psycopg.errors.InsufficientPrivilege as e:
            raise Rejected(f"{node}: {said(e)}; grant pg_monitor and pg_signal_backend to {self._access.user}") from e
        except psycopg.Error as e:
            raise Rejected(f"{node}: {said(e)}") from e

    async def unfence(self, node: str) -> None:
        """Give back its security groups and its right to write. Raises Rejected when it is no longer the newest."""
        await self._no_successor(node)
        found = await self._control.mine(node)
        if found.replica:
            raise Rejected(f"{node} is a replica, so it cannot be unfenced")
        group, before = self._at[node].quarantine, found.groups_before_fence()
        if group is not None and found.security_groups == (group,):
            if before in ((), (group,)):
                raise Rejected(f"{found.name} does not say which security groups it had; give them back by hand")
            await self._control.change_groups(found, before)
        await self._until_answers(node)
        if await self._starts_read_only(node):
            await self._control.set_read_only(found, on=False)
            await self._until_read_only(node, on=False)

    async def _until_answers(self, node: str) -> None:
        seen = await settled(
            lambda: self.view(node), lambda v: v.reach == "answers", self._access.change_timeout, self._access.poll
        )
        if seen.reach != "answers":
            raise NotYet(f"{node} does not answer yet: {seen.why}")

    async def aclose(self) -> None:
        await self._control.aclose()
