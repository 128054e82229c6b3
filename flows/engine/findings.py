"""What is wrong with a file, said so that it can be mended without reading our code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput


class Finding(BaseModel):
    """One fault of one file. ``line`` and ``column`` count from 1; 0 where the file has no such place.

    Attributes:
        code: stable name of the rule (``unknown-action``), for scripts.
        where: dotted path inside the document (``steps.2.with.site``).
        value: the offending value as text, shortened; never a secret.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Literal["error", "warning"]
    code: str
    message: str
    file: str
    line: int = 0
    column: int = 0
    where: str = ""
    value: str = ""
    expected: str = ""
    nearest: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        parts = [f"{place}: {self.severity}: {self.where + ': ' if self.where else ''}{self.message}"]
        if self.value:
            parts.append(f"got {self.value}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.nearest:
            parts.append(f"did you mean {self.nearest!r}?")
        return "; ".join(parts) + f" [{self.code}]"


class InvalidFiles(BadInput):
    """One or more files cannot be used. ``findings`` holds every fault, not the first."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(f) for f in self.findings))


def nearest(name: Any, known: Iterable[str]) -> str:
    """The known name closest to ``name``, or an empty string when none is close."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.55)
    return match[0] if match else ""


def shown(value: Any) -> str:
    """A value as it goes into a message: quoted, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
