"""One run per system, over real processes and a real lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from flows.engine import killswitch
from flows.engine.lease import FileLease, Holder
from tasks.errors import BadInput, LeaseHeld, RelightError, SafetyRefusal

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)

HOLDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from flows.engine.lease import FileLease, Holder
lease = FileLease.acquire(Path(sys.argv[1]), Holder("their-run", datetime.now(UTC)))
print(lease.epoch, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "systems" / "lab"


@pytest.fixture
def holder(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "1\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_by_name(folder, holder):
    with pytest.raises(LeaseHeld) as e:
        FileLease.acquire(folder, Holder("my-run", NOW))
    assert "lab already has a run: their-run" in str(e.value)
    assert f"process {holder.pid}" in str(e.value)
    assert e.value.exit_code == 3
    assert json.loads((folder / "lease.json").read_text())["epoch"] == 1  # refused: nothing was taken


def test_who_may_not_go_on_takes_nothing_and_hears_of_one_that_died(folder, holder):
    holder.kill()
    holder.wait()
    seen = []

    def may(held):
        seen.append(held.last)
        raise BadInput("another run changed it")

    with pytest.raises(BadInput, match="another run changed it"):
        FileLease.acquire(folder, Holder("my-run", NOW, may=may))
    assert [(last.run_id, last.verdict) for last in seen] == [("their-run", "died")]
    assert json.loads((folder / "lease.json").read_text())["epoch"] == 1
    FileLease.acquire(folder, Holder("another", NOW)).release()  # nor is the lock left


def test_a_killed_holder_leaves_no_lock_and_the_epoch_grows(folder, holder):
    holder.kill()
    holder.wait()
    lease = FileLease.acquire(folder, Holder("my-run", NOW))
    assert lease.epoch == 2
    lease.check()
    lease.release()


def test_epoch_only_grows_and_starts_above_what_zones_saw(folder):
    epochs = []
    for floor in (0, 0, 40, 7):
        lease = FileLease.acquire(folder, Holder("run", NOW, floor))
        epochs.append(lease.epoch)
        lease.release()
    assert epochs == [1, 2, 41, 42]


def test_a_stale_holder_is_refused(folder):
    """The lock was lost (another file system, a restored folder) and a newer run took over."""
    old = FileLease.acquire(folder, Holder("old", NOW))
    (folder / "lease.lock").unlink()
    new = FileLease.acquire(folder, Holder("new", NOW))
    new.check()
    with pytest.raises(LeaseHeld, match="this run has epoch 1, and system lab is at epoch 2"):
        old.check()
    old.release()
    new.release()


def test_a_lease_that_was_given_up_allows_nothing(folder):
    lease = FileLease.acquire(folder, Holder("run", NOW))
    lease.release()
    lease.release()
    with pytest.raises(LeaseHeld, match="gave its lease"):
        lease.check()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"epoch": "7"}', '{"epoch": true}', "null"])
def test_an_epoch_that_cannot_be_read_is_never_taken_for_zero(folder, content):
    FileLease.acquire(folder, Holder("run", NOW)).release()
    (folder / "lease.json").write_text(content)
    for _ in range(2):  # the second try finds the same fault, not its own lock
        with pytest.raises(RelightError, match=r"lease\.json") as e:
            FileLease.acquire(folder, Holder("run", NOW))
        assert not isinstance(e.value, LeaseHeld)
    held_by_other = FileLease.acquire(folder.parent / "other", Holder("run", NOW))
    (folder.parent / "other" / "lease.json").write_text(content)
    with pytest.raises(RelightError):
        held_by_other.check()
    held_by_other.release()


def test_a_held_lease_with_an_unreadable_file_is_still_held(folder):
    lease = FileLease.acquire(folder, Holder("run", NOW))
    (folder / "lease.json").write_text("{")
    with pytest.raises(LeaseHeld):
        FileLease.acquire(folder, Holder("other", NOW))
    lease.release()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RelightError, match=r"without a lease no run may start"):
        FileLease.acquire(tmp_path / "file" / "lab", Holder("run", NOW))


def test_the_lock_is_not_inherited_by_what_a_run_starts(folder):
    """A server started by a run must not keep the lease after the run died."""
    lease = FileLease.acquire(folder, Holder("run", NOW))
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        lease.release()
        again = FileLease.acquire(folder, Holder("run", NOW))
        again.release()
        child.kill()


class Since:
    """Seconds since boot, as a test says."""

    now = 100.0

    def __call__(self):
        return self.now


def test_one_that_stands_still_is_taken_over_and_wakes_up_fenced(folder):
    since = Since()
    old = FileLease.acquire(folder, Holder("old", NOW, elapsed=since))
    since.now += 9.0
    with pytest.raises(LeaseHeld, match="already has a run: old"):
        FileLease.acquire(folder, Holder("new", NOW, elapsed=since))
    since.now += 2.0
    new = FileLease.acquire(folder, Holder("new", NOW, elapsed=since))
    new.check()
    with pytest.raises(
        LeaseHeld, match=r"this run has epoch 1, and system lab is at epoch 2: new \(process \d+ on .*\) took over"
    ):
        old.check()
    old.renew()  # whatever it still does, it does not come back
    old.release()
    since.now += 9.0
    with pytest.raises(LeaseHeld, match="already has a run: new"):
        FileLease.acquire(folder, Holder("third", NOW, elapsed=since))
    new.release()


def test_one_that_renews_is_not_taken_over(folder):
    since = Since()
    lease = FileLease.acquire(folder, Holder("old", NOW, elapsed=since))
    for _ in range(5):
        since.now += 8.0
        lease.check()  # late, and nobody took over: it renews
        with pytest.raises(LeaseHeld):
            FileLease.acquire(folder, Holder("new", NOW, elapsed=since))
    lease.release()


def test_what_cannot_be_read_is_no_reason_to_take_over(folder):
    since = Since()
    lease = FileLease.acquire(folder, Holder("old", NOW, elapsed=since))
    since.now += 1000.0
    (folder / "renewed-1").write_text("")
    with pytest.raises(LeaseHeld):
        FileLease.acquire(folder, Holder("new", NOW, elapsed=since))
    lease.release()


def test_the_refusal_says_what_the_holder_does(folder):
    lease = FileLease.acquire(folder, Holder("old", NOW))
    with pytest.raises(LeaseHeld, match=r"since 2026-01-01T12:00:00\+00:00, at step promote of old\)"):
        FileLease.acquire(folder, Holder("new", NOW, doing=lambda run_id: f"at step promote of {run_id}"))
    lease.release()


RACER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from flows.engine.lease import FileLease, Holder
from tasks.errors import BadInput, LeaseHeld
print("ready", flush=True)
sys.stdin.readline()
try:
    FileLease.acquire(Path(sys.argv[1]), Holder(sys.argv[2], datetime.now(UTC)))
    print("mine", flush=True)
except LeaseHeld as e:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_of_many_at_the_same_moment_one_wins(folder):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(folder), f"run-{i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(6)
    ]
    try:
        assert {r.stdout.readline() for r in racers} == {"ready\n"}
        for r in racers:
            r.stdin.write("go\n")
            r.stdin.flush()
        assert sorted(r.stdout.readline() for r in racers) == ["mine\n", *["refused\n"] * 5]
    finally:
        for r in racers:
            r.kill()
            r.communicate()


def test_kill_switch():
    killswitch.check()
    file = killswitch.pause_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"maintenance, J. Doe \xff\n")
    with pytest.raises(SafetyRefusal, match=r"relight is paused: maintenance, J\. Doe"):
        killswitch.check()
    file.unlink()
    killswitch.check()


def test_kill_switch_that_cannot_be_read_counts():
    file = killswitch.pause_file()
    file.mkdir(parents=True)
    with pytest.raises(SafetyRefusal, match="cannot be read"):
        killswitch.check()
    os.rmdir(file)  # noqa: PTH106 - the switch is put back as it was
