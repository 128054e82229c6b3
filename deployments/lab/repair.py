"""Undoes what the faults did, as far as it can be undone without making a second writer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import bringup
import damage
import layout
import registry
from registry import LabError, Process


def heal(site: str | None, *, databases: bool, killed_apps: Sequence[str]) -> dict[str, Any]:
    """Heal one site (and the links), or everything; names of what was continued, started, re-opened.

    The order matters: what slows or holds a process ends first, then the network is whole again, then what died
    is started, so that it finds its surroundings. Raises LabError when a process does not start again.
    """
    for one in registry.all():
        if one.name.startswith("slow-") and (site is None or layout.site_of(one.name.removeprefix("slow-")) == site):
            registry.stop(one, 2, signal.SIGTERM)
            registry.forget(one)
    meant = [one for one in registry.all() if site is None or one.site == site]
    done: dict[str, Any] = {"continued": [one.name for one in meant if _continue(one)]}
    if (network := registry.find("links")) is not None and not registry.alive(network):
        registry.restart(network)
    else:
        damage.links("open")
    reached = [name for name in layout.SITES if site in (None, name) and _reach(name)]
    restarted = [one.name for one in meant if _may_start(one, databases=databases)]
    for one in meant:
        if one.name in restarted:
            registry.restart(one)
    done |= {"reachable": reached, "started": restarted}
    done["sockets"] = [name for name in layout.SITES if site in (None, name) and _socket(name, restarted)]
    done["apps"] = [app for app in killed_apps if f"{layout.site_of(app)}-supervisord" not in restarted and _app(app)]
    return done


def _continue(one: Process) -> bool:
    if not registry.alive(one):
        return False
    stopped = [pid for pid in registry.members(one) if damage.state(pid) == "T"]
    # PostgreSQL's children first: a postmaster that runs before them takes their silence for a hang.
    damage.send(signal.SIGCONT, stopped[::-1])
    return bool(stopped)


def _reach(site: str) -> bool:
    marker = registry.home() / site / "unreachable"
    there = marker.exists()
    marker.unlink(missing_ok=True)
    return there


def _may_start(one: Process, *, databases: bool) -> bool:
    if one.name in ("load", "links") or one.name.endswith("-haproxy-old") or registry.alive(one):
        return False
    return databases or one.name not in layout.NODES


def _socket(site: str, restarted: Sequence[str]) -> bool:
    """HAProxy makes its admin socket only when it starts: a reload brings it back."""
    name = f"{site}-haproxy"
    found = registry.find(name)
    gone = not (registry.home() / site / "haproxy" / "admin.sock").exists()
    if name in restarted or not gone or found is None or not registry.alive(found):
        return False
    bringup.reload_haproxy(site)
    return True


def _app(app: str) -> bool:
    """Start a killed application server through its supervisord. False when it runs already."""
    site, _, program = app.partition("-")
    socket = registry.home() / site / "supervisor.sock"
    words = ["-s", f"unix://{socket}", "start", f"app:{program}"]
    ran = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisorctl", *words],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    if "already started" in ran.stdout:
        return False
    if ran.returncode != 0:
        raise LabError(f"supervisord of {site} did not start {program}: {(ran.stdout + ran.stderr).strip()}")
    return True
