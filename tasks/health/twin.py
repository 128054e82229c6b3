"""Simulated twins of what health looks through: agents in other places, and a client's network."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from tasks.contract import Surroundings
from tasks.database._told import Cluster
from tasks.database.protocol import NodeView
from tasks.errors import Rejected, Unreachable
from tasks.health.protocol import Agents
from tasks.network import Ask, Reply
from tasks.simulation import Simulation
from tasks.world import World


class AgentsTwin:
    """Fulfils ``Agents``."""

    def __init__(self, real: Agents, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real, self._world, self._sim, self._name = real, world, simulation, around.component
        self._around = around

    async def aclose(self) -> None:
        """Nothing is held open."""

    def places(self) -> tuple[str, ...]:
        return self._real.places()

    async def look(self, place: str) -> tuple[NodeView, ...]:
        def look() -> tuple[NodeView, ...]:
            if place in self._world.down:
                raise Unreachable(f"the agent of {place} does not answer")
            database = next(c for c in map(self._around.components, ("database",)) if isinstance(c, Cluster))
            return tuple(database._view(n) for n in database.nodes())

        return await self._sim.read(self._name, f"look {place}", look)


class NetworkTwin:
    """Fulfils ``tasks.network.Network``: the sites' front doors, their servers, and the resolvers."""

    def __init__(self, world: World, simulation: Simulation) -> None:
        self._world, self._sim = world, simulation
        self._events: dict[str, str] = {}

    async def http(self, ask: Ask, *, within_s: float) -> Reply:
        url = urlsplit(ask.url)
        site = self._world.site_at.get(url.hostname or "", self._world.site_at.get(f"{url.hostname}."))
        if site is None:
            return await self._sim.read("network", f"{ask.method} {url.path}", lambda: self._nobody(ask.url))
        if ask.method == "POST":
            return await self._write(site, ask, within_s)
        if re.fullmatch(r"/events/.+", url.path):
            return await self._sim.read("network", f"GET event at {site}", lambda: self._event(url.path))
        return await self._sim.read("network", f"GET {url.path} at {site}", lambda: self._ready(site))

    @staticmethod
    def _nobody(url: str) -> Reply:
        raise Unreachable(f"nobody listens at {url}")

    def _event(self, path: str) -> Reply:
        found = self._events.get(path)
        return Reply(404, "{}") if found is None else Reply(200, found)

    def _ready(self, site: str) -> Reply:
        try:
            pool = next(p for s, p in self._world.admin if s == site and p != "db")
            app = self._world.apps(site, pool)[0]
            home = app.rpartition("-app")[0]
            if home in self._world.paused:
                raise Unreachable("no answer: the pooler holds queries")
            self._world.routed(home)
        except Rejected as e:
            return Reply(503, e.message)
        return Reply(200, "{}")

    async def _write(self, site: str, ask: Ask, within_s: float) -> Reply:
        body = json.loads(ask.body or b"{}")
        path = f"/events/{body['client']}/{body['n']}"
        await self._sim.change("network", f"POST at {site}", lambda: None)
        try:
            app, node = await self._world.request(site, within_s, None)
            if not self._world.commit(node, None):
                raise Unreachable("no answer: the commit waits for a standby")
        except Rejected as e:
            return Reply(503, e.message)
        self._events[path] = json.dumps({"payload": body["payload"]})
        return Reply(
            201, json.dumps({"n": body["n"], "node": node.name, "app": app, "site": app.rpartition("-app")[0]})
        )

    async def tcp(self, address: str, *, within_s: float) -> None:
        host = address.rpartition(":")[0]

        def look() -> None:
            site = self._world.site_at.get(host)
            if site is None or site in self._world.down:
                raise Unreachable(f"nobody listens at {address}")

        await self._sim.read("network", f"connect {address}", look)

    async def lookup(self, name: str, resolver: str | None, *, within_s: float) -> tuple[str, ...]:
        full = name.rstrip(".") + "."
        return await self._sim.read(
            "network", f"lookup {full}", lambda: self._world.resolve(resolver or "system", full, "A").targets
        )


TWINS = ((Agents, AgentsTwin),)
