"""Scaling laws: a quantity of several estimators along a sweep, on two log axes, with the slopes of its fits."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadType, BadValue
from funcvae.figures._arrays import Floats, as_array, text
from funcvae.figures._log_axes import finish, intervals, limits, positive
from funcvae.figures._style import MARKERS, PALETTE, room

__all__ = ["scaling"]
_STEEPEST = 1000


def scaling(
    values: ArrayLike,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    slopes: Mapping[str, tuple[float, float]] | None = None,
    xlabel: str = "samples K",
    ylabel: str = "signal-to-noise ratio of the gradient",
    title: str = "Signal-to-noise ratio against the number of samples",
) -> Figure:
    """How a quantity of several estimators grows or falls along a sweep, both axes logarithmic.

    Bars are two standard errors; one that reaches 0, or farther than a decade beyond all values, ends in an arrow at
    the edge. Values that are not finite or not positive leave gaps.

    A slope `b` is that of a fit `log y = a + b log x`, drawn dashed through the mean of the points (log x, log y) with
    the weights `(y / se)^2`, or equal ones where an error is missing or 0: the weighted least-squares line, if `b` is
    that line's slope.

    Args:
        values: what is swept [V], positive and ascending.
        series: {label: (value [V], its standard error [V])}; where an error is not finite there is no bar.
        slopes: {label: (slope, its standard error)} for some of the series, written in the legend.
        xlabel: what is swept.
        ylabel: what is measured.
        title: what the figure shows.

    Raises:
        BadValue: values are not ascending positive numbers, there is no series, one is not ([V], [V]), or a slope
            belongs to no series.
    """
    text(xlabel=xlabel, ylabel=ylabel, title=title)
    slopes = {} if slopes is None else slopes
    for name, given in {"series": series, "slopes": slopes}.items():
        if not isinstance(given, Mapping):
            raise BadType(f"{name} must be a dict by label, got {checks.describe(given)}")
        for label, pair in given.items():
            text(label=label)
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise BadType(f"{name} must have pairs, (what was measured, its error), got {checks.describe(pair)}")
    for pair in slopes.values():
        for part in pair:
            checks.number("a slope or its error", part)
        if abs(pair[0]) > _STEEPEST and math.isfinite(pair[0]):
            raise BadValue(f"a slope is {pair[0]:g}: a figure cannot show it")
    x = as_array("values", values, "V")
    if x[0] <= 0 or (np.diff(x) <= 0).any():
        raise BadValue(f"values must be positive and ascending, got {x.tolist()}")
    if not series:
        raise BadValue("series must have at least one entry")
    if strange := [label for label in slopes if label not in series]:
        raise BadValue(f"slopes must belong to the series {', '.join(series)}, got {', '.join(strange)}")
    y, error = (np.array([_along(x, label, pair[k]) for label, pair in series.items()]) for k in (0, 1))
    y, error = np.where(positive(y), y, np.nan), np.where(np.isfinite(error), error, np.nan)
    labels = [label + _slope(*slopes[label]) if label in slopes else label for label in series]
    longest = max(map(len, labels))
    cols = 2 if longest <= 42 else 1
    size = room(max(7.6, 1 + 0.085 * longest), title), 4.7 + 0.22 * math.ceil(len(labels) / cols)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set(xlim=limits(x, x, x), ylim=limits(y, y - 2 * error, y + 2 * error))
    for k, label in enumerate(series):
        colour = PALETTE[k % len(PALETTE)]
        intervals(ax, x, y[k] - 2 * error[k], y[k] + 2 * error[k], colour, vertical=True)
        look: Any = {"marker": MARKERS[k % len(MARKERS)], "color": colour, "mec": "white", "markersize": 8}
        ax.plot(x, y[k], linewidth=0.9, label=labels[k], **look)
        here = np.isfinite(y[k])
        if label in slopes and np.isfinite(slopes[label][0]) and here.any():
            known = positive(error[k][here]).all()
            weight = (y[k][here] / error[k][here]) ** 2 if known else np.ones(here.sum())
            log_x, log_y = (np.average(np.log(v[here]), weights=weight) for v in (x, y[k]))
            fit = np.exp(log_y + slopes[label][0] * (np.log(x[[0, -1]]) - log_x))
            ax.plot(x[[0, -1]], fit, "--", color=colour, linewidth=1.8, zorder=1.5)
    notes = ["bars: two standard errors"]
    if slopes:
        notes.append("dashed: fits, slopes ± one standard error")
    ax.set_title("; ".join(notes), loc="left", size="small", style="italic")
    figure.legend(loc="outside lower center", ncols=cols, frameon=False)
    finish(ax, ax.xaxis, ax.yaxis)
    low, high = ax.get_xlim()
    if sum(low <= tick <= high for tick in ax.get_xticks()) < 3 and len(x) <= 8:
        ax.set_xticks(x, [f"{v:,g}" for v in x])
    return figure


def _along(x: Floats, label: str, value: ArrayLike) -> Floats:
    """One of a series' two arrays [V]."""
    array = as_array(label, value, "V", finite=False)
    if array.shape != x.shape:
        raise BadValue(f"{label} must be [{len(x)}], one for each of the values, got {list(array.shape)}")
    return array


def _slope(slope: float, error: float) -> str:
    """A slope and its standard error for the legend, with as many decimals as the error is worth."""
    if not np.isfinite(slope):
        return ": slope undefined"
    known = np.isfinite(error) and error > 0
    decimals = int(np.clip(-math.floor(math.log10(error)), 2, 4)) if known else 2
    text = f": slope {slope:+.{decimals}f}".replace("-", "−")
    return text + f" ± {error:.{decimals}f}" * bool(np.isfinite(error))
