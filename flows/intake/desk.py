"""Decides about what is in the inbox, in order, and has runs started: at most one for each episode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from flows.engine import launch
from flows.engine.roles import Wish
from flows.intake import gates, turning
from flows.intake.decision import Decision
from flows.intake.episodes import Episodes
from flows.intake.event import Event
from flows.intake.evidence import Watches
from flows.intake.gathering import Gatherer, drilled_at, run_of
from flows.intake.history import Entry, History
from flows.intake.inbox import Inbox
from flows.intake.rules import Loaded, Rule
from tasks.errors import RelightError, SafetyRefusal
from tasks.quantities import duration, show_duration

__all__ = ["Desk", "drilled_at", "request", "run_of"]

Start = Callable[[launch.Request], Awaitable[str]]
"""Starts a run and returns its id, once it has begun. Raises RelightError."""
NOTHING_BEGAN = frozenset({"refused", "ignored", "known", ""})
"""Outcomes after which a repeat of the same episode is decided about anew: nothing was started or asked."""


@dataclass
class Desk:
    """The one that decides, for one inbox and one event loop.

    Attributes:
        inbox: None for one that only says what it would decide.
        loaded: the triggers of every system.
        start: starts a run; say: gets one line for each decision.
        page: (event, why) for what a person should look at now.
        watches: look at the systems themselves.
    """

    inbox: Inbox | None
    history: History
    loaded: list[Loaded]
    start: Start
    say: Callable[[str], None] = lambda _text: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    page: Callable[[Event, str], None] = lambda _event, _why: None
    watches: Watches = field(default_factory=Watches)
    count: Callable[[Decision], None] = lambda _decision: None
    gatherer: Gatherer = field(init=False)

    def __post_init__(self) -> None:
        self.gatherer = Gatherer(
            self.history, self.loaded, self.rule_for, lambda e, one, rule: request(e, one, rule, automatic=True),
            lambda: self.now(), self.watches,  # noqa: PLW0108 - whoever sets another clock later sets it for both
        )  # fmt: skip

    async def look(self) -> int:
        """Decide about everything that is open; how much that was. Raises Unavailable."""
        open_ = self.history.open(self.now())
        for entry in open_:
            await self.one(entry)
        for entry in Episodes(self.history).asked():
            await self._overdue(entry)
        return len(open_)

    async def _overdue(self, entry: Entry) -> None:
        """An approval that did not come in time is not approved; a person is paged again."""
        found = self.rule_for(entry.event)
        within_s = found[0].triggers.gates.approve_within if found else 0.0
        if (self.now() - entry.event.received_at).total_seconds() <= within_s:
            return
        why = f"nobody approved it within {show_duration(within_s)}, so it is not approved"
        await self._note(entry, {**(entry.decision or {}), "why": why}, "not approved")
        self.page(entry.event, why)

    async def recover(self) -> None:
        """After a start of this process: runs that were proposed, and perhaps started, before the last one died."""
        for entry in self.history.proposed():
            run_id = run_of(entry.event.episode_key)
            if run_id:
                _writing(self).started(entry.id, run_id).result()
                continue
            await self.one(entry)  # judged again: it may be old news by now

    async def one(self, entry: Entry) -> None:
        """Decide about one event. Raises Unavailable."""
        found = self.rule_for(entry.event)
        if found is None:
            await self._note(entry, {"why": "no rule is about it"}, "ignored")
        elif entry.event.kind == "firing" and not entry.fresh and decided_before(self.history, entry):
            await self._note(entry, {"why": "this episode is known; it was decided about when it began"}, "known")
        elif entry.event.kind == "resolved":
            await self._ended(entry, *found)
        else:
            loaded, rule = found
            await self._act(entry, loaded, rule, await self.judged(entry.event, rule, loaded))

    async def judged(self, event: Event, rule: Rule, loaded: Loaded, wait_s: float | None = None) -> Decision:
        """What every gate says now. ``wait_s``: for the first look at the system itself; None: a moment."""
        facts = await self.gatherer.facts(event, rule, loaded, wait_s)
        return gates.judge(event, rule, loaded, facts)

    async def _act(self, entry: Entry, loaded: Loaded, rule: Rule, decision: Decision) -> None:
        document, now = {**decision.document(), "system": str(loaded.folder)}, self.now()
        if decision.outcome == "hold":
            again = now + timedelta(seconds=min(max(decision.again_s, 0.05), 60.0))
            await asyncio.wrap_future(_writing(self).hold(entry.id, document, again))
            return
        await self._note(entry, document, decision.outcome)
        self.count(decision)
        for why in decision.pages if decision.outcome != "shadow" else ():
            self.page(entry.event, why)
        if decision.outcome == "ask":
            why = f"a run of {rule.run} waits for a person: relight inbox show {entry.id}, relight approve {entry.id}"
            self.page(entry.event, why)
        if decision.outcome == "start":
            await self._start(entry, decided(request(entry.event, loaded, rule, automatic=True), document))

    async def _ended(self, entry: Entry, loaded: Loaded, rule: Rule) -> None:
        """Before the point of no return of the run that it began: look again, and stop the run where all is well."""
        others = [e for e in self.history.of_episode(entry.event.episode_key) if e.id != entry.id]
        for waiting in (e for e in others if e.outcome == "ask"):
            await self._note(waiting, {**(waiting.decision or {}), "why": "it ended before anybody approved"}, "ended")
        run_id = next((e.run_id for e in others if e.run_id), "")
        why, again_s = "it ended; a failback is never automatic", 0.0
        if run_id:
            why, again_s = turning.back(
                run_id, entry.event, await self.gatherer.facts(entry.event, rule, loaded, 2.0), self.now()
            )
        if again_s:
            again = self.now() + timedelta(seconds=again_s)
            await asyncio.wrap_future(_writing(self).hold(entry.id, {"why": why, "run": run_id}, again))
        else:
            await self._note(entry, {"why": why, **({"run": run_id} if run_id else {})}, "ended")

    async def approved(self, entry: Entry, who: str) -> str:
        """A person said yes: ask the gates again, and start the run; its id.

        Raises SafetyRefusal where a gate refuses or holds, or the approval came too late.
        """
        loaded, rule = rule_of(self, entry)
        decision = await self.judged(entry.event, rule, loaded, 5.0)
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
        return await self.by_hand(entry, {**decision.document(), "approved_by": who}, loaded, rule, who)

    async def by_hand(self, entry: Entry, document: dict[str, object], loaded: Loaded, rule: Rule, who: str) -> str:
        await self._note(entry, document, "start")
        asked = decided(request(entry.event, loaded, rule, automatic=False, operator=who), document)
        run_id = await self.start(asked)
        await asyncio.wrap_future(_writing(self).started(entry.id, run_id))
        return run_id

    async def _start(self, entry: Entry, asked: launch.Request) -> None:
        try:
            run_id = await self.start(asked)
        except RelightError as e:
            decision = {**(entry.decision or {}), "why": f"it could not be started: {e}"}
            await self._note(entry, decision, "not started")
            return
        await asyncio.wrap_future(_writing(self).started(entry.id, run_id))
        self.say(f"event {entry.id}: run {run_id}")

    async def _note(self, entry: Entry, decision: Mapping[str, object], outcome: str) -> None:
        await asyncio.wrap_future(_writing(self).decide(entry.id, dict(decision), outcome))
        why = decision.get("why") or _against(decision)
        self.say(f"event {entry.id}: {entry.event.subject()}: {outcome}{f' ({why})' if why else ''}")

    def rule_for(self, event: Event) -> tuple[Loaded, Rule] | None:
        """The first rule that is about ``event``, in the order of systems and of their files."""
        for loaded in self.loaded:
            for rule in loaded.triggers.rules:
                if rule.matches(event):
                    return loaded, rule
        return None


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


def _writing(desk: Desk) -> Inbox:
    if desk.inbox is None:
        raise RelightError("this one only says what it would decide")
    return desk.inbox


def rule_of(desk: Desk, entry: Entry) -> tuple[Loaded, Rule]:
    """The rule that an event of the inbox falls under. Raises SafetyRefusal."""
    found = desk.rule_for(entry.event)
    if found is None:
        raise SafetyRefusal("no rule is about this event any more")
    return found


def decided_before(history: History, entry: Entry) -> bool:
    """Something came of this episode already. What was refused (left out by its sender, say) may be asked again."""
    others = [e for e in history.of_episode(entry.event.episode_key) if e.id < entry.id]
    return any(e.run_id or e.outcome not in NOTHING_BEGAN or e.decision is None for e in others)


def decided(asked: launch.Request, decision: Mapping[str, object]) -> launch.Request:
    """With all that the gates said: it goes into the run's first record."""
    return replace(asked, cause={**asked.cause, "decision": dict(decision)})


def _against(decision: Mapping[str, object]) -> str:
    said = decision.get("gates")
    if not isinstance(said, list):
        return ""
    return "; ".join(f"{g['gate']}: {g['why']}" for g in said if g["answer"] != "pass")
