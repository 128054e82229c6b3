"""The gate chain between an alert and a run. Every gate answers, with a reason; nobody stops at the first.

The order and the defaults are those of mature systems (orchestrator's recovery filters, block periods and downtime; ARC
Region switch's minimum delay; Nagios' flap detection). Detection is not recovery: what an alert proposes must be seen
on the system itself too, by the entry checks of the run, and the run asks them again before it touches anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from flows.intake.decision import Decision, Said
from flows.intake.event import Event
from flows.intake.facts import Asked, Facts
from flows.intake.gates_of_alert import confirm, enabled, fitness, flap, isolation, kill_switch, quorum, window
from flows.intake.gates_of_system import approval, blast_radius, concurrency, cool_down, rules_of_safety, target
from flows.intake.rules import Loaded, Rule

CHAIN: tuple[Callable[[Asked], Said], ...] = (
    enabled, kill_switch, fitness, window, quorum, confirm, isolation, flap, cool_down, concurrency, blast_radius,
    target, approval, rules_of_safety,
)  # fmt: skip
GLASS = frozenset(
    {"window", "confirm", "isolation", "flap", "cool-down", "blast-radius", "target", "approval", "safety"}
)
"""What two people together may break. Never the kill switch, a run under way, or an alert that is no fit one."""


def breakable(said: Said) -> bool:
    """May two people together pass it? A failback that an alert asks for they may not."""
    return said.gate in GLASS and not said.why.startswith("a failback")


def judge(event: Event, rule: Rule, loaded: Loaded, facts: Facts) -> Decision:
    """Ask every gate."""
    asked = Asked(event, rule, loaded, facts)
    evidence = facts.evidence.document() if facts.evidence else None
    return Decision(rule.id, asked.stage, tuple(gate(asked) for gate in CHAIN), facts.now, evidence)


async def reached(references: tuple[str, ...], seconds: float = 1.0) -> dict[str, bool]:
    """Which of the reference targets take a connection, all asked at once; who does not is asked once more.

    An engine that stood still for a moment hears nobody, and is not cut off for that.
    """

    async def one(address: str) -> bool:
        host, _, port = address.rpartition(":")
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            return True
        return False

    found = dict.fromkeys(references, False)
    for _ in range(2):
        missing = [a for a, there in found.items() if not there]
        found |= zip(missing, await asyncio.gather(*(one(a) for a in missing)), strict=True)
    return found
