"""What must always hold (section 5 of the design), checked in the simulated world at every effect and at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.engine import launch
from flows.engine.journal import Record
from tasks.contract import ComponentParam, Facts
from tasks.errors import Rejected, Unreachable
from tasks.simulation import Process, Simulation
from tasks.world import DATABASE_POOL, FIRST, WEIGHT, World

RESTS = ("intent", "undo_intent")
SETTLED = ("done", "already", "undone")


@dataclass(frozen=True)
class Told:
    """A story as far as the end can be judged by it.

    Attributes:
        before: signature of the broken world before the run; ``served``: clients could write then.
        expected: the end of the run in which nothing goes wrong.
        disturbed: more happened than the death of engines; ``returned``: the dead site came back.
        aborted: a person told the run to go back; ``stayed``: it did what cannot be undone.
    """

    verdict: str
    before: Facts
    served: bool
    expected: Facts | None
    disturbed: bool
    returned: bool
    aborted: bool = False
    stayed: bool = False


class Rules:
    """The rules of one story. Broken ones are noted in ``world.violations``."""

    def __init__(self, ready: launch.Ready, world: World, simulation: Simulation) -> None:
        self.ready, self.world, self.simulation = ready, world, simulation
        simulation.guarded, simulation.settled = self.guarded, self.settled
        self._flying: dict[str, dict[str, str]] = {}
        """run -> step -> action, of what was intended and is not settled, by whichever engine."""
        self.newest = 0
        self._undone: dict[str, set[str]] = {}
        self._engines: list[Process] = []
        self._domains = {n: c.provider.partition(".")[0] for n, c in ready.loaded.system.components.items()}
        world.rpo_s = max(
            (ready.rpo_s.get(n, 0.0) for n in self._domains if self._domains[n] == "database"), default=0.0
        )
        world.waived = lambda rule: any(rule in r.get("waivers", {}) for r in self._heads)
        self._heads: list[Record] = []

    # ---- who may ----

    def seen(self, process: Process, run_id: str, record: Record) -> None:
        """A record that ``process`` made durable in the journal of ``run_id``."""
        kind, flying = record["type"], self._flying.setdefault(run_id, {})
        process.run_id = run_id
        if kind in ("run_started", "run_resumed"):
            process.epoch = record["epoch"]
            self.newest = max(self.newest, process.epoch)
            self._engines.append(process)
            if kind == "run_started":
                self._heads.append(record)
        elif kind in RESTS:
            flying[record["step"]] = record["action"]
        elif kind == "outcome" and record["outcome"] in SETTLED:  # a failed one is still open to a resume
            flying.pop(record["step"], None)
        if kind == "undo_started":
            self._undone = {s: set() for s in record["steps"]}
        elif kind == "undo_intent":
            self._undone.setdefault(record["step"], set()).add("tried")

    def gone(self, process: Process) -> None:
        """``process`` ended or died."""
        if process in self._engines:
            self._engines.remove(process)

    def running(self) -> Process | None:
        """The engine that holds the newest epoch, if one lives."""
        live = [p for p in self._engines if p.alive and p.going.is_set()]
        return max(live, key=lambda p: p.epoch, default=None)

    def guarded(self, process: Process, component: str, what: str) -> None:
        """Right before an effect is sent."""
        if self._domains.get(component) == "leases":
            return  # what decides who may is before every journal and every epoch
        if process.epoch != self.newest:
            stale = f"{process.name} (epoch {process.epoch})"
            self.world.violate(f"one run per system: {stale} changed {what} while epoch {self.newest} runs")
        domain = "health" if component == "network" else self._domains.get(component, component)
        steps = self._flying.get(process.run_id, {})
        if not any(a.partition(".")[0] == domain or component in _named(self.ready, s) for s, a in steps.items()):
            self.world.violate(f"intent before effect: {what} changed with no intent of {domain} in the journal")

    def settled(self, what: str) -> None:
        """Right after an effect."""
        if any(a.startswith("deploy.") for steps in self._flying.values() for a in steps.values()):
            _enough_serve(self.world, what)
        able = [n for n in self.world.primaries() if self._acknowledges(n.name)]
        if len(able) > 1:
            self.world.two_writers(f"{' and '.join(n.name for n in able)} take writes after {what}")
        for (name, rdtype), record in self.world.records.items():
            if not record.rrset.values:
                self.world.violate(f"DNS never goes empty: {name} {rdtype} after {what}")
        promotions = sum(self.world.promotions.values())
        if promotions > max(1, len(self._heads)):
            nodes = ", ".join(self.world.promotions)
            self.world.violate(f"no effect doubled: {promotions} promotions in {len(self._heads)} runs ({nodes})")
        if self.world.restores > max(1, len(self._heads)):
            self.world.violate(f"no effect doubled: {self.world.restores} restores in {len(self._heads)} runs")

    def _acknowledges(self, name: str) -> bool:
        """It would acknowledge a commit now: every standby that it promised streams."""
        node = self.world.nodes[name]
        following = [r.name for r in self.world.nodes.values() if r.upstream == name and self.world.streams(r)]
        return node.live.method == "async" or sum(s in following for s in node.live.standbys) >= node.live.needed

    # ---- the end ----

    def signature(self) -> Facts:
        """The state that two ends are compared by."""
        world = self.world
        return {
            "nodes": {
                n.name: "down" if not n.up else "hung" if n.hung_since is not None else
                f"follows {n.upstream}" if n.replica else f"primary{', read only' if n.read_only else ''}"
                for n in world.nodes.values()
            },
            "names": {f"{n} {t}": sorted(world.sites_of(r.rrset.targets)) for (n, t), r in world.records.items()},
            "routes": {
                f"{site} {pool}": sorted(s for s, admin in servers.items() if admin == "ready")
                for (site, pool), servers in world.admin.items() if site not in world.down
            },
            "held": sorted(world.paused - world.down),
            "buckets": {s: b.source for s, b in world.buckets.items()},
            "releases": {
                site: [world.links.get(site, FIRST), *sorted({world.started.get(s, (FIRST,))[0] for s in servers})]
                for site, servers in world.running.items()
            },
            "running": {site: sorted(servers) for site, servers in world.running.items()},
            "weights": {f"{at} {s}": w for (at, s), w in world.weights.items() if w != WEIGHT},
            "schema": {f"{n:04d} {phase}": a.state for (n, phase), a in sorted(world.schema.items())},
            "origins": {component: origin[0] for component, origin in world.origin.items()},
            "sizes": {**world.autovacuum, **{s: str(p) for s, p in world.pools.items() if s not in world.down}},
        }  # fmt: skip

    async def serves(self) -> bool:
        """Would a client's write through the public name be acknowledged, once its cache has run out?"""
        for record in self.world.records.values():
            for site in self.world.sites_of(record.rrset.targets):
                try:
                    _, node = await self.world.request(site, 1.0, None)
                    if node.writable and self._acknowledges(node.name):
                        return True
                except (Unreachable, Rejected):
                    continue
        return False

    async def at_end(self, told: Told) -> None:
        """After the story."""
        verdict, end, violate = told.verdict, self.signature(), self.world.violate
        serves = await self.serves()
        if verdict in ("succeeded", "objective_missed", "over"):
            self._goal(told, end, serves=serves)
        elif verdict == "undone":
            self._as_before(told, end)
        elif verdict == "refused" and told.aborted:
            pass  # putting it back would have broken a safety rule
        elif not told.disturbed:
            violate(f"crash anywhere: the run ended {verdict} although nothing but the engine died")
        elif not told.returned:
            violate(f"resume: the run ended {verdict} although every fault was over when it was resumed")
        if told.served and not serves:
            violate(f"never worse: clients could write before the run, and cannot after it ({verdict})")
        untried = [s for s, tried in self._undone.items() if not tried]
        if untried and verdict != "killed":
            violate(f"undo goes on after a failure: {', '.join(untried)} was never tried")

    def _as_before(self, told: Told, end: Facts) -> None:
        before = {**told.before, "nodes": dict(told.before["nodes"])}
        for name, was in before["nodes"].items():
            if was == "hung" and end["nodes"][name].startswith("primary"):
                before["nodes"][name] = end["nodes"][name]  # a process that hung is started again, not hung again
            if was == "down" and told.returned and end["nodes"][name] == "primary":
                before["nodes"][name] = "primary"  # it came back by itself meanwhile
        keys = ("releases", "weights") if told.stayed else tuple(end)  # what cannot be put back was said to stay
        left = {k: (before[k], end[k]) for k in keys if before[k] != end[k]}
        if left:
            self.world.violate(f"undone, but not as before: {left}")

    def _goal(self, told: Told, end: Facts, *, serves: bool) -> None:
        world = self.world
        expected = told.expected or end
        # a fault may leave out what the runbook says may be left out
        keys = ("names", "held") if told.disturbed else tuple(expected)
        if told.disturbed and told.verdict != "over":  # ended by another engine, forwards or back
            keys += ("releases", "weights", "schema")
        if len(self._heads) > 1:  # somebody started it again after it had ended: where it ends is that run's business
            keys = ("held",)
        for key in keys:
            if end[key] != expected[key]:
                world.violate(f"same end: {told.verdict} with {key} {end[key]}, expected {expected[key]}")
        if world.nodes and not serves:
            world.violate(f"postconditions: {told.verdict}, but a client's write is not acknowledged")
        primaries = world.primaries()
        if len(primaries) == 1:
            lost = set(world.acknowledged) - set(primaries[0].log) - world.given_up
            if lost and not world.waived("loss"):
                world.violate(f"loss budget: {len(lost)} acknowledged writes are not on {primaries[0].name}")


def _named(ready: launch.Ready, step: str) -> set[Any]:
    """Components that a step of the runbook names: an update changes instances and balancers too."""
    action = ready.plan.by_id[step].action
    fields = type(action).model_fields.items()
    return {getattr(action, n) for n, f in fields if any(isinstance(m, ComponentParam) for m in f.metadata)}


def _enough_serve(world: World, what: str) -> None:
    """At each front door never fewer than the minimum, whatever becomes of an update."""
    for (site, pool), servers in world.admin.items():
        if pool == DATABASE_POOL or site in world.down or site not in world.least:
            continue
        serve = sum(admin == "ready" and world.serving(s) for s, admin in servers.items())
        if serve < world.least[site]:
            world.violate(f"enough serve: {serve} of {world.least[site]} at {site} after {what}")
