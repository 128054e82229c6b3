"""Would the runbooks of a system work now? Every step of each observed against the live system, and the checks of
every domain asked; nothing is changed. Here it is only gathered and weighed: what to check is said in ``tasks``.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from flows.engine import audit, launch, notify, ownneeds, places, preview, readyfile, readyhistory, roles
from flows.engine.attempt import CutOff, bounded
from flows.engine.findings import InvalidFiles
from flows.engine.launch import Ground, Request
from flows.engine.readyhistory import Looked, Trend
from flows.engine.roles import Wish
from flows.engine.system import LoadedSystem, load
from tasks import catalog
from tasks.contract import ComponentParam, Mode
from tasks.errors import RelightError
from tasks.readiness import Asked, Check, Finding, Part
from tasks.secrets import redact

CHECK_S = 20.0
AT_ONCE = 3
"""Checks at a time: more would starve each other's probes."""
WORTH = {"ok": 1.0, "warning": 0.75, "unknown": 0.5, "failing": 0.0}

Answer = Literal["true already", "would change", "cannot be told"]


@dataclass(frozen=True)
class Row:
    """What is so of one step now. ``step`` is empty where the runbook as a whole could not be looked at."""

    runbook: str
    step: str
    action: str
    now: Answer
    says: str
    against: bool = False
    """It is a reason why the runbook would not work."""


@dataclass(frozen=True)
class Score:
    """Of one objective: 0..100, and what takes from it, worst first."""

    objective: str
    points: int
    against: tuple[Finding, ...]


@dataclass(frozen=True)
class Readiness:
    """Of one system. ``reasons``: why it would not work, each with its runbook or component; none: it is ready."""

    system: str
    rows: tuple[Row, ...]
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    scores: tuple[Score, ...] = ()
    calls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``runbook/step`` -> whom it calls, and in which site that is."""
    trend: Trend = "first"
    looked: Looked | None = None

    @property
    def ready(self) -> bool:
        return not self.reasons

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level in ("warning", "unknown"))


@dataclass
class _Book:
    """What was found out about one runbook."""

    name: str
    reasons: list[str] = field(default_factory=list)
    uses: set[str] = field(default_factory=set)
    """Components that its steps name."""
    restores: dict[str, set[str]] = field(default_factory=dict)
    """objective -> components of the steps on the way to it."""
    digest: str = ""


def runbooks_of(system: str) -> list[str]:
    """The runbooks in a system's folder, by name. Raises BadInput."""
    return sorted(p.stem for p in places.system_folder(system).glob("*.yaml") if p.stem not in places.NO_RUNBOOKS)


async def check(
    system: str, runbooks: Sequence[str] = (), mode: Mode = "graceful", variables: Mapping[str, str] | None = None
) -> Readiness:
    """Look, one runbook after the other; all of the system where none is named. Raises BadInput for no such system.

    Keeps a record (``readyhistory``), what gate 12 reads (``readyfile``), and tells people where the answer changed.
    """
    names = list(runbooks or runbooks_of(system))
    rows: list[Row] = []
    books: list[_Book] = []
    findings: list[Finding] = []
    calls: dict[str, tuple[str, ...]] = {}
    loaded: LoadedSystem | None = None
    for name in names:
        book = _Book(name)
        books.append(book)
        request = Request(system, name, mode, Wish(), vars=variables or {})
        try:
            ready, _, previews = await preview.observe(request)
        except (RelightError, InvalidFiles) as e:
            says = redact(str(e))
            rows.append(Row(name, "", "", "cannot be told", says, against=True))
            book.reasons.append(says)
            continue
        loaded = ready.loaded
        against = [redact(reason) for reason in preview.unready(previews)]
        book.reasons += against
        rows.extend(_row(name, p, against, preview.too_early(p, previews)) for p in previews)
        _learn(book, ready)
        if book.restores:
            heard, found = await _audited(replace(request, mode="forced"), loaded)
            calls.update({f"{name}/{step}": whom for step, whom in heard.items()})
            findings += [replace(f, says=f"{name}: {f.says}") for f in found]
    loaded = loaded or _loaded(system)
    if loaded is not None:
        findings += await _checked(loaded, books)
    return _weighed(system, mode, loaded, books, Readiness(system, tuple(rows), (), tuple(findings), calls=calls))


def _loaded(system: str) -> LoadedSystem | None:
    try:
        return load(places.system_file(system))
    except InvalidFiles:
        return None  # every runbook said so already


def _learn(book: _Book, ready: launch.Ready) -> None:
    def named(step: str) -> set[str]:
        action = ready.plan.by_id[step].action
        fields = type(action).model_fields.items()
        marked = (getattr(action, n) for n, info in fields if any(isinstance(m, ComponentParam) for m in info.metadata))
        return {str(c) for c in marked if c is not None}

    book.digest = ready.plan.digest
    for step in ready.plan.steps:
        book.uses |= named(step.id)
        if step.restores:
            way = {step.id, *ready.plan.ancestors(step.id)}
            book.restores.setdefault(step.restores, set()).update(*(named(s) for s in way))


async def _audited(request: Request, loaded: LoadedSystem) -> tuple[Mapping[str, tuple[str, ...]], list[Finding]]:
    try:
        found = await audit.audit(request, loaded)
    except (RelightError, InvalidFiles) as e:
        return {}, [Finding("dependencies", "unknown", redact(str(e)))]
    return found.calls, list(found.findings)


async def _checked(loaded: LoadedSystem, books: Sequence[_Book]) -> list[Finding]:
    """The engine's own needs, and every check of every domain for every component."""
    ground = Ground()
    clock = ground.clock()
    components = ground.components(loaded, clock)
    try:
        components.build()
        found = await ownneeds.check(loaded, components, ground.network)
        if not loaded.system.components:
            return found
        try:
            by_name = (await roles.resolve(loaded.system, components, Wish())).by_name
        except RelightError as e:
            if not any(b.uses for b in books):
                return found
            return [*found, Finding("roles", "failing", f"which site is active cannot be told: {redact(str(e))}")]
        objectives = loaded.system.objectives.items()
        asked = Asked(
            by_name["active"],
            by_name["target"],
            clock,
            ground.network,
            {n: o.rto for n, o in objectives if o.rto is not None},
            {n: o.rpo for n, o in objectives if o.rpo is not None},
        )
        parts = [Part(n, components(n), s) for n, s in loaded.settings.items()]
        turn = asyncio.Semaphore(AT_ONCE)
        answers = await asyncio.gather(*(_one(turn, c, asked, p) for p in parts for c in catalog.checks()))
        return [*found, *(f for each in answers for f in each)]
    finally:
        await components.aclose()


async def _one(turn: asyncio.Semaphore, check: Check, asked: Asked, part: Part) -> list[Finding]:
    async with turn:
        what = check.__name__.replace("_", "-")
        try:
            found = await bounded(check(asked, part), CHECK_S)
        except CutOff:
            return [part.found(what, "unknown", f"no answer within {CHECK_S:g} s")]
        except RelightError as e:
            return [part.found(what, "unknown", redact(str(e)), "look why; what cannot be told is not ready")]
        return [replace(f, says=redact(f.says)) for f in found]


def _row(runbook: str, p: preview.Preview, against: Sequence[str], after: str = "") -> Row:
    bad = any(reason.startswith(f"{p.step.id}: ") for reason in against)
    if p.seen is None:
        says = f"not before {after}: {p.error}" if after else str(p.error)
        return Row(runbook, p.step.id, p.step.action.name, "cannot be told", redact(says), bad)
    now: Answer = "true already" if p.seen.holds else "would change"
    return Row(runbook, p.step.id, p.step.action.name, now, redact(p.seen.summary), bad)


def _weighed(name: str, mode: Mode, loaded: LoadedSystem | None, books: Sequence[_Book], found: Readiness) -> Readiness:
    now = datetime.now(UTC)
    system = loaded.system.system if loaded else name
    looked = Looked(
        now.isoformat(timespec="seconds"),
        system,
        mode,
        tuple(b.name for b in books),
        resources=readyhistory.resources(loaded) if loaded else "",
        versions=tuple(sorted({f.version for f in found.findings if f.version})),
        digests={b.name: b.digest for b in books},
    )
    proofs = [readyhistory.proven(name, b.name, looked) for b in books if b.restores]
    findings = (*found.findings, *proofs)
    failing = [f for f in findings if f.level == "failing"]
    reasons = [f"{b.name}: {r}" for b in books for r in b.reasons]
    reasons += [f"{f.component or f.check}: {f.says}" for f in failing]
    for book in books:
        about = [f for f in failing if not f.component or f.component in book.uses or not book.uses]
        told = [*book.reasons, *(f"{f.component or f.check}: {f.says}" for f in about)]
        readyfile.note(system, book.name, mode, told, now)
    scores = _scores(loaded, books, found.rows, findings)
    looked = replace(
        looked,
        ready=not reasons,
        reasons=tuple(reasons),
        scores={s.objective: s.points for s in scores},
        warnings=tuple(f"{f.component or f.check}: {f.says}" for f in findings if f.level in ("warning", "unknown")),
    )
    before = readyhistory.add(looked)
    trend = readyhistory.trend(before, looked)
    if _news(before, looked):
        _tell(name, looked)
    return replace(found, reasons=tuple(reasons), findings=findings, scores=scores, trend=trend, looked=looked)


def _news(before: Looked | None, now: Looked) -> bool:
    """A first answer that is bad, one that turned, or other checks that fail; not other words for the same."""

    def heads(one: Looked) -> set[str]:
        return {r.partition(": ")[0] + r.partition(": ")[2].partition(" ")[0] for r in one.reasons}

    return not now.ready if before is None else (before.ready != now.ready or heads(before) != heads(now))


def _tell(name: str, looked: Looked) -> None:
    title = f"{looked.system} is {'ready again' if looked.ready else 'not ready'} for {', '.join(looked.runbooks)}"
    text = "\n".join(looked.reasons) or "Nothing is against it."
    notify.alert(places.system_file(name).resolve(), title, text).join(notify.SPAWN_S)


def _scores(
    loaded: LoadedSystem | None, books: Sequence[_Book], rows: Sequence[Row], findings: Sequence[Finding]
) -> tuple[Score, ...]:
    """Of each objective: over all that its restoration needs, the share that is well."""
    if loaded is None:
        return ()
    on_the_way: dict[str, set[str]] = defaultdict(set)
    for book in books:
        for objective, parts in book.restores.items():
            on_the_way[objective] |= parts
    found = []
    for objective in loaded.system.objectives:
        needs = on_the_way[objective] | {objective}
        mine = [f for f in findings if not f.component or f.component in needs]
        restoring = {b.name for b in books if objective in b.restores}
        steps = [r for r in rows if r.runbook in restoring]
        if not mine and not steps:
            continue
        worth = sum(WORTH[f.level] for f in mine) + sum(0.0 if r.against else 1.0 for r in steps)
        bad = sorted((f for f in mine if f.level != "ok"), key=lambda f: WORTH[f.level])
        # one thing that would not work is no 98 %: never rounded up to well
        points = int(100 * worth / (len(mine) + len(steps)))
        if any(f.level == "failing" for f in mine) or any(r.against for r in steps):
            points = min(points, 49)
        found.append(Score(objective, points, tuple(bad)))
    return tuple(found)
