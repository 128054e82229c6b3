"""The witness: what was intended and what came of it, in a file that shows when it was tampered with.

One JSON object a line. Each record carries the SHA-256 of the one before it, and is on disk (fsync) before
``append`` returns, so an intent is durable before its effect begins. A crash can only tear the last line;
that is recognised and set aside. Anything wrong before the last line is corruption and named as such.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tasks.errors import RelightError
from tasks.secrets import redact

GENESIS = "0" * 64
Record = dict[str, Any]


class JournalBroken(RelightError):
    """The journal is not what was written: a record in the middle is damaged or the chain does not hold."""

    exit_code = 2


class JournalUnwritable(RelightError):
    """A record could not be made durable. Nothing may be changed any more, since nothing could be proven."""


class JournalTaken(JournalUnwritable):
    """Another engine goes on with this run: it wrote to the journal behind this one's back."""

    exit_code = 3


class Journal(Protocol):
    """Where records go. ``append`` returns the record with its place in the chain."""

    @property
    def records(self) -> tuple[Record, ...]: ...

    def append(self, at: datetime, kind: str, **body: Any) -> Record: ...


def sealed(previous: str, seq: int, at: datetime, kind: str, body: dict[str, Any]) -> tuple[Record, str]:
    """A record and its line. ``sha256`` covers the canonical JSON of everything else in it, ``prev`` included."""
    record = {"seq": seq, "at": at.isoformat(timespec="microseconds"), "type": kind, **body, "prev": previous}
    # Redaction before hashing: what is proven is what is stored.
    clean: Record = _plain(record)
    clean["sha256"] = digest(clean)
    return clean, canonical(clean)


def canonical(record: Record) -> str:
    """The one way to write a record."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """JSON-able, without secrets and without what JSON has no word for (NaN, infinity, bytes, dates become text)."""
    if isinstance(value, Mapping):
        return {redact(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return redact(str(value))


def digest(record: Record) -> str:
    """SHA-256, hex, of a record without its own ``sha256``."""
    rest = {k: v for k, v in record.items() if k != "sha256"}
    return hashlib.sha256(canonical(rest).encode()).hexdigest()


@dataclass(frozen=True)
class Read:
    """A journal file's content. ``good_bytes`` is where the last whole record ends; ``torn`` what stands after it."""

    records: tuple[Record, ...]
    good_bytes: int
    torn: bytes

    @property
    def head(self) -> str:
        """Hash of the last record."""
        return str(self.records[-1]["sha256"]) if self.records else GENESIS


def read(path: Path) -> Read:
    """Read and verify a journal. Raises JournalBroken naming the record, RelightError when it cannot be read."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise RelightError(f"cannot read journal {path}: {e.strerror}") from e
    lines = raw.split(b"\n")
    torn = lines.pop()  # what follows the last newline: nothing, or a torn record
    records: list[Record] = []
    previous = GENESIS
    for number, line in enumerate(lines, 1):
        record = _parsed(path, number, line)
        # compared as written, too: a key given twice, or other spelling, would parse to the same record
        if record.get("sha256") != digest(record) or record.get("seq") != number or canonical(record).encode() != line:
            raise JournalBroken(f"journal {path}, record {number}: its content does not match its hash; it was changed")
        if record.get("prev") != previous:
            raise JournalBroken(
                f"journal {path}, record {number}: it does not follow record {number - 1} (chain broken)"
            )
        previous = record["sha256"]
        records.append(record)
    return Read(tuple(records), len(raw) - len(torn), torn)


def _parsed(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise JournalBroken(f"journal {path}, record {number}: not JSON: {e}") from e
    if not isinstance(record, dict):
        raise JournalBroken(f"journal {path}, record {number}: not an object")
    return record


class FileJournal:
    """A journal in a file. Opening an existing one verifies it and sets a torn last line aside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise JournalUnwritable(f"cannot make folder {path.parent} for the journal: {e.strerror}") from e
        found = read(path) if path.exists() else Read((), 0, b"")
        self._records = list(found.records)
        self.torn = found.torn
        self._broken: JournalUnwritable | None = None
        try:
            if found.torn:
                path.with_name(f"{path.name}.torn-{len(found.records) + 1}").write_bytes(found.torn)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if found.torn:
                os.ftruncate(self._file, found.good_bytes)
                os.fsync(self._file)
            self._size = os.fstat(self._file).st_size
            directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)  # the file's own name must survive a crash too
            finally:
                os.close(directory)
        except OSError as e:
            raise JournalUnwritable(f"cannot write journal {path}: {e.strerror}") from e

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    @property
    def head(self) -> str:
        """Hash of the last record."""
        return str(self._records[-1]["sha256"]) if self._records else GENESIS

    def append(self, at: datetime, kind: str, **body: Any) -> Record:
        """Make one record durable and return it. Raises JournalUnwritable; after that no effect may follow.

        Once broken it stays broken: after a failed write a part of a line may stand in the file, and after a failed
        fsync(2) the kernel may drop the page and report success the next time.
        """
        if self._broken is not None:
            raise self._broken
        if not self._untouched():
            self._broken = JournalTaken(
                f"journal {self.path} is not as this engine left it: another one goes on with the run. This one stops."
            )
            raise self._broken
        record, line = sealed(self.head, len(self._records) + 1, at, kind, body)
        data = line.encode() + b"\n"
        try:
            rest = memoryview(data)
            while rest:  # a disk that gets full takes a part first, and then says why (write(2))
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as e:
            self._broken = JournalUnwritable(
                f"journal {self.path} cannot be written ({e.strerror}); the run stops before its next effect."
                " Make room or repair the disk, then resume."
            )
            raise self._broken from e
        self._size += len(data)
        self._records.append(record)
        return record

    def _untouched(self) -> bool:
        """Nobody wrote to the file but this object."""
        return os.fstat(self._file).st_size == self._size

    def close(self) -> None:
        """Safe to repeat."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def of_type(records: tuple[Record, ...], kind: str) -> Iterator[Record]:
    """The records of one type, oldest first."""
    return (r for r in records if r["type"] == kind)
