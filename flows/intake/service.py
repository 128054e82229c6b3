"""The part of ``relight serve`` that takes alerts: a process of its own, started and kept up by the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from flows.engine import notify, places
from flows.intake import gates, rules, source
from flows.intake.desk import Desk
from flows.intake.episodes import Episodes
from flows.intake.event import Event
from flows.intake.evidence import LONGEST_S, Watches
from flows.intake.figures import Figures
from flows.intake.history import History
from flows.intake.inbox import FILE, Inbox
from flows.intake.listening import host_and_port
from flows.intake.receiver import Receiver, application
from flows.intake.reconcile import Reconciler
from flows.intake.rules import Loaded
from flows.intake.source import Source
from flows.intake.warm import Warm
from tasks.errors import BadInput, RelightError
from tasks.secrets import redact

LOOK_S = 0.5
"""How often what is held is looked at again; what is new is looked at once."""
HEADERS_S = 10.0
RUNNERS = 2
"""How many runners wait: so many alerts at once start their runs fast."""


class Hasty(H11Protocol):
    """A connection that sends no whole request head in time, be it the first or a later one, is closed (slow loris)."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEADERS_S, self._close_if_idle, None)

    def _close_if_idle(self, before: object) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
            return
        self.loop.call_later(HEADERS_S, self._close_if_idle, self.cycle)


class Working:
    """The desk in a thread and loop of its own: deciding must not make a sender wait."""

    def __init__(
        self, inbox: Inbox, loaded: list[Loaded], found: dict[str, Source], say: Callable[[str], None]
    ) -> None:
        self.inbox, self.loaded, self._say = inbox, loaded, say
        self.reconciler = Reconciler(found, inbox, Episodes(History(inbox.file)), self.nudge, say)
        self.figures: Figures | None = None
        self.decided_at: datetime | None = None
        self.blind: dict[str, str] = {}
        self._new = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="relight-desk", daemon=True)
        self.desk: Desk | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def lives(self) -> bool:
        return self._thread.is_alive()

    def nudge(self) -> None:
        """Something new is in the inbox. From any thread."""
        self._loop.call_soon_threadsafe(self._new.set)

    async def preview(self, event: Event) -> dict[str, Any]:
        """The decision about an event, from another loop. Changes nothing."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._preview(event), self._loop))

    async def _preview(self, event: Event) -> dict[str, Any]:
        assert self.desk is not None  # noqa: S101 - it is there once the loop runs
        return await would(self.desk, event)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._go())
        except Exception as e:  # noqa: BLE001 - the border: without a desk nothing is decided, so the supervisor starts anew
            self._say(f"the desk ended: {type(e).__name__}: {redact(str(e))}")
            os._exit(70)

    async def _go(self) -> None:
        warm = Warm(self._say, count=RUNNERS)
        history = History(self.inbox.file)
        watches = Watches(self._new.set)
        self.desk = Desk(self.inbox, history, self.loaded, warm.start, self._say, page=self._page, watches=watches)
        if any(rule.stage in ("auto", "approve") for one in self.loaded for rule in one.triggers.rules):
            warm.prepare()
        if self.figures is not None:
            self.desk.count = self.figures.decided
        await self._safely(self.desk.recover)
        asking = asyncio.create_task(self._reconciled())
        while True:
            await self._safely(self.desk.look)
            self.decided_at = now = datetime.now(UTC)
            found = {one.system: self.desk.gatherer.blind(one, now) for one in self.loaded}
            self.blind = {name: why for name, why in found.items() if why}
            assert not asking.done()  # noqa: S101 - it goes on for ever
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._new.wait(), LOOK_S)
            self._new.clear()

    async def _reconciled(self) -> None:
        while True:
            await self._safely(self.reconciler.go)
            await asyncio.sleep(LOOK_S)

    def _page(self, event: Event, why: str) -> None:
        self._say(f"PAGE: {event.subject()}: {why}")
        found = self.desk.rule_for(event) if self.desk is not None else None
        if found is not None:
            notify.alert(found[0].folder, event.subject(), why)

    async def _safely(self, work: Callable[[], Any]) -> None:
        try:
            await work()
        except Exception as e:  # noqa: BLE001 - the border: what is in the inbox stays there, and is tried again
            self._say(f"the desk: {type(e).__name__}: {redact(str(e))}")


async def would(desk: Desk, event: Event) -> dict[str, Any]:
    """What would be decided about ``event``: the whole chain, as if it fired, and why it does not."""
    found = desk.rule_for(event)
    if found is None:
        return {"rule": None, "outcome": "ignored", "why": "no rule is about it"}
    loaded, rule = found
    facts = replace(await desk.gatherer.facts(event, rule, loaded, LONGEST_S), firing=True)
    decision = gates.judge(event, rule, loaded, facts)
    return {**decision.document(), "system": loaded.system, "run": rule.run}


def endpoints(loaded: list[Loaded], host: str) -> dict[str, Source]:
    """Every endpoint of every system. Raises BadInput where two say different things, or anybody may post from afar."""
    found: dict[str, Source] = {}
    for one in loaded:
        for name, settings in one.settings.items():
            if name in found and found[name].settings != settings:
                raise BadInput(f"endpoint {name!r} of {one.system} is set up otherwise by another system")
            if settings.unauthenticated and not _loopback(host):
                raise BadInput(
                    f"endpoint {name!r} of {one.system} takes what anybody sends, and {host} is no loopback address;"
                    " give it `tokens`, or listen on 127.0.0.1"
                )
            found[name] = source.of(settings.source)(settings)
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(listen: str, systems: tuple[str, ...] = ()) -> None:
    """Serve until stopped, or until the supervisor is gone."""
    threading.Thread(target=_end_with_the_supervisor, name="relight-orphan", daemon=True).start()
    places.set_defaults()
    try:
        app, host, port = build(listen, systems)
    except RelightError as e:
        _say(f"alerts are not taken: {e}")
        sys.exit(e.exit_code)
    sys.setswitchinterval(0.001)  # who decides must not keep who answers waiting
    config = uvicorn.Config(
        app, host=host, port=port, http=Hasty, log_level="warning", access_log=False, timeout_keep_alive=5,
        limit_concurrency=500, h11_max_incomplete_event_size=64 << 10, server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


def build(listen: str, systems: tuple[str, ...]) -> tuple[FastAPI, str, int]:
    """The application over this machine's inbox, and where it listens. Raises BadInput, Unavailable."""
    host, port = host_and_port(listen)
    loaded = rules.load_all(systems)
    found = endpoints(loaded, host)
    inbox = Inbox(places.state_home() / FILE)
    working = Working(inbox, loaded, found, _say)
    receiver = Receiver(found, inbox, working.nudge, working.preview)
    working.figures = Figures(receiver.registry, History(inbox.file), loaded)
    working.start()
    names = ", ".join(f"/alerts/{name}" for name in found) or "no endpoint: no system has a triggers.yaml with sources"
    _say(f"taking alerts at http://{listen} ({names})")

    def health() -> dict[str, Any]:
        decided = working.decided_at.isoformat() if working.decided_at else None
        asked = {name: at.isoformat() for name, at in working.reconciler.good.items()}
        return {
            "ok": working.lives,
            "endpoints": sorted(found),
            "decided_at": decided,
            "blind": working.blind,
            "reconciled": asked,
            "trouble": working.reconciler.trouble,
        }

    return application(receiver, health), host, port


def _end_with_the_supervisor() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _say(text: str) -> None:
    sys.stderr.write(redact(text) + "\n")
    sys.stderr.flush()
