"""The report of a run: computed from its journal alone, as JSON, Markdown and (in ``view``) for a terminal."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows.engine import journal, objectives
from flows.engine.journal import Record, of_type
from flows.engine.state import fold
from tasks.errors import BadInput
from tasks.quantities import show_duration


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RtoResult(_Part):
    """``actual_s`` None: not restored by this run; ``met`` None then too when it never was to be, or may still be."""

    rto_s: float | None
    actual_s: float | None
    met: bool | None
    pending: bool = False
    """The run is to restore it, is not over, and by its journal the objective's time has not run out."""


class RpoResult(_Part):
    """``lost_transactions`` None: could not be counted. ``bound_s``: at most this many seconds of commits are lost."""

    lost_transactions: int | None = None
    lag_bytes: int | None = None
    bound_s: float | None = None
    proven_zero: bool | None = None
    rpo_s: float | None = None
    met: bool | None = None


class StepResult(_Part):
    id: str
    action: str
    outcome: str | None
    attempts: int
    started_at: str | None
    duration_s: float
    summary: str
    error: dict[str, Any] | None
    evidence: dict[str, Any]


class JournalRef(_Part):
    path: str
    records: int
    head_sha256: str


class Report(_Part):
    """Times are ISO 8601 UTC, durations seconds."""

    run_id: str
    runbook: str
    system: str
    mode: str
    verdict: str
    reason: str
    started_at: str
    incident_started_at: str
    ended_at: str | None
    trigger: str
    operator: str
    taken_over: dict[str, str] = {}
    """The run of a lost machine in whose place this one goes on: ``takes_over``, ``from``, ``step``; else empty."""
    roles: dict[str, str]
    waivers: dict[str, str]
    epoch: int
    objectives: dict[str, RtoResult]
    rpo: dict[str, RpoResult]
    phases: dict[str, float | None]
    steps: list[StepResult]
    measured: dict[str, Any]
    put_back_after_s: float | None = None
    """How long it took until every step was put back, from the decision to go back; None: nothing was put back."""
    events: list[dict[str, Any]]
    journal: JournalRef

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)

    @property
    def exit_code(self) -> int:
        """0 success, 1 failed or an objective missed, 3 refused by a safety rule."""
        return {"succeeded": 0, "refused": 3}.get(self.verdict, 1)


def build(path: Path) -> Report:
    """The report of the journal at ``path``. Raises JournalBroken."""
    read = journal.read(path)
    return from_records(read.records, JournalRef(path=str(path), records=len(read.records), head_sha256=read.head))


def from_records(records: tuple[Record, ...], where: JournalRef) -> Report:
    """As ``build``, from records. Raises BadInput when the run never began."""
    head = next(of_type(records, "run_started"), None)
    if head is None:
        raise BadInput(f"journal {where.path} has no run_started record: the run never began, so nothing was changed")
    state = fold(records)
    ended = list(of_type(records, "run_ended"))
    counted = list(of_type(records, "measured"))
    measured = {k: v for r in counted for k, v in r.items() if k not in ("seq", "at", "type", "prev", "sha256")}
    verdict = ended[-1]["verdict"] if state.ended else "running"
    if verdict in ("succeeded", "objective_missed") and counted:
        # what was counted afterwards outweighs what was estimated, in both directions
        met = objectives.all_met(records, head["objectives"]["rto_s"], head["objectives"]["rpo_s"])
        verdict = "succeeded" if met else "objective_missed"
    steps = []
    for planned in head["plan"]["steps"]:
        s = state.of(planned["id"])
        steps.append(
            StepResult(
                id=planned["id"],
                action=planned["action"],
                outcome=s.outcome or ("unknown" if s.in_flight else None),
                attempts=s.attempts,
                started_at=s.started_at,
                duration_s=s.duration_s,
                summary=s.summary,
                error=s.error,
                evidence=s.facts,
            )
        )
    return Report(
        run_id=head["run_id"],
        runbook=head["runbook"],
        system=head["system"],
        mode=head["mode"],
        verdict=verdict,
        reason=ended[-1]["reason"] if state.ended else "",
        started_at=head["at"],
        incident_started_at=head["incident_started_at"],
        ended_at=ended[-1]["at"] if state.ended else None,
        trigger=head["trigger"],
        operator=head["operator"],
        taken_over=taken_over(head),
        roles={k: head["roles"][k] for k in ("active", "failed", "target") if k in head["roles"]},
        waivers=head["waivers"],
        epoch=max(r["epoch"] for r in records if "epoch" in r),
        objectives=_rto(head, records),
        rpo=_rpo(head, records),
        phases=objectives.phases(records),
        steps=steps,
        measured=measured,
        put_back_after_s=_put_back_after_s(records),
        events=[{k: r[k] for k in ("at", "component", "fraction", "elapsed_s")} for r in of_type(records, "objective")],
        journal=where,
    )


def _rto(head: Record, records: tuple[Record, ...]) -> dict[str, RtoResult]:
    times = objectives.recovery_times(records)
    meant = {s["restores"] for s in head["plan"]["steps"]}
    going = fold(records).ended in (None, "interrupted")
    lasted_s = (objectives.at(records[-1]) - objectives.at(head, "incident_started_at")).total_seconds()
    found = {}
    for component, rto_s in head["objectives"]["rto_s"].items():
        actual = times.get(component)
        pending = going and actual is None and component in meant and lasted_s < rto_s
        met = actual <= rto_s if actual is not None else False if component in meant and not pending else None
        found[component] = RtoResult(rto_s=rto_s, actual_s=actual, met=met, pending=pending)
    return found


def _put_back_after_s(records: tuple[Record, ...]) -> float | None:
    began = next((r["at"] for r in of_type(records, "undo_started")), None)
    ended = [r["at"] for r in of_type(records, "outcome") if r["outcome"] == "undone"]
    if began is None or not ended:
        return None
    return round((datetime.fromisoformat(ended[-1]) - datetime.fromisoformat(began)).total_seconds(), 3)


def _rpo(head: Record, records: tuple[Record, ...]) -> dict[str, RpoResult]:
    rpo_s = head["objectives"]["rpo_s"]
    known = set(RpoResult.model_fields)
    return {
        component: RpoResult(**{**{k: v for k, v in loss.items() if k in known}, "rpo_s": rpo_s.get(component)})
        for component, loss in objectives.losses(records).items()
    }


def seconds(value: float | None) -> str:
    """A duration for people; a dash where there is none."""
    return "-" if value is None else show_duration(value)


def yes_no(met: bool | None) -> str:
    """``met`` for people."""
    return {True: "met", False: "MISSED", None: "not part of this run"}[met]


def rto_told(result: RtoResult) -> str:
    """Whether an objective was met, for people."""
    return "not yet" if result.pending else yes_no(result.met)


def taken_over(head: Record) -> dict[str, str]:
    """What a run's first record says of the run that it goes on in place of; empty where there is none."""
    cause = head.get("cause", {})
    return {k: str(cause[k]) for k in ("takes_over", "from", "step") if cause.get("takes_over") and k in cause}


def markdown(result: Report) -> str:
    """The report as people forward it."""
    moved = f"{result.roles.get('failed')} → {result.roles.get('target')}"
    out = [
        f"# {result.runbook} of {result.system}: {result.verdict.replace('_', ' ')}",
        "",
        f"Run `{result.run_id}` ({result.mode}), {moved}, started by {result.operator} ({result.trigger}).",
        f"Incident began {result.incident_started_at}, run began {result.started_at}, "
        + (f"ended {result.ended_at}." if result.ended_at else "not ended."),
    ]
    if result.taken_over:
        before = result.taken_over
        where = f"{before.get('from', '?')}, {before.get('step') or 'at its start'}"
        said = f"In place of run `{before['takes_over']}`, whose machine was lost ({where})."
        out += ["", f"{said} What that did and measured is in its own journal, on that machine."]
    if result.reason:
        out += ["", f"**Why:** {result.reason}"]
    if result.put_back_after_s is not None:
        out += ["", f"**Time to restore:** everything was put back within {seconds(result.put_back_after_s)}."]
    if result.waivers:
        out += ["", "**Waived:** " + "; ".join(f"{k}: {v}" for k, v in result.waivers.items())]
    out += ["", "## Recovery time", "", "| component | objective | actual | |", "|---|---|---|---|"]
    out += [
        f"| {c} | {seconds(o.rto_s)} | {seconds(o.actual_s)} | {rto_told(o)} |" for c, o in result.objectives.items()
    ]
    names = [n.removesuffix("_s").replace("_", "-") for n in result.phases]
    out += ["", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    out.append("| " + " | ".join(seconds(v) for v in result.phases.values()) + " |")
    if result.rpo:
        out += [
            "",
            "## Recovery point",
            "",
            "| component | lost transactions | lag bytes | at most | |",
            "|---|---|---|---|---|",
        ]
        for c, r in result.rpo.items():
            lost = "not counted" if r.lost_transactions is None else str(r.lost_transactions)
            lag = "not known" if r.lag_bytes is None else str(r.lag_bytes)
            bound = "proven zero" if r.proven_zero else seconds(r.bound_s)
            out.append(f"| {c} | {lost} | {lag} | {bound} | {yes_no(r.met)} |")
    if result.measured.get("load"):
        load = result.measured["load"]
        out += ["", "## What the clients saw", "", "| " + " | ".join(load) + " |", "|" + "---|" * len(load)]
        out.append("| " + " | ".join(str(v) for v in load.values()) + " |")
    if result.measured.get("cost"):
        out += cost_lines(result.measured["cost"])
    out += ["", "## Steps", "", "| step | action | outcome | attempts | took | |", "|---|---|---|---|---|---|"]
    for s in result.steps:
        text = s.summary.replace("|", "\\|").replace("\n", " ")
        out.append(
            f"| {s.id} | {s.action} | {s.outcome or 'not run'} | {s.attempts} | {seconds(s.duration_s)} | {text} |"
        )
    out += ["", f"Journal: {result.journal.records} records, SHA-256 of the last `{result.journal.head_sha256}`."]
    return "\n".join(out)


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """What a run cost, for people; ``cost`` is ``runcost.RunCost.as_json``."""
    total = "unknown" if cost["usd"] is None else f"{cost['usd']:.4f} USD"
    out = ["", "## What it cost", "", f"In all: {total}."]
    if not cost["lines"]:
        return [*out, "", "It started no instances and copied nothing."]
    out += ["", "| what | amount | USD | |", "|---|---|---|---|"]
    for x in cost["lines"]:
        amount = "unknown" if x["quantity"] is None else f"{x['quantity']:g} {x['unit']}"
        usd = "unknown" if x["usd"] is None else f"{x['usd']:.4f}"
        more = f"{x['goes_on_usd_h']:.4f} USD an hour until they are ended" if x["goes_on_usd_h"] else x["why"]
        out.append(f"| {x['what']} | {amount} | {usd} | {more} |")
    return out
