"""``$VARIABLE`` in the strings of a system file, expanded only at the moment of use."""

from __future__ import annotations

import os
import re

from tasks.errors import BadInput

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expand(text: str) -> str:
    """``text`` with every ``$NAME`` and ``${NAME}`` replaced from the environment.

    Raises BadInput for one that is not set: a path with a literal ``$NAME`` in it would point somewhere else.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        try:
            return os.environ[name]
        except KeyError:
            raise BadInput(f"${name} in {text!r} is not set; set it where the engine runs") from None

    return _VARIABLE.sub(value, text)
