"""A failback on the real lab: there by a planned move, back by one call, and never forth again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

FAILBACK = """
import json
from flows.engine import eventloop, failback, launch, places
places.set_defaults()
asked = failback.Failback("lab", key="flow-run-1")
done = failback.failback(asked, lambda request: eventloop.run(launch.run(request)))
print(json.dumps([[r.runbook, r.mode, r.verdict, r.reason] for r in done]))
"""
PLAN = """
import json
from flows.engine import failback, places
places.set_defaults()
found = failback.plan(failback.Failback("lab"))
print(json.dumps({book: [p.step.id for p in previews] for book, previews in found.items()}))
"""


def called(lab: Any, code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **lab.env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_back_by_one_call_and_tried_again_it_stays(lab: Any) -> None:
    before = lab.primary()
    assert lab.run("failover", "--mode", "graceful").code == 0
    there = lab.primary()
    assert there.partition("-")[0] != before.partition("-")[0]
    steps = called(lab, PLAN)
    assert set(steps) == {"rejoin", "failover"}
    assert lab.primary() == there, "a plan changes nothing"
    done = called(lab, FAILBACK)
    assert [d[:3] for d in done] == [["rejoin", "forced", "succeeded"], ["failover", "graceful", "succeeded"]], done
    assert lab.primary().partition("-")[0] == before.partition("-")[0]
    # the same failback once more, as after Retry in the UI
    done = called(lab, FAILBACK)
    assert [d[:3] for d in done] == [["rejoin", "forced", "succeeded"]], done
    assert lab.primary().partition("-")[0] == before.partition("-")[0]
