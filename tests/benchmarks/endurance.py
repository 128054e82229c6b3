"""Failover there and back, again and again, on one lab under load: how often it works, what is lost, how long it takes.

    python tests/benchmarks/endurance.py [--rounds 5] [--fault kill-primary …]

Prints one line a failover and a table of medians. Exit 0 when every failover worked and nothing acknowledged was lost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAULTS = ("kill-primary", "hang-primary", "site-gone")
RELIGHT = Path(sys.executable).with_name("relight")


def relight(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RELIGHT, *words], capture_output=True, text=True, check=False, timeout=300)


def lab(*words: str) -> str:
    done = relight("lab", *words)
    if done.returncode:
        sys.exit(f"lab {' '.join(words)}: {done.stderr or done.stdout}")
    return done.stdout


def acknowledged(acks: Path, more: int) -> None:
    """Wait until ``more`` further writes were acknowledged."""
    goal = acks.read_text().count('"acked"') + more if acks.exists() else more
    deadline = time.monotonic() + 60
    while not acks.exists() or acks.read_text().count('"acked"') < goal:
        if time.monotonic() > deadline:
            sys.exit("clients get no acknowledgements; see the lab's logs")
        time.sleep(0.1)


def once(fault: str) -> dict[str, Any]:
    """One fault under load, its failover, and the other site brought back. Seconds."""
    acks = Path(lab("load", "start").strip())
    acknowledged(acks, 100)
    began = json.loads(lab("fault", fault, "--json"))["at"]
    done = relight("run", "failover", "--system", "lab", "--offline", "--json", "--incident-started", began)
    report = json.loads(done.stdout or "{}")
    if done.returncode == 0:
        acknowledged(acks, 50)
    lab("load", "stop")
    counted = json.loads(lab("load", "count", "--json", "--acks", str(acks), "--since", began)) if report else {}
    lab("heal")
    back = relight("run", "rejoin", "--system", "lab", "--offline", "--json")
    return {
        "ok": done.returncode == 0 and back.returncode == 0,
        "why": "" if done.returncode == 0 else (done.stderr or report.get("reason", ""))[-400:],
        "lost": counted.get("lost"),
        "first_ack_s": counted.get("first_ack_after_s"),
        "database_s": (report.get("objectives", {}).get("database") or {}).get("actual_s"),
        "application_s": (report.get("objectives", {}).get("application") or {}).get("actual_s"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fault", action="append", choices=FAULTS)
    options = parser.parse_args()
    lab("down")
    lab("up")
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        for fault in options.fault or FAULTS:
            for number in range(2 * options.rounds):  # there and back
                one = once(fault)
                results.setdefault(fault, []).append(one)
                print(f"{fault} {number + 1}: {json.dumps(one)}", flush=True)
    finally:
        lab("down")
    print(f"\n{'fault':<14} {'worked':>8} {'lost':>5} {'first ack s':>12} {'database s':>11} {'application s':>14}")
    for fault, found in results.items():
        medians = [
            statistics.median([r[k] for r in found if r[k] is not None] or [float("nan")])
            for k in ("first_ack_s", "database_s", "application_s")
        ]
        worked = f"{sum(r['ok'] for r in found)}/{len(found)}"
        lost = sum(r["lost"] or 0 for r in found)
        print(f"{fault:<14} {worked:>8} {lost:>5} {medians[0]:>12.2f} {medians[1]:>11.2f} {medians[2]:>14.2f}")
    every = [r for found in results.values() for r in found]
    return 0 if all(r["ok"] and r["lost"] == 0 for r in every) else 1


if __name__ == "__main__":
    sys.exit(main())
