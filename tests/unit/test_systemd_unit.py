"""The systemd unit says what the supervisor relies on, and systemd accepts it."""

from __future__ import annotations

import shutil
import subprocess
import sys

from flows.engine import places

UNIT = places.PARENT / "deployments" / "systemd" / "relight.service"


def test_it_comes_back_at_once_and_leaves_runs_alone():
    lines = UNIT.read_text().splitlines()
    for wanted in (
        "Type=exec",
        "Restart=always",
        "RestartSec=1",
        "StartLimitIntervalSec=0",
        "KillMode=process",
        "After=network-online.target",
        "EnvironmentFile=-/etc/relight/env",
        "ExecStart=/opt/relight/bin/relight serve",
    ):
        assert wanted in lines


def test_systemd_accepts_it(tmp_path):
    if not shutil.which("systemd-analyze"):
        return  # not every machine that runs the tests has systemd; the test above holds everywhere
    unit = tmp_path / "relight.service"
    # a program and a user that are there, else it complains about this machine
    text = UNIT.read_text().replace("/opt/relight/bin/relight", sys.executable)
    unit.write_text(text.replace("User=relight", "User=root").replace("Group=relight", "Group=root"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "relight.service" in line]
    assert ours == []
