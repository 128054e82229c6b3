"""What the gates look at. Gathered before they are asked, so that they are pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from flows.engine.plan import Plan
from flows.intake.event import Event
from flows.intake.rules import STAGES, Gates, Loaded, Rule, Stage
from tasks.leases.protocol import Held

KINDS = ("alert", "probe", "replicas")
"""Kinds of evidence that can fail independently: an alert from outside, our own probes from several places, and what
the replicas say of their primary. Two alerts are one kind, be they from one monitor or from two."""


@dataclass(frozen=True)
class Sample:
    """One look at the system itself, by the entry checks of the run that is proposed.

    Attributes:
        failing: every entry check says that it failed. healthy: one says that there is nothing to fail over.
        kinds: kinds of evidence that say so, besides the alert.
        against: what speaks against it; not empty where signals disagree.
        summary: one line for people. facts: for the record.
        loss: why more would be lost than the objective allows, or why that cannot be told; empty where neither is so.
        failed, target: the sites, as the run would find them; empty where that cannot be told.
        target_answers: some database node of the target does, or there is none.
    """

    at: datetime
    failing: bool = False
    healthy: bool = False
    kinds: frozenset[str] = frozenset()
    against: tuple[str, ...] = ()
    summary: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    loss: str = ""
    failed: str = ""
    target: str = ""
    target_answers: bool = True
    took_s: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What looking again and again came to. ``failing``: how many of the last looks were failures in a row."""

    last: Sample
    failing: int = 0
    looks: int = 1

    def document(self) -> dict[str, Any]:
        """For the record."""
        one = self.last
        return {
            "at": one.at.isoformat(timespec="milliseconds"),
            "summary": one.summary,
            "kinds": sorted(one.kinds),
            "against": list(one.against),
            "failing_in_a_row": self.failing,
            "looks": self.looks,
            "took_s": round(one.took_s, 3),
            "facts": one.facts,
        }


@dataclass(frozen=True)
class Readiness:
    """The newest answer to "would this runbook work now?"; ``at`` None: it was never asked."""

    at: datetime | None = None
    ready: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is so, now.

    Attributes:
        plan: of the run that is proposed; None where its files are invalid (``broken`` says how).
        evidence: what was seen of the system itself; None while nothing was.
        held: the system's lease record, None where there never was one; alive: its holder may live.
        begun: when episodes of this very alert began lately, oldest first.
        firing_systems: systems with an alert that fires; fleet: how many systems there are.
        sites_firing: sites of this system that some alert names now.
        automatic: runs that were started by themselves in the last hour, over the fleet.
        references: of the rule's reference targets, which answered.
        blind: why the monitoring cannot be trusted to speak up; empty while it can.
        drilled_at: when a drill of the runbook succeeded last.
        regions: site -> region, of every site; empty where the system file does not say it.
        switch: the gating switch's state, as its file says it.
        firing: the episode still fires.
        maintenance: what relight itself is working on in this system, and until when; empty while it is not.
    """

    now: datetime
    plan: Plan | None = None
    broken: str = ""
    evidence: Evidence | None = None
    held: Held | None = None
    alive: bool = False
    cool_down_s: float = 3600.0
    begun: tuple[datetime, ...] = ()
    firing_systems: frozenset[str] = frozenset()
    fleet: int = 1
    sites_firing: frozenset[str] = frozenset()
    automatic: int = 0
    automatic_cap: int = 2
    references: dict[str, bool] = field(default_factory=dict)
    blind: str = ""
    drilled_at: datetime | None = None
    readiness: Readiness = Readiness()
    regions: dict[str, str] = field(default_factory=dict)
    switch: str = ""
    firing: bool = True
    maintenance: str = ""
    max_age_s: float = 900.0


@dataclass(frozen=True)
class Asked:
    """What each gate is given."""

    event: Event
    rule: Rule
    loaded: Loaded
    facts: Facts

    @property
    def gates(self) -> Gates:
        return self.loaded.triggers.gates

    @property
    def stage(self) -> Stage:
        """The rule's, no further than its system allows."""
        return min(self.rule.stage, self.loaded.triggers.stage, key=STAGES.index)

    @property
    def patient(self) -> bool:
        """Evidence may still come in: replicas need a moment to notice that a primary is gone."""
        patience = timedelta(seconds=self.gates.confirm.patience)
        return self.facts.now < self.event.received_at + patience
