"""What readiness was found to be over time, one JSON object a line; and what was proven, and since when it is not."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from flows.engine import journal, launch, places, report, turns
from flows.engine.findings import InvalidFiles
from flows.engine.system import LoadedSystem
from tasks.contract import Mode
from tasks.errors import RelightError
from tasks.readiness import Finding, texts

KEPT = 2000
"""Records: at one each 30 min, 41 days."""
RUNS = 200
Trend = Literal["first", "same", "better", "worse", "other"]


@dataclass(frozen=True)
class Looked:
    """One record. ``scores``: objective -> 0..100. ``resources``, ``versions``: digests of what it was found with."""

    at: str
    system: str
    mode: Mode
    runbooks: tuple[str, ...]
    ready: bool = False
    scores: Mapping[str, int] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    resources: str = ""
    versions: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


def file(system: str) -> Path:
    """Where it is kept."""
    return places.state_home() / "systems" / system / "readiness.jsonl"


def read(system: str) -> list[Looked]:
    """Oldest first. A line that is torn or of another version is left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in file(system).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                known = json.loads(line)
                tuples = {k: tuple(known[k]) for k in ("runbooks", "reasons", "warnings", "versions") if k in known}
                found.append(Looked(**{**known, **tuples}))
    return found


def add(looked: Looked) -> Looked | None:
    """Keep it; what was before it with the same question. Raises RelightError."""
    path = file(looked.system)
    path.parent.mkdir(parents=True, exist_ok=True)
    with turns.turn(path.with_suffix(".lock")):
        before = read(looked.system)
        lines = [json.dumps(asdict(one), sort_keys=True) for one in [*before[-KEPT + 1 :], looked]]
        turns.write(path, "\n".join(lines) + "\n")
    alike = [one for one in before if (one.runbooks, one.mode) == (looked.runbooks, looked.mode)]
    return alike[-1] if alike else None


def trend(before: Looked | None, now: Looked) -> Trend:
    """By the lowest score, and by what is against it."""
    if before is None:
        return "first"
    was, is_ = (min(o.scores.values(), default=100) for o in (before, now))
    if before.ready != now.ready:
        return "better" if now.ready else "worse"
    if was != is_:
        return "better" if is_ > was else "worse"
    return "same" if set(before.reasons) == set(now.reasons) else "other"


def resources(loaded: LoadedSystem) -> str:
    """Digest of every setting with its variables resolved; references to secrets stay references."""
    pairs = [(name, *where, text) for name, settings in loaded.settings.items() for where, text in texts(settings)]
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Drill:
    """The newest drill of a runbook that succeeded."""

    run_id: str
    at: str
    digest: str
    mode: Mode
    vars: Mapping[str, str]
    relight: str


def last_drill(system: str, runbook: str) -> Drill | None:
    """None where there never was one, as far as this state folder knows."""
    runs = sorted((places.state_home() / "runs").glob(f"*-{runbook}-*/journal.jsonl"), reverse=True)[:RUNS]
    for path in runs:
        with contextlib.suppress(RelightError, KeyError, ValueError):
            head = next(journal.of_type(journal.read(path).records, "run_started"), None)
            if head is None:  # it begins just now
                continue
            if head["system"] != system or not str(head["trigger"]).startswith("drill"):
                continue
            result = report.build(path)
            if result.verdict == "succeeded":
                return Drill(
                    path.parent.name, head["at"], head["plan"]["digest"], head["mode"], head.get("vars", {}),
                    head["engine"]["relight"],
                )  # fmt: skip
    return None


def proven(name: str, runbook: str, looked: Looked) -> Finding:
    """Whether the newest drill still proves something, or since when it does not and why."""
    drill = last_drill(looked.system, runbook)
    how = f"relight drill, with runbook {runbook}"
    if drill is None:
        return Finding("proof", "warning", f"{runbook} was never proven by a drill that succeeded", how)
    changed = [*_changed(name, runbook, drill)]
    since, why = _moved(looked, drill.at)
    changed += why
    if not changed:
        return Finding("proof", "ok", f"{runbook} was proven by {drill.run_id}; nothing changed since")
    says = f"{runbook} is unproven since {since or drill.at}: {', '.join(changed)} changed after {drill.run_id}"
    return Finding("proof", "warning", says, how)


def _changed(name: str, runbook: str, drill: Drill) -> list[str]:
    try:
        now = launch.prepare(name, runbook, drill.mode, drill.vars).plan.digest
    except (RelightError, InvalidFiles):
        now = ""
    found = [] if now == drill.digest else ["its plan"]
    return found if version("relight") == drill.relight else [*found, f"relight ({drill.relight} then)"]


def _moved(looked: Looked, drilled_at: str) -> tuple[str, list[str]]:
    """(moment of the first look that found another, what) against the look that was nearest to the drill."""
    known = [*read(looked.system), looked]
    at = datetime.fromisoformat(drilled_at)
    before = [o for o in known if datetime.fromisoformat(o.at) <= at]
    then = before[-1] if before else known[0]
    what = [
        text
        for text, differ in (
            ("what it acts on", then.resources != looked.resources),
            ("versions", bool(then.versions and looked.versions) and then.versions != looked.versions),
        )
        if differ
    ]
    later: Sequence[Any] = [o for o in known if datetime.fromisoformat(o.at) > at]
    first = next((o.at for o in later if o.resources != then.resources or o.versions != then.versions), "")
    return (first if what else "", what)
