"""Decides about what is in the inbox, in order, and has runs started: at most one for each episode."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flows.engine import launch, leasing, places, processes, report, safety, system
from flows.engine import lease as leases
from flows.engine.plan import Plan
from flows.engine.providers import Components
from flows.engine.roles import Wish
from flows.intake import gates
from flows.intake.event import Event
from flows.intake.gates import Decision, Facts
from flows.intake.history import Entry, History
from flows.intake.inbox import Inbox
from flows.intake.rules import Loaded, Rule
from tasks.clock import LoopClock
from tasks.errors import RelightError, SafetyRefusal
from tasks.leases.protocol import Held
from tasks.quantities import duration, show_duration

ONE_HOUR = timedelta(hours=1)
Start = Callable[[launch.Request], Awaitable[str]]
"""Starts a run and returns its id, once it has begun. Raises RelightError."""


@dataclass
class Desk:
    """The one that decides, for one inbox.

    Attributes:
        inbox: None for one that only says what it would decide.
        loaded: the triggers of every system.
        start: starts a run; say: gets one line for each decision.
    """

    inbox: Inbox | None
    history: History
    loaded: list[Loaded]
    start: Start
    say: Callable[[str], None] = lambda _text: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def _writing(self) -> Inbox:
        if self.inbox is None:
            raise RelightError("this one only says what it would decide")
        return self.inbox

    async def look(self) -> int:
        """Decide about everything that is open; how much that was. Raises Unavailable."""
        open_ = self.history.open(self.now())
        for entry in open_:
            await self.one(entry)
        return len(open_)

    async def recover(self) -> None:
        """After a start of this process: runs that were proposed, and perhaps started, before the last one died."""
        for entry in self.history.proposed():
            run_id = run_of(entry.event.episode_key)
            if run_id:
                self._writing.started(entry.id, run_id).result()
                continue
            await self.one(entry)  # judged again: it may be old news by now

    async def one(self, entry: Entry) -> None:
        """Decide about one event. Raises Unavailable."""
        found = self.rule_for(entry.event)
        if found is None:
            await self._note(entry, {"why": "no rule is about it"}, "ignored")
        elif entry.event.kind == "firing" and not entry.fresh:
            await self._note(entry, {"why": "this episode is known; it was decided about when it began"}, "known")
        elif entry.event.kind == "resolved":
            await self._note(entry, {"why": "it ended; a failback is never automatic"}, "ended")
        else:
            loaded, rule = found
            decision = gates.judge(entry.event, rule, loaded, await self.facts(entry.event, rule, loaded))
            await self._act(entry, loaded, rule, decision)

    async def _act(self, entry: Entry, loaded: Loaded, rule: Rule, decision: Decision) -> None:
        document, now = decision.document(), self.now()
        if decision.outcome == "hold":
            again = now + timedelta(seconds=min(max(decision.again_s, 0.05), 60.0))
            await asyncio.wrap_future(self._writing.hold(entry.id, document, again))
            return
        await self._note(entry, document, decision.outcome)
        if decision.outcome == "start":
            await self._start(entry, request(entry.event, loaded, rule, automatic=True))

    async def approved(self, entry: Entry, who: str) -> str:
        """A person said yes: ask the gates again, and start the run; its id.

        Raises SafetyRefusal where a gate refuses or holds, or the approval came too late.
        """
        found = self.rule_for(entry.event)
        if found is None:
            raise SafetyRefusal("no rule is about this event any more")
        loaded, rule = found
        decision = gates.judge(entry.event, rule, loaded, await self.facts(entry.event, rule, loaded))
        late_s = (decision.at - entry.event.received_at).total_seconds() - loaded.triggers.gates.approve_within
        against = [s for s in decision.said if s.answer in ("refuse", "hold") and s.gate != "fitness"]
        if late_s > 0:
            await self._note(entry, {**decision.document(), "why": f"{who} approved too late"}, "not approved")
            raise SafetyRefusal(
                f"the approval came {show_duration(late_s)} too late; look again, and start it by hand:"
                f" relight run {rule.run} --system {loaded.system}"
            )
        if against or not self.history.firing(entry.event.episode_key):
            why = "; ".join(f"{s.gate}: {s.why}" for s in against) or "the alert has ended"
            raise SafetyRefusal(f"an approval does not pass this: {why}")
        await self._note(entry, {**decision.document(), "approved_by": who}, "start")
        asked = request(entry.event, loaded, rule, automatic=False, operator=who)
        run_id = await self.start(asked)
        await asyncio.wrap_future(self._writing.started(entry.id, run_id))
        return run_id

    async def _start(self, entry: Entry, asked: launch.Request) -> None:
        try:
            run_id = await self.start(asked)
        except RelightError as e:
            decision = {**(entry.decision or {}), "why": f"it could not be started: {e}"}
            await self._note(entry, decision, "not started")
            return
        await asyncio.wrap_future(self._writing.started(entry.id, run_id))
        self.say(f"event {entry.id}: run {run_id}")

    async def _note(self, entry: Entry, decision: Mapping[str, object], outcome: str) -> None:
        await asyncio.wrap_future(self._writing.decide(entry.id, dict(decision), outcome))
        why = decision.get("why") or _against(decision)
        self.say(f"event {entry.id}: {entry.event.subject()}: {outcome}{f' ({why})' if why else ''}")

    def rule_for(self, event: Event) -> tuple[Loaded, Rule] | None:
        """The first rule that is about ``event``, in the order of systems and of their files."""
        for loaded in self.loaded:
            for rule in loaded.triggers.rules:
                if rule.matches(event):
                    return loaded, rule
        return None

    async def facts(self, event: Event, rule: Rule, loaded: Loaded) -> Facts:
        """What the gates look at, now."""
        now = self.now()
        plan, broken = _planned(loaded, rule)
        held, alive, cool_down_s = await _held(loaded)
        numbers = loaded.triggers.gates
        recent = self.history.fired_since(now - timedelta(seconds=max(numbers.flap.within, numbers.fleet.within)))
        fleet_since = now - timedelta(seconds=numbers.fleet.within)
        others = {
            found[0].system for e in recent if e.received_at >= fleet_since and (found := self.rule_for(e)) is not None
        }
        settings = loaded.settings.get(event.endpoint)
        return Facts(
            now=now,
            plan=plan,
            broken=broken,
            held=held,
            alive=alive,
            cool_down_s=cool_down_s,
            recent=tuple(e for e in recent if rule.matches(e)),
            others=frozenset(others),
            automatic=(safety.started_since(now - ONE_HOUR), _cap(loaded)),
            references=await gates.reached(numbers.references),
            blind=self.blind(loaded, now),
            drilled_at=drilled_at(loaded.system, rule.run) if numbers.drill_within else None,
            firing=event.kind != "firing" or self.history.firing(event.episode_key),
            max_age_s=settings.max_age if settings else 900.0,
        )

    def blind(self, loaded: Loaded, now: datetime) -> str:
        """Why the monitoring of a system cannot be trusted to speak up: the watchdog alert that did not come."""
        for name, settings in loaded.settings.items():
            if not settings.watchdog:
                continue
            seen = self.history.last_seen(name, settings.watchdog)
            if seen is None or (now - seen).total_seconds() > settings.watchdog_every:
                ago = f"{show_duration((now - seen).total_seconds())} ago" if seen else "never"
                return f"monitoring is blind: {settings.watchdog} of {name} came {ago}"
        return ""


def request(event: Event, loaded: Loaded, rule: Rule, *, automatic: bool, operator: str = "") -> launch.Request:
    """The run that an event asks for. The incident began before the rule fired: by its ``for``, where that is known."""
    settings = loaded.settings.get(event.endpoint)
    before_s = float(getattr(settings, "before", 0.0))
    with contextlib.suppress(ValueError):
        before_s = duration(event.labels["for"]) if event.labels.get("for") else before_s
    return launch.Request(
        system=str(loaded.folder),
        runbook=rule.run,
        mode=rule.mode,
        wish=Wish(event.labels.get(rule.site_label) if rule.site_label else None, None),
        incident_started_at=event.started_at - timedelta(seconds=before_s),
        detected_at=event.received_at,
        trigger="alert",
        automatic=automatic,
        operator=operator or "relight",
        cause={"episode": event.episode_key, "endpoint": event.endpoint, "rule": rule.id, "alert": event.subject()},
    )


def run_of(episode: str) -> str:
    """The run that an episode began; empty if none did."""
    for file in sorted((places.state_home() / "runs").glob("*/journal.jsonl"), reverse=True):
        with contextlib.suppress(OSError, ValueError), file.open(encoding="utf-8") as lines:
            if json.loads(lines.readline()).get("cause", {}).get("episode") == episode:
                return file.parent.name
    return ""


def drilled_at(system_name: str, runbook: str) -> datetime | None:
    """When a drill of the runbook succeeded last on this machine."""
    for file in sorted((places.state_home() / "runs").glob("*/report.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = report.Report.model_validate_json(file.read_text(encoding="utf-8"))
            drill = (found.system, found.runbook) == (system_name, runbook) and found.trigger.startswith("drill")
            if drill and found.verdict == "succeeded" and found.ended_at:
                return datetime.fromisoformat(found.ended_at)
    return None


def _against(decision: Mapping[str, object]) -> str:
    said = decision.get("gates")
    if not isinstance(said, list):
        return ""
    return "; ".join(f"{g['gate']}: {g['why']}" for g in said if g["answer"] != "pass")


def _planned(loaded: Loaded, rule: Rule) -> tuple[Plan | None, str]:
    try:
        return launch.prepare(str(loaded.folder), rule.run, rule.mode).plan, ""
    except RelightError as e:
        return None, str(e)


def _cap(loaded: Loaded) -> int:
    with contextlib.suppress(RelightError):
        return system.load(loaded.folder / "system.yaml").system.safety.velocity.runs
    return 0


async def _held(loaded: Loaded) -> tuple[Held | None, bool, float]:
    """The system's lease record, whether its holder may live, and its cool-down."""
    try:
        found = system.load(loaded.folder / "system.yaml")
        components = Components(found, LoopClock())
        try:
            store = leasing.store_of(components)
            if store is not None:
                held, _ = await store.read()
            else:
                held = leases.read(places.state_home() / "systems" / found.system.system)
        finally:
            await components.aclose()
    except RelightError:
        return None, False, 0.0  # the run itself is refused then
    alive = held is not None and not held.released and not processes.gone(held.holder)
    return held, alive, found.system.safety.cool_down
