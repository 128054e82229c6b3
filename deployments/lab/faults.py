"""Breaks the lab on purpose, and mends what was broken.

    faults.py inject NAME [--site SITE] [--node NODE] [--app APP] [--delay-ms 200] [--bytes-per-s 2000] [--json]
    faults.py heal [--site SITE] [--databases] [--json]
    faults.py list [--json]

Every injection is a line of ``$RELIGHT_LAB/faults.jsonl`` with the UTC time of its effect: the start of the incident.
``heal`` never starts a database node unless told to: a dead primary that comes back is a second writer, and whether
relight fences it is for ``inject return-old-primary`` to show, not for the lab to cause.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import damage
import layout
import nodes
import psycopg
import registry
import repair
from registry import LabError

FAULTS = {
    "kill-primary": "SIGKILL to every process of the primary database (--node for another)",
    "hang-primary": "SIGSTOP to every process of the primary database: it holds its connections and does not answer",
    "slow-primary": "the primary database runs 50 ms of every 350 ms",
    "stop-standby": "an orderly stop of a replica: the first of the site that is not active, or --node",
    "return-old-primary": "starts a dead former primary exactly as it was",
    "replication-lag": "the other site's replicas get WAL at --bytes-per-s only: what they received falls behind",
    "site-gone": "SIGKILL to every process of a site, its hosts out of reach, its links cut",
    "kill-app": "SIGKILL to one application server of the active site, or --app",
    "network-cut": "links between the sites reset and refuse",
    "network-deaf": "links between the sites stay open and pass nothing",
    "network-slow": "links between the sites take --delay-ms longer, each way",
    "balancer-socket-gone": "the admin socket of a site's HAProxy is removed",
    "dns-refuse": "SIGKILL to the primary name server",
    "hang-resolver": "SIGSTOP to the caching resolver",
}


@dataclass(frozen=True)
class Injection:
    """One injected fault. ``at`` is the moment of its effect, ISO 8601 UTC."""

    at: str
    fault: str
    site: str = ""
    node: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def inject(fault: str, arguments: argparse.Namespace) -> Injection:
    """Cause ``fault`` and record it. Raises LabError when its object is not there or not in the role it needs."""
    happened = _cause(fault, arguments)
    with (registry.home() / "faults.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(happened)) + "\n")
    return happened


def _cause(fault: str, arguments: argparse.Namespace) -> Injection:
    if fault.startswith("network-"):
        delay_ms = arguments.delay_ms if fault == "network-slow" else None
        return _injection(damage.links(fault.removeprefix("network-"), delay_ms=delay_ms), fault, delay_ms=delay_ms)
    if fault in ("dns-refuse", "hang-resolver"):
        one = damage.process("ns1" if fault == "dns-refuse" else "unbound")
        at, hit = damage.kill([one]) if fault == "dns-refuse" else damage.freeze(one)
        return _injection(at, fault, process=one.name, processes=hit)
    if fault == "return-old-primary":
        name = arguments.node or damage.old_primary()
        return _injection(damage.give_back(name), fault, node=name)
    if fault in ("kill-primary", "hang-primary", "slow-primary"):
        return _primary(fault, damage.process(arguments.node or nodes.primary().name))
    site = arguments.site or (layout.site_of(arguments.app) if arguments.app else nodes.primary().site)
    return _site(fault, site, arguments)


def _primary(fault: str, one: registry.Process) -> Injection:
    if fault == "slow-primary":
        return _injection(damage.slow(one), fault, node=one.name)
    at, hit = damage.kill([one]) if fault == "kill-primary" else damage.freeze(one)
    return _injection(at, fault, node=one.name, processes=hit)


def _site(fault: str, site: str, arguments: argparse.Namespace) -> Injection:
    """Faults of a site; without ``--site`` it is the active one, where the primary is."""
    target = layout.other(site)
    if fault == "site-gone":
        at, hit = damage.site_gone(site)
        return _injection(at, fault, site, processes=hit)
    if fault == "balancer-socket-gone":
        return _injection(damage.unlink(registry.home() / site / "haproxy" / "admin.sock"), fault, site)
    if fault == "kill-app":
        at, name = damage.kill_app(site, arguments.app)
        return _injection(at, fault, site, app=name)
    if fault == "replication-lag":
        at = damage.links("slow", origin=target, destination=site, bytes_per_s=arguments.bytes_per_s)
        return _injection(at, fault, target, bytes_per_s=arguments.bytes_per_s)
    name = arguments.node or next(n.name for n in nodes.nodes() if n.site == target)
    return _injection(damage.stop_standby(name), fault, node=name)


def _injection(at: datetime, fault: str, site: str = "", node: str = "", **detail: Any) -> Injection:
    shown = {key: value for key, value in detail.items() if value is not None}
    return Injection(at.isoformat(), fault, site or (layout.site_of(node) if node else ""), node, shown)


def heal(site: str | None, *, databases: bool) -> dict[str, Any]:
    """Undo what can be undone, of one site or of everything; what it did, by kind."""
    done: dict[str, Any] = {"at": datetime.now(UTC).isoformat(), "healed": site or "all"}
    done |= repair.heal(site, databases=databases, killed_apps=_killed_apps(site))
    with (registry.home() / "faults.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(done) + "\n")
    return done


def history() -> list[dict[str, Any]]:
    """Every injection and healing of this lab, oldest first."""
    try:
        text = (registry.home() / "faults.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _killed_apps(site: str | None) -> list[str]:
    """Application servers killed one by one and not healed since."""
    killed: list[str] = []
    for line in history():
        if "healed" in line:
            killed = [app for app in killed if line["healed"] not in ("all", layout.site_of(app))]
        elif line["fault"] == "kill-app" and (site is None or line["site"] == site):
            killed.append(line["detail"]["app"])
    return sorted(set(killed))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break the lab on purpose, and mend it.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("inject", aliases=["fault"], help="cause a fault")
    one.add_argument("fault", choices=FAULTS, metavar="NAME", help=", ".join(FAULTS))
    one.add_argument("--site", choices=layout.SITES)
    one.add_argument("--node", choices=layout.NODES)
    one.add_argument("--app", metavar="west-app1")
    one.add_argument("--delay-ms", type=int, default=200)
    one.add_argument("--bytes-per-s", type=float, default=2000)
    one.add_argument("--json", action="store_true")
    one = verbs.add_parser("heal", help="undo what can be undone")
    one.add_argument("--site", choices=layout.SITES)
    one.add_argument("--databases", action="store_true", help="start dead database nodes too, as they were")
    one.add_argument("--json", action="store_true")
    one = verbs.add_parser("list", help="the faults there are, and what was done so far")
    one.add_argument("--json", action="store_true")
    one = verbs.add_parser("duty", help=argparse.SUPPRESS)  # the process behind slow-primary
    one.add_argument("node", choices=layout.NODES)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 with one line on stderr when the lab is not in a state for it."""
    arguments = _arguments(argv)
    try:
        if arguments.verb == "duty":
            damage.duty(arguments.node)
            return 0
        if arguments.verb == "heal":
            found: dict[str, Any] = heal(arguments.site, databases=arguments.databases)
        elif arguments.verb == "list":
            found = {"faults": FAULTS, "history": history()}
        else:
            found = asdict(inject(arguments.fault, arguments))
    except (LabError, OSError, ValueError, psycopg.OperationalError) as e:
        print(f"faults: {e}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(found))
    elif arguments.verb == "list":
        for name, what in FAULTS.items():
            print(f"{name:<22} {what}")
    else:
        print("  ".join(f"{key}={value}" for key, value in found.items() if value not in ("", [], {})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
