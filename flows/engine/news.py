"""What people are told of a run: one record in, a title and a text out, or nothing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flows.engine import asking
from flows.engine.journal import Record, of_type
from tasks.people.protocol import Event
from tasks.quantities import show_duration


@dataclass(frozen=True)
class News:
    """``seq``: of the record that it is about; 0 for what no record says."""

    seq: int
    event: Event
    title: str
    text: str


def of(records: tuple[Record, ...], index: int) -> News | None:
    """What is to be told of the record at ``index``, given those before it."""
    record, head = records[index], next(of_type(records, "run_started"), None)
    if head is None:
        return None
    kind, name = record["type"], f"{head['runbook']} of {head['system']}"
    found: tuple[Event, str, list[str]] | None = None
    if kind == "run_started":
        found = ("start", f"{name} began ({head['mode']}): {_moved(head)}", _begun(head))
    elif kind == "run_resumed":
        found = ("start", f"{name} goes on after an interruption", [f"by {record['operator']}"])
    elif kind == "approval_wanted":
        (one,) = [a for a in asking.open_now(records[: index + 1]) if a.step == record["step"]]
        how = f"relight approve {head['run_id']} --step {one.step} --as NAME   (--no to refuse)"
        found = ("approval", f"{name} waits for you", [*asking.lines(one, datetime.fromisoformat(record["at"])), how])
    elif kind == "outcome" and (record.get("error") or {}).get("type") == "NotApproved":
        found = ("approval", f"{name} was not approved", [record["summary"]])
    elif kind == "objective":
        elapsed = f"{show_duration(record['elapsed_s'])} of {show_duration(record['rto_s'])}"
        what = "missed" if record["fraction"] >= 1 else f"{record['fraction']:.0%} gone"
        found = ("objective", f"{name}: objective of {record['component']} {what}", [f"{elapsed}, not restored yet"])
    elif kind == "run_ended":
        found = ("end", f"{name}: {record['verdict'].replace('_', ' ')}", _ended(head, record))
    if found is None:
        return None
    event, title, lines = found
    return News(record["seq"], event, title, "\n".join((*lines, f"run {head['run_id']}")))


def died(records: tuple[Record, ...]) -> News | None:
    """The engine of a run is gone, and nobody has taken it up."""
    head = next(of_type(records, "run_started"), None)
    if head is None:
        return None
    run = head["run_id"]
    text = f"Nobody goes on with run {run}. Look: relight status {run}. Go on: relight resume {run}"
    return News(0, "end", f"{head['runbook']} of {head['system']}: its engine died", text)


def _moved(head: Record) -> str:
    return f"{head['roles'].get('failed')} → {head['roles'].get('target')}"


def _begun(head: Record) -> list[str]:
    waived = [f"waived: {rule}: {who}" for rule, who in head["waivers"].items()]
    return [f"by {head['operator']} ({head['trigger']}), incident began {head['incident_started_at']}", *waived]


def _ended(head: Record, record: Record) -> list[str]:
    reason = [record["reason"]] if record.get("reason") else []
    return [*reason, f"{_moved(head)}; report: relight report {head['run_id']}"]
