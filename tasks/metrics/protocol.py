"""What every source of metrics can say, and the catalogue of the metrics that the scaling plan names.

A reading is known or it is not. No data, a sample that is too old, NaN and a source that does not answer are *unknown*:
never 0, and never "below the threshold".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

Unit = Literal["%", "s", "B/s", "", "USD/d"]
"""Percent 0-100, seconds, bytes a second, a bare count, US dollars a day."""
State = Literal["ok", "no-data", "stale", "not-a-number", "no-answer", "not-measured"]
"""``not-measured``: the source has no query for this metric."""


@dataclass(frozen=True)
class Metric:
    """A key metric.

    Attributes:
        section: its name in the ``scaling`` section.
        aliases: other names in conditions.
        somewhere: a site may well have none (a primary's site without a replica has no lag); one of them must.
    """

    name: str
    unit: Unit
    summary: str
    section: str = ""
    aliases: tuple[str, ...] = ()
    domain: Literal["application", "database", "cost"] = "application"
    somewhere: bool = False


CATALOGUE = {
    m.name: m
    for m in (
        Metric("cpu_usage", "%", "processor time of the busiest instance", "cpu"),
        Metric("memory_usage", "%", "memory in use, of what there is", "memory"),
        Metric("disk_io", "B/s", "bytes read and written"),
        Metric("network_traffic", "B/s", "bytes received and sent"),
        Metric("request_latency", "s", "95th percentile from request to answer", "latency"),
        Metric("error_rate", "%", "answers with 5xx, of all", "errors"),
        Metric("concurrent_users", "", "open client connections", aliases=("active_users",)),
        Metric("connection_count", "%", "database connections, of the limit", domain="database"),
        Metric("query_performance", "s", "mean time of a statement in the server", domain="database", somewhere=True),
        Metric(
            "replication_lag",
            "s",
            "the furthest a replica is behind",
            aliases=("lag",),
            domain="database",
            somewhere=True,
        ),
        Metric("disk_usage", "%", "of the fullest file system", domain="database"),
        Metric("instance_cost", "USD/d", "servers and databases, last whole day", domain="cost"),
        Metric("storage_cost", "USD/d", "stored data, last whole day", domain="cost"),
        Metric("bandwidth_cost", "USD/d", "data transfer and CDN, last whole day", domain="cost"),
        Metric("daily_cost", "USD/d", "everything, last whole day", domain="cost"),
    )
}
_NAMES = {alias: m for m in CATALOGUE.values() for alias in (m.name, *m.aliases)}
SECTIONS = {m.section: m for m in CATALOGUE.values() if m.section}


def metric(name: str) -> Metric | None:
    """The metric of this name or alias; None for an unknown one."""
    return _NAMES.get(name)


def known_names() -> tuple[str, ...]:
    """Every name and alias."""
    return tuple(_NAMES)


@dataclass(frozen=True)
class Reading:
    """One metric of one site, now.

    Attributes:
        site: empty for what belongs to no site (cost of the whole).
        value: in the metric's unit; None unless ``state`` is ``ok``.
        at: when the sample was taken, aware UTC; also of a stale one.
        age_s: of the sample, by the source's own clock.
        subject: whose value it is, where the source says so (``west-app1``).
        why: in words, where it is not known.
        query: what was asked, to ask it again.
        reach_s: how far back from now the value reaches: what it was computed from is no older. None: not known.
    """

    metric: str
    site: str
    state: State
    value: float | None = None
    at: datetime | None = None
    age_s: float | None = None
    subject: str = ""
    why: str = ""
    query: str = ""
    reach_s: float | None = None

    @property
    def known(self) -> bool:
        return self.state == "ok" and self.value is not None


@dataclass(frozen=True)
class Series:
    """One metric of one site over a window: (aware UTC, value), oldest first. Gaps are gaps: nothing is filled in."""

    metric: str
    site: str
    samples: tuple[tuple[datetime, float], ...]
    step_s: float


@runtime_checkable
class Metrics(Protocol):
    """A source of metrics."""

    def metrics(self) -> tuple[str, ...]:
        """The metrics of the catalogue that it has a query for."""
        ...

    async def now(self, metric: str, over_s: float | None = None) -> tuple[Reading, ...]:
        """One reading for each site of the system, the worst where a site has several. Never raises for a source that
        does not answer: that is the state ``no-answer`` of every reading. Raises Rejected for a query that it refuses.

        ``over_s``: the value is of the last so many seconds and of nothing before; None: as the source is set up.
        Raises BadInput where the source cannot look at so short a time, or the metric is of a moment.
        """
        ...

    async def series(self, metric: str, window_s: float, step_s: float) -> tuple[Series, ...]:
        """One series for each site that has samples within ``window_s`` before now. Raises Unreachable, Rejected."""
        ...


def unknown(name: str, sites: tuple[str, ...], state: State, why: str, query: str = "") -> tuple[Reading, ...]:
    """The same unknown for each site."""
    return tuple(Reading(name, site, state, why=why, query=query) for site in sites)


@dataclass(frozen=True)
class Served:
    """Clients' requests that one server answered, by how long each took; health checks and scrapes are none.

    ``bounds``: upper bounds of the buckets in seconds, ascending, the last one infinite; ``counts``: in each of them.
    """

    requests: int = 0
    errors: int = 0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def since(self, before: Served) -> Served:
        """What came after ``before``. Counters that fell begin anew with a restart of the server, at 0."""
        if before.bounds != self.bounds or any(now < was for now, was in zip(self.counts, before.counts, strict=True)):
            return self
        counts = tuple(now - was for now, was in zip(self.counts, before.counts, strict=True))
        return Served(self.requests - before.requests, max(0, self.errors - before.errors), self.bounds, counts)

    def plus(self, other: Served) -> Served:
        """Both together. Raises ValueError for other buckets: they cannot be added."""
        if not self.bounds:
            return other
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Served(self.requests + other.requests, self.errors + other.errors, self.bounds, counts)

    def within_s(self, share: float) -> float:
        """The bound below which ``share`` of the requests took; infinity where that is the last bucket."""
        seen = 0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            seen += count
            if seen >= share * self.requests:
                return bound
        return float("inf")


@runtime_checkable
class Requests(Protocol):
    """A source that can tell the servers of a site apart."""

    async def served(self, site: str) -> dict[str, Served]:
        """Server -> what it answered since its start, all at the same moment. Raises Unreachable, Rejected."""
        ...


@dataclass(frozen=True)
class Counts:
    """Requests that were answered, and how many of them with an error."""

    requests: int
    errors: int


@runtime_checkable
class Counted(Protocol):
    """A source that counts what a canary's servers answered, and those beside it."""

    async def counted(self, site: str, since: datetime) -> tuple[Counts, Counts]:
        """The canary's, and the others', both of the same periods: those of the source that ended after ``since``.

        Raises BadInput where the source is not set up for it, Unreachable, NotYet, Rejected.
        """
        ...


@dataclass(frozen=True)
class Topic:
    """What an alarm is told to, on its way to the receiver.

    Attributes:
        may_publish: may the alarms of the site publish to it? None: what its policy says cannot be told here.
        confirmed, pending: endpoints that get what is published; and that were subscribed and never confirmed it.
        receiver: one that is confirmed is relight's.
        why: in words, where something is not as it should be.
    """

    arn: str
    exists: bool
    may_publish: bool | None = None
    confirmed: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    receiver: bool = False
    why: str = ""


@dataclass(frozen=True)
class Muted:
    """The alarm during which nothing is told. ``state`` as CloudWatch names it; None: there is no such alarm."""

    alarm: str
    state: str | None


@runtime_checkable
class Telling(Protocol):
    """A source whose own alarms are told to relight's receiver."""

    async def topics(self, site: str) -> tuple[Topic, ...] | None:
        """What an alarm of the site is told to; None where its alarms are not meant for relight. Raises as calls do."""
        ...

    async def muted(self, site: str) -> Muted | None:
        """None where nothing ever keeps alarms back. Raises as calls do."""
        ...
