"""What the system file says of a PostgreSQL cluster: nodes, addresses, accounts, time-outs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ProgrammingError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.contract import Surroundings
from tasks.database import _durability as durability
from tasks.database._session import Server, endpoint
from tasks.database.protocol import Durability
from tasks.errors import BadInput
from tasks.hosts.protocol import Hosts
from tasks.quantities import Duration
from tasks.secrets import SecretRef
from tasks.variables import expand

DIRECT = "direct"
"""The vantage point of the engine itself."""


def _address(text: str) -> str:
    if "$" not in text:  # a variable is expanded, and its value checked, at use
        try:
            endpoint(text)
        except BadInput as e:
            raise ValueError(e.message) from None
    return text


Address = Annotated[str, AfterValidator(_address)]
"""``host:port``; ``$VARIABLE`` expands at use."""


class NodeSettings(BaseModel):
    """One server. ``from``: site -> address that leads to the server from there; another path of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    address: Address
    ways: dict[str, Address] = Field(default_factory=dict, alias="from")


class PostgresSettings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``database``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str
    user: str
    """Its grants: pg_monitor, pg_signal_backend, REPLICATION, ALTER SYSTEM on five parameters, pg_promote, …"""
    password: SecretRef | None = None
    replication_user: str = "replicator"
    replication_password: SecretRef | None = None
    """Written into primary_conninfo only where that names no password or passfile yet."""
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    connect_timeout: Duration = 1.0
    query_timeout: Duration = 3.0
    """Of all that is asked on one connection."""
    promote_timeout: Duration = 15.0
    command_timeout: Duration = 30.0
    """Of a host command that starts, stops or kills."""
    rejoin_timeout: Duration = 3600.0
    """Of a host command that rewinds or copies; the step's own time-out is usually shorter."""
    stale_after: Duration = 5.0
    """A replica that heard nothing for so long has lost its primary. Keep it above wal_receiver_timeout / 2, the
    longest silence of a healthy connection that is idle."""
    hosts: str | None = None
    """Component that runs commands on the nodes' hosts: status, start, stop, kill, rewind, copy."""
    synchronous: str = ""
    """``synchronous_standby_names`` as it is meant to be on the usual primary; empty: asynchronous."""
    nodes: dict[str, NodeSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> PostgresSettings:
        promise = durability.parse(self.synchronous)
        unknown = [s for s in promise.standbys if s not in self.nodes and s != "*"]
        if unknown:
            raise ValueError(f"synchronous names {', '.join(unknown)}; the nodes are {', '.join(self.nodes)}")
        slots = [slot(name) for name in self.nodes]
        if len(set(slots)) < len(slots):
            raise ValueError("two node names differ only in '-' and '_', so they would share a replication slot")
        return self


def slot(node: str) -> str:
    """Name of the physical replication slot of ``node``: lower case letters, digits and ``_`` (manual, 27.2.6)."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in node.lower())


class Nodes:
    """The cluster as configured; what can be said of it without asking it."""

    def __init__(self, settings: PostgresSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        wrong = sorted({n.site for n in settings.nodes.values()} - set(around.sites))
        if wrong:
            raise BadInput(f"{around.component}: nodes are in sites {', '.join(wrong)}, which the system does not have")

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    def nodes(self, site: str | None = None) -> tuple[str, ...]:
        return tuple(name for name, node in self._settings.nodes.items() if site in (None, node.site))

    def site_of(self, node: str) -> str:
        return self._node(node).site

    def vantages(self) -> tuple[str, ...]:
        """``direct`` (the engine) and every site that has its own way to some node."""
        ways = dict.fromkeys(site for node in self._settings.nodes.values() for site in node.ways)
        return (DIRECT, *ways)

    def durability(self) -> Durability:
        return durability.parse(self._settings.synchronous)

    def _node(self, node: str) -> NodeSettings:
        try:
            return self._settings.nodes[node]
        except KeyError:
            known = ", ".join(self._settings.nodes)
            raise BadInput(f"{self._around.component} has no node {node!r}; it has {known}") from None

    def _address(self, node: str, vantage: str | None = None) -> str:
        """Address of ``node`` as seen from ``vantage``: its own where that has no other way to it."""
        settings = self._node(node)
        return expand(settings.ways.get(vantage or DIRECT, settings.address))

    def _server(self, node: str, vantage: str | None = None) -> Server:
        s = self._settings
        address = self._address(node, vantage)
        label = f"{node} ({address}{f', from {vantage}' if vantage not in (None, DIRECT) else ''})"
        # A little less than the whole, so that the server's own error still arrives in time.
        limits = {"statement_timeout": 0.9 * s.query_timeout, "lock_timeout": 0.5 * s.query_timeout}
        return Server(
            label=label,
            address=address,
            database=s.database,
            user=s.user,
            password=s.password,
            connect_timeout_s=s.connect_timeout,
            query_timeout_s=s.query_timeout,
            sslmode=s.sslmode,
            options=" ".join(f"-c {name}={max(1, round(1000 * seconds))}" for name, seconds in limits.items()),
        )

    def _named(self, host: str | None, port: Any) -> str | None:
        """The node that has address ``host:port``, seen from anywhere."""
        for name, node in self._settings.nodes.items():
            if f"{host}:{port}" in (expand(a) for a in (node.address, *node.ways.values())):
                return name
        return None

    def _upstream(self, conninfo: str | None) -> str | None:
        """The node that a ``primary_conninfo`` leads to."""
        try:
            parts = conninfo_to_dict(conninfo or "")
        except ProgrammingError:
            return None
        return self._named(parts.get("host"), parts.get("port", "5432"))  # type: ignore[arg-type]

    def _hosts(self) -> Hosts | None:
        if self._settings.hosts is None:
            return None
        found = self._around.components(self._settings.hosts)
        if not isinstance(found, Hosts):
            kind = type(found).__name__
            raise BadInput(
                f"{self._around.component}: hosts {self._settings.hosts!r} is a {kind}, which runs no commands"
            )
        return found
