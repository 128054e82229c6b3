"""Finds the lab's programs, also where Debian keeps them out of PATH, and names the package of a missing one."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path

from registry import LabError

PACKAGES = {
    "postgres": "postgresql-15",
    "initdb": "postgresql-15",
    "pg_basebackup": "postgresql-15",
    "pg_rewind": "postgresql-15",
    "pg_isready": "postgresql-client-15",
    "pg_dump": "postgresql-client-15",
    "psql": "postgresql-client-15",
    "haproxy": "haproxy",
    "pgbouncer": "pgbouncer",
    "named": "bind9",
    "unbound": "unbound",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "prometheus-postgres-exporter": "prometheus-postgres-exporter",
    "rclone": "rclone",
    "node": "nodejs",
}
"""program -> Debian 12 package."""

_PYTHON = {"supervisord", "moto_server", "prefect"}
_PLACES = ("/usr/lib/postgresql/15/bin", "/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/bin")


@cache
def find(program: str) -> str:
    """Absolute path of ``program``. Raises LabError naming the package to install."""
    if program in _PYTHON:
        beside = Path(sys.executable).with_name(program)
        if beside.exists():
            return str(beside)
        raise LabError(
            f"{program} is not beside {sys.executable}; install the dependency group: pip install --group lab"
        )
    # The fixed places come first: Debian's /usr/bin/psql and pg_* are wrappers that look for clusters of their own.
    found = shutil.which(program, path=os.pathsep.join([*_PLACES, os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise LabError(f"program {program} is missing: run `make lab` or `apt-get install {PACKAGES[program]}`")
    return found


def missing() -> list[str]:
    """One line a missing program; empty when all are there."""
    lines = []
    for program in (*PACKAGES, *sorted(_PYTHON - {"prefect"})):
        try:
            find(program)
        except LabError as e:
            lines.append(str(e))
    return lines
