"""Logarithmic axes: limits, ticks and intervals."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from funcvae.figures._arrays import Floats


def positive(value: Floats) -> NDArray[np.bool_]:
    """A mask of the values that a log axis can show."""
    return np.isfinite(value) & (value > 0)


def limits(value: Floats, low: Floats, high: Floats, margin: float = 0.06, octave: bool = False) -> tuple[float, float]:
    """Ends of a log axis that shows all positive values, and the ends of intervals up to a decade beyond these.

    With `octave` the axis spans at least a factor of two.
    """
    shown = value[positive(value)]
    if not shown.size:
        shown = high[positive(high)] if positive(high).any() else np.array([0.1, 10])
    ends = np.concatenate([low.ravel(), high.ravel()])
    ends = ends[(ends >= shown.min() / 10) & (ends <= shown.max() * 10)]
    ends = np.log(np.concatenate([shown, ends]))
    spare = max(margin * np.ptp(ends), 0.1, (math.log(2) - np.ptp(ends)) / 2 if octave else 0)
    return float(np.exp(ends.min() - spare)), float(np.exp(ends.max() + spare))


def intervals(
    ax: Axes, place: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, vertical: bool, **look: Any
) -> None:
    """Draws bars from low to high; an end outside the axis, such as 0 or infinity, becomes an arrow at its edge."""
    place, low, high = (np.asarray(a, dtype=float) for a in (place, low, high))
    least, most = ax.get_ylim() if vertical else ax.get_xlim()
    inside = (high > least) & (low < most)  # false where an end is NaN
    place, low, high = place[inside], low[inside], high[inside]
    bars = ax.vlines if vertical else ax.hlines
    bars(place, low.clip(min=least), high.clip(max=most), color=colour, linewidth=1.6, **look)
    caps = ("_", "v", "^") if vertical else ("|", "<", ">")
    for end, beyond, edge, arrow in ((low, low < least, least, caps[1]), (high, high > most, most, caps[2])):
        for here, where, marker in ((~beyond, end, caps[0]), (beyond, np.full_like(end, edge), arrow)):
            spots = (place[here], where[here]) if vertical else (where[here], place[here])
            if here.any():  # a line without points would extend the layout to the figure's corner
                ax.plot(*spots, marker, color=colour, markersize=7, clip_on=False, **look)


def ticks(axis: Axis) -> None:
    """Labels a log axis with plain numbers, as many as there is room for."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 0.5:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: number(f"{v:,g}")))
    axis.set_minor_formatter(NullFormatter())


def number(text: str) -> str:
    """A number's text with a minus sign and a short exponent: −1e−7 for -1e-07."""
    mantissa, e, power = text.partition("e")
    return (mantissa + (e and f"e{int(power)}")).replace("-", "−")
