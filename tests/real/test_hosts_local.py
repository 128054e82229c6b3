"""Commands of the system file, run as real processes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
from patience import until
from pydantic import ValidationError

from tasks.clock import LoopClock
from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, Unreachable
from tasks.hosts.local import MOST_BYTES, PROVIDER
from tasks.hosts.protocol import Hosts
from tasks.secrets import resolve

pytestmark = pytest.mark.real

PYTHON = sys.executable


def build(commands):
    async def make():
        around = Surroundings("t", "hosts", ("west",), LoopClock(), lambda _: None)
        return PROVIDER(PROVIDER.Settings.model_validate({"commands": commands, "targets": ["n1", "n2"]}), around)

    return asyncio.run(make())


def run(hosts, *words, timeout_s=60.0, **values):
    return asyncio.run(hosts.run(*words, timeout_s=timeout_s, values=values or None))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_status_and_output_come_back_and_names_are_filled_in(monkeypatch):
    monkeypatch.setenv("GREETING", "hello")
    script = "import sys; print(sys.argv[1:]); print('oops', file=sys.stderr); sys.exit(3)"
    hosts = build({"say": [PYTHON, "-c", script, "$GREETING", "{target}", "to-{upstream}"]})
    assert isinstance(hosts, Hosts)
    assert hosts.knows("say")
    assert not hosts.knows("unsay")
    ran = run(hosts, "say", "n1", upstream="n2")
    assert (ran.status, ran.stdout, ran.stderr) == (3, "['hello', 'n1', 'to-n2']", "oops")


def test_no_shell_reads_what_is_filled_in_and_only_known_targets_are():
    hosts = build({"say": ["/bin/echo", "{target}"]})
    for wrong in ("n1; touch /tmp/x", "n3", "", "$(id)"):
        with pytest.raises(BadInput, match="is not one of its targets"):
            run(hosts, "say", wrong)
    with pytest.raises(BadInput, match="has no command 'reboot'; it has say"):
        run(hosts, "reboot", "n1")


def test_a_placeholder_or_variable_without_a_value_is_an_input_error():
    with pytest.raises(BadInput, match=r"needs \{upstream\}"):
        run(build({"copy": ["/bin/echo", "{upstream}"]}), "copy", "n1")
    with pytest.raises(BadInput, match=r"RELIGHT_NOT_SET"):
        run(build({"x": ["$RELIGHT_NOT_SET/bin/host"]}), "x", "n1")


def test_status_255_and_a_command_that_is_not_there_are_an_unreachable_host():
    with pytest.raises(Unreachable, match="no route"):
        run(build({"x": ["/bin/sh", "-c", "echo no route >&2; exit 255"]}), "x", "n1")
    with pytest.raises(Unreachable, match="cannot run command 'x'"):
        run(build({"x": ["/nowhere/at/all"]}), "x", "n1")


def test_a_command_that_hangs_is_killed_with_its_whole_group(tmp_path):
    pids = tmp_path / "pids"
    script = f"sleep 90 & echo $$ $! > {pids}; wait"
    began = time.monotonic()
    with pytest.raises(EffectUnknown, match="did not end within 3 s"):
        run(build({"x": ["/bin/sh", "-c", script]}), "x", "n1", timeout_s=3.0)
    assert time.monotonic() - began < 30
    assert len(pids.read_text().split()) == 2
    until(lambda: not any(alive(int(p)) for p in pids.read_text().split()), 10)


def test_a_cancelled_command_is_killed_too(tmp_path):
    pids = tmp_path / "pids"
    hosts = build({"x": ["/bin/sh", "-c", f"echo $$ > {pids}; exec sleep 90"]})

    async def main():
        task = asyncio.ensure_future(hosts.run("x", "n1", timeout_s=60))
        while not pids.exists() or not pids.read_text().endswith("\n"):  # noqa: ASYNC110 - it waits for another process
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: not alive(int(pids.read_text())), 10)


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_command(tmp_path):
    """``pg_ctl start`` leaves a server that inherited stdout."""
    hosts = build({"start": ["/bin/sh", "-c", f"sleep 90 & echo $! > {tmp_path}/pid; echo started"]})
    ran = run(hosts, "start", "n1", timeout_s=30)
    assert (ran.status, ran.stdout) == (0, "started")
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_output_is_bounded_and_holds_no_secret(monkeypatch):
    monkeypatch.setenv("RELIGHT_TEST_SECRET", "hunter2-hunter2")
    resolve("env:RELIGHT_TEST_SECRET")
    script = "import os; print('x' * 100_000); print(os.environ['RELIGHT_TEST_SECRET'])"
    ran = run(build({"x": [PYTHON, "-c", script]}), "x", "n1")
    assert len(ran.stdout) <= MOST_BYTES
    assert "hunter2" not in ran.stdout
    assert ran.stdout.endswith("***")


def test_settings_are_strict():
    for wrong in ({"commands": {}, "targets": ["a"]}, {"commands": {"x": ["y"]}, "targets": ["a"], "shell": True}):
        with pytest.raises(ValidationError):
            PROVIDER.Settings.model_validate(wrong)
