"""Where reviews are kept, and what changed since the last one of the kind: ``STATE/reviews/SYSTEM/KIND/TIME/``."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.engine import places
from flows.reviews import render
from flows.reviews.finding import ORDER, Kind, Review, Severity
from tasks.errors import BadInput

FILES = ("review.json", "review.md", "review.html")


def home(system: str, kind: Kind) -> Path:
    """The folder of all reviews of the kind."""
    return places.state_home() / "reviews" / system / kind


def new_folder(system: str, kind: Kind, at: datetime, wanted: Path | None = None) -> Path:
    """A folder for this review; ``wanted`` where somebody said so. Raises BadInput where it cannot be made."""
    folder = wanted or home(system, kind) / at.strftime("%Y%m%dT%H%M%SZ")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise BadInput(f"cannot make folder {folder} for the review: {e.strerror}") from e
    return folder


def last(system: str, kind: Kind) -> dict[str, Any] | None:
    """The newest review that is kept; None where there is none that can be read."""
    for file in sorted(home(system, kind).glob("*/review.json"), reverse=True):
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return found
    return None


def compared(review: Review, before: dict[str, Any] | None) -> Review:
    """With what is new and what is gone since ``before``. What became worse counts as new."""
    if before is None:
        return review
    old = {f["key"]: f["severity"] for f in before["findings"]}
    now = {f.key for f in review.findings}
    new = tuple(f.key for f in review.findings if f.key not in old or _worse(f.severity, old[f.key]))
    gone = tuple(f"{f['title']} ({f['severity']})" for f in before["findings"] if f["key"] not in now)
    return replace(review, previous=datetime.fromisoformat(before["at"]), new=new, gone=gone)


def _worse(now: Severity, before: Severity) -> bool:
    return ORDER.index(now) < ORDER.index(before)


def save(review: Review, folder: Path, *, also: Path | None = None) -> None:
    """Write the three forms; the JSON last, and whole, for it is what the next review compares with."""
    texts = (json.dumps(review.as_json(), indent=2) + "\n", render.markdown(review), render.html(review))
    for name, text in reversed(list(zip(FILES, texts, strict=True))):
        _write(folder / name, text)
        if also is not None:
            _write(also / name, text)


def _write(file: Path, text: str) -> None:
    half = file.with_name(f".{file.name}.new")
    try:
        half.write_text(text, encoding="utf-8")
        os.replace(half, file)  # noqa: PTH105
    except OSError as e:
        raise BadInput(f"cannot write {file}: {e.strerror}") from e
