"""Who has which flow run: locks that the kernel drops."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flows.engine import flowruns


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("RELIGHT_STATE", str(tmp_path))


def deserted(name):
    with flowruns.deserted(name) as gone:
        return gone


def test_one_that_somebody_has_is_not_deserted():
    with flowruns.hold("a"):
        assert flowruns.begun() == ["a"]
        assert not deserted("a")
        with flowruns.hold("a"):  # a run that is resumed, and one that follows it
            assert not deserted("a")
        assert not deserted("a")
    assert flowruns.begun() == []


def test_one_whose_process_was_killed_is_deserted_once():
    code = (
        "from flows.engine import flowruns; import sys\nwith flowruns.hold('b'): print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not deserted("b")
        holder.kill()
        holder.wait()
    assert flowruns.begun() == ["b"]
    assert deserted("b")
    assert flowruns.begun() == []


def test_one_that_is_marked_and_never_begun_is_deserted():
    flowruns.mark("c")
    assert deserted("c")


def test_it_stays_where_looking_after_it_failed():
    flowruns.mark("d")
    with pytest.raises(OSError), flowruns.deserted("d"):
        raise OSError
    assert flowruns.begun() == ["d"]


def test_a_lock_on_a_file_that_was_removed_says_nothing():
    path = flowruns.folder() / "e"
    path.touch()
    old = os.open(path, os.O_RDWR)
    path.unlink()
    with flowruns.hold("e"):
        assert not deserted("e")
    os.close(old)


def test_logs_are_no_flow_runs():
    flowruns.log_file("f").touch()
    assert flowruns.begun() == []
