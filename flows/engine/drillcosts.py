"""What each drill of a system cost, by the journals of this state folder. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.engine import journal, places, report, runcost
from flows.engine.report import JournalRef, Report
from flows.engine.thresholds import Prices
from tasks.errors import RelightError


@dataclass(frozen=True)
class DrillCost:
    """One drill. ``cost``: as ``runcost.RunCost.as_json``; ``recorded``: when it was counted, else priced now."""

    run_id: str
    runbook: str
    trigger: str
    verdict: str
    started_at: str
    cost: dict[str, Any]
    recorded: bool

    @property
    def goes_on_usd_h(self) -> float:
        """An hour, for what it started and nobody ended by itself."""
        return float(sum(x["goes_on_usd_h"] or 0 for x in self.cost["lines"]))


@dataclass(frozen=True)
class DrillCosts:
    """``drills``: newest first. ``unread``: run -> why its journal tells nothing; it may be of any system."""

    system: str
    drills: tuple[DrillCost, ...]
    unread: dict[str, str]

    @property
    def known_usd(self) -> float:
        return round(sum(d.cost["usd"] or 0 for d in self.drills), 6)

    @property
    def usd(self) -> float | None:
        """Of all; None where that of one drill is unknown, or a journal could not be read."""
        return None if self.unread or any(d.cost["usd"] is None for d in self.drills) else self.known_usd

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "system": self.system,
            "usd": self.usd,
            "known_usd": self.known_usd,
            "drills": [{**vars(d), "goes_on_usd_h": d.goes_on_usd_h or None} for d in self.drills],
            "unread": self.unread,
        }


def listed(system: str, prices: Prices | None) -> DrillCosts:
    """Every run that a drill started, or that a drill counted afterwards (one that an alert started, say)."""
    found: list[DrillCost] = []
    unread: dict[str, str] = {}
    for file in sorted((places.state_home() / "runs").glob("*/journal.jsonl")):
        try:
            read = journal.read(file)
            if next(journal.of_type(read.records, "run_started"), None) is None:
                continue  # it never began
            where = JournalRef(path=str(file), records=len(read.records), head_sha256=read.head)
            result = report.from_records(read.records, where)
        except RelightError as e:
            unread[file.parent.name] = e.message
            continue
        except (KeyError, ValueError) as e:
            unread[file.parent.name] = f"written by another version of relight ({type(e).__name__}: {e})"
            continue
        if result.system == system and (result.trigger.startswith("drill") or "load" in result.measured):
            found.append(_of(result, prices))
    found.sort(key=lambda d: d.started_at, reverse=True)
    return DrillCosts(system, tuple(found), unread)


def _of(result: Report, prices: Prices | None) -> DrillCost:
    recorded = result.measured.get("cost")
    cost = recorded or runcost.cost_of(result, prices).as_json()
    names = (result.run_id, result.runbook, result.trigger, result.verdict, result.started_at)
    return DrillCost(*names, cost, recorded is not None)
