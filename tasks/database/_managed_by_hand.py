"""Databases that AWS runs, by hand: the AWS CLI in the node's own region, and psql for what is true.

What is typed is what the providers do (``_managed``, ``rds``, ``aurora``), with the same tags, so that relight finds
the fence again when it is back. ``aws rds wait`` may see a state from before the call, so SQL is asked after it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import ClassVar, cast

from tasks.database._aurora_clusters import AuroraSettings, Clusters
from tasks.database._managed import END_CLIENTS, FENCED, FENCED_AT, READ_ONLY, Managed, Unit
from tasks.database._psql import ByPsql
from tasks.database._rds_settings import RdsNode
from tasks.errors import RelightError
from tasks.manual import Command, NoManual, again, aws

Answer = list[Command | NoManual]
RESTARTED = "DB instance restarted"
RESTART_S = 300.0
"""How long a change or a restart is looked after; minutes, as the User Guide has it."""
WRITE = (
    "INSERT INTO relight_probe (id, nonce) VALUES (1, 'by hand') ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce"
)


@dataclass(frozen=True)
class Words:
    """How the CLI calls what stands behind a node: ``unit`` in options, ``listed`` and ``status`` in answers."""

    unit: str
    listed: str
    status: str
    parameters: str


class ManagedByHand(ByPsql, Managed):
    """Fulfils ``tasks.database.manual.CloudByHand`` but for what ``RdsByHand`` and ``AuroraByHand`` add."""

    WORDS: ClassVar[Words]

    def _name(self, node: str) -> str:
        raise NotImplementedError

    def _rds(self, node: str, *words: str, query: str) -> str:
        line = ("rds", *words, "--query", query, "--output", "text")
        return aws(self._at[node].region, self._access.profile, *line)

    def _described(self, node: str, query: str) -> str:
        unit = self.WORDS.unit
        return self._rds(node, f"describe-{unit}s", f"--{unit}-identifier", self._name(node), query=query)

    def status_line(self, node: str) -> str:
        """What AWS calls its state."""
        return self._described(node, f"{self.WORDS.listed}[0].{self.WORDS.status}")

    def _available(self, node: str) -> Command:
        return Command(self.status_line(node), "available", "AWS is not at work on it. Nothing is changed by this.")

    def _read_only(self, unit: Unit, *, on: bool, why: str) -> Answer:
        """In its own parameter group, and until a new session has it."""
        if unit.parameter_group.startswith("default."):
            return [NoManual(f"{unit.name} uses {unit.parameter_group}, which cannot be changed; cut its network")]
        kind, value = self.WORDS.parameters, f"ParameterName={READ_ONLY},ParameterValue={int(on)},ApplyMethod=immediate"
        words = (f"modify-{kind}", f"--{kind}-name", unit.parameter_group, "--parameters", value)
        member = "DBClusterParameterGroupName" if "cluster" in kind else "DBParameterGroupName"
        told, wanted = self._rds(unit.node, *words, query=member), "on" if on else "off"
        looked = again(self.psql(unit.node, f"SHOW {READ_ONLY}"), wanted, RESTART_S)
        return [Command(told, unit.parameter_group, why), Command(looked, wanted, "New sessions have it.")]

    async def fenced(self, node: str, *, orderly: bool) -> Answer:
        """As ``Managed.fence``."""
        unit, group = await self._control.mine(node), self._at[node].quarantine
        if unit.replica:
            return [NoManual(f"{node} is a replica: it takes no writes, and there is nothing to fence")]
        if group is None or orderly:
            return self._ended(unit)
        return self._quarantined_by_hand(unit, group)

    def _ended(self, unit: Unit) -> Answer:
        node = unit.node
        begun = self._read_only(unit, on=True, why=f"{node} takes no writes from new sessions; replicas still get all.")
        if isinstance(begun[0], NoManual):
            return begun
        ended = self.psql(node, " ".join(END_CLIENTS.split()))
        why = "Those that had begun before are ended. Again until it prints nothing."
        proof = (
            f"Proof that {node} is fenced: a write is refused. Do not go on without it: two writers cannot be merged."
        )
        return [
            *begun,
            Command(ended, "(a line `process id|t` for each client)", why),
            Command(
                f"{self.psql(node, WRITE)} 2>&1 || true", "cannot execute INSERT in a read-only transaction", proof
            ),
        ]

    def _quarantined_by_hand(self, unit: Unit, group: str) -> Answer:
        node, words, tag = unit.node, self.WORDS, ("add-tags-to-resource", "--resource-name", unit.arn, "--tags")
        profile = self._access.profile
        rules = ("describe-security-groups", "--group-ids", group, "--query", "length(SecurityGroups[0].IpPermissions)")
        reboot = ("reboot-db-instance", "--db-instance-identifier", unit.writer)
        before = f"Key={FENCED},Value={' '.join(unit.groups_before_fence())}"
        change = (f"modify-{words.unit}", f"--{words.unit}-identifier", unit.name, "--vpc-security-group-ids", group)
        groups = f"join(' ', {words.listed}[0].VpcSecurityGroups[].join('/', [VpcSecurityGroupId, Status]))"
        in_force = again(self._described(node, groups), f"{group}/active", RESTART_S)
        at = shlex.quote(f"Key={FENCED_AT},Value=") + '"$(date -u +%Y-%m-%dT%H:%M:%S+00:00)"'
        proof = (
            f"Proof that {node} is fenced: its groups admit nobody, and it was restarted after that. Again until it is"
            " there. Do not go on without it: two writers cannot be merged."
        )
        return [
            Command(aws(unit.region, profile, "ec2", *rules), "0", f"{group} has no rule: it admits nobody."),
            Command(
                aws(unit.region, profile, "rds", *tag, before, f"Key={FENCED_AT},Value=-"),
                "(nothing; exit status 0)",
                "Which groups it had, for the way back.",
            ),
            Command(
                self._rds(node, *change, "--apply-immediately", query=f"{words.listed[:-1]}.{words.status}"),
                "(its status)",
                f"Nobody new reaches {node}.",
            ),
            Command(in_force, f"{group}/active", "The group is in force, alone."),
            Command(
                f"{aws(unit.region, profile, 'rds', *tag)} {at}", "(nothing; exit status 0)", "Since when, for relight."
            ),
            Command(
                self._rds(node, *reboot, query="DBInstance.DBInstanceStatus"),
                "(its status)",
                "What was connected before is ended by the restart only.",
            ),
            Command(again(self._restarted(unit), RESTARTED, RESTART_S), RESTARTED, proof),
            Command(f"{self.alive_line(node)} || true", "no response", "From the other site, too."),
        ]

    def _restarted(self, unit: Unit) -> str:
        """What AWS noted of a restart of its writer after the moment in the tag (event RDS-EVENT-0006)."""
        asked = ("describe-events", "--source-type", "db-instance", "--source-identifier", unit.writer)
        query = f"Events[?Message=='{RESTARTED}'].Message | [0]"
        events = self._rds(unit.node, *asked, "--event-categories", "availability", query=query)
        tagged = ("list-tags-for-resource", "--resource-name", unit.arn)
        since = self._rds(unit.node, *tagged, query=f"TagList[?Key=='{FENCED_AT}'].Value | [0]")
        return f'{events} --start-time "$({since})"'

    async def _writable(self, node: str) -> Answer:
        """Where it was fenced once, before it became a replica."""
        unit = await self._control.mine(node)
        try:
            stays = await self._starts_read_only(node)
        except RelightError:
            return []
        why = f"{node} was fenced once, and would be born read only."
        return self._read_only(unit, on=False, why=why) if stays else []

    def _is_primary(self, node: str) -> Command:
        look = again(self.psql(node, "SELECT pg_is_in_recovery()"), "f", self._access.promote_timeout)
        return Command(look, "f", f"{node} is the primary. Minutes, with connections refused meanwhile.")


class RdsByHand(ManagedByHand):
    """One DB instance a node."""

    WORDS = Words("db-instance", "DBInstances", "DBInstanceStatus", "db-parameter-group")

    def _name(self, node: str) -> str:
        return cast(RdsNode, self._at[node]).instance

    async def keeps_up(self, node: str) -> Answer:
        """It is there, and its WAL receiver streams."""
        seen = self.psql(node, "SELECT status FROM pg_stat_wal_receiver")
        return [self._available(node), Command(seen, "streaming", f"{node} gets what is written.")]

    async def compared(self, node: str, primary: str | None) -> Answer:
        """Positions, by SQL."""
        sent = "SELECT pg_current_wal_insert_lsn()"
        why = f"It must be at or behind what {node} says next."
        mine: Answer = [Command(self.psql(primary, sent), "(an LSN such as 0/3000148)", why)] if primary else []
        why = "Not lower than the one before; again until it is so. Lower is what would be lost."
        return [*mine, Command(self.psql(node, "SELECT pg_last_wal_replay_lsn()"), "(an LSN such as 0/3000148)", why)]

    async def promoted(self, node: str, *, orderly: bool) -> Answer:
        """``promote-read-replica``, then until RDS and SQL both say so."""
        before, name = await self._writable(node), ("--db-instance-identifier", self._name(node))
        told = self._rds(node, "promote-read-replica", *name, query="DBInstance.DBInstanceIdentifier")
        waited = aws(self._at[node].region, self._access.profile, "rds", "wait", "db-instance-available", *name)
        return [
            *before,
            Command(told, self._name(node), "THE POINT OF NO RETURN. It never follows its old source again."),
            Command(waited, "(nothing; exit status 0)", "RDS restarts it: one to five minutes."),
            self._is_primary(node),
        ]

    def follows(self) -> NoManual:
        """A replica keeps the source it was made from."""
        return NoManual(
            "RDS points no replica at another primary; make it anew (aws rds create-db-instance-read-replica), and keep"
            " the old instance under another name"
        )


class AuroraByHand(ManagedByHand):
    """One cluster of the global database a node."""

    WORDS = Words("db-cluster", "DBClusters", "Status", "db-cluster-parameter-group")
    _clusters: Clusters
    _aurora: AuroraSettings

    def _name(self, node: str) -> str:
        return self._aurora.nodes[node].cluster

    def _whole(self, node: str, query: str) -> str:
        asked = ("describe-global-clusters", "--global-cluster-identifier", self._aurora.global_cluster)
        return self._rds(node, *asked, query=f"GlobalClusters[0].GlobalClusterMembers[?{query}")

    async def _arn(self, node: str) -> str:
        return (await self._control.mine(node)).arn

    async def keeps_up(self, node: str) -> Answer:
        """It is there, and Aurora calls it connected."""
        look = self._whole(node, f"DBClusterArn=='{await self._arn(node)}'].SynchronizationStatus | [0]")
        return [self._available(node), Command(look, "connected", f"{node} gets what is written.")]

    async def compared(self, node: str, primary: str | None) -> Answer:
        """Nothing that could be compared."""
        look = self._whole(node, f"DBClusterArn=='{await self._arn(node)}'].SynchronizationStatus | [0]")
        return [Command(look, "connected", "There are no positions: the switchover itself waits until it has all.")]

    async def promoted(self, node: str, *, orderly: bool) -> Answer:
        """By a switchover, which loses nothing, where the old writer is fenced in order; else by a failover."""
        before, arn = await self._writable(node), await self._arn(node)
        where = ("--global-cluster-identifier", self._aurora.global_cluster, "--target-db-cluster-identifier", arn)
        words: tuple[str, ...] = ("switchover-global-cluster", *where)
        why = "It waits until nothing can be lost."
        if not orderly:
            words = ("failover-global-cluster", *where, "--allow-data-loss")
            why = "What had not arrived here yet is lost: look at AuroraGlobalDBRPOLag in CloudWatch first."
        told = self._rds(node, *words, query="GlobalCluster.GlobalClusterIdentifier")
        writer = again(self._whole(node, "IsWriter].DBClusterArn | [0]"), arn, self._access.promote_timeout)
        return [
            *before,
            Command(told, self._aurora.global_cluster, f"THE POINT OF NO RETURN. {why}"),
            Command(writer, arn, "Aurora calls it the writer."),
            self._is_primary(node),
        ]

    def follows(self) -> NoManual:
        """Nothing to do."""
        return NoManual("Aurora brings the other clusters back by itself")
