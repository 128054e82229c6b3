"""The lab: the reference system of the scaling plan on this machine, two sites on loopback addresses, and staging.

lab.py up [--async] [--no-monitoring] [--prefect] [--json]
lab.py down | status [--json] | reload SITE | check | release VERSION [--broken errors|flaky|late|slow|sluggish|unready]
lab.py schema | install
lab.py fault NAME | fault list | heal … | load …
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bringup
import layout
import monitoring
import probes
import registry
import releases
import staging
from layout import NODES, Options


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 or 1; for ``fault``, ``heal`` and ``load`` that of the program behind them."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in ("fault", "heal", "load"):
        return _delegate(words)
    if words == ["install"]:
        installer = Path(__file__).with_name("install.sh")
        return subprocess.run(["bash", str(installer)], check=False).returncode
    arguments = _parser().parse_args(words)
    try:
        status: int = arguments.do(arguments)
    except registry.LabError as e:
        print(f"lab: {e}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relight lab",
        description="The lab: the reference system on this machine, two sites on 127.x.",
        epilog="Example: relight lab up; relight lab fault kill-primary; relight lab down",
    )
    verbs = parser.add_subparsers(
        required=True, metavar="install|up|down|status|reload|check|release|schema|fault|heal|load"
    )
    one = verbs.add_parser("up", help="start everything and wait until it serves; does nothing when it already does")
    one.add_argument("--json", action="store_true", help="one JSON document instead of a line a process")
    sync = one.add_mutually_exclusive_group()
    sync.add_argument("--sync", dest="synchronous", action="store_true", default=True, help="the default")
    sync.add_argument("--async", dest="synchronous", action="store_false", help="no synchronous standby")
    one.add_argument("--no-monitoring", action="store_true", help="no Prometheus, no Alertmanager")
    one.add_argument("--prefect", action="store_true", help="also a Prefect server, which takes longer than the rest")
    one.set_defaults(do=_up)
    one = verbs.add_parser("down", help="end everything, also what a crashed `up` left")
    one.add_argument("--json", action="store_true")
    one.set_defaults(do=_down)
    one = verbs.add_parser("status", help="processes and the role of each database; status 1 if one is not there")
    one.add_argument("--json", action="store_true")
    one.set_defaults(do=_status)
    one = verbs.add_parser("reload", help="reload a site's HAProxy")
    one.add_argument("site", choices=layout.SITES)
    one.set_defaults(do=_reload)
    one = verbs.add_parser("check", help="let promtool and amtool read the monitoring configuration")
    one.set_defaults(do=_check)
    one = verbs.add_parser("release", help="make a release of the application, for an update to go to")
    one.add_argument("version")
    one.add_argument("--broken", choices=sorted(releases.BROKEN), help="one that an update must go back from")
    one.set_defaults(do=_release)
    one = verbs.add_parser("schema", help="give staging's database the tables that production has now, empty")
    one.set_defaults(do=_schema)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    options = Options(arguments.synchronous, not arguments.no_monitoring, arguments.prefect)
    came: list[dict[str, Any]] = []

    def say(name: str, address: str, seconds: float) -> None:
        came.append({"name": name, "address": address, "seconds": round(seconds, 3)})
        if not arguments.json:
            print(f"{name:<22} {address:<18} {seconds:6.2f} s", flush=True)

    began = time.monotonic()
    started = bringup.up(options, say)
    seconds = round(time.monotonic() - began, 3)
    if arguments.json:
        document = {"home": str(registry.home()), "started": started, "seconds": seconds, "came": came}
        print(json.dumps({**document, "options": asdict(options), "processes": _processes()}, indent=1))
    elif started:
        print(f"the lab is up after {seconds:.2f} s, in {registry.home()}")
    else:
        print(f"the lab is already up, in {registry.home()}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    with bringup.lock():
        lived = bringup.clean()
    if arguments.json:
        print(json.dumps({"ended": lived}))
    else:
        print(f"ended {len(lived)} processes" if lived else "the lab was not up")
    return 0


def _processes() -> list[dict[str, Any]]:
    return [
        {"name": p.name, "site": p.site, "pid": p.pid, "alive": registry.alive(p), "log": p.log} for p in registry.all()
    ]


async def _roles() -> dict[str, str]:
    async def role(node: str) -> str:
        try:
            rows = await probes.sql(layout.node_host(node), layout.PG_PORT, "SELECT pg_is_in_recovery()")
        except (layout.NotReady, OSError) as e:
            return f"silent: {e}"
        return "replica" if rows[0][0] else "primary"

    return dict(zip(NODES, await asyncio.gather(*map(role, NODES)), strict=True))


async def _of_staging() -> dict[str, str]:
    try:
        await staging.answers()
    except (layout.NotReady, OSError) as e:
        return {staging.NODE: f"silent: {e}"}
    return {staging.NODE: "of staging alone"}


def _status(arguments: argparse.Namespace) -> int:
    processes = _processes()
    roles = asyncio.run(_roles()) if processes else {}
    apart = asyncio.run(_of_staging()) if processes else {}
    if arguments.json:
        document = {"home": str(registry.home()), "processes": processes, "database": roles, "staging": apart}
        print(json.dumps(document, indent=1))
    else:
        for one in processes:
            note = {**roles, **apart}.get(one["name"], "")
            print(f"{one['name']:<18} {one['pid']:>8}  {'runs' if one['alive'] else 'GONE'}  {note}")
        if not processes:
            print("the lab is not up; start it with `lab.py up`")
    return 0 if processes and all(one["alive"] for one in processes) else 1


def _reload(arguments: argparse.Namespace) -> int:
    new = bringup.reload_haproxy(arguments.site)
    print(f"HAProxy of {arguments.site} is now process {new.pid}")
    return 0


def _check(_arguments: argparse.Namespace) -> int:
    print(monitoring.check(), end="")
    return 0


def _release(arguments: argparse.Namespace) -> int:
    print(releases.make(arguments.version, arguments.broken))
    return 0


def _schema(_arguments: argparse.Namespace) -> int:
    print(f"the tables of staging are those of {staging.take_schema()}, and empty")
    return 0


def _delegate(words: list[str]) -> int:
    if words[0] == "load":
        import load  # noqa: PLC0415  it brings an HTTP client, which `up` has no use for

        return load.main(words[1:])
    import faults  # noqa: PLC0415  likewise

    return faults.main(words[1:] if words[1:2] == ["list"] else words)


if __name__ == "__main__":
    sys.exit(main())
