"""The witness: durable before it returns, and every change to it shows."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from flows.engine import journal
from flows.engine.journal import GENESIS, FileJournal, JournalBroken, JournalUnwritable
from tasks import secrets
from tasks.errors import RelightError

NOW = datetime(2026, 1, 1, 12, 0, 0, 250, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "r1" / "journal.jsonl"


def filled(path, count=4):
    book = FileJournal(path)
    for n in range(count):
        book.append(NOW, "outcome", step=f"s{n}", facts={"n": n, "text": "é"})
    book.close()
    return path.read_bytes()


def test_records_are_a_chain_and_read_back_as_written(path):
    book = FileJournal(path)
    first = book.append(NOW, "intent", step="a")
    second = book.append(NOW, "outcome", step="a", facts={"x": [1, 2.5, None, True]})
    book.close()
    assert (first["seq"], first["prev"], second["prev"]) == (1, GENESIS, first["sha256"])
    found = journal.read(path)
    assert found.records == (first, second)
    assert (found.head, found.torn) == (second["sha256"], b"")
    assert second["at"] == "2026-01-01T12:00:00.000250+00:00"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_opening_again_goes_on_with_the_chain(path):
    filled(path, 2)
    book = FileJournal(path)
    third = book.append(NOW, "x")
    book.close()
    assert third["seq"] == 3
    assert len(journal.read(path).records) == 3


def test_on_disk_before_append_returns(path, monkeypatch):
    """Order of the system calls: the whole record is written, then fsync of that file, then append returns."""
    calls = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(("write", fd)) or write(fd, data))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync", fd)) or fsync(fd))
    book = FileJournal(path)
    assert [c for c, _ in calls] == ["fsync"]  # the directory: the file's own name
    calls.clear()
    book.append(NOW, "intent")
    assert [c for c, _ in calls] == ["write", "fsync"]
    assert len({fd for _, fd in calls}) == 1
    book.close()


def test_torn_at_every_byte_of_the_last_line(path):
    raw = filled(path, 3)
    third = raw.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(third, len(raw)):
        path.write_bytes(raw[:end])
        found = journal.read(path)
        assert (len(found.records), found.torn) == (2, raw[third:end])
        book = FileJournal(path)
        assert book.torn == raw[third:end]
        book.append(NOW, "after")
        book.close()
        again = journal.read(path)
        assert (len(again.records), again.torn, again.records[-1]["type"]) == (3, b"", "after")
        aside = path.with_name("journal.jsonl.torn-3")
        assert (aside.read_bytes() if end > third else b"") == raw[third:end]


def test_every_single_changed_byte_shows(path):
    """Any byte of any whole record, the newline between two included; also what parses to the same record."""
    raw = filled(path, 2)
    last = raw.rstrip(b"\n").rindex(b"\n") + 1
    for i in range(last):
        for other in {raw[i] ^ 0x20, 0x20} - {raw[i]}:
            path.write_bytes(raw[:i] + bytes([other]) + raw[i + 1 :])
            with pytest.raises(JournalBroken):
                journal.read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], *lines[2:]],  # one deleted
        lambda lines: lines[1:],  # the first deleted
        lambda lines: [lines[1], lines[0], *lines[2:]],  # swapped
        lambda lines: [lines[0], lines[0], *lines[1:]],  # repeated
        lambda lines: [lines[0], b"", *lines[1:]],  # an empty line
        lambda lines: [lines[0].replace(b'"step":', b'"step":"other","step":'), *lines[1:]],  # a key given twice
        lambda lines: [lines[0].replace(b":", b": "), *lines[1:]],  # other spelling
        lambda lines: [b"[" * 100_000, *lines[1:]],
        lambda lines: [b"[]", *lines[1:]],
        lambda lines: [b"\xff\xfe", *lines[1:]],
    ],
)
def test_a_middle_record_that_was_changed_names_itself(path, change):
    lines = filled(path).rstrip(b"\n").split(b"\n")
    path.write_bytes(b"\n".join(change(lines)) + b"\n")
    with pytest.raises(JournalBroken, match=r"record [1-3]:") as e:
        journal.read(path)
    assert e.value.exit_code == 2
    with pytest.raises(JournalBroken):
        FileJournal(path)


def test_rewritten_record_with_its_own_hash_breaks_the_chain(path):
    lines = filled(path).rstrip(b"\n").split(b"\n")
    record = json.loads(lines[1])
    record["facts"]["n"] = 99
    record["sha256"] = journal.digest(record)
    lines[1] = journal.canonical(record).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(JournalBroken, match="record 3: it does not follow record 2"):
        journal.read(path)


def test_resolved_secrets_never_reach_the_file(path, monkeypatch):
    monkeypatch.setenv("T1_SECRET", 'hunter2-"quoted"-é')
    value = secrets.resolve("env:T1_SECRET").get_secret_value()
    book = FileJournal(path)
    record = book.append(NOW, "outcome", facts={f"key {value}": [f"in {value} text"]}, error={"message": value})
    book.close()
    raw = path.read_bytes()
    assert b"hunter2" not in raw
    assert record["error"]["message"] == "***"
    assert journal.read(path).records[0] == record


def test_what_json_has_no_word_for_becomes_text(path):
    book = FileJournal(path)
    facts = {"nan": float("nan"), "inf": float("-inf"), "when": NOW, "raw": b"x", "set": {1}, 5: "five", "big": 2**70}
    book.append(NOW, "outcome", facts=facts)
    book.close()
    found = journal.read(path).records[0]["facts"]
    assert (found["nan"], found["inf"], found["5"], found["set"]) == ("nan", "-inf", "five", [1])
    json.loads(path.read_bytes(), parse_constant=pytest.fail)


FULL = """
import resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from flows.engine.journal import FileJournal, JournalUnwritable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
book = FileJournal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
written = 0
try:
    while True:
        book.append(datetime.now(UTC), "outcome", facts={"pad": "x" * 90})
        written += 1
except JournalUnwritable as e:
    first = str(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    book.append(datetime.now(UTC), "again")
except JournalUnwritable as e:
    assert str(e) == first
    print(written, first)
"""


def test_full_disk_in_the_middle_of_a_record(path):
    """A real short write (RLIMIT_FSIZE): it stops, stays stopped, and what stands in the file can be resumed."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, -1)
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    written, _, message = done.stdout.partition(" ")
    assert "the run stops before its next effect" in message
    assert path.stat().st_size == 1000
    found = journal.read(path)
    assert len(found.records) == int(written) > 0
    assert found.torn
    book = FileJournal(path)
    book.append(NOW, "resumed")
    book.close()
    assert len(journal.read(path).records) == int(written) + 1


def test_dev_full(tmp_path):
    """A device that is full from the first byte (ENOSPC)."""
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    path = tmp_path / "journal.jsonl"
    book = FileJournal(path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, book._file)
    os.close(full)
    with pytest.raises(JournalUnwritable, match="No space left on device"):
        book.append(NOW, "intent")
    assert book.records == ()
    book.close()


def test_a_failed_fsync_is_final(path, monkeypatch):
    """After a failed fsync(2) the next may lie: the page is clean and gone."""
    book = FileJournal(path)
    fsync = os.fsync

    def fail(_fd):
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalUnwritable, match="Input/output error"):
        book.append(NOW, "intent")
    with pytest.raises(JournalUnwritable):
        book.append(NOW, "intent")
    book.close()


def test_the_runner_stops_before_its_next_effect_when_the_disk_is_full(kit, tmp_path):
    """The whole way: a real file on a real full device, a's outcome cannot be written, b must not begin."""
    path = tmp_path / "journal.jsonl"
    book = FileJournal(path)

    def listen(record):
        if record["type"] == "intent":
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, book._file)
            os.close(full)

    world = kit.World()
    played = kit.play(kit.chain(kit.step("a"), kit.step("b")), world, book, listen=listen)
    book.close()
    assert isinstance(played.error, JournalUnwritable)
    assert world.effects == {"apply a": 1}
    assert [r["type"] for r in journal.read(path).records] == ["run_started", "intent"]


def test_unreadable_and_missing(tmp_path):
    with pytest.raises(RelightError, match="cannot read journal"):
        journal.read(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(RelightError):
        journal.read(tmp_path / "file" / "journal.jsonl")


def test_closing_twice(path):
    book = FileJournal(path)
    book.close()
    book.close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnwritable, match="cannot make folder"):
        FileJournal(tmp_path / "file" / "runs" / "journal.jsonl")
