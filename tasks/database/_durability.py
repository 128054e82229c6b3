"""``synchronous_standby_names`` as text and as what it promises.

Grammar (PostgreSQL 15 manual, 20.6.2): ``[FIRST] k (name, …)``, ``ANY k (name, …)``, ``name, …`` (the same as
``FIRST 1``), or empty. Names are SQL identifiers, quoted where they hold other characters; ``*`` matches every standby.
"""

from __future__ import annotations

import re

from tasks.database.protocol import Durability

ASYNC = Durability("async", 0, ())
_LIST = re.compile(r"(?:(?P<method>first|any)\s*)?(?P<needed>\d+)\s*\((?P<names>.*)\)", re.IGNORECASE | re.DOTALL)
_NAME = re.compile(r'\s*("(?:[^"]|"")+"|\*|[^\s,"()]+)\s*(?:,|$)')
_WEAK = ("off", "local")
"""Values of ``synchronous_commit`` with which a commit waits for no standby."""


def parse(names: str, synchronous_commit: str = "on") -> Durability:
    """What a server with these two settings promises. Raises ValueError for text that is not in the grammar."""
    text = names.strip()
    if not text or synchronous_commit in _WEAK:
        return ASYNC
    match = _LIST.fullmatch(text)
    if match is None:
        return Durability("first", 1, _names(text, names))
    listed = _names(match["names"], names)
    needed = int(match["needed"])
    if not 1 <= needed <= len(listed) and listed != ("*",):
        raise ValueError(f"{names!r} asks for {needed} of {len(listed)} standbys")
    return Durability("any" if (match["method"] or "").lower() == "any" else "first", needed, listed)


def show(durability: Durability) -> str:
    """The setting that promises ``durability``; parsing it again gives the same."""
    if durability.method == "async" or not durability.standbys:
        return ""
    quoted = ", ".join("*" if s == "*" else '"{}"'.format(s.replace('"', '""')) for s in durability.standbys)
    return f"{durability.method.upper()} {durability.needed} ({quoted})"


def _names(text: str, whole: str) -> tuple[str, ...]:
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _NAME.match(text, at)
        if match is None:
            raise ValueError(
                f"expected synchronous_standby_names such as FIRST 1 (a, b), ANY 2 (a, b, c); got {whole!r}"
            )
        name = match[1]
        found.append(name[1:-1].replace('""', '"') if name.startswith('"') else name)
        at = match.end()
    if not found or text.rstrip().endswith(","):
        raise ValueError(f"expected names of standbys in {whole!r}")
    return tuple(found)
