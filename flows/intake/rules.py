"""Trigger rules: which alert proposes which run, and what must hold before it starts. ``triggers.yaml`` of a system."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from flows.engine import places, yamlfile
from flows.engine.findings import Finding, InvalidFiles, nearest
from flows.engine.thresholds import Strict
from flows.engine.yamlfile import Document
from flows.intake import source as sources
from flows.intake.event import Event
from flows.intake.source import SourceSettings
from tasks.contract import Mode
from tasks.quantities import Duration

FILE = "triggers.yaml"
Stage = Literal["off", "observe", "approve", "auto"]
STAGES: tuple[Stage, ...] = ("off", "observe", "approve", "auto")
"""Each lets more happen by itself than the one before."""


class Window(Strict):
    """Planned work: no automatic run in it. It has an end."""

    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    why: str

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        for one in (self.start, self.end):
            if one.tzinfo is None:
                raise ValueError("a window's times need a time zone: write them with Z or +01:00")
        if self.end <= self.start:
            raise ValueError("a window ends after it begins")
        return self


class Confirm(Strict):
    """How long, and how often in a row, a failure must be seen before a run may start by itself.

    The run asks once more: its own entry check comes right before the first step that changes anything.

    Attributes:
        span: how long the alert must have been firing (key ``for``).
        probes: looks of our own, in a row, that must see the failure; every: the pause between two of them.
        patience: how long evidence that is missing, or that disagrees, is waited for before a person is asked.
    """

    span: Duration = Field(default=30.0, alias="for", ge=0)
    probes: int = Field(default=3, ge=0, le=100)
    every: Duration = Field(default=2.0, gt=0)
    patience: Duration = Field(default=10.0, ge=0)


class Flap(Strict):
    """More episodes than this in that time need a person, until it was quiet for as long."""

    episodes: int = Field(default=2, ge=1)
    within: Duration = Field(default=1800.0, gt=0)


class Fleet(Strict):
    """When more fires at once than this, the monitor is suspected and not the systems; and a cap over all of them.

    Attributes:
        systems: more systems than this firing within ``within``.
        share: or a larger share of all systems than this, where at least two fire.
        runs: automatic runs in an hour, over all systems.
    """

    systems: int = Field(default=3, ge=1)
    share: float = Field(default=0.3, gt=0, le=1)
    within: Duration = Field(default=300.0, gt=0)
    runs: int = Field(default=2, ge=0)


class Gates(Strict):
    """The numbers of the gate chain, with their defaults.

    Attributes:
        quorum: kinds of evidence that must say that it failed: the alert, probes from two places, the replicas.
        references: ``host:port`` of things outside; two of three must answer, or this engine may be the one cut off.
        cool_down: after the last run in either direction; the longer of this and the system's own counts.
        approve_within: an approval that does not come in this time is *not approved*.
        ready_within: the runbook must have been found ready so lately (``relight ready``); 0: it is not asked.
        drill_within: a drill of this runbook must have succeeded so lately; 0: none is asked for.
        cross_region: a move to another region needs a person (``ask``), or does not (``allow``).
        least_on: sites that must be able to serve once the run is over.
        switch: a file that must say ``on``; empty: there is none.
    """

    confirm: Confirm = Confirm()
    quorum: int = Field(default=2, ge=1, le=3)
    flap: Flap = Flap()
    fleet: Fleet = Fleet()
    cool_down: Duration = Field(default=3600.0, ge=0)
    approve_within: Duration = Field(default=900.0, gt=0)
    references: tuple[str, ...] = ()
    ready_within: Duration = Field(default=86400.0, ge=0)
    drill_within: Duration = Field(default=90 * 86400.0, ge=0)
    cross_region: Literal["ask", "allow"] = "ask"
    least_on: int = Field(default=1, ge=0)
    switch: str = ""

    @property
    def looks(self) -> bool:
        """Anything is asked of the system itself. With ``quorum: 1`` and ``probes: 0`` an alert is enough."""
        return self.quorum > 1 or self.confirm.probes > 0


class Rule(Strict):
    """Which alerts propose which run.

    Attributes:
        match: label -> value, or several, or ``~REGEX`` for the whole value. All must match.
        site_label: the label that names the failed site; empty: found out by looking.
        stage: ``off``; ``observe``: note what would be done; ``approve``: a person says yes; ``auto``.
    """

    id: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")
    summary: str = ""
    sources: tuple[str, ...] = Field(alias="from", min_length=1)
    match: dict[str, str | tuple[str, ...]] = Field(min_length=1)
    site_label: str = ""
    run: str = "failover"
    mode: Mode = "forced"
    stage: Stage = "off"

    @field_validator("match")
    @classmethod
    def _expressions(cls, match: dict[str, Any]) -> dict[str, Any]:
        for wanted in match.values():
            for one in (wanted,) if isinstance(wanted, str) else wanted:
                if one.startswith("~"):
                    try:
                        re.compile(one[1:])
                    except re.error as e:
                        raise ValueError(f"{one!r} is no regular expression: {e}") from None
        return match

    def matches(self, event: Event) -> bool:
        """Is it about this event? Only the labels are looked at, not whether it fires."""
        return event.endpoint in self.sources and all(
            _fits(event.labels.get(label, ""), wanted) for label, wanted in self.match.items()
        )


class Triggers(Strict):
    """``triggers.yaml``, beside the system file.

    Attributes:
        stage: no rule of this system goes further; ``off`` switches all of them off at once.
    """

    stage: Stage = "auto"
    sources: dict[str, dict[str, Any]] = Field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    gates: Gates = Gates()
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A system's triggers, checked. ``system``: its name, or folder, as given."""

    system: str
    folder: Path
    triggers: Triggers
    settings: dict[str, SourceSettings]


def load(folder: Path) -> Loaded | None:
    """The triggers of the system in ``folder``; None where it has none. Raises InvalidFiles."""
    file = folder / FILE
    if not file.is_file():
        return None
    document = yamlfile.read(file)
    triggers = yamlfile.validated(document, Triggers)
    findings: list[Finding] = []
    settings: dict[str, SourceSettings] = {}
    known = sources.known()
    for name, given in triggers.sources.items():
        where = ("sources", name)
        kind = str(given.get("source", ""))
        if kind not in known:
            findings.append(_unknown(document, kind, (*where, "source"), tuple(known), "source"))
            continue
        try:
            settings[name] = known[kind].Settings.model_validate(given)
        except ValidationError as e:
            findings += yamlfile.model_findings(document, e, known[kind].Settings, where)
    for number, rule in enumerate(triggers.rules):
        for endpoint in rule.sources:
            if endpoint not in triggers.sources:
                findings.append(
                    _unknown(document, endpoint, ("rules", number, "from"), tuple(triggers.sources), "endpoint")
                )
        if not (folder / f"{rule.run}.yaml").is_file():
            books = tuple(p.stem for p in folder.glob("*.yaml") if p.name not in ("system.yaml", FILE))
            findings.append(_unknown(document, rule.run, ("rules", number, "run"), books, "runbook"))
    if any(f.severity == "error" for f in findings):
        raise InvalidFiles(tuple(findings))
    return Loaded(folder.name, folder, triggers, settings)


def check(file: Path) -> list[Finding]:
    """For ``relight validate``. Raises InvalidFiles."""
    load(file.parent)
    return []


def load_all(systems: tuple[str, ...] = ()) -> list[Loaded]:
    """The triggers of the named systems, or of every one below ``./runbooks`` and the shipped ones."""
    if systems:
        folders = [places.system_folder(name) for name in systems]
    else:
        bases = [Path.cwd() / "runbooks", places.data("runbooks")]
        folders = list({f.resolve(): f for b in bases if b.is_dir() for f in (p.parent for p in b.glob(f"*/{FILE}"))})
    return [found for folder in sorted(folders) if (found := load(folder)) is not None]


def _unknown(document: Document, asked: str, where: yamlfile.Where, known: tuple[str, ...], what: str) -> Finding:
    near = nearest(asked, known)
    return document.finding(
        f"unknown-{what}", f"no {what} {asked!r}", where, expected=", ".join(sorted(known)), nearest=near
    )


def _fits(value: str, wanted: str | tuple[str, ...]) -> bool:
    for one in (wanted,) if isinstance(wanted, str) else wanted:
        if (one.startswith("~") and re.fullmatch(one[1:], value)) or one == value:
            return True
    return False
