"""Checks every file below some paths and collects every finding, not the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.engine import check, runbook, system
from flows.engine.findings import Finding, InvalidFiles
from tasks.errors import BadInput

SUFFIXES = (".yaml", ".yml")
Others = Mapping[str, Callable[[Path], list[Finding]]]
"""Files of other names than systems and runbooks: name -> what checks one."""


def validate_paths(paths: list[Path], others: Others | None = None) -> tuple[list[Finding], list[str]]:
    """Every finding of every file below ``paths``, and the files looked at."""
    findings: list[Finding] = []
    files: list[str] = []
    for path in paths:
        try:
            path.stat()
        except OSError as e:
            missing = isinstance(e, FileNotFoundError | NotADirectoryError)
            says = f"no such file or folder: {path}" if missing else f"cannot look at {path}: {e.strerror}"
            raise BadInput(says) from e
        unreadable: list[Finding] = []
        found = [path] if path.is_file() else _below(path, unreadable)
        findings += unreadable
        if not found and not unreadable:
            raise BadInput(f"no YAML file below {path}")
        for file in found:
            if str(file) not in files:
                files.append(str(file))
                findings.extend(_validate_file(file, others or {}))
    return list(dict.fromkeys(findings)), files


def _below(folder: Path, unreadable: list[Finding]) -> list[Path]:
    """Every YAML file at any depth, by name; a folder that may not be listed is a finding, not an empty one."""

    def told(e: OSError) -> None:
        message = f"cannot read the folder: {e.strerror}"
        unreadable.append(Finding(severity="error", code="unreadable", file=str(e.filename), message=message))

    walk = os.walk(folder, onerror=told)
    return sorted(Path(at, n) for at, folders, files in walk for n in (*folders, *files) if n.endswith(SUFFIXES))


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
        try:
            target = system.load(beside)
        except InvalidFiles as e:  # what can be told without it is told all the same
            return [*e.findings, *check.alone(loaded)]
        return check.check(loaded, target)[1]
    except InvalidFiles as e:
        return list(e.findings)
