"""The break-glass runbook: what a person types, in order, when the engine itself is gone. Reads, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from flows.engine import preview
from flows.engine.launch import Ground, Ready, Request, prepare, run_info
from flows.engine.plan import PlannedStep
from flows.engine.roles import Roles, resolve
from tasks import catalog
from tasks.contract import Context
from tasks.errors import RelightError
from tasks.manual import Command, NoManual
from tasks.quantities import show_duration
from tasks.secrets import redact

STEP_S = 10.0
HEAD = """\
From **{failed}** to **{target}**, as the system was at {at:%Y-%m-%d %H:%M:%S} UTC. Plan `{digest}`.

For when relight itself is gone. Do one command after the other, in bash, on a machine that reaches both sites; compare
what it prints with what is expected, and **stop where it differs**: nothing is proven for you. Secrets are not here:
commands read them from where they are kept.

Export again after every failover, and whenever the system changes: nodes, addresses and sites are those of the moment
above. When relight is back, it needs to be told nothing: it observes what is. Let it run `rejoin` then."""


@dataclass(frozen=True)
class Chapter:
    """One step with its commands."""

    step: PlannedStep
    commands: tuple[Command | NoManual, ...]


@dataclass(frozen=True)
class Export:
    """A runbook by hand, as the system was at ``at``."""

    ready: Ready
    roles: Roles
    chapters: tuple[Chapter, ...]
    at: datetime


async def export(request: Request) -> Export:
    """Resolve every step's commands against the live system. Raises InvalidFiles, BadInput, Contradiction."""
    ready = prepare(request.system, request.runbook, request.mode, request.vars)
    ground = Ground()
    clock = ground.clock()
    async with ground.providers(ready, clock) as components:
        roles = await resolve(ready.loaded.system, components, request.wish)
        info = run_info(ready.plan, request, "export", 0, clock.utc())
        chapters = []
        for step in ready.plan.steps:
            ctx = Context(
                run=info,
                clock=clock,
                roles=roles.by_name,
                components=components,
                deadline=clock.monotonic() + STEP_S,
                rpo_s=ready.rpo_s,
                guard=preview.read_only,
            )
            chapters.append(Chapter(step, await _commands(step, ctx)))
        return Export(ready, roles, tuple(chapters), clock.utc())


async def _commands(step: PlannedStep, ctx: Context) -> tuple[Command | NoManual, ...]:
    manual = catalog.manuals().get(step.action.name)
    if manual is None:
        return (NoManual(f"relight knows no commands for {step.action.name}; its summary says what must become true"),)
    try:
        return tuple(await manual(step.action, ctx))
    except RelightError as e:
        return (NoManual(f"it could not be resolved at the export: {redact(e.message)}"),)


def markdown(found: Export) -> str:
    """The text, for a printer and for copy and paste. Commands stand in ``sh`` blocks of their own."""
    plan, roles = found.ready.plan, found.roles.by_name
    lines = [
        f"# {plan.runbook} of {plan.system}, by hand ({plan.mode})",
        "",
        HEAD.format(**roles, at=found.at, digest=plan.digest[:12]),
        "",
        *_objectives(found),
    ]
    number = 0
    for chapter in found.chapters:
        step = chapter.step
        mark = " (THE POINT OF NO RETURN)" if step.irreversible else ""
        lines += ["", f"## {step.id}: {step.summary or step.action.name}{mark}", ""]
        for command in chapter.commands:
            number += 1
            lines += _numbered(number, command)
    return redact("\n".join(lines)) + "\n"


def _objectives(found: Export) -> list[str]:
    rto: Mapping[str, float] = found.ready.rto_s
    return [f"- {name} must be back {show_duration(s)} after the start of the incident" for name, s in rto.items()]


def _numbered(number: int, command: Command | NoManual) -> list[str]:
    if isinstance(command, NoManual):
        return [f"{number}. No manual equivalent: {command.instead}.", ""]
    why = f" {command.why}" if command.why else ""
    return [f"{number}.{why}", "", "```sh", command.run, "```", "", f"Expected: {command.expected}", ""]


_BLOCK = re.compile(r"^```sh\n(.*?)\n```\n\nExpected: (.*?)$", re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[tuple[str, str]]:
    """(command, expected) of an exported runbook, in order; for whoever checks one."""
    return [(m[1], m[2]) for m in _BLOCK.finditer(text)]
