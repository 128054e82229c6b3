"""A drill on the lab: real load, a real fault, the real runbook, and what the clients counted.

Everything the lab does is asked for through its own script, as a person would; nothing here knows a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from flows.engine import launch, places, report, runcost
from flows.engine.findings import nearest
from flows.engine.journal import FileJournal, of_type
from flows.engine.roles import Wish
from flows.engine.thresholds import Prices
from tasks.contract import Mode
from tasks.errors import BadInput, NotYet, RelightError

WARM_UP_WRITES = 200
"""Acknowledged writes before the fault, so that there is something to lose."""
AFTERWARDS_WRITES = 200
"""Acknowledged writes after the run, so that the recovery is seen by clients and not only by probes."""


@dataclass(frozen=True)
class Drill:
    """What to drill.

    Attributes:
        fault: a fault of ``relight lab fault list``; ``none`` for a planned move.
        synchronous: bring the lab up with a synchronous standby (nothing acknowledged may be lost) or without.
        keep: leave the lab running afterwards.
        prefect: start a Prefect server in the lab too, and show the run in it.
        approvals: how many people must say yes in the run.
    """

    fault: str = "kill-primary"
    runbook: str = "failover"
    mode: Mode = "forced"
    synchronous: bool = True
    keep: bool = False
    prefect: bool = False
    system: str = "lab"
    approvals: int = 0


PREFECT_API = "http://127.0.3.42:4200/api"
"""Where the lab's Prefect server answers."""

Say = Callable[[str], None]
Follow = Callable[[launch.Request], report.Report]


class LabFailed(RelightError):
    """A command of the lab did not end well; the message holds the end of what it said."""


def lab(*words: str, timeout_s: float = 400.0) -> str:
    """Run one command of the lab and return its standard output. Raises LabFailed."""
    script = places.data("deployments") / "lab" / "lab.py"
    try:
        done = subprocess.run(
            [sys.executable, str(script), *words], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise LabFailed(f"lab {' '.join(words)} did not end within {timeout_s:g} s") from None
    if done.returncode:
        raise LabFailed(f"lab {' '.join(words)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def last_json(text: str) -> Any:
    """The JSON document that ends ``text``."""
    start = text.find("{")
    try:
        return json.loads(text[start:])
    except ValueError:
        raise LabFailed(f"the lab answered no JSON: {text[-500:]!r}") from None


Around = Callable[[], contextlib.AbstractContextManager[None]]
"""What has to be there while the fault happens, and is not without a person: a receiver of alerts."""


def drill(options: Drill, follow: Follow, say: Say, around: Around = contextlib.nullcontext) -> report.Report:
    """Bring up, load, break, recover, count. The lab is brought down again unless ``keep``, whatever happens."""
    if options.system != "lab":
        raise BadInput(f"only the lab can be broken on purpose, not {options.system!r}. For another system use: plan")
    _known(options.fault)
    was_up = _is_up()
    try:
        return _drill(options, follow, say, around)
    finally:
        if not options.keep and not was_up:
            say("bringing the lab down")
            lab("down")


def _known(fault: str) -> None:
    """Raises BadInput for a fault that the lab has not: before anything is started."""
    known = ["none", *(line.split()[0] for line in lab("fault", "list").splitlines() if line.strip())]
    if fault not in known:
        near = nearest(fault, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise BadInput(f"no fault {fault!r}; there are {', '.join(known)}.{hint}")


def _is_up() -> bool:
    try:
        lab("status", "--json")
    except LabFailed:
        return False
    return True


def _drill(options: Drill, follow: Follow, say: Say, around: Around) -> report.Report:
    # files are checked before anything is started
    costs = launch.prepare(options.system, options.runbook, options.mode, _vars(options)).loaded.system.cost_monitoring
    say("bringing up the lab: two sites, everything real")
    words = [*([] if options.synchronous else ["--async"]), *(["--prefect"] if options.prefect else [])]
    up = last_json(lab("up", "--json", *words))
    if options.prefect:
        os.environ["PREFECT_API_URL"] = PREFECT_API
    say(f"the lab is up ({len(up.get('processes', []))} processes in {up.get('seconds', 0):.1f} s); clients write")
    acks = Path(lab("load", "start").strip())
    try:
        _until_acknowledged(acks, WARM_UP_WRITES, datetime.min.replace(tzinfo=UTC))
        with around():
            started, result = _broken(options, follow, say)
        if result.verdict in ("succeeded", "objective_missed"):
            say("waiting until clients have written for a while")
            _until_acknowledged(acks, AFTERWARDS_WRITES, datetime.now(UTC))
    finally:
        lab("load", "stop")
    counted = last_json(lab("load", "count", "--json", "--acks", str(acks), "--since", started.isoformat()))
    return record(result, counted, costs.prices if costs else None)


def _broken(options: Drill, follow: Follow, say: Say) -> tuple[datetime, report.Report]:
    """Break it and have it recovered: when it broke, and the report."""
    started = datetime.now(UTC)
    if options.fault != "none":
        injected = last_json(lab("fault", options.fault, "--json"))
        started = datetime.fromisoformat(injected["at"])
        say(f"fault {options.fault} at {started:%H:%M:%S.%f} UTC: {injected['node'] or injected['site']}")
    waivers = {} if options.synchronous else {"loss": "drill with asynchronous replication: the loss is counted"}
    trigger = f"drill {options.fault}"
    request = launch.Request(
        options.system, options.runbook, options.mode, Wish(), waivers, started, trigger=trigger, vars=_vars(options)
    )
    return started, follow(request)


def _vars(options: Drill) -> dict[str, str]:
    return {"approvals": str(options.approvals)} if options.approvals else {}


def _until_acknowledged(acks: Path, count: int, since: datetime) -> None:
    def probe() -> None:
        lines = acks.read_text(encoding="utf-8").splitlines() if acks.exists() else []
        good = sum('"outcome": "acked"' in x or '"outcome":"acked"' in x for x in lines if _after(x, since))
        if good < count:
            raise NotYet(f"{good} of {count} writes were acknowledged; see the load client's log in the lab's folder")

    for attempt in Retrying(
        stop=stop_after_delay(120), wait=wait_fixed(0.1), retry=retry_if_exception_type(NotYet), reraise=True
    ):
        with attempt:
            probe()


def _after(line: str, since: datetime) -> bool:
    try:
        return datetime.fromisoformat(json.loads(line)["sent_at"]) >= since
    except (ValueError, KeyError):
        return False  # the head of the file, or a line that is being written


def record(result: report.Report, counted: dict[str, Any], prices: Prices | None = None) -> report.Report:
    """Put what the clients counted into the run's journal, behind its end, and write the report again."""
    path = Path(result.journal.path)
    book = FileJournal(path)
    head = next(of_type(book.records, "run_started"))
    lost = counted["lost"]
    rpo: dict[str, Any] = {"lost_transactions": lost}
    if head["objectives"]["rpo_s"].get("database") == 0:
        rpo["met"] = lost == 0
    visible = counted.get("first_ack_after_s")
    load = {
        k: counted.get(k) for k in ("acknowledged", "refused", "unknown", "lost", "duplicated", "surfaced", "outage_s")
    }
    try:
        book.append(
            datetime.now(UTC),
            "measured",
            rpo={"database": rpo},
            client_visible_s=visible,
            load=load,
            counted=counted,
            cost=runcost.cost_of(result, prices).as_json(),
        )
    finally:
        book.close()
    return launch.write_report(path.parent)
