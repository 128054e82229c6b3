"""A planned move back: first the other site is made a standby again, then the system moves there, losing nothing.

Two runs, each with its own journal: ``rejoin``, then ``failover`` graceful with the roles swapped. Where to is settled
once, from what is observed at the start, and kept in the journals: done twice, it does not move forth again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from flows.engine import eventloop, launch, places, preview, report
from flows.engine.launch import Request
from flows.engine.roles import Roles, Wish, resolve
from tasks.clock import LoopClock
from tasks.contract import Mode
from tasks.errors import SafetyRefusal

REJOIN, FAILOVER = "rejoin", "failover"
CAUSE = "failback"


@dataclass(frozen=True)
class Failback:
    """What is asked.

    Attributes:
        to: the site to move to; empty: the one that is not active.
        key: of this very failback, so that tried again it goes where it went. trigger: who asks.
    """

    system: str
    to: str = ""
    rejoin: str = REJOIN
    failover: str = FAILOVER
    trigger: str = "cli"
    operator: str = ""
    key: str = ""


def direction(asked: Failback, to: str = "") -> Roles:
    """Which site is active now, and which is the one to go to (``target``). Raises as ``roles.resolve``, BadInput."""

    async def observed() -> Roles:
        ready = launch.prepare(asked.system, asked.failover, "graceful")
        async with launch.Ground().providers(ready, LoopClock()) as components:
            return await resolve(ready.loaded.system, components, Wish(None, to or None))

    return eventloop.run(observed())


def plan(asked: Failback) -> dict[str, list[preview.Preview]]:
    """Every step of both runbooks observed now, by runbook; nothing is changed."""
    books: tuple[tuple[str, Mode], ...] = ((asked.rejoin, "forced"), (asked.failover, "graceful"))
    wish = Wish(None, asked.to or None)
    return {book: eventloop.run(preview.observe(Request(asked.system, book, mode, wish)))[2] for book, mode in books}


def failback(asked: Failback, run: Callable[[Request], report.Report]) -> list[report.Report]:
    """Do it; the reports of its runs, in order. Stops after one that did not succeed.

    Raises Contradiction where the active site cannot be told, BadInput for a site that there is not, SafetyRefusal
    where the system moved meanwhile.
    """
    known = asked.to or began_for(asked.key)
    now = direction(asked, known)
    active = now.by_name["active"]
    to = known or now.by_name["target"]
    done = [run(_request(asked, asked.rejoin, Wish(None, None), to))]
    if done[0].exit_code or to == active:
        return done
    after = direction(asked, to).by_name["active"]
    if after != active:
        raise SafetyRefusal(
            f"while the move {active} → {to} was prepared the system moved to {after}; look again, then start the"
            " failback anew"
        )
    done.append(run(_request(asked, asked.failover, Wish(active, to), to, graceful=True)))
    return done


def _request(asked: Failback, book: str, wish: Wish, to: str, *, graceful: bool = False) -> Request:
    return Request(
        system=asked.system,
        runbook=book,
        mode="graceful" if graceful else "forced",
        wish=wish,
        trigger=asked.trigger,
        operator=asked.operator,
        cause={CAUSE: asked.key, "to": to} if asked.key else {"to": to},
    )


def began_for(key: str) -> str:
    """Where the failback ``key`` was to go when it began; empty where it has not begun, or has no key."""
    if not key:
        return ""
    for file in sorted((places.state_home() / "runs").glob("*/journal.jsonl"), reverse=True):
        with contextlib.suppress(OSError, ValueError), file.open(encoding="utf-8") as lines:
            cause = json.loads(lines.readline()).get("cause", {})
            if cause.get(CAUSE) == key:
                return str(cause.get("to", ""))
    return ""
