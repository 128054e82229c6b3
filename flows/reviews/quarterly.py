"""The quarterly scaling strategy review: how scaling did, whether sizes fit, and the policy on the recorded load."""

from __future__ import annotations

from collections.abc import Iterator

from flows.engine import evaluation
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem, System
from flows.reviews import load, policy
from flows.reviews.figures import seconds
from flows.reviews.finding import Chart, Finding, Line, Review, Table, ordered
from flows.reviews.policy import Played
from tasks.capacity._plan import AutoScaling
from tasks.capacity.protocol import Capacity, Elastic
from tasks.clock import Clock
from tasks.database._proof import look, streams, the_primary
from tasks.database.protocol import Database
from tasks.errors import RelightError
from tasks.metrics.protocol import Series
from tasks.secrets import redact

LITTLE = 0.3
"""At this part of the target even the minimum is too much."""


async def review(loaded: LoadedSystem, components: Components, clock: Clock, window_s: float) -> Review:
    """Look at everything; changes nothing."""
    system = loaded.system
    found = await load.recorded(components, window_s, ("cpu_usage", "concurrent_users", "request_latency"))
    running, findings = await _running(system, components)
    judged = await evaluation.evaluate(loaded, components)
    findings += load.unmeasured(found, tuple(j for j in judged if j.metric.name == "cpu_usage"))
    findings += [*load.crossed(found, system), *await _live(system, components), *await _replicas(system, components)]
    rows: list[tuple[str, ...]] = []
    charts: list[Chart] = []
    facts = {"Looked back": seconds(window_s)}
    plan = system.auto_scaling
    if plan is None:
        findings.append(Finding("no-policy", "unknown", "there is no policy to review", "no auto_scaling section"))
    else:
        facts["Policy"] = _told(plan)
        for s in found.series.get("cpu_usage", ()):
            if s.site in running:
                findings += _judge(plan, s, running[s.site])
                rows += _rows(plan, s, running[s.site])
                charts.append(_chart(plan, s, running[s.site]))
    facts["Assumed"] = "what runs now ran all the time, as busy as the busiest one: the load is not underestimated"
    columns = ("site", "policy", "instance hours", "above target", "worst", "changes", "turned round")
    table = Table("The policy and its neighbours on the recorded load", columns, tuple(rows), (2, 3, 4, 5, 6))
    shown = load.charts(found, system, ("cpu_usage", "request_latency", "concurrent_users"))
    return Review("quarterly", system.system, clock.utc(), ordered(findings), facts, (table,), (*charts, *shown))


def _told(p: AutoScaling) -> str:
    up, down = p.scale_up, p.scale_down
    return (
        f"{p.min_instances} to {p.max_instances} instances, target {p.target_cpu_utilization:g}% cpu,"
        f" {up.adjustment:+d} (then {seconds(up.cooldown)}), {down.adjustment:+d} (then {seconds(down.cooldown)})"
    )


async def _running(system: System, components: Components) -> tuple[dict[str, int], list[Finding]]:
    running: dict[str, int] = {}
    findings = []
    for name, capacity in components.of(Capacity):
        for site in system.sites:
            try:
                running[site] = sum(i.ready for i in await capacity.instances(site))
            except RelightError as e:
                text = f"{site}'s instances are not known"
                findings.append(Finding(f"instances {name} {site}", "unknown", text, redact(e.message)))
    return running, findings


async def _live(system: System, components: Components) -> list[Finding]:
    """Where groups scale by rules of their own: are those the system file's?"""
    plan, findings = system.auto_scaling, []
    for name, group in components.of(Elastic):
        for site in system.sites:
            key = f"policy {name} {site}"
            try:
                now, _ = await group.scaling(site)
            except RelightError as e:
                findings.append(Finding(key, "unknown", f"{site}'s rules are not known", redact(e.message)))
                continue
            if plan and (now.minimum, now.maximum, now.target_cpu) != (
                plan.min_instances,
                plan.max_instances,
                plan.target_cpu_utilization,
            ):
                findings.append(
                    Finding(
                        key,
                        "warning",
                        f"the group of {site} does not scale as the system file says",
                        f"{now.minimum} to {now.maximum}, target {now.target_cpu or 'none'}; wanted: {_told(plan)}",
                        f"a step with capacity.policy (docs/serving.md), or change {system.system}'s auto_scaling",
                    )
                )
    return findings


async def _replicas(system: System, components: Components) -> list[Finding]:
    """As many read replicas as wanted?"""
    wanted = system.database.read_replicas if system.database else None
    findings = []
    for name, database in components.of(Database) if wanted else ():
        try:
            views = await look(database)
            primary = the_primary(views)
        except RelightError as e:
            findings.append(Finding(f"replicas {name}", "unknown", "replicas are not known", redact(e.message)))
            continue
        names = [v.node for v in views.values() if v.node != primary.node and streams(v, primary)]
        if wanted and not wanted.min <= len(names) <= wanted.max:
            findings.append(
                Finding(
                    f"replicas {name}",
                    "critical" if len(names) < wanted.min else "info",
                    f"{len(names)} replicas stream from {primary.node}, {wanted.min} to {wanted.max} are wanted",
                    ", ".join(names) or "none",
                    f"relight run scaling --system {system.system}",
                    "shell",
                )
            )
    return findings


def _load(s: Series, running: int) -> policy.Load:
    return [(at, max(0.0, value) * running) for at, value in s.samples]


def _judge(plan: AutoScaling, s: Series, running: int) -> Iterator[Finding]:
    """The policy on the load as it was, and on twice that."""
    work = _load(s, running)
    now, twice = policy.play(plan, work), policy.play(plan, policy.scaled(work, 2.0))
    if now.full_s > 0:
        yield Finding(
            f"maximum {s.site}",
            "critical",
            f"{s.site}'s maximum of {plan.max_instances} was not enough for {seconds(now.full_s)}",
            f"played on the recorded load, an instance was at {now.worst:.0f}% at worst, target"
            f" {plan.target_cpu_utilization:g}%",
            "raise auto_scaling.max_instances, and the quota with it (capacity.quota)",
        )
    elif twice.full_s > 0:
        yield Finding(
            f"maximum-twice {s.site}",
            "warning",
            f"{s.site}'s maximum of {plan.max_instances} would not be enough for twice the load",
            f"for {seconds(twice.full_s)}, {twice.worst:.0f}% at worst: about what a failover of an equal site brings",
            "raise auto_scaling.max_instances before it is needed",
        )
    else:
        yield Finding(
            f"maximum-twice {s.site}",
            "info",
            f"{s.site}'s policy holds the load, and twice the load",
            f"{now.worst:.1f}% and {twice.worst:.1f}% of an instance at worst; it scales"
            f" {_times(now.changes)}, and with twice the load {_times(twice.changes)}",
        )
    if now.turns > 0:
        yield Finding(
            f"flapping {s.site}",
            "warning",
            f"the policy would turn round {now.turns} times at {s.site}",
            f"{now.changes} changes, of which {now.turns} undo the one before within two cool-downs",
            "a longer auto_scaling.scale_down.cooldown, or a smaller scale_up.adjustment",
        )
    mean = sum(v for _, v in work) / len(work) / max(1, plan.min_instances)
    if mean < LITTLE * plan.target_cpu_utilization and now.changes == 0:
        yield Finding(
            f"right-size {s.site}",
            "info",
            f"{s.site}'s minimum of {plan.min_instances} is {mean:.1f}% busy on average",
            f"never above {now.worst:.1f}%, with a target of {plan.target_cpu_utilization:g}%; two are still needed to"
            " survive the loss of one",
            "smaller instances rather than fewer; relight cost has what they cost",
        )


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _rows(plan: AutoScaling, s: Series, running: int) -> Iterator[tuple[str, ...]]:
    work = _load(s, running)
    for name, one in {"as it is": plan, **policy.others(plan)}.items():
        p: Played = policy.play(one, work)
        figures = (f"{p.hours:.2f}", seconds(p.over_s), f"{p.worst:.1f}%", str(p.changes), str(p.turns))
        yield (s.site, name, *figures)


def _chart(plan: AutoScaling, s: Series, running: int) -> Chart:
    work = _load(s, running)
    lines = [
        Line("load", policy.play(plan, work).counts),
        Line("twice the load", policy.play(plan, policy.scaled(work, 2.0)).counts),
    ]
    limits = {"maximum": float(plan.max_instances), "minimum": float(plan.min_instances)}
    return Chart(f"Instances that the policy would run at {s.site}", "instances", tuple(lines), limits)
