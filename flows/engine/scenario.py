"""Simulated worlds of a system: built from its own files, broken in a way that has a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from flows.engine.providers import Components, speaks
from flows.engine.system import LoadedSystem
from tasks import catalog
from tasks.capacity.protocol import Capacity
from tasks.cdn.protocol import Cdn
from tasks.clock import Clock
from tasks.contract import Surroundings
from tasks.database.protocol import Database
from tasks.deploy.protocol import Environment
from tasks.errors import BadInput
from tasks.simulation import Simulation
from tasks.traffic.protocol import Balancer, Members
from tasks.world import DATABASE_POOL, World
from tasks.world_parts import Bucket, Node, Record
from tasks.zones.protocol import Zone

APP_POOL = "app"


class Untwinned:
    """Stands for a provider without a simulated twin: it fulfils no Protocol, so whoever needs it is told so."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def aclose(self) -> None:
        """Nothing is held open."""


class Twins(Components):
    """The components of a system, each in place of the real one that the system file names."""

    def __init__(self, loaded: LoadedSystem, clock: Clock, world: World, simulation: Simulation) -> None:
        super().__init__(loaded, clock)
        self._world, self._simulation = world, simulation
        self._twins: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        if name not in self._twins:
            real = super().__call__(name)
            system = self._loaded.system
            provider = system.components[name].provider
            around = Surroundings(system.system, name, tuple(system.sites), self._clock, self)
            pairs = [t for p, t in catalog.twins(provider.partition(".")[0]) if speaks(real, p)]
            self._twins[name] = pairs[0](real, around, self._world, self._simulation) if pairs else Untwinned(provider)
        return self._twins[name]

    async def aclose(self) -> None:
        await super().aclose()
        self._twins.clear()


def world_of(loaded: LoadedSystem, clock: Clock) -> World:
    """The system in good health: the first site active. Raises BadInput for what the model has no place for."""
    real = Components(loaded, clock)
    sites = tuple(loaded.system.sites)
    world = World(sites)
    active = sites[0]
    databases, zones = real.of(Database), real.of(Zone)
    if len(databases) > 1 or len(zones) > 1:
        raise BadInput("prove knows systems with one database and one zone")
    for _, database in databases:
        _add_nodes(world, database, active)
    for _, capacity in real.of(Capacity):
        _add_instances(world, capacity)
    for _, balancer in real.of(Balancer):
        _add_pools(world, balancer)
    for _, environment in real.of(Environment):
        _add_environment(world, environment)
    for _, zone in zones:
        _add_names(world, zone, active)
    for name, _ in real.of(Cdn):
        world.origin[name] = (active, -1e9, 1)
    world.buckets = {active: Bucket()}
    world.buckets |= {s: Bucket(source=active, copied={active: world.now}) for s in sites if s != active}
    return world


def _add_nodes(world: World, database: Database, active: str) -> None:
    world.declared = database.durability()
    names = database.nodes()
    primary = database.nodes(active)[0]
    for name in names:
        node = Node(name, database.site_of(name), replica=name != primary, log=[0], last_commit=world.now)
        node.upstream = None if name == primary else primary
        # Set up for the day on which it is the primary itself: its standbys are in another site.
        others = tuple(n for n in names if database.site_of(n) != node.site)[: len(world.declared.standbys)]
        node.live = world.declared if name == primary else replace(world.declared, standbys=others)
        world.nodes[name] = node
    # The one that nobody waits for lags, so that it matters which one is promoted.
    lagging = [n for n in reversed(names) if n != primary and n not in world.declared.standbys]
    if lagging and len(database.nodes(world.nodes[lagging[0]].site)) > 1:
        world.nodes[lagging[0]].behind = 2


def _add_instances(world: World, capacity: Capacity) -> None:
    for site in world.sites:
        world.least[site] = capacity.limits(site).minimum
        world.running[site] = {f"{site}-app{n}" for n in range(1, world.least[site] + 1)}
        world.ready_since[site] = -1e9


def _add_pools(world: World, balancer: Balancer) -> None:
    primary = next((n.name for n in world.nodes.values() if not n.replica), "")
    for site in balancer.sites():
        # A balancer that has target groups only balances no databases: each site's servers use the site's own node.
        own = isinstance(balancer, Members)
        world.admin[site, DATABASE_POOL] = {
            n.name: "ready" if (n.site == site if own else n.name == primary) else "maint" for n in world.nodes.values()
        }
        servers = [f"{s}-app{i}" for s in world.sites for i in range(1, 11)]
        world.admin[site, APP_POOL] = {s: "ready" if s.startswith(f"{site}-") else "maint" for s in servers}


def _add_environment(world: World, environment: Environment) -> None:
    """Servers, a balancer and a database of its own; no record, no site's balancer and no node leads there."""
    name = environment.name
    limits = environment.fleet().capacity.limits(name)
    world.least[name] = limits.minimum
    world.running[name] = {f"{name}-app{n}" for n in range(1, limits.minimum + 1)}
    world.ready_since[name] = -1e9
    world.admin[name, APP_POOL] = {f"{name}-app{n}": "ready" for n in range(1, limits.maximum + 1)}
    world.apart[name] = Node(f"{name}-pg1", name, replica=False, last_commit=world.now)
    world.site_at[urlsplit(environment.url).hostname or ""] = name


def _add_names(world: World, zone: Zone, active: str) -> None:
    for name, rdtype in zone.names():
        world.records[name, rdtype] = Record(zone.wanted(name, rdtype, active), 0)
        for site in world.sites:
            wanted = world.pointed[name, rdtype, site] = zone.wanted(name, rdtype, site)
            for value in wanted.targets:
                world.site_at[value] = site


# ---- what is broken ----


@dataclass(frozen=True)
class Scenario:
    """``breaks`` the healthy world; ``returns``: what the dead one does when it comes back by itself."""

    name: str
    summary: str
    breaks: Callable[[World], None]
    returns: Callable[[World], None]


def _primary(world: World) -> Node:
    return next(n for n in world.nodes.values() if not n.replica and n.timeline == 1)


def _nothing(_world: World) -> None:
    """Nothing is broken."""


def _kill(world: World) -> None:
    _primary(world).up = False


def _hang(world: World) -> None:
    _primary(world).hung_since = world.now


def _site_gone(world: World) -> None:
    site = _primary(world).site
    world.down.add(site)
    for node in world.nodes.values():
        node.up = node.up and node.site != site


def _failed_over(world: World) -> None:
    """As after a failover to the second site: the old primary was killed with a write that nobody else has."""
    old = _primary(world)
    target = world.sites[1]
    new = next(n for n in world.nodes.values() if n.site == target)
    old.up, old.held = False, True
    world.promote(new)
    world.promotions.clear()
    for node in world.nodes.values():
        if node.replica and node.site == target:
            world.follow(node, new)
    old.log.append(-1)
    for (site, pool), servers in world.admin.items():
        if pool == DATABASE_POOL and site == target:
            servers.update({n: "ready" if n == new.name else "maint" for n in servers})
    for bucket_site, bucket in world.buckets.items():
        if bucket_site == target:
            bucket.source = None
    for name, rdtype in world.records:
        world.records[name, rdtype] = Record(world.pointed[name, rdtype, target], 1)


def _comes_back(world: World) -> None:
    """Everything that died or hung starts again as it was, unless it is held."""
    world.down.clear()
    for node in world.nodes.values():
        node.hung_since = None
        if not node.held:
            node.up = True


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("healthy", "nothing is broken", _nothing, _nothing),
        Scenario("kill-primary", "the primary database is dead", _kill, _comes_back),
        Scenario("hang-primary", "the primary database hangs, and may go on at any moment", _hang, _comes_back),
        Scenario("site-gone", "the active site is gone as a whole", _site_gone, _comes_back),
        Scenario(
            "failed-over", "the second site is active, the first one's primary is down", _failed_over, _comes_back
        ),
    )
}
