"""What every place that releases are deployed to can say and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tasks.capacity.protocol import Capacity, Startable
from tasks.traffic.protocol import Balancer


@dataclass(frozen=True)
class Answer:
    """What one instance says of itself. ``version`` is what it really runs; None where it did not say."""

    version: str | None
    ready: bool
    why: str = ""
    """Why it is not ready."""


@runtime_checkable
class Releases(Protocol):
    """The releases of each site, and which one its instances start from."""

    async def available(self, site: str) -> tuple[str, ...]:
        """Releases that are there in full. Raises Rejected where that cannot be read."""
        ...

    async def chosen(self, site: str) -> str:
        """The release that an instance of the site would start from now. Raises Rejected where it is none of them."""
        ...

    async def switch(self, site: str, version: str) -> None:
        """Instances start from ``version`` from now on; those that run are left alone. All at once, or not at all.

        Raises BadInput for a version that is not available, Rejected.
        """
        ...

    async def ask(self, address: str) -> Answer:
        """What the instance at ``host:port`` says; one that does not answer is not ready. Never raises for it."""
        ...


@dataclass(frozen=True)
class Load:
    """How much: ``users`` at the same time, for so many seconds."""

    users: int
    for_s: float


@dataclass(frozen=True)
class Loaded:
    """What a load test measured. ``p95_s`` None: nothing was answered. ``by_name``: request -> count and failures."""

    requests: int
    failures: int
    p95_s: float | None
    by_name: dict[str, tuple[int, int]]


@runtime_checkable
class LoadTests(Protocol):
    """What makes load against a front door."""

    async def target(self, site: str) -> str:
        """The URL of a site's. Raises BadInput for none, and as ``allowed``."""
        ...

    async def allowed(self, url: str) -> None:
        """Raises SafetyRefusal for one outside the networks that load may go to, BadInput, Unreachable."""
        ...

    async def run(self, url: str, load: Load) -> Loaded:
        """Raises as ``allowed``; NotYet where it did not end in time, Rejected where it could not be run."""
        ...


@dataclass(frozen=True)
class Fleet:
    """What a place of servers is made of; each part knows the place by its name."""

    releases: Releases
    capacity: Capacity
    starter: Startable
    balancer: Balancer


@runtime_checkable
class Environment(Protocol):
    """A place that is no site, such as staging: no role ever stands for it, so no failover leads to it or from it."""

    @property
    def name(self) -> str:
        """Of the component; its servers' names start with it."""
        ...

    @property
    def url(self) -> str:
        """Its front door."""
        ...

    def fleet(self) -> Fleet: ...

    async def front(self) -> Answer:
        """What a visitor of its front door is told. Never raises for one that does not answer."""
        ...
