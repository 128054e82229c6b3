"""What became of the numbered writes: the load client's own record held against the rows of the database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Attempt:
    """One write: ``outcome`` is acked, refused (certainly not written) or unknown (sent, no usable answer)."""

    n: int
    sent_at: datetime
    answered_at: datetime
    outcome: str


@dataclass(frozen=True)
class Record:
    """One run of the load client."""

    client: str
    started_at: datetime
    attempts: tuple[Attempt, ...]


def read(acks: Path) -> Record:
    """The record in an acknowledgement file. A last line that was cut off by a crash is left out."""
    lines = acks.read_text(encoding="utf-8").split("\n")[:-1]
    head = json.loads(lines[0])
    attempts = []
    for line in lines[1:]:
        one = json.loads(line)
        sent, answered = datetime.fromisoformat(one["sent_at"]), datetime.fromisoformat(one["answered_at"])
        attempts.append(Attempt(one["n"], sent, answered, one["outcome"]))
    return Record(head["client"], datetime.fromisoformat(head["started_at"]), tuple(attempts))


def outcomes(attempts: Iterable[Attempt]) -> dict[str, int]:
    """How many writes ended acknowledged, refused and unknown."""
    count = Counter(a.outcome for a in attempts)
    return {"acknowledged": count["acked"], "refused": count["refused"], "unknown": count["unknown"]}


def outage(record: Record, since: datetime | None = None) -> dict[str, Any]:
    """The longest time without an acknowledgement; with ``since``, among the gaps that end after it.

    ``first_ack_sent_at`` is the first write that was *sent* after ``since`` and acknowledged: one that was already
    on its way when the fault came says nothing about recovery.
    """
    acked = sorted(a.answered_at for a in record.attempts if a.outcome == "acked")
    last = max((a.answered_at for a in record.attempts), default=record.started_at)
    marks = [record.started_at, *acked, last]
    gaps = [(b - a, a, b) for a, b in pairwise(marks) if since is None or b >= since]
    found: dict[str, Any] = {"outage_s": None, "outage_from": None, "outage_to": None, "ended": None}
    if gaps:
        length, start, end = max(gaps)
        # The last gap ends with the record, not with an acknowledgement: nobody saw it end.
        found = {
            "outage_s": round(length.total_seconds(), 4),
            "outage_from": start.isoformat(),
            "outage_to": end.isoformat(),
            "ended": end in acked,
        }
    if since is not None:
        later = [a for a in record.attempts if a.outcome == "acked" and a.sent_at >= since]
        first = min(later, key=lambda a: a.answered_at, default=None)
        found["since"] = since.isoformat()
        found["first_ack_sent_at"] = first.sent_at.isoformat() if first else None
        found["first_ack_at"] = first.answered_at.isoformat() if first else None
        found["first_ack_after_s"] = round((first.answered_at - since).total_seconds(), 4) if first else None
    return found


def compare(record: Record, rows: Mapping[int, int]) -> dict[str, Any]:
    """Holds the record against ``rows`` (number -> how often it is in the table). Lists are cut at 20 numbers."""
    by = {k: {a.n for a in record.attempts if a.outcome == k} for k in ("acked", "refused", "unknown")}
    present = set(rows)
    lost = sorted(by["acked"] - present)
    duplicated = sorted(n for n, times in rows.items() if times > 1)
    return {
        "client": record.client,
        **outcomes(record.attempts),
        "rows": sum(rows.values()),
        "lost": len(lost),
        "lost_numbers": lost[:20],
        "duplicated": len(duplicated),
        "duplicated_numbers": duplicated[:20],
        "surfaced": len(by["unknown"] & present),
        # Both must be 0: a refusal that was written, and a row that the record does not know of.
        "refused_but_present": len(by["refused"] & present),
        "unrecorded": len(present - by["acked"] - by["refused"] - by["unknown"]),
    }
