"""What people see in a terminal: plans, live progress, reports. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.engine.journal import Record
from flows.engine.outlook import Outlook
from flows.engine.preview import Preview
from flows.engine.report import Report, rto_told, seconds, yes_no
from tasks.quantities import show_duration

STYLES = {
    "done": "green",
    "already": "green dim",
    "skipped": "dim",
    "failed": "bold red",
    "unknown": "bold magenta",
    "undone": "yellow",
    "undo_failed": "bold red",
    "running": "cyan",
    "succeeded": "bold green",
    "objective_missed": "bold yellow",
    "refused": "bold red",
    "interrupted": "yellow",
}


class Progress:
    """Follows a run's records: a live table on a terminal, one line an event elsewhere. Thread-safe."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self._lock = threading.RLock()  # a signal handler may say something while its own thread does
        self._head: Record | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._live: Live | None = None
        self._said: dict[str, float] = {}
        self._incident = datetime.now(UTC)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """A terminal that went away (a closed pipe, a lost session) ends the view, never the run."""
        with self._lock:
            try:
                yield
            except (OSError, SystemExit):  # rich turns a broken pipe into SystemExit
                self.quiet = True
                self._live = None

    def record(self, record: Record) -> None:
        """A journal record."""
        if self.quiet:
            return
        with self._shown():
            kind = record["type"]
            if kind == "run_started":
                self._begin(record)
            elif kind == "intent":
                self._row(record["step"], "running", "; ".join(record["changes"]))
            elif kind == "attempt_failed":
                again = f"; again in {show_duration(record['retry_in_s'])}" if record["retry_in_s"] is not None else ""
                text = f"attempt {record['attempt']}: {record['error']['message']}{again}"
                self._row(record["step"], "running", text)
            elif kind == "outcome":
                self._row(record["step"], record["outcome"], record["summary"], record["duration_s"])
            elif kind == "objective":
                text = f"{record['fraction']:.0%} of the {record['component']} objective is gone"
                self._say("objective", "objective_missed", text)
            elif kind == "abort_requested":
                self._say("abort", "running", f"asked by {record['by']}: {record['why']}")
            elif kind == "run_ended":
                self._end()

    def began(self, step: str, attempt: int) -> None:
        """An attempt begins."""
        with self._shown():
            if not self.quiet and attempt == 1:
                self._row(step, "running", "", say=False)

    def line(self, step: str, text: str) -> None:
        """What a step is waiting for."""
        with self._shown():
            if self.quiet:
                return
            # a terminal shows the newest line in its place; a log gets at most one a second for each step
            quiet = self._live is None and self._elapsed() - self._said.get(step, -1.0) < 1.0
            self._row(step, "running", text, say=not quiet)

    def _begin(self, record: Record) -> None:
        self._head = record
        self._incident = datetime.fromisoformat(record["incident_started_at"])
        roles = record["roles"]
        title = f"{record['runbook']} of {record['system']} ({record['mode']}): {roles['failed']} → {roles['target']}"
        for step in record["plan"]["steps"]:
            mark = " ⚠ point of no return" if step["irreversible"] else ""
            self._rows[step["id"]] = {"outcome": "", "text": step["summary"] + mark, "took": None}
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=lambda: self._table(title), refresh_per_second=12)
            self._live.start()
        else:
            self.console.print(f"{title}  run {record['run_id']}", highlight=False)

    def _elapsed(self) -> float:
        return (datetime.now(UTC) - self._incident).total_seconds()

    def _row(self, step: str, outcome: str, text: str, took: float | None = None, *, say: bool = True) -> None:
        row = self._rows.setdefault(step, {})
        row.update(outcome=outcome, took=took, **({"text": text} if text else {}))
        if say:
            self._say(step, outcome, text)

    def _say(self, step: str, outcome: str, text: str) -> None:
        self._said[step] = self._elapsed()
        if self._live is None:
            line = Text.assemble(
                (f"+{self._elapsed():8.3f}s ", "dim"), f"{step:<20} ", (f"{outcome:<9}", STYLES.get(outcome, "")), text
            )
            self.console.print(line, soft_wrap=True, highlight=False)

    def _table(self, title: str) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("step", "", "took", "what"):
            table.add_column(name, no_wrap=name != "what", overflow="fold")
        for step, row in self._rows.items():
            outcome = row.get("outcome", "")
            took = "" if row.get("took") is None else show_duration(row["took"])
            table.add_row(step, Text(outcome, STYLES.get(outcome, "")), took, row.get("text", ""))
        clock = Text(f"since the incident began: {show_duration(max(0.0, self._elapsed()))}", "bold")
        return Group(Text(title, "bold"), table, clock)

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        """Leave the terminal clean, also when the run ended without a record."""
        with self._shown():
            self._end()


def plan_view(title: str, previews: list[Preview], worst_end_s: dict[str, float]) -> Group:
    """The plan: what is true now and what would be changed, step by step."""
    parts: list[Any] = [Text(title, "bold")]
    for number, preview in enumerate(previews, 1):
        step = preview.step
        head = Text.assemble(
            (f"{number:>2}. ", "dim"),
            (step.id, "bold"),
            (f"  {step.action.name}", "dim"),
            (f"  at worst done by +{show_duration(worst_end_s[step.id])}", "dim"),
            ("  ⚠ point of no return", "bold yellow") if step.irreversible else "",
        )
        parts.append(head)
        if preview.seen is None:
            parts.append(Text(f"    cannot tell: {preview.error}", "yellow"))
            continue
        parts.append(Text(f"    now:   {preview.seen.summary}", "green" if preview.seen.holds else ""))
        parts += [Text(f"    would: {change}", "cyan") for change in preview.seen.changes]
    return Group(*parts)


def now_view(previews: list[Preview], unknown: str = "") -> Group:
    """What is true now of each step."""
    if unknown:
        return Group(Text(f"what is true now cannot be told: {unknown}", "yellow"))
    parts: list[Any] = [Text("Now", "bold")]
    for p in previews:
        if p.seen is None:
            parts.append(Text(f"  {p.step.id}: cannot tell: {p.error}", "yellow"))
        else:
            parts.append(Text(f"  {p.step.id}: {p.seen.summary}", "green" if p.seen.holds else ""))
    return Group(*parts)


def report_view(report: Report) -> Group:
    """A report for a terminal."""
    verdict = Text(report.verdict.replace("_", " "), STYLES.get(report.verdict, "bold red"))
    roles = report.roles
    head = Text.assemble(
        (f"{report.runbook} of {report.system} ", "bold"),
        f"({report.mode}) {roles.get('failed')} → {roles.get('target')}: ",
        verdict,
    )
    parts: list[Any] = [head, Text(f"run {report.run_id}", "dim"), *_why(report)]
    rto = Table(title="Recovery time", title_justify="left")
    for name in ("component", "objective", "actual", ""):
        rto.add_column(name)
    for component, o in report.objectives.items():
        rto.add_row(component, seconds(o.rto_s), seconds(o.actual_s), _met(o.met, rto_told(o)))
    split = Table(title="Where the time went", title_justify="left")
    for name in report.phases:
        split.add_column(name.removesuffix("_s").replace("_", "-"))
    split.add_row(*(seconds(v) for v in report.phases.values()))
    parts += [rto, split]
    if report.rpo:
        rpo = Table(title="Recovery point", title_justify="left")
        for name in ("component", "lost transactions", "lag bytes", "at most", ""):
            rpo.add_column(name)
        for component, r in report.rpo.items():
            lost = "not counted" if r.lost_transactions is None else str(r.lost_transactions)
            lag = "not known" if r.lag_bytes is None else str(r.lag_bytes)
            rpo.add_row(component, lost, lag, "proven zero" if r.proven_zero else seconds(r.bound_s), _met(r.met))
        parts.append(rpo)
    if report.measured.get("load"):
        load = Table(title="What the clients saw", title_justify="left")
        for name in report.measured["load"]:
            load.add_column(str(name))
        load.add_row(*(str(v) for v in report.measured["load"].values()))
        parts.append(load)
    parts += [_steps(report), Text(f"journal {report.journal.path} ({report.journal.records} records)", "dim")]
    return Group(*parts)


def outlook_view(report: Report, ahead: Outlook) -> Group:
    """What remains of a run, and what going back would mean here."""
    if ahead.unknown:
        return Group(Text(f"what remains cannot be told: {ahead.unknown}", "yellow"))
    parts: list[Any] = []
    if ahead.remains:
        parts.append(Text("Remains", "bold"))
        parts += [
            Text(f"  {s.id}{' (under way)' if s.in_flight else ''}: at worst {show_duration(s.worst_case_s)}")
            for s in ahead.remains
        ]
        for component, seconds_ in ahead.predicted_s.items():
            parts.append(Text(f"  {component} restored at worst {show_duration(seconds_)} after the incident began"))
    parts.append(going_back_view(ahead))
    if report.verdict not in ("succeeded", "objective_missed", "undone"):
        back = "" if ahead.passed else f"   Go back: relight abort {report.run_id}"
        parts.append(Text(f"Go on: relight resume {report.run_id}{back}", "bold"))
    return Group(*parts)


def going_back_view(ahead: Outlook) -> Group:
    """What going back would put back, and what it would leave."""
    if ahead.unknown:
        return Group(Text(f"what going back would put back cannot be told: {ahead.unknown}", "yellow"))
    parts: list[Any] = []
    if ahead.point_of_no_return:
        said = "was passed, or may have been" if ahead.passed else "is not passed"
        parts.append(Text(f"The point of no return ({ahead.point_of_no_return}) {said}.", "bold"))
    if ahead.passed:
        parts.append(Text("An abort is refused here: what is done stays. The way out is on: relight resume."))
    else:
        back = ", ".join(ahead.would_undo) or "nothing"
        stays = f"; stays as it is: {', '.join(ahead.would_stay)}" if ahead.would_stay else ""
        parts.append(Text(f"Going back would put back: {back}{stays}."))
    return Group(*parts)


def _why(report: Report) -> list[Text]:
    said = [Text(f"why: {report.reason}", "red" if report.exit_code else "")] if report.reason else []
    if report.put_back_after_s is not None:
        said.append(Text(f"time to restore: everything was put back within {seconds(report.put_back_after_s)}"))
    return said


def _steps(report: Report) -> Table:
    table = Table(title="Steps", title_justify="left")
    for name in ("step", "outcome", "tries", "took", "what"):
        table.add_column(name, overflow="fold")
    for s in report.steps:
        outcome = s.outcome or "not run"
        style = STYLES.get(outcome, "")
        table.add_row(s.id, Text(outcome, style), str(s.attempts), seconds(s.duration_s), s.summary)
    return table


def _met(met: bool | None, told: str = "") -> Text:
    return Text(told or yes_no(met), {True: "green", False: "bold red", None: "dim"}[met])
