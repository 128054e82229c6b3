"""The whole way, and nobody starts it: Prometheus sees the primary die, Alertmanager posts, the receiver decides, the
failover runs, and the alert resolves.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
RELIGHT = Path(sys.executable).with_name("relight")


def test_an_alert_starts_the_failover_and_resolves(tmp_path: Path) -> None:
    env = {**os.environ, "RELIGHT_STATE": str(tmp_path / "state")}
    env.pop("PREFECT_API_URL", None)
    words = [RELIGHT, "drill", "--trigger", "alert", "--json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr
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

    with sqlite3.connect(tmp_path / "state" / "inbox.sqlite3") as db:
        rows = db.execute(
            "SELECT json_extract(event, '$.labels.alertname'), json_extract(event, '$.kind'), outcome, run_id"
            " FROM events"
        ).fetchall()
    db.close()
    runs = [r for r in rows if r[3]]
    assert [(name, kind) for name, kind, _, _ in runs] == [("database-primary-down", "firing")], rows
    assert ("database-primary-down", "resolved", "ended", None) in rows, "a failback is nobody's wish"
    assert any(name == "watchdog" for name, *_ in rows), "deliveries were known to arrive before anything broke"
