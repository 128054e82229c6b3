"""When a growing thing reaches its limit: a forecast with an interval, by statsmodels.

The model is exponential smoothing with a damped or plain linear trend and, where the data cover two of them, a season
of a day or a week (Hyndman & Athanasopoulos, *Forecasting: Principles and Practice*, 8.7 prediction intervals):
``statsmodels.tsa.exponential_smoothing.ets.ETSModel``, whose ``get_prediction`` gives the interval. With few points it
is a straight line (``statsmodels.api.OLS``) and its prediction interval, which is wide, and says so.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

COVERS = 0.8
"""Part of the futures that the interval holds."""
LEAST = 8
"""Fewer points than this tell no trend."""
ENOUGH = 30
"""From here on the smoothing model; below it a straight line."""


class Point(NamedTuple):
    """When, the middle, and the two sides of the interval."""

    at: datetime
    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """A forecast of one series.

    Attributes:
        reached: when the middle crosses the limit; earliest: when the high side does.
        latest: the low side crosses it; None for each that does not within the horizon.
        change: of the middle, from the last sample to the end of the forecast, in the metric's unit.
        how: the model, in words.
    """

    points: tuple[Point, ...]
    change: float
    how: str
    limit: float | None = None
    earliest: datetime | None = None
    reached: datetime | None = None
    latest: datetime | None = None


def forecast(
    samples: tuple[tuple[datetime, float], ...], step_s: float, horizon_s: float, limit: float | None
) -> Forecast | str:
    """Of samples at a distance of ``step_s``, oldest first; a text where none can be made, saying why.

    A forecast further ahead than the data are long is a guess with a line through it: the horizon is cut to that.
    """
    if len(samples) < LEAST:
        return f"{len(samples)} samples, {LEAST} at the least are asked for"
    span_s = (samples[-1][0] - samples[0][0]).total_seconds()
    ahead = int(min(horizon_s, span_s) // step_s)
    if ahead < 1:
        return "the samples cover less than one step"
    values = _even(samples, step_s)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence and of frequencies: the interval shows what they mean
        middle, low, high, how = _smoothed(values, ahead, step_s) if len(values) >= ENOUGH else _line(values, ahead)
    begin, step = samples[-1][0], timedelta(seconds=step_s)
    points = tuple(
        Point(begin + (i + 1) * step, float(m), float(lo), float(hi))
        for i, (m, lo, hi) in enumerate(zip(middle, low, high, strict=True))
    )
    change = points[-1][1] - samples[-1][1]
    sides = ([p.high for p in points], [p.middle for p in points], [p.low for p in points])
    earliest, reached, latest = (_crossing(points, side, limit) for side in sides)
    return Forecast(points, change, how, limit, earliest, reached, latest)


def _crossing(points: tuple[Point, ...], side: list[float], limit: float | None) -> datetime | None:
    if limit is None:
        return None
    return next((p.at for p, value in zip(points, side, strict=True) if value >= limit), None)


def _even(samples: tuple[tuple[datetime, float], ...], step_s: float) -> Any:
    """At equal distances: gaps are filled by a straight line, for the models need it. A constant is left as it is."""
    import numpy as np  # noqa: PLC0415 - heavy, and an extra

    at = np.array([(when - samples[0][0]).total_seconds() for when, _ in samples])
    count = round(at[-1] / step_s) + 1
    return np.interp(np.arange(count) * step_s, at, np.array([value for _, value in samples]))


def _season(count: int, step_s: float) -> int | None:
    for name_s in (7 * 86_400, 86_400):
        steps = round(name_s / step_s)
        if 2 <= steps <= 24 * 7 and count >= 2 * steps:
            return steps
    return None


def _smoothed(values: Any, ahead: int, step_s: float) -> tuple[Any, Any, Any, str]:
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel  # noqa: PLC0415

    if np.ptp(values) == 0:
        flat = np.full(ahead, values[-1])
        return flat, flat, flat, "it never changed"
    season = _season(len(values), step_s)
    series = pd.Series(values)
    fits = [
        ETSModel(
            series,
            error="add",
            trend="add",
            damped_trend=damped,
            seasonal="add" if season else None,
            seasonal_periods=season,
            initialization_method="heuristic",  # estimated, the states of a season take seconds to fit
        ).fit(disp=False, maxiter=200)
        for damped in (False, True)
    ]
    fitted = min(fits, key=lambda f: f.aicc)  # of two that explain as much, the simpler one
    frame = fitted.get_prediction(start=len(values), end=len(values) + ahead - 1).summary_frame(alpha=1 - COVERS)
    low, high = (np.asarray(frame[name]) for name in ("pi_lower", "pi_upper"))
    said = f"exponential smoothing, {'damped' if fitted is fits[1] else 'linear'} trend"
    return (
        np.asarray(frame["mean"]),
        low,
        high,
        said + (f", season of {'a week' if season * step_s > 86_400 else 'a day'}" if season else ""),
    )


def _line(values: Any, ahead: int) -> tuple[Any, Any, Any, str]:
    import numpy as np  # noqa: PLC0415
    import statsmodels.api as sm  # noqa: PLC0415

    x = sm.add_constant(np.arange(len(values), dtype=float))
    further = sm.add_constant(np.arange(len(values), len(values) + ahead, dtype=float), has_constant="add")
    found = sm.OLS(values, x).fit().get_prediction(further)
    frame = found.summary_frame(alpha=1 - COVERS)
    low, high = (np.asarray(frame[name]) for name in ("obs_ci_lower", "obs_ci_upper"))
    return np.asarray(frame["mean"]), low, high, f"a straight line through only {len(values)} points"
