"""The whole way, and nobody starts it: Prometheus sees the primary die, Alertmanager posts, the receiver decides, the
failover runs, and the alert resolves.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import until
from receiving import of_the_lab

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
RELIGHT = Path(sys.executable).with_name("relight")


RESOLVED = ("database-primary-down", "resolved", "ended", None)


def heard(state: Path) -> list[tuple[str, str, str, str | None]]:
    """Alert, kind, outcome and run of each event in the inbox."""
    query = (
        "SELECT json_extract(event, '$.labels.alertname'), json_extract(event, '$.kind'), outcome, run_id FROM events"
    )
    with contextlib.closing(sqlite3.connect(state / "inbox.sqlite3")) as db:
        return db.execute(query).fetchall()


def test_an_alert_starts_the_failover_and_resolves(tmp_path: Path) -> None:
    state = tmp_path / "state"
    env = {**os.environ, "RELIGHT_STATE": str(state)}
    env.pop("PREFECT_API_URL", None)
    words = [RELIGHT, "drill", "--trigger", "alert", "--keep", "--json"]
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=840, check=False)
        assert done.returncode == 0, done.stderr
        if RESOLVED not in heard(state):  # the drill's receiver may go before it comes; Alertmanager says it again
            with of_the_lab(env, tmp_path / "serve.log", "--no-prefect"):
                until(lambda: RESOLVED in heard(state), 60, "a failback is nobody's wish")
    finally:
        subprocess.run([RELIGHT, "lab", "down"], env=env, capture_output=True, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["verdict"], report["trigger"]) == ("succeeded", "alert")
    assert report["rpo"]["database"]["lost_transactions"] == 0
    split = report["phases"]
    assert all(
        split[part] is not None and split[part] >= 0 for part in ("detect_s", "declare_s", "execute_s", "verify_s")
    ), split
    assert split["detect_s"] > 1, "the rule alone waits two seconds"

    journal = Path(report["journal"]["path"])
    head = json.loads(journal.read_text().splitlines()[0])
    assert head["automatic"] is True
    decision = head["cause"]["decision"]
    assert [g["answer"] for g in decision["gates"]] == ["pass"] * 14, decision
    assert set(decision["evidence"]["kinds"]) == {"probe", "replicas"}
    assert head["cause"]["rule"] == "primary-down"

    rows = heard(state)
    runs = [r for r in rows if r[3]]
    assert [(name, kind) for name, kind, _, _ in runs] == [("database-primary-down", "firing")], rows
    assert any(name == "watchdog" for name, *_ in rows), "deliveries were known to arrive before anything broke"
