"""How figures are written in reviews."""

from __future__ import annotations

from tasks.quantities import show_duration


def size(count: float) -> str:
    """Bytes as people read them: ``41 MB``. Powers of 1000, as disks and bills have them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def number(count: float) -> str:
    """``12 345 678`` as ``12.3 M``; small ones as they are."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(count) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{count / scale:.1f} {unit}".replace(".0 ", " ")
    return f"{count:,.0f}"


def seconds(value: float) -> str:
    """``0.8 ms``, ``310ms``, ``2m5s``, ``40d``."""
    if value >= 2 * 86_400:
        return f"{value / 86_400:.0f}d"
    return f"{1000 * value:.2g} ms" if value < 0.01 else show_duration(value)


def measure(value: float, unit: str) -> str:
    """A metric's value with its unit."""
    if unit == "%":
        return f"{value:.1f}%"
    if unit == "s":
        return seconds(value)
    if unit == "B/s":
        return f"{size(value)}/s"
    if unit == "USD/d":
        return f"{value:,.2f} USD/d"
    return "0" if abs(value) < 1e-3 else f"{value:,.3g}"
