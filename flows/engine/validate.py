"""Checks every file below some paths and collects every finding, not the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flows.engine import check, runbook, system
from flows.engine.findings import Finding, InvalidFiles
from tasks.errors import BadInput

Others = Mapping[str, Callable[[Path], list[Finding]]]
"""Files of other names than systems and runbooks: name -> what checks one."""


def validate_paths(paths: list[Path], others: Others | None = None) -> tuple[list[Finding], list[str]]:
    """Every finding of every file below ``paths``, and the files looked at."""
    findings: list[Finding] = []
    files: list[str] = []
    for path in paths:
        if not path.exists():
            raise BadInput(f"no such file or folder: {path}")
        found = [path] if path.is_file() else sorted(p for e in ("*.yaml", "*.yml") for p in path.rglob(e))
        if not found:
            raise BadInput(f"no YAML file below {path}")
        for file in found:
            if str(file) not in files:
                files.append(str(file))
                findings.extend(_validate_file(file, others or {}))
    return list(dict.fromkeys(findings)), files


def _validate_file(file: Path, others: Others) -> list[Finding]:
    try:
        if file.name in others:
            return others[file.name](file)
        if file.name == "system.yaml":
            system.load(file)
            return []
        beside = file.parent / "system.yaml"
        if not beside.is_file():
            return [
                Finding(
                    severity="error", code="no-system", file=str(file), message=f"no system.yaml beside it ({beside})"
                )
            ]
        loaded = runbook.load(file)
        return check.check(loaded, system.load(beside))[1]
    except InvalidFiles as e:
        return list(e.findings)
