"""Commands on a host, by name: what may run is written in the system file, never in a runbook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Ran:
    """Exit status and output (each at most 8 KiB, secrets redacted) of one command."""

    status: int
    stdout: str
    stderr: str
    reference: str = ""
    """By which the other side knows this run of the command, where there is one."""


@runtime_checkable
class Hosts(Protocol):
    """Runs configured commands. ``target`` is what the command acts on (a database node, an instance name)."""

    def knows(self, command: str) -> bool:
        """Does the system file have ``command``?"""
        ...

    async def run(self, command: str, target: str, *, timeout_s: float, values: Mapping[str, str] | None = None) -> Ran:
        """Run command ``command`` of the system file for ``target``; ``values`` fill its other placeholders.

        Raises BadInput for an unknown command or target, Unreachable when the host cannot be reached at all,
        EffectUnknown when it did not end in time (its process group is killed where that is possible).
        """
        ...


@runtime_checkable
class ByHand(Protocol):
    """Commands that a person can give as the engine would."""

    def knows(self, command: str) -> bool: ...

    def line(self, command: str, target: str) -> str:
        """The command line of ``command`` for ``target``. Raises BadInput."""
        ...
