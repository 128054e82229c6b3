"""Going on with a run whose machine is lost: what the lease's record says of it, and what must hold. Pure.

Its journal is on the lost machine. A new run, on this machine, goes on in its place: same runbook, plan, roles, waivers
and start of the incident, as its mandate in the lease's record has them, under an epoch of its own. Its steps observe
what is true already, so what was done is passed and nothing is done twice; the lease keeps the two apart. What only the
lost journal knows stays there: what undo would put back, and the loss that was measured at a promotion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from flows.engine.journal import Record
from flows.engine.state import FINISHED
from flows.engine.supervise import STALE
from tasks.errors import BadInput
from tasks.leases.protocol import Held, Mandate

WATCHED = 1.5
"""In ttls: so long a record stands still before its machine counts as lost. A machine that lives resumes by then."""
MOST_LIVES = 3
"""A run that took so many machines down with it is left to people."""
CAUSE = "takes_over"


def mandate(head: Record, folder: Path, lives: int = 1) -> Mandate:
    """Of a run, from its first record. ``folder``: of its system file."""
    book = Path(head["files"]["runbook"])
    return Mandate(
        run_id=head["run_id"],
        runbook=book.stem if book.parent.resolve() == folder.resolve() else "",
        mode=head["mode"],
        roles={role: head["roles"][role] for role in ("active", "failed", "target")},
        plan=head["plan"]["digest"],
        began_at=head["at"],
        incident_started_at=head["incident_started_at"],
        detected_at=head["detected_at"],
        waivers=dict(head["waivers"]),
        vars=dict(head.get("vars", {})),
        operator=head["operator"],
        trigger=head["trigger"],
        automatic=head["automatic"],
        flow_run_id=head["prefect_flow_run_id"],
        lives=lives,
        origin=head.get("cause", {}).get("origin", ""),
    )


def lives(head: Record) -> int:
    """How many machines have had the run that ``head`` begins."""
    return int(head.get("cause", {}).get("lives", 1))


@dataclass(frozen=True)
class Decision:
    """``do``: nothing, take the run over, wait (for ``why``), or leave it to people."""

    do: Literal["leave", "take_over", "wait", "give_up"]
    why: str = ""


@dataclass(frozen=True)
class Look:
    """What is seen of a system from a machine that could go on with its run.

    Attributes:
        held: the record; still_s: for how long it has not changed while this machine watched; ttl_s: of the store.
        here: the run's journal is on this machine, whose supervisor cares for it.
        paused: what the kill switch says, of this machine or of every one; empty while it is off.
    """

    held: Held | None
    still_s: float
    ttl_s: float
    here: bool
    paused: str
    now: datetime


def decide(look: Look) -> Decision:
    """What a machine that watches does about the run that began last on a system."""
    held = look.held
    asked = held.mandate if held is not None else None
    if held is None or asked is None or asked.ended or look.here:
        return Decision("leave")
    if look.still_s <= WATCHED * max(held.ttl_s, look.ttl_s):
        return Decision("leave")
    hopeless = _hopeless(asked, look.now)
    if hopeless:
        return Decision("give_up", hopeless)
    if look.paused:
        return Decision("wait", f"{look.paused}; it is taken over then")
    return Decision("take_over", f"nothing was heard from {held.holder} for {look.still_s:.0f} s")


def _hopeless(asked: Mandate, now: datetime) -> str:
    if now - datetime.fromisoformat(asked.began_at) > STALE:
        return f"it began over {STALE / timedelta(hours=1):g} h ago: the world has moved on"
    if asked.lives >= MOST_LIVES:
        return f"{asked.lives} machines were lost with it; find out why before another one tries"
    if not asked.runbook:
        return "its runbook is no file in the system's folder, so this machine does not have it"
    return ""


def refuse_finished(held: Held | None, system: str) -> Mandate:
    """The mandate to go on with. Raises BadInput where there is none, or its run has nothing left to do."""
    asked = held.mandate if held is not None else None
    if held is None or asked is None:
        raise BadInput(f"the lease of system {system} names no run to go on with; start one: relight run")
    if asked.ended in FINISHED:
        raise BadInput(
            f"run {asked.run_id} of system {system} has ended ({asked.ended}); there is nothing to take over"
        )
    if not asked.runbook:
        raise BadInput(
            f"run {asked.run_id} is of a runbook that is not in the folder of system {system}; start a new one"
        )
    return asked


def may_begin(lost: Mandate | None, digest: str) -> Callable[[Held | None], None]:
    """For ``Holder.may`` of a new run: where it takes ``lost`` over, the record still charges it, as it is replaced.

    ``digest``: of the plan here. Raises BadInput where the files here are not those that the lost run began with.
    """
    if lost is None:
        return lambda _held: None
    if lost.plan != digest:
        raise BadInput(
            f"run {lost.run_id} cannot be taken over here: runbook {lost.runbook} and the system file are not those"
            " that it began with. Make them the same on every machine, or start a new run and name the sites (--from,"
            " --to)."
        )

    def may(held: Held | None) -> None:
        now = held.mandate if held is not None else None
        if now is None or (now.run_id, now.ended) != (lost.run_id, lost.ended):
            said = f"run {now.run_id} ({now.ended or 'not ended'})" if now is not None else "no run"
            raise BadInput(f"run {lost.run_id} was to be taken over, and the lease names {said} now; nothing was done")

    return may


def not_overtaken(run_id: str, epoch: int, stopped_at: str) -> Callable[[Held | None], None]:
    """For ``Holder.may`` of a resumed run: no other machine began one after ``epoch``, the newest that it had, and
    no run changed the system since ``stopped_at``, the time of its last record.

    A machine that comes back must not go on where another one has gone on in its place; nor may anybody take a run of
    last week up by mistake, whose steps were about a system that has since been moved.
    """

    def may(held: Held | None) -> None:
        now = held.mandate if held is not None else None
        if held is not None and now is not None and now.run_id != run_id and held.epoch > epoch:
            raise BadInput(
                f"run {now.run_id} of the same system began on another machine ({held.holder}) after run {run_id}"
                f" stopped here{f', and has ended {now.ended}' if now.ended else ''}. What it moved, this one must not"
                " move back: start a new run if there is something left to do.",
                newer=now.run_id,
            )
        last = held.last if held is not None else None
        if last is None or last.run_id == run_id:
            return
        if datetime.fromisoformat(last.ended_at) > datetime.fromisoformat(stopped_at):
            raise BadInput(
                f"run {last.run_id} changed the same system after run {run_id} stopped ({last.verdict},"
                f" {last.ended_at}). What it moved, this one must not move back: start a new run if there is something"
                " left to do.",
                newer=last.run_id,
            )

    return may
