"""Scaling laws: a quantity of several estimators over a sweep, on two log axes, with fitted slopes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import as_array
from funcvae.figures._log_axes import intervals, limits, number, positive, ticks
from funcvae.figures._style import MARKERS, PALETTE, finish, titled

__all__ = ["scaling"]


@checks.arguments
def scaling(
    values: ArrayLike,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    slopes: Mapping[str, tuple[float, float]] | None = None,
    xlabel: str = "samples K",
    ylabel: str = "signal-to-noise ratio of the gradient",
    title: str = "Signal-to-noise ratio against the number of samples",
) -> Figure:
    """A quantity of several estimators over a sweep as points, and fitted power laws as lines, on two log axes.

    Bars are ±2 standard errors; a bar that extends to 0, or more than a decade beyond all values, ends in an arrow at
    the edge. Values that are not finite or not positive leave gaps.

    The line of a slope `b` is `log y = a + b log x` through the mean of the points (log x, log y), with weights
    `(y / se)^2`, or equal weights if an error is missing or 0. It is the weighted least-squares line if `b` is that
    line's slope.

    Args:
        values: the swept quantity [V], positive and ascending.
        series: {label: (values [V], their standard errors [V])}; a bar is left out where its error is not finite.
        slopes: {label: (slope, its standard error)} for some of the series, written in the legend.

    Raises:
        BadValue: values are not positive and ascending, series is empty, an entry is not ([V], [V]), or a slope's label
            is not in series.
    """
    slopes = {} if slopes is None else slopes
    x = as_array("values", values, "V")
    if x[0] <= 0 or (np.diff(x) <= 0).any():
        raise BadValue(f"values is {checks.one_line(str(x.tolist()))}: it must be positive and ascending")
    if not series:
        raise BadValue("series is empty: it must have at least one entry")
    if strange := [label for label in slopes if label not in series]:
        raise BadValue(f"slopes has the label {strange[0]!r}, which is not in series")
    for label, pair in slopes.items():
        as_array(f"the slope of {label!r}", pair, "2", finite=False)
    pairs = [as_array(f"the series {label!r}", pair, f"2 {len(x)}", finite=False) for label, pair in series.items()]
    y, error = np.stack(pairs, axis=1)
    y, error = np.where(positive(y), y, np.nan), np.where(np.isfinite(error), error, np.nan)
    labels = [f"{label}{_slope(*slopes[label]) if label in slopes else ''}" for label in series]
    longest = max(map(len, labels))
    cols = 2 if longest <= 42 else 1
    figure = titled(max(7.6, 1 + 0.085 * longest), 4.7 + 0.22 * math.ceil(len(labels) / cols), title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set(xlim=limits(x, x, x), ylim=limits(y, y - 2 * error, y + 2 * error))
    for k, label in enumerate(series):
        colour = PALETTE[k % len(PALETTE)]
        intervals(ax, x, y[k] - 2 * error[k], y[k] + 2 * error[k], colour, vertical=True)
        look: Any = {"marker": MARKERS[k % len(MARKERS)], "color": colour, "mec": "white", "linestyle": ""}
        ax.plot(x, y[k], markersize=8, label=labels[k], **look)
        here = np.isfinite(y[k])
        if label in slopes and np.isfinite(slopes[label][0]) and here.any():
            known = positive(error[k][here]).all()
            weight = (y[k][here] / error[k][here]) ** 2 if known else np.ones(here.sum())
            log_x, log_y = (np.average(np.log(v[here]), weights=weight) for v in (x, y[k]))
            fit = np.exp(log_y + slopes[label][0] * (np.log(x[[0, -1]]) - log_x))
            ax.plot(x[[0, -1]], fit, color=colour, linewidth=1.4, alpha=0.7, zorder=1.5)
    notes = "bars: ±2 standard errors" + "; lines: fitted power laws, slopes ±1 standard error" * bool(slopes)
    ax.set_title(notes, loc="left", size="small", style="italic")
    figure.legend(loc="outside lower center", ncols=cols, frameon=False)
    ticks(ax.xaxis)
    ticks(ax.yaxis)
    finish(ax)
    low, high = ax.get_xlim()
    if sum(low <= tick <= high for tick in ax.get_xticks()) < 3 and len(x) <= 8:
        ax.set_xticks(x, [f"{v:,g}" for v in x])
    return figure


def _slope(slope: float, error: float) -> str:
    """A slope and its standard error for the legend; the error determines the number of decimals."""
    if not np.isfinite(slope):
        return ": slope undefined"
    known = np.isfinite(error) and error > 0
    decimals = int(np.clip(-math.floor(math.log10(error)), 2, 4)) if known else 2
    text = number(f"{slope:+.{decimals}f}")
    return f": slope {text}" + f" ± {error:.{decimals}f}" * bool(np.isfinite(error))
