"""For every test: in CI nothing may be skipped, no test may see this user's own runs, and no worker another's ports."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 0x1


def _own_network(worker: str) -> None:
    """A network of its own for a worker of pytest-xdist, with nothing but loopback: the lab's addresses are fixed.

    unshare(2), netdevice(7). Needs root; ``make test`` asks for workers only where it works.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network of its own for a worker; run pytest without -n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    os.environ["RELIGHT_LAB"] = f"/tmp/relight-lab-{os.getuid()}-{worker}"  # noqa: S108 - the lab's own default, a worker


if "PYTEST_XDIST_WORKER" in os.environ:
    _own_network(os.environ["PYTEST_XDIST_WORKER"])


LONGEST = (
    "real/test_event_venue.py",
    "real/test_update.py",
    "real/test_failover.py",
    "real/test_database_upkeep.py",
    "real/test_going_back.py",
    "real/test_weather_faults.py",
    "real/test_crash.py",
    "real/test_embedded_prefect.py",
    "browser/test_drill.py",
    "real/test_readiness.py",
    "real/test_weather.py",
    "real/test_prefect_window.py",
    "real/test_many_machines.py",
    "real/test_people_lab.py",
    "real/test_people_ui.py",
    "real/test_rds.py",
    "real/test_one_run.py",
    "real/test_supervise.py",
    "real/test_metrics.py",
    "real/test_scaling.py",
    "real/test_leases.py",
    "real/test_migrations.py",
    "real/test_lab.py",
    "real/test_postgresql.py",
    "real/test_aurora.py",
    "real/test_people.py",
    "unit/test_prove.py",
    "unit/test_prove_leases.py",
    "unit/test_cli.py",
)
"""The modules that take longest, longest first: who begins one of them last is still at it when the others are done."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take modules in this order (``--no-loadscope-reorder``: else those with most tests come first)."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        here = Path(__file__).parent
        order = {(here / name).resolve(strict=True): number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where everything must be there: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path_factory.mktemp("state")))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
