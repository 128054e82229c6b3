"""The break-glass runbook, typed by hand: its commands, in order, without the engine, bring a killed lab back."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows.engine.export import commands_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def typed(command: str, env: dict[str, str]) -> tuple[int, str]:
    """What a person would see."""
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=180, check=False)
    return done.returncode, done.stdout + done.stderr


def shown(expected: str, out: str) -> bool:
    """``out`` is what the runbook says, as far as its words are exact."""
    if expected.startswith("("):
        return not re.search(r"error|fail|refused|unknown", out, re.IGNORECASE)
    if "LSN" in expected:
        return re.search(r"[0-9A-F]+/[0-9A-F]+", out) is not None
    if "(up, ready)" in expected:
        name = found[0] if (found := re.match(r"east-pg\d", expected)) else r"east-app\d+"
        return re.search(rf" {name} 127\.0\.\S+ 2 [04] ", out) is not None
    if expected.startswith("RESUME, or"):
        return "RESUME" in out or "not paused" in out
    if expected.startswith("started, or"):
        return "started" in out
    return all(word in out.replace("\n", " ") for word in expected.split(", "))


def test_the_exported_commands_bring_the_lab_back_without_the_engine(lab: Any, tmp_path: Path, until: Any) -> None:
    book = tmp_path / "failover.md"
    done = lab.relight("export", "failover", "--system", "lab", "--out", str(book))
    assert done.code == 0, done.err
    text = book.read_text()
    secrets = [p.read_text().strip() for p in (lab.home() / "secrets").iterdir()]
    assert not [s for s in secrets if len(s) > 6 and s in text], "a secret is in the exported text"
    commands = commands_of(text)
    assert len(commands) > 20
    # the most advanced one when it was exported: a moment after its start that may be either
    (chosen,) = set(re.findall(r"\b(east-pg\d), its address", text))
    (other,) = {"east-pg1", "east-pg2"} - {chosen}

    lab.fault("kill-primary")
    env = {**os.environ, "PATH": f"{Path(__import__('sys').executable).parent}:{os.environ['PATH']}"}
    env.pop("RELIGHT_STATE", None)
    for command, expected in commands:
        if "aws --region" in command and not _has_aws():
            continue  # the AWS CLI is no part of the lab; what it would do is proven in test_s3
        code, out = typed(command, env)
        assert "relight run" not in command
        late = "resolver" in expected or "dig" in command or "show servers" in command or "readyz" in command
        if late:  # a check of the balancer, a transfer, a TTL: a person looks again
            try:
                until(lambda c=command, e=expected: shown(e, typed(c, env)[1]), 15)
            except AssertionError:
                pytest.fail(f"{command}\nexpected {expected}\ngot {typed(command, env)}")
        else:
            assert code == 0, f"{command}\n{out}"
            assert shown(expected, out), f"{command}\nexpected {expected}\ngot {out}"

    assert lab.primary() == chosen, "one writer, at the target"
    until(lambda: lab.roles()[other] == "replica", what=f"{other} is a replica")
    where = subprocess.run(
        ["dig", "+short", "@127.0.3.55", "-p", "5300", "app.venue.test.", "A"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.strip() == "127.0.2.10"
    # the engine, once it is back, finds nothing left to do but what only it keeps
    plan = ("plan", "failover", "--system", "lab", "--from", "west", "--to", "east", "--json")

    def held() -> set[str]:
        return {s["id"] for s in lab.relight(*plan).json["steps"] if s["holds"] is True}

    until(lambda: {"fence", "promote", "route-target", "dns", "follow"} <= held(), what="nothing is left to do")


def _has_aws() -> bool:
    return typed("aws --version", dict(os.environ))[0] == 0
