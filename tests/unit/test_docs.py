"""Lists in the documentation are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import typer.main

from flows import cli
from flows.engine.runbook import StepSpec
from flows.engine.state import Outcome
from flows.engine.system import System

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")


def keys(heading: str) -> set[str]:
    """The names in backquotes of the first column of the table below ``heading``."""
    table = RUNBOOKS.split(heading, 1)[1].split("\n\n## ", 1)[0]
    return {k for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for k in re.findall(r"`([a-z_]+)`", row)}


def test_the_keys_of_a_step_are_documented():
    assert keys("## A runbook") == {f.alias or n for n, f in StepSpec.model_fields.items()}


def test_the_keys_of_a_system_file_are_documented():
    assert keys("## system.yaml") >= set(System.model_fields)


def test_every_command_is_in_the_readme():
    commands = typer.main.get_command(cli.app).commands
    missing = [name for name in commands if f"relight {name}" not in README]
    assert not missing


def test_every_outcome_is_in_the_readme():
    assert not [o for o in get_args(Outcome) if f"`{o}`" not in README]


def test_every_link_in_the_readme_leads_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert not [t for t in targets if not (ROOT / t).exists()]
