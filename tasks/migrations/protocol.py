"""What whoever keeps migrations can say and do.

A migration is numbered and has two phases, each a file: *expand* only adds, so that the release that runs and the next
one both work; *contract* takes away what no running release uses any more (the parallel change of refactorings).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from tasks.contract import Facts

Phase = Literal["expand", "contract"]


@dataclass(frozen=True)
class File:
    """One phase of one migration.

    Attributes:
        statements: in order. A file with a statement that runs CONCURRENTLY has that one only.
        accepted: risk -> the reason, as the file itself says (``-- relight: accept rewrite: …``).
        down: what takes it back; None where there is no such file.
    """

    number: int
    title: str
    phase: Phase
    sha256: str
    statements: tuple[str, ...]
    concurrent: bool = False
    accepted: Mapping[str, str] = field(default_factory=dict)
    down: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """As the file is called."""
        return f"{self.number:04d}_{self.title}.{self.phase}.sql"


@dataclass(frozen=True)
class Applied:
    """A record of what was done. ``state``: ``begun`` only where a build outside a transaction did not end."""

    number: int
    phase: Phase
    title: str
    sha256: str
    state: Literal["begun", "applied"]
    run: str
    at: str


@dataclass(frozen=True)
class Limits:
    """In seconds. ``lock_s``: how long a lock is waited for, and with it everybody who queues behind; ``statement_s``:
    of one statement; ``build_s``: of one that runs CONCURRENTLY, which holds up no write.
    """

    lock_s: float
    statement_s: float
    build_s: float


@dataclass(frozen=True)
class Risk:
    """Why a statement is refused: ``rule`` is what a file accepts by name, ``source`` where it is written."""

    rule: str
    file: str
    table: str
    bytes: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}: {self.rule} on {self.table} ({self.bytes / 2**20:.1f} MiB): {self.what} ({self.source})"


@dataclass(frozen=True)
class Target:
    """Where to apply: ``identity`` is the system identifier that the node must have at that moment."""

    node: str
    identity: str
    run: str


@runtime_checkable
class Migrations(Protocol):
    """Numbered files, and the record of them in the database that they change."""

    def database(self) -> str:
        """Name of the component that they are for."""
        ...

    def files(self) -> tuple[File, ...]:
        """In the order of their numbers. Raises BadInput for a folder or a file that is not as it should be."""
        ...

    async def applied(self, node: str) -> tuple[Applied, ...]:
        """As ``node`` has them recorded. Raises Unreachable, Rejected."""
        ...

    async def risks(self, node: str, files: tuple[File, ...], big_bytes: int) -> tuple[Risk, ...]:
        """What the files do to tables of at least ``big_bytes`` and do not accept by name. Raises Unreachable."""
        ...

    async def apply(self, to: Target, file: File, limits: Limits, *, back: bool = False) -> None:
        """Apply the file, or take it back, wholly or not at all; one try.

        Raises NotYet where a lock was not had in time (facts: ``holders``), SafetyRefusal for another server than
        ``to`` names or a standby, Rejected where the server says no, EffectUnknown where its answer was lost.
        """
        ...

    async def rehearse(
        self, source: str, files: tuple[File, ...], limits: Limits, said: Callable[[str], None]
    ) -> Facts:
        """Apply ``files`` to a copy of ``source`` that is gone afterwards: seconds, locks, rewrites, by file.

        Raises Rejected where the copy cannot be made or a file fails on it, Unreachable.
        """
        ...

    def left_behind(self) -> tuple[str, ...]:
        """Folders of copies that nobody uses and that are still there."""
        ...
