"""Quantities as people write them in YAML: ``5m``, ``1000ms``, ``70%``, ``+2``, ``lag > 60s``.

Each is an ``Annotated`` type for pydantic that accepts the written form and yields a plain number:
durations become seconds (float), percentages become the percent value (70% -> 70.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_PERCENT = re.compile(r"\d+(?:\.\d+)?%", re.ASCII)
_CHANGE = re.compile(r"[+-]\d+", re.ASCII)
_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*", re.ASCII)


def duration(value: Any) -> float:
    """``5m``, ``1000ms``, ``1h30m`` or a bare number of seconds -> seconds. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("expected a duration such as 500ms, 20s, 5m, 1h30m")  # noqa: TRY004 - pydantic wants ValueError
    if isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        seconds = sum(float(n) * _UNITS[u] for n, u in _PART.findall(value))
    else:
        raise ValueError("expected a duration such as 500ms, 20s, 5m, 1h30m")
    if not 0 <= seconds <= 10 * 365 * 86400:
        raise ValueError("expected a duration between 0s and 10 years")
    return seconds


def percent(value: Any) -> float:
    """``70%`` -> 70.0. Raises ValueError."""
    if isinstance(value, str) and _PERCENT.fullmatch(value):
        return float(value[:-1])
    raise ValueError("expected a percentage such as 70% or 0.5%")


def change(value: Any) -> int:
    """``+2`` or ``-1`` -> signed int. YAML reads an unquoted +2 as the number 2, so a plain int is taken too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _CHANGE.fullmatch(value):
        return int(value)
    raise ValueError("expected a change such as +2 or -1")


def show_duration(seconds: float) -> str:
    """Seconds as people read them: 0.183 -> ``183ms``, 4.2 -> ``4.2s``, 300 -> ``5m``, 5400 -> ``1h30m``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    parts = [(hours, "h"), (minutes, "m"), (secs, "s")]
    return "".join(f"{n}{u}" for n, u in parts if n) or "0s"


@dataclass(frozen=True)
class Threshold:
    """One side of a comparison: a number with its unit, or the name of something configured elsewhere.

    ``unit`` is ``%``, ``s`` (durations are normalised to seconds), ``name`` or empty for a bare number.
    """

    value: float | str
    unit: str


@dataclass(frozen=True)
class Condition:
    """``metric operator threshold`` as in ``cpu_usage > 85%``."""

    metric: str
    operator: str
    threshold: Threshold
    text: str


def threshold(value: Any) -> Threshold:
    """``85%``, ``500ms``, ``60s``, ``12`` or a bare name (``threshold``). Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Threshold(float(value), "")
    if isinstance(value, str):
        if _PERCENT.fullmatch(value):
            return Threshold(float(value[:-1]), "%")
        if _DURATION.fullmatch(value):
            return Threshold(duration(value), "s")
        if re.fullmatch(r"\d+(?:\.\d+)?", value, re.ASCII):
            return Threshold(float(value), "")
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value, re.ASCII):
            return Threshold(value, "name")
    raise ValueError("expected a threshold such as 85%, 500ms, 60s, 12, or a name")


def condition(value: Any) -> Condition:
    """``lag > 60s`` -> Condition. Raises ValueError."""
    if isinstance(value, Condition):
        return value
    match = _CONDITION.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("expected a condition such as cpu_usage > 85% or lag > 60s")
    return Condition(match[1], match[2], threshold(match[3]), " ".join(value.split()))


_TEXT = {"type": "string"}
Duration = Annotated[
    float,
    BeforeValidator(duration),
    WithJsonSchema({"type": ["string", "number"], "examples": ["500ms", "20s", "5m", "1h30m"]}),
]
"""Seconds."""
Percent = Annotated[
    float, BeforeValidator(percent), WithJsonSchema({**_TEXT, "pattern": r"^\d+(\.\d+)?%$", "examples": ["70%"]})
]
Change = Annotated[
    int, BeforeValidator(change), WithJsonSchema({"type": ["string", "integer"], "examples": ["+2", "-1"]})
]
ThresholdText = Annotated[
    Threshold,
    BeforeValidator(threshold),
    PlainSerializer(lambda t: f"{t.value}{t.unit if t.unit != 'name' else ''}"),
    WithJsonSchema({"type": ["string", "number"], "examples": ["85%", "1000ms"]}),
]
ConditionText = Annotated[
    Condition,
    BeforeValidator(condition),
    PlainSerializer(lambda c: c.text),
    WithJsonSchema({**_TEXT, "examples": ["cpu_usage > 85%", "lag > 60s"]}),
]
