"""Checks a runbook against a system and turns it into a plan: everything that can be known before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from flows.engine import yamlfile
from flows.engine.findings import Finding, InvalidFiles, nearest
from flows.engine.plan import Plan, PlannedStep
from flows.engine.runbook import LoadedRunbook, StepSpec, substituted
from flows.engine.system import ROLES, LoadedSystem, component_findings
from tasks import catalog
from tasks.contract import Action, ComponentParam, Mode, SiteParam, Undoable
from tasks.quantities import show_duration

MODES: tuple[Mode, Mode] = ("forced", "graceful")


@dataclass
class _Alone:
    """One pass over one runbook."""

    loaded: LoadedRunbook
    findings: list[Finding] = field(default_factory=list, kw_only=True)

    def fault(self, code: str, message: str, index: int, *rest: str | int, **more: str) -> None:
        self.findings.append(self.loaded.document.finding(code, message, ("steps", index, *rest), **more))

    @cached_property
    def ids(self) -> list[str]:
        return [s.id for s in self.loaded.runbook.steps]


@dataclass
class _Checked(_Alone):
    """Against a system."""

    target: LoadedSystem
    actions: dict[str, Action] = field(default_factory=dict, kw_only=True)


def plan(loaded: LoadedRunbook, target: LoadedSystem, mode: Mode) -> tuple[Plan, tuple[Finding, ...]]:
    """The plan of one mode, and the warnings. Raises InvalidFiles with every error of both modes."""
    plans, findings = check(loaded, target)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise InvalidFiles(errors)
    if mode not in plans:
        other = "graceful" if mode == "forced" else "forced"
        message = f"runbook {loaded.runbook.runbook} has no step for a {mode} run; it is {other} only"
        raise InvalidFiles([loaded.document.finding("no-such-mode", message)])
    return plans[mode], tuple(findings)


def check(loaded: LoadedRunbook, target: LoadedSystem) -> tuple[dict[Mode, Plan], list[Finding]]:
    """Every fault and warning, and the plan of each mode that has steps (empty when there are errors)."""
    work = _Checked(loaded, target)
    for index, step in enumerate(loaded.runbook.steps):
        _check_step(work, index, step)
    _check_needs(work)
    if work.findings:
        return {}, work.findings
    plans: dict[Mode, Plan] = {}
    for mode in MODES:
        built = _build(work, mode)
        if built.steps:
            plans[mode] = built
            if mode == MODES[0] or _differs(work):
                _check_plan(work, built)
    work.findings = list(dict.fromkeys(work.findings))
    return plans, work.findings


def alone(loaded: LoadedRunbook) -> list[Finding]:
    """Every fault that needs no system to be told: ids, actions, who needs whom."""
    work = _Alone(loaded)
    for index, step in enumerate(loaded.runbook.steps):
        _action_of(work, index, step)
    _check_needs(work)
    return work.findings


def _action_of(work: _Alone, index: int, step: StepSpec) -> type[Action] | None:
    if step.id in work.ids[:index]:
        work.fault("duplicate-id", f"step id {step.id!r} is used twice", index, "id")
    known = catalog.actions()
    if step.action not in known:
        work.fault(
            "unknown-action",
            f"unknown action {step.action!r}",
            index,
            "action",
            expected="an action that `relight actions` lists",
            nearest=nearest(step.action, known),
        )
    return known.get(step.action)


def _check_step(work: _Checked, index: int, step: StepSpec) -> None:
    cls = _action_of(work, index, step)
    if cls is None:
        return
    action = _parameters(work, index, step, cls)
    if action is None:
        return
    work.actions[step.id] = action
    least = action.least_timeout_s()
    if step.timeout < least:
        work.fault(
            "timeout-too-short",
            f"{step.action} cannot end within {show_duration(step.timeout)} with these parameters",
            index,
            "timeout",
            expected=f"at least {show_duration(least)}",
        )
    if step.timeout <= 0:
        work.fault("timeout-too-short", "a timeout of 0 lets nothing happen", index, "timeout", expected="more than 0s")
    if action.irreversible != step.irreversible:
        say = "cannot be reversed: say irreversible: true, so that everyone sees the point of no return"
        work.fault("irreversible", f"{step.action} {say if action.irreversible else 'is not irreversible'}", index)
    objectives = target_objectives(work.target)
    if step.restores is not None and step.restores not in objectives:
        work.fault(
            "unknown-objective",
            f"no objective for component {step.restores!r}",
            index,
            "restores",
            expected="one of " + ", ".join(objectives) if objectives else "objectives in the system file",
            nearest=nearest(step.restores, objectives),
        )


def target_objectives(target: LoadedSystem) -> list[str]:
    """Components that have an objective."""
    return list(target.system.objectives)


SECTIONS = ("auto_scaling", "database", "scaling")
"""Sections of the system file whose values a step may use: ``${auto_scaling.min_instances}``."""


def _variables(work: _Checked, step: StepSpec) -> dict[str, Any]:
    """The runbook's own, and the sections' where the step asks for one of those: written once, in the system file."""
    found: dict[str, Any] = dict(work.loaded.runbook.vars)
    data = work.target.document.data
    if "${" in str(step.with_) and any(f"${{{s}." in str(step.with_) for s in SECTIONS):
        for section in SECTIONS:
            found |= _flat(section, data.get(section))
    return found


def _flat(at: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(f"{at}.{key}", inner).items()}
    return {at: value} if isinstance(value, str | int | float | bool) else {}


def _parameters(work: _Checked, index: int, step: StepSpec, cls: type[Action]) -> Action | None:
    where: yamlfile.Where = ("steps", index, "with")
    document = work.loaded.document
    try:
        data = substituted(document, step.with_, _variables(work, step), where)
        action = cls.model_validate(data)
    except InvalidFiles as e:
        work.findings.extend(e.findings)
        return None
    except ValidationError as e:
        work.findings.extend(yamlfile.model_findings(document, e, cls, where))
        return None
    system = work.target.system
    sites = (*ROLES, *system.sites)
    for name, info in cls.model_fields.items():
        value = getattr(action, name)
        at = (*where, info.alias or name)
        for mark in info.metadata:
            if isinstance(mark, SiteParam):
                wrong = [v for v in (value if isinstance(value, tuple | list) else (value,)) if v not in (None, *sites)]
                for site in wrong:
                    work.fault(
                        "unknown-site",
                        f"unknown site {site!r}",
                        index,
                        *at[2:],
                        expected="one of " + ", ".join(sites),
                        nearest=nearest(site, sites),
                    )
            elif isinstance(mark, ComponentParam) and value is not None:
                work.findings.extend(component_findings(document, system, str(value), mark.domain, at))
    return action


def _check_needs(work: _Alone) -> None:
    steps = work.loaded.runbook.steps
    modes = {s.id: s.when for s in steps}
    for index, step in enumerate(steps):
        for position, need in enumerate(step.needs or ()):
            at = (index, "needs", position)
            if need not in work.ids:
                work.fault(
                    "unknown-step",
                    f"no step {need!r}",
                    *at,
                    expected="the id of another step",
                    nearest=nearest(need, work.ids),
                )
            elif step.when and modes[need] and modes[need] != step.when:
                work.fault(
                    "unreachable-step",
                    f"step {step.id!r} runs only when {step.when}, and needs {need!r}, which runs only when"
                    f" {modes[need]}: nothing can reach it",
                    *at,
                )
    if work.findings:
        return
    for mode in MODES:
        try:
            TopologicalSorter(_needs_in(work, mode)).prepare()
        except CycleError as e:
            cycle = list(reversed(e.args[1]))
            work.fault(
                "cycle", "steps need each other in a circle: " + " -> ".join(cycle), work.ids.index(cycle[0]), "needs"
            )
            return


def _needs_in(work: _Alone, mode: Mode) -> dict[str, tuple[str, ...]]:
    """What each step of ``mode`` needs. The default is the step above among those of the mode; an explicit need
    that the mode leaves out passes on its own needs.
    """
    specs = {s.id: s for s in work.loaded.runbook.steps}
    above: dict[str, tuple[str, ...]] = {}
    last: tuple[str, ...] = ()
    for spec in specs.values():
        above[spec.id] = last
        if spec.when in (None, mode):
            last = (spec.id,)

    def bridged(needs: tuple[str, ...], seen: frozenset[str]) -> list[str]:
        found: list[str] = []
        for need in needs:
            spec = specs[need]
            if spec.when in (None, mode) or need in seen:
                inner = [need]
            else:
                inner = bridged(above[need] if spec.needs is None else spec.needs, seen | {need})
            found.extend(n for n in inner if n not in found)
        return found

    return {
        s.id: tuple(bridged(s.needs, frozenset((s.id,)))) if s.needs is not None else above[s.id]
        for s in specs.values()
        if s.when in (None, mode)
    }


def _build(work: _Checked, mode: Mode) -> Plan:
    """Steps of ``mode`` in file order, each moved behind what it needs."""
    needs = _needs_in(work, mode)
    specs = {s.id: s for s in work.loaded.runbook.steps}
    ordered: dict[str, PlannedStep] = {}
    waiting = list(needs)
    while waiting:
        step_id = next(i for i in waiting if all(n in ordered for n in needs[i]))
        waiting.remove(step_id)
        spec = specs[step_id]
        ordered[step_id] = PlannedStep(
            id=step_id,
            action=work.actions[step_id],
            summary=spec.summary,
            with_=json.loads(work.actions[step_id].model_dump_json(by_alias=True)),
            needs=needs[step_id],
            timeout_s=spec.timeout,
            attempts=spec.attempts,
            backoff_s=spec.backoff,
            on_failure=spec.on_failure_in(mode),
            irreversible=spec.irreversible,
            restores=spec.restores,
        )
    return Plan(work.loaded.runbook.runbook, work.target.system.system, mode, tuple(ordered.values()))


def _differs(work: _Checked) -> bool:
    """Do the modes of this runbook differ at all?"""
    return any(s.when for s in work.loaded.runbook.steps)


def _in_a(work: _Checked, mode: Mode) -> str:
    """`` of a forced run``, where that makes a difference."""
    return f" of a {mode} run" if _differs(work) else ""


def _check_plan(work: _Checked, built: Plan) -> None:
    restoring: dict[str, str] = {}
    for step in built.steps:
        index = work.ids.index(step.id)
        if step.restores and step.restores in restoring:
            message = f"step {restoring[step.restores]!r} already restores {step.restores!r}; one step stops its clock"
            work.fault("restored-twice", message, index, "restores")
        if step.restores:
            restoring.setdefault(step.restores, step.id)
        before = {built.by_id[a].action.name for a in built.ancestors(step.id)}
        if step.action.after and not before.intersection(step.action.after):
            first = " or ".join(step.action.after)
            message = f"{step.action.name} must come after {first} on the path{_in_a(work, built.mode)}"
            work.fault("unsafe-order", message, index, "action")
        if step.on_failure == "undo" and not any(
            isinstance(built.by_id[a].action, Undoable) for a in (step.id, *built.ancestors(step.id))
        ):
            work.fault("nothing-to-undo", "on_failure: undo, but nothing up to here can be undone", index, "on_failure")
        after = [s.id for s in built.steps if step.id in built.ancestors(s.id)]
        later = [s.id for s in built.steps[built.steps.index(step) + 1 :]]
        if step.on_failure == "continue" and later and set(later) == set(after):
            message = "on_failure: continue, but every later step needs this one, so nothing would continue"
            work.fault("continue-to-nothing", message, index, "on_failure", severity="warning")
    _check_objectives(work, built, restoring)


def _check_objectives(work: _Checked, built: Plan, restoring: dict[str, str]) -> None:
    for component, objective in work.target.system.objectives.items():
        if objective.rto is None or component not in restoring:
            continue
        step_id = restoring[component]
        worst = built.worst_end_s[step_id]
        if worst > objective.rto:
            path = ", ".join(f"{s} {show_duration(built.by_id[s].worst_case_s)}" for s in built.critical_path(step_id))
            message = (
                f"{component} may take {show_duration(worst)} in the worst case{_in_a(work, built.mode)}, and its RTO"
                f" is {show_duration(objective.rto)}; the critical path is {path}"
            )
            work.fault("objective-at-risk", message, work.ids.index(step_id), "restores", severity="warning")
