"""Settings in PgBouncer's own file: only the lines that are asked for change, and a reader never sees half a file."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tasks.errors import Rejected

_SECTION = re.compile(r"^\s*\[(\w+)\]\s*$")


def with_settings(text: str, values: Mapping[str, int]) -> str:
    """``text`` with each key of ``[pgbouncer]`` set: in place where it stands, else at the end of the section.

    Raises Rejected where there is no such section (it may come from an ``%include``).
    """
    lines, section, last, left = text.splitlines(), "", -1, dict(values)
    for at, line in enumerate(lines):
        found = _SECTION.match(line)
        section = found[1] if found else section
        if section != "pgbouncer":
            continue
        last = at if line.strip() or found else last
        key = line.partition("=")[0].strip()
        if key in values:  # the last one counts, so all of them are set
            lines[at] = f"{key} = {values[key]}"
            left.pop(key, None)
    if last < 0:
        raise Rejected("there is no section [pgbouncer] in it; name the file that has it")
    lines[last + 1 : last + 1] = [f"{key} = {value}" for key, value in left.items()]
    return "\n".join(lines) + "\n"


def write_settings(path: Path, values: Mapping[str, int]) -> None:
    """Replace the file as a whole, with its owner and mode. Raises Rejected where it cannot be read or written."""
    try:
        before = path.stat()
        text = with_settings(path.read_text(encoding="utf-8"), values)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(number, "w", encoding="utf-8") as out:
            out.write(text)
            os.fchmod(number, before.st_mode & 0o7777)
            if os.geteuid() == 0:
                os.fchown(number, before.st_uid, before.st_gid)
            out.flush()
            os.fsync(number)
        Path(name).replace(path)
    except OSError as e:
        raise Rejected(f"{path}: {e.strerror}; the engine must be able to write it, or leave config out") from e
