"""Charts as SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from flows.reviews.finding import Chart, Line
from tasks.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2563a8", "#c2571a", "#3b7d4f", "#7a4b9a", "#8a6d1f")
WIDTH, HEIGHT = 7.6, 2.5


def require() -> None:
    """Raises BadInput where the libraries of reviews are not installed: told before anything is gathered."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - heavy, and an extra
        import statsmodels  # noqa: F401, PLC0415
    except ImportError as e:
        raise BadInput(f"reviews need more libraries ({e}); install them: pip install 'relight[reviews]'") from e
    mpl.use("svg")


def svg(chart: Chart) -> str:
    """One chart as an ``<svg>`` element; letters stay text, so that it can be searched and read aloud."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    style = {"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "relight"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(line.name for line in chart.lines if not line.forecast))
        for line in chart.lines:
            of = next((n for n in names if line.name.startswith(n)), "")  # a forecast has the colour of its site
            _draw(axes, line, COLOURS[names.index(of) % len(COLOURS)] if of else COLOURS[-1])
        _limits(axes, chart)
        locator = AutoDateLocator(minticks=3, maxticks=8)  # any span then has an interval that fits
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel(chart.unit)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa5b1")
        axes.tick_params(colors="#52606d")
        if any(line.name for line in chart.lines):
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _draw(axes: Axes, line: Line, colour: str) -> None:
    when, values = [at for at, _ in line.points], [value for _, value in line.points]
    style = "--" if line.forecast else "-"
    marker = "o" if len(values) == 1 else ""
    axes.plot(when, values, linestyle=style, color=colour, linewidth=1.4, label=line.name, marker=marker)
    if line.low:
        axes.fill_between(when, line.low, line.high, color=colour, alpha=0.14, linewidth=0)


def _limits(axes: Axes, chart: Chart) -> None:
    """The limits that are near enough to be seen without flattening everything else."""
    top = max((v for line in chart.lines for v in (*(p[1] for p in line.points), *line.high)), default=0.0)
    bottom = min((v for line in chart.lines for v in (*(p[1] for p in line.points), *line.low)), default=0.0)
    shown = [v for v in chart.limits.values() if v <= 4 * max(top, 1e-12)]
    axes.set_ylim(min(0, bottom), 1.15 * max(top, *shown) if shown else 1.15 * top or 1.0)
    for name, value in chart.limits.items():
        if value in shown:
            axes.axhline(value, color="#b42318", linestyle=":", linewidth=1.2)
            axes.annotate(
                name,
                (0, value),
                xycoords=("axes fraction", "data"),
                xytext=(4, 2),
                textcoords="offset points",
                va="bottom",
                fontsize=8,
                color="#b42318",
            )
