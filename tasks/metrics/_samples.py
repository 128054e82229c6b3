"""What Prometheus says of the samples behind a value: how old they are, and whether there are enough."""

from __future__ import annotations

from dataclasses import replace

from tasks.metrics._prometheus_api import Api
from tasks.metrics._promql import span
from tasks.metrics.protocol import Reading

LEAST_SAMPLES = 4
"""Within the time that a check looks back."""


async def ages(api: Api, label: str, samples: str) -> dict[str, tuple[float, float]] | None:
    """Site -> (time of the oldest sample, its age), by Prometheus' clock. None where no samples are named."""
    if not samples:
        return None
    found: dict[str, tuple[float, float]] = {}
    for one in await api.vector(f"min by ({label}) (timestamp({samples}))"):
        evaluated, at = float(one["value"][0]), float(one["value"][1])
        found[str(one["metric"].get(label, ""))] = (at, max(0.0, evaluated - at))
    return found


async def few(api: Api, label: str, samples: str, over_s: float | None) -> dict[str, str]:
    """Site -> why ``over_s`` is too short there: its series have too few samples in it for a rate to mean much.

    What counts is how often it is really scraped, so it is counted, by the site's longest series. A rate needs two
    samples (*rate()*, Prometheus' query functions); with four it survives a scrape that failed.
    """
    if over_s is None or not samples:
        return {}
    found = dict[str, str]()
    for one in await api.vector(f"max by ({label}) (count_over_time({samples}[{span(over_s)}]))"):
        count = int(float(one["value"][1]))
        if count < LEAST_SAMPLES:
            found[str(one["metric"].get(label, ""))] = (
                f"{count} samples in {over_s:g} s, and at least {LEAST_SAMPLES} are needed: it is scraped too seldom"
                " for so short a look back, or not for long enough"
            )
    return found


def reaching(reading: Reading, template: str, window_s: float) -> Reading:
    """How far back it reaches: the window that the query's ``{window}`` stands for, and for a value of a moment the age
    of its sample. Unknown where the query has a time of its own in it (a range, ``offset``).
    """
    if "[" in template.replace("[{window}]", "") or "offset" in template:
        return reading
    return replace(reading, reach_s=window_s if "{window}" in template else reading.age_s)
