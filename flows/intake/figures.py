"""The receiver's figures for Prometheus, beside the answers that ``receiver`` counts."""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Count
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.engine import places, report
from flows.intake.decision import Decision
from flows.intake.history import History
from flows.intake.rules import Loaded
from tasks.errors import RelightError

REPORTS_S = 5.0
"""Reports are read again at most so often."""


class Figures(Collector):
    """Decisions by outcome and by gate; and, looked up when asked: events, watchdogs, runs, objectives."""

    def __init__(self, registry: CollectorRegistry, history: History, loaded: list[Loaded]) -> None:
        self.history, self.loaded = history, loaded
        self._decisions = Counter(
            "relight_decisions", "Decisions about events.", ("rule", "outcome"), registry=registry
        )
        self._gates = Counter("relight_gates", "Answers of the gates.", ("gate", "answer"), registry=registry)
        self._reports: dict[Path, tuple[int, report.Report]] = {}
        self._read_at = float("-inf")
        registry.register(self)

    def decided(self, decision: Decision) -> None:
        """Count one."""
        self._decisions.labels(decision.rule, decision.outcome).inc()
        for said in decision.said:
            self._gates.labels(said.gate, said.answer).inc()

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        events = GaugeMetricFamily("relight_events", "Events in the inbox.", labels=["outcome"])
        for outcome, count in {"open": 0, **self.history.counts()}.items():
            events.add_metric([outcome], count)
        yield events
        age = GaugeMetricFamily(
            "relight_watchdog_age_seconds", "Since the watchdog alert came last; infinite: never.", labels=["endpoint"]
        )
        now = datetime.now(UTC)
        for name, settings in {n: s for one in self.loaded for n, s in one.settings.items() if s.watchdog}.items():
            seen = self.history.last_seen(name, settings.watchdog)
            age.add_metric([name], (now - seen).total_seconds() if seen else float("inf"))
        yield age
        yield from self._runs()

    def _runs(self) -> Iterator[Metric]:
        runs = GaugeMetricFamily("relight_runs", "Runs on this machine.", labels=["system", "runbook", "verdict"])
        ratio = GaugeMetricFamily(
            "relight_objective_ratio",
            "Recovery time over its objective, of the newest run; above 1: missed.",
            labels=["system", "runbook", "component"],
        )
        found = self._read()
        for labels, count in sorted(Count((r.system, r.runbook, r.verdict) for r in found).items()):
            runs.add_metric(list(labels), count)
        for one in {(r.system, r.runbook): r for r in sorted(found, key=lambda r: r.started_at)}.values():
            for component, result in one.objectives.items():
                if result.rto_s and result.actual_s is not None:
                    ratio.add_metric([one.system, one.runbook, component], result.actual_s / result.rto_s)
        yield runs
        yield ratio

    def _read(self) -> list[report.Report]:
        if time.monotonic() - self._read_at > REPORTS_S:
            self._read_at = time.monotonic()
            for file in (places.state_home() / "runs").glob("*/report.json"):
                with contextlib.suppress(OSError, ValueError, RelightError):
                    changed = file.stat().st_mtime_ns
                    if self._reports.get(file, (0,))[0] != changed:
                        text = file.read_text(encoding="utf-8")
                        self._reports[file] = (changed, report.Report.model_validate_json(text))
        return [r for _, r in self._reports.values()]
