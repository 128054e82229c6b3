"""Gathers what the gates look at, everything at once: between an alert and its run nothing waits for another thing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flows.engine import launch, leasing, maintenance, places, processes, readyfile, report, safety
from flows.engine import lease as leases
from flows.engine.launch import Ready
from flows.engine.providers import Components
from flows.intake import gates
from flows.intake.event import Event
from flows.intake.evidence import Watches
from flows.intake.facts import Asked, Evidence, Facts, Readiness
from flows.intake.history import History
from flows.intake.rules import Loaded, Rule
from tasks.clock import LoopClock
from tasks.errors import RelightError
from tasks.leases.protocol import Held

ONE_HOUR = timedelta(hours=1)
RuleFor = Callable[[Event], tuple[Loaded, Rule] | None]


@dataclass
class Lately:
    """Which systems and sites fire, brought up to date from what is new: a storm of alerts must not slow decisions."""

    seen: int = 0
    last: dict[str, datetime] = field(default_factory=dict)
    named: dict[tuple[str, str], str] = field(default_factory=dict)
    """(system, site) -> the newest episode that names it."""

    def look(self, history: History, rule_for: RuleFor) -> None:
        """Take in what came since the last look."""
        for number, event in history.fired_after(self.seen):
            self.seen = number
            found = rule_for(event)
            if found is None:
                continue
            loaded, rule = found
            self.last[loaded.system] = max(event.received_at, self.last.get(loaded.system, event.received_at))
            if rule.site_label and event.labels.get(rule.site_label):
                self.named[loaded.system, event.labels[rule.site_label]] = event.episode_key

    def systems(self, since: datetime) -> frozenset[str]:
        """Those that began to fire since then."""
        return frozenset(name for name, at in self.last.items() if at >= since)

    def sites(self, system: str, history: History) -> frozenset[str]:
        """Sites of ``system`` that some alert names and that still fires."""
        return frozenset(site for (name, site), key in self.named.items() if name == system and history.firing(key))


@dataclass
class Gatherer:
    """Facts for the gates, for one event loop.

    Attributes:
        rule_for: the rule that is about an event; request_for: the run that it asks for.
        watches: look at the systems themselves.
    """

    history: History
    loaded: list[Loaded]
    rule_for: RuleFor
    request_for: Callable[[Event, Loaded, Rule], launch.Request]
    now: Callable[[], datetime]
    watches: Watches
    _lately: Lately = field(default_factory=Lately)
    _kept: dict[object, tuple[float, Any]] = field(default_factory=dict)
    _plans: dict[tuple[str, str, str], tuple[tuple[int, ...], Ready | None, str]] = field(default_factory=dict)

    async def facts(self, event: Event, rule: Rule, loaded: Loaded, wait_s: float | None = None) -> Facts:
        """What is so now. ``wait_s``: for the first look at the system itself; None: a moment."""
        now, numbers = self.now(), loaded.triggers.gates
        ready, broken = self.planned(loaded, rule)
        (held, alive), references, evidence = await asyncio.gather(
            held_by(ready), self._reached(numbers.references), self._evidence(event, rule, loaded, wait_s)
        )
        policy = ready.loaded.system.safety if ready else safety.Safety()
        self._lately.look(self.history, self.rule_for)
        spell = now - 3 * timedelta(seconds=numbers.flap.within)  # as far back as a spell of flapping may reach
        settings = loaded.settings.get(event.endpoint)
        return Facts(
            now=self.now(),
            plan=ready.plan if ready else None,
            broken=broken,
            evidence=evidence,
            held=held,
            alive=alive,
            cool_down_s=policy.cool_down,
            begun=self.history.begun(event, spell),
            firing_systems=self._lately.systems(now - timedelta(seconds=numbers.fleet.within)),
            fleet=len(self.loaded),
            sites_firing=self._lately.sites(loaded.system, self.history),
            automatic=safety.started_since(now - ONE_HOUR),
            automatic_cap=policy.velocity.runs,
            references=references,
            blind=self.blind(loaded, now),
            drilled_at=self._drilled(ready, rule.run) if numbers.drill_within else None,
            readiness=Readiness(*readyfile.newest(ready.plan.system, rule.run)) if ready else Readiness(),
            regions={name: site.region for name, site in ready.loaded.system.sites.items()} if ready else {},
            switch=_switch(numbers.switch),
            maintenance=_maintenance(ready.plan.system if ready else "", now),
            firing=event.kind != "firing" or self.history.firing(event.episode_key),
            max_age_s=settings.max_age if settings else 900.0,
        )

    async def _reached(self, references: tuple[str, ...]) -> dict[str, bool]:
        """As ``gates.reached``, asked at most once a second."""
        known = self._kept.get(references)
        if known is None or time.monotonic() - known[0] > 1.0:
            answers = await gates.reached(references)
            known = self._kept[references] = (time.monotonic(), answers)
        found: dict[str, bool] = known[1]
        return found

    def _drilled(self, ready: Ready | None, runbook: str) -> datetime | None:
        """As ``drilled_at``, looked up at most every five seconds."""
        key = ("drilled", ready.plan.system if ready else "", runbook)
        known = self._kept.get(key)
        if known is None or time.monotonic() - known[0] > 5.0:
            known = self._kept[key] = (time.monotonic(), drilled_at(ready, runbook))
        found: datetime | None = known[1]
        return found

    def planned(self, loaded: Loaded, rule: Rule) -> tuple[Ready | None, str]:
        """The run's plan, read again only when a file changed; None with the reason where it cannot be made."""
        key = (str(loaded.folder), rule.run, rule.mode)
        try:
            stats = [(loaded.folder / n).stat() for n in ("system.yaml", f"{rule.run}.yaml")]
        except OSError as e:
            return None, str(e)
        stamp = tuple(x for s in stats for x in (s.st_mtime_ns, s.st_size, s.st_ino))
        known = self._plans.get(key)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, launch.prepare(str(loaded.folder), rule.run, rule.mode), "")
            except RelightError as e:
                known = (stamp, None, str(e))
            self._plans[key] = known
        return known[1], known[2]

    async def _evidence(self, event: Event, rule: Rule, loaded: Loaded, wait_s: float | None) -> Evidence | None:
        ready, _ = self.planned(loaded, rule)
        asked, numbers = Asked(event, rule, loaded, Facts(self.now())), loaded.triggers.gates
        if ready is None or not numbers.looks or (asked.stage == "off" and wait_s is None):
            return None  # nobody asks for it, or the rule is off
        request = self.request_for(event, loaded, rule)
        return await self.watches.evidence(request, ready, numbers.confirm.every, wait_s)

    def blind(self, loaded: Loaded, now: datetime) -> str:
        """Why the monitoring of a system cannot be trusted to speak up: the watchdog alert that did not come."""
        for name, settings in loaded.settings.items():
            if not settings.watchdog:
                continue
            seen = self.history.last_seen(name, settings.watchdog)
            if seen is None or (now - seen).total_seconds() > settings.watchdog_every:
                ago = f"{_ago(now, seen)} ago" if seen else "never"
                return f"monitoring is blind: {settings.watchdog} of {name} came {ago}"
        return ""


def _ago(now: datetime, then: datetime) -> str:
    return f"{(now - then).total_seconds():.0f} s"


def _switch(path: str) -> str:
    """What the gating switch's file says."""
    if not path:
        return ""
    try:
        return Path(os.path.expandvars(path)).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        return f"it cannot be read: {e}"


def drilled_at(ready: Ready | None, runbook: str) -> datetime | None:
    """When a drill of the runbook succeeded last on this machine."""
    for file in sorted((places.state_home() / "runs").glob("*/report.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = report.Report.model_validate_json(file.read_text(encoding="utf-8"))
            same = ready is not None and (found.system, found.runbook) == (ready.plan.system, runbook)
            if same and found.trigger.startswith("drill") and found.verdict == "succeeded" and found.ended_at:
                return datetime.fromisoformat(found.ended_at)
    return None


def run_of(episode: str) -> str:
    """The run that an episode began; empty if none did."""
    for file in sorted((places.state_home() / "runs").glob("*/journal.jsonl"), reverse=True):
        with contextlib.suppress(OSError, ValueError), file.open(encoding="utf-8") as lines:
            if json.loads(lines.readline()).get("cause", {}).get("episode") == episode:
                return file.parent.name
    return ""


async def held_by(ready: Ready | None) -> tuple[Held | None, bool]:
    """The system's lease record, and whether its holder may live."""
    if ready is None:
        return None, False
    try:
        if any(c.domain == "leases" for c in ready.loaded.system.components.values()):
            held = await _in_store(ready)
        else:
            held = leases.read(places.state_home() / "systems" / ready.plan.system)
    except RelightError:
        return None, False  # the run itself is refused then
    return held, held is not None and not held.released and not processes.gone(held.holder)


async def _in_store(ready: Ready) -> Held | None:
    components = Components(ready.loaded, LoopClock())
    try:
        store = leasing.store_of(components)
        return (await store.read())[0] if store is not None else None
    finally:
        await components.aclose()


def _maintenance(system: str, now: datetime) -> str:
    held = maintenance.held(system, now) if system else None
    return f"{held.why}, until {held.until.isoformat(timespec='minutes')} at the latest" if held else ""
