"""Bodies from outside: bounded before they are looked at, and read so that nobody can mean two things at once."""

from __future__ import annotations

import json
import zlib
from typing import Any

from flows.intake.event import Malformed, Refused

MOST_BYTES = 1 << 20
MOST_DEPTH = 32
MOST_DIGITS = 40


class TooLarge(Refused):
    """413."""

    status = 413


class UnknownEncoding(Refused):
    """415."""

    status = 415


def decompressed(raw: bytes, encoding: str, most: int = MOST_BYTES) -> bytes:
    """``raw`` as its Content-Encoding says; never more than ``most`` bytes of it. Raises TooLarge, UnknownEncoding."""
    if len(raw) > most:
        raise TooLarge(f"the body has more than {most} bytes")
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        return raw
    if kind not in ("gzip", "x-gzip", "deflate"):
        raise UnknownEncoding(f"Content-Encoding {kind!r} is not understood; send identity or gzip")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        found = unpack.decompress(raw, most + 1)  # stops there, whatever the rest would grow to
    except zlib.error as e:
        raise Malformed(f"the body is not {kind}: {e}") from None
    if len(found) > most or unpack.unconsumed_tail:
        raise TooLarge(f"the body has more than {most} bytes once it is decompressed")
    return found


def strict_json(raw: bytes, most_depth: int = MOST_DEPTH) -> Any:
    """Parsed JSON. Raises Malformed for what is not UTF-8, too deep, names a key twice, or is no JSON (NaN is none)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Malformed(f"the body is not UTF-8 (byte {e.start})") from None
    if _depth(text) > most_depth:
        raise Malformed(f"the body is nested deeper than {most_depth}")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_number)
    except ValueError as e:
        raise Malformed(f"the body is no JSON: {e}") from None


def _depth(text: str) -> int:
    """The deepest nesting, found without recursion."""
    deepest = depth = 0
    inside = escaped = False
    for c in text:
        if inside:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                inside = False
        elif c == '"':
            inside = True
        elif c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = sorted({k for k, _ in pairs if sum(k == other for other, _ in pairs) > 1})
        raise Malformed(f"the body names {', '.join(map(repr, twice[:3]))} twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is no JSON")


def _number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Malformed("a number in the body has too many digits")
    return int(digits)
