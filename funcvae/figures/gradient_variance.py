"""The variance of gradient estimators: in total, by layer, and against their cost."""

import math
import textwrap
from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, words
from funcvae.figures._log_axes import intervals, limits, plain, positive, ticks
from funcvae.figures._style import DARK, LIGHT, MARKERS, PALETTE, finish, titled

__all__ = ["variance_bars", "variance_by_layer", "variance_cost"]
_GREY = "0.85"  # cells whose value the colour scale cannot show
_TOTAL = "total variance of the gradient"
_UNRELIABLE = "hollow: unreliable interval"
_AROUND = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])  # directions to a name


@checks.arguments
def variance_bars(
    names: Sequence[str],
    variance: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    trusted: ArrayLike | None = None,
    unit: str = _TOTAL,
    title: str = "Variance of each estimator's gradient",
) -> Figure:
    """The variance of each estimator as a dot with its 95% interval, on a log axis; the value is written on the right.

    The axis extends at most a decade beyond the smallest and the largest value. An interval that extends farther, for
    example from 0 or to infinity, ends in an arrow at the edge. A variance of 0 is written at the left edge, because a
    log axis cannot show it.

    Args:
        names: names of the estimators [E], from top to bottom.
        variance: variance of each estimator [E]; NaN is written as "undefined".
        low: lower ends of the 95% intervals [E], which may be 0 or less; no interval is drawn where an end is NaN.
        high: upper ends of the intervals [E], which may be infinite.
        trusted: whether each interval is reliable [E]; if not, its dot is hollow and the interval pale.
        unit: label of the horizontal axis.
    """
    value, low, high, firm = _of_estimators(names, variance, low, high, trusted)
    figure = titled(5.8 + 0.08 * max(map(len, names)), 1.9 + 0.34 * len(value), title)
    ax = figure.add_subplot()
    ax.set(xscale="log", xlim=limits(value, low, high), ylim=(len(value) - 0.4, -0.6), xlabel=unit)
    row = np.arange(len(value))
    ax.set_yticks(row, names)
    ax.tick_params(axis="y", length=0, pad=9)
    drawn, handles = positive(value), []
    kinds = (True, DARK, DARK, "variance and its 95% interval"), (False, "white", LIGHT, _UNRELIABLE)
    for kind, fill, colour, label in kinds:
        here = firm == kind
        if here.any():
            known = here & ~np.isnan(value)
            intervals(ax, row[known], low[known], high[known], colour, vertical=False)
            look: Any = {"marker": "o", "color": colour, "mfc": fill, "mec": DARK, "mew": 1.6, "markersize": 7}
            ax.plot(value[here & drawn], row[here & drawn], linestyle="", **look)
            handles.append(Line2D([], [], label=label, **look))
    beside = ax.get_yaxis_transform()
    for y, v in enumerate(value):
        ax.text(1.03, y, _word(v), transform=beside, va="center_baseline")
        if v == 0:
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.plot(0, y, "<", color=DARK, transform=beside, clip_on=False)
            ax.text(0.016, y, "0", transform=beside, va="center_baseline", bbox=white)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    ticks(ax.xaxis)
    finish(ax)
    ax.spines["left"].set_visible(False)
    return figure


@checks.arguments
def variance_by_layer(
    names: Sequence[str],
    layers: Sequence[str],
    variance: ArrayLike,
    *,
    reference: int | None = None,
    title: str = "Variance of the gradient by layer",
) -> Figure:
    """A heat map with a row for each layer and a column for each estimator, and a number in each cell.

    With a reference, the number is the variance divided by that of the reference in the same layer. Colours are centred
    at a ratio of 1 (orange is more, purple is less) and extend to a factor of at most 100. Without a reference, the
    number is the variance, and colours extend to at most six decades below the largest. Cells that are 0, undefined or
    infinite are grey.

    Args:
        names: names of the estimators [E], from left to right.
        layers: names of the layers [L], from top to bottom.
        variance: variance of each estimator in each layer [E, L].
        reference: the index in `names` of the estimator to divide by.
    """
    names, layers = words("names", names), words("layers", layers)
    value = _variances(variance, f"{len(names)} {len(layers)}")
    if reference is None:
        label, sign, cmap, small = "variance of the gradient", "", "viridis", 3
        shown = value[positive(value)]
        top = shown.max(initial=0) or 1.0
        bottom = max(shown.min(initial=top), top * 1e-6)
        if bottom == top:
            bottom, top = bottom / 1.5, top * 1.5
    else:
        if not 0 <= reference < len(names):
            raise BadValue(f"reference is {reference}: it must be an index of names, from 0 to {len(names) - 1}")
        label, sign, cmap, small = f"variance relative to\n{_wrap(names[reference])}", "×", "PuOr_r", 2
        base = np.where(np.isfinite(value[reference]), value[reference], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = value / base
        shown = value[positive(value)]
        reach = np.abs(np.log10(shown)).max(initial=np.log10(1.5)).clip(max=2)
        bottom, top = 10**-reach, 10**reach
    norm = LogNorm(bottom, top)

    heads = [_wrap(name) for name in names]
    widest = max(len(line) for head in heads for line in head.split("\n"))
    wide, tall = max(0.85, 0.085 * widest + 0.15), (0.32 if len(layers) <= 40 else 0.21) * len(layers)
    turned = wide * len(names) > 9
    wide = 0.85 if turned else wide
    size = 1.9 + 0.085 * max(map(len, layers)) + wide * len(names), 1.3 + 0.055 * widest * turned + tall
    figure = titled(size[0], max(3.0, size[1]), title)
    ax = figure.add_subplot()
    cells = np.ma.masked_where(~positive(value), value).T
    mesh = ax.pcolormesh(cells, cmap=cmap, norm=norm, edgecolors="white", linewidth=0.6)
    ax.set_facecolor(_GREY)
    ax.invert_yaxis()
    ax.set_yticks(np.arange(len(layers)) + 0.5, layers, size="small")
    turn: Any = {"rotation": -30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    ax.set_xticks(np.arange(len(names)) + 0.5, heads, size="small", **turn)
    ax.tick_params(length=0, labeltop=True, labelbottom=len(layers) > 40 and not turned)
    ax.spines[:].set_visible(False)
    colours = matplotlib.colormaps[cmap]
    for (e, r), v in np.ndenumerate(value):
        number, ink = "–" if np.isnan(v) else "∞" if v else "0", "black"
        if 0 < v < np.inf:
            number = sign + _digits(v, 3 if v >= 0.995 else small)
            if _luminance(colours(norm(v))) <= 0.18:  # white has more contrast than black
                ink = "white"
        ax.text(e + 0.5, r + 0.5, number, size="small", ha="center", va="center", color=ink)
    below, above = (shown < bottom * (1 - 1e-9)).any(), (shown > top * (1 + 1e-9)).any()
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(
        mesh, label=label, extend=extend, shrink=min(1.0, 4 / tall), aspect=18, anchor=(0, 1), panchor=(0, 1)
    )
    ticks(bar.ax.yaxis, sign)
    odd = {"0 (zero to rounding)": value == 0, "– (undefined)": np.isnan(value), "∞ (infinite)": np.isinf(value)}
    if seen := [word for word, where in odd.items() if where.any()]:
        patch = Patch(facecolor=_GREY, label="grey: " + ", ".join(seen))
        figure.legend(handles=[patch], loc="outside lower center", frameon=False)
    return figure


@checks.arguments
def variance_cost(
    names: Sequence[str],
    seconds: ArrayLike,
    variance: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    trusted: ArrayLike | None = None,
    title: str = "Variance against cost",
) -> Figure:
    """The variance of each estimator against the time of one of its gradients, on two log axes.

    Averaging n gradients takes n times as long and divides the variance by n, so it moves an estimator down along a
    dashed line: all estimators on one line are equally efficient. The lowest line goes through the most efficient one.

    Args:
        names: names of the estimators [E].
        seconds: time of one gradient of each estimator [E], positive.
        variance: variance of each estimator [E]. A note lists the estimators whose variance is 0 or not finite.
        low: lower ends of the 95% intervals [E], which may be 0 or less; no interval is drawn where an end is NaN.
        high: upper ends of the intervals [E], which may be infinite.
        trusted: whether each interval is reliable [E]; if not, its marker is hollow.
    """
    value, low, high, firm = _of_estimators(names, variance, low, high, trusted)
    seconds = as_array("seconds", seconds, f"{len(names)}", finite=False)
    if not positive(seconds).all():
        raise BadValue(f"seconds holds {seconds[~positive(seconds)][0]}: all must be positive and finite")
    shown = positive(value)
    x, y = 1e3 * seconds[shown], value[shown]
    figure = titled(7.6, 5.4, title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel="time per gradient [ms]", ylabel=_TOTAL)
    across, up = limits(x, x, x, 0.14), limits(y, low[shown], high[shown], 0.08)
    ax.set(xlim=across, ylim=up)
    notes = []
    if len(x):
        least = (x * y).min()
        first, last = (np.log10(a * b / least) for a, b in zip(across, up, strict=True))  # at the corners
        factor = 10 if last - first > 2.5 else 2
        for k in range(math.ceil(first / math.log10(factor)), math.floor(last / math.log10(factor)) + 1):
            c = least * float(factor) ** k
            ax.plot(across, [c / end for end in across], "--", color="0.8", linewidth=0.9, zorder=0, scalex=False)
        notes.append("dashed lines: equal variance × time; lower left is better")
        notes.append(f"adjacent lines differ by a factor of {factor}; bars: 95% intervals")
    for k, (place, down, upper) in enumerate(zip(x, low[shown], high[shown], strict=True)):
        colour = PALETTE[k % len(PALETTE)]
        intervals(ax, [place], [down], [upper], colour, vertical=True)
        filled = {"color": colour, "mec": "white"} if firm[shown][k] else {"color": "white", "mec": colour, "mew": 1.6}
        ax.plot(place, y[k], MARKERS[k % len(MARKERS)], markersize=9, **filled)
    if not firm[shown].all():
        notes.append(_UNRELIABLE)
    words_for = [_word(v) if v else "variance 0" for v in value]
    if gone := [f"{name} ({word})" for name, word, here in zip(names, words_for, shown, strict=True) if not here]:
        notes.append(textwrap.fill("not shown: " + ", ".join(gone), 95))
    ax.set_title("\n".join(notes), loc="left", size="small", style="italic")  # above the axes, where it hides nothing
    ticks(ax.xaxis)
    ticks(ax.yaxis)
    finish(ax)
    bars = [Bbox([[a, max(b, up[0])], [a, min(c, up[1])]]) for a, b, c in zip(x, low[shown], high[shown], strict=True)]
    _name(figure, ax, [name for name, here in zip(names, shown, strict=True) if here], np.stack([x, y], 1), bars)
    return figure


def _of_estimators(
    names: Sequence[str], variance: ArrayLike, low: ArrayLike, high: ArrayLike, trusted: ArrayLike | None
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Checks and returns variances, both ends of their intervals, and whether these are reliable, each [E]."""
    n = str(len(words("names", names)))
    low, high = as_array("low", low, n, finite=False), as_array("high", high, n, finite=False)
    firm = np.ones(len(names), bool) if trusted is None else as_array("trusted", trusted, n) != 0
    return _variances(variance, n), low, high, firm


def _variances(variance: ArrayLike, axes: str) -> Floats:
    """Checks that variances have these axes and are not negative; returns an array."""
    value = as_array("variance", variance, axes, finite=False)
    if (value < 0).any():
        raise BadValue(f"variance holds {value[value < 0][0]}: a variance must not be negative")
    return value


def _name(figure: Figure, ax: Axes, names: Sequence[str], points: Floats, bars: list[Bbox]) -> None:
    """Writes each point's name beside it, at the first place where it hides nothing, or else where it hides least."""
    figure.draw_without_rendering()  # determines the positions of the points
    unit = figure.dpi / 72
    spots = ax.transData.transform(points)
    taken = [bar.transformed(ax.transData).padded(2 * unit) for bar in bars]
    taken += [Bbox([spot - 6 * unit, spot + 6 * unit]) for spot in spots]
    line: Any = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
    for name, point, spot in zip(names, points, spots, strict=True):
        text = ax.annotate(_wrap(name), point, xytext=(0, 0), textcoords="offset points", arrowprops=line)
        text.set(size="small", ha="center", va="center", in_layout=False)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        size = np.array(text.get_window_extent().size)
        found = []
        for distance, around in product((8, 20, 34, 50), _AROUND):
            centre = spot + around * (distance * unit + size / 2)
            box = Bbox([centre - size / 2, centre + size / 2])
            outside = _area(box) - _area(Bbox.intersection(box, ax.bbox))
            hidden = sum(_area(Bbox.intersection(box, other)) for other in taken)
            found.append((hidden + 10 * outside, distance, centre, box))
        _, distance, centre, box = min(found, key=lambda entry: entry[0])
        text.set_position(tuple((centre - spot) / unit))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(distance > 8)  # an adjacent name needs no line to its point
        taken.append(box)


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height


def _wrap(name: str) -> str:
    """A name with a line break after each comma."""
    return name.replace(", ", ",\n")


def _word(value: float) -> str:
    """A variance with three significant digits, or the word for NaN or infinity."""
    return "undefined" if np.isnan(value) else "infinite" if np.isinf(value) else _digits(value, 3)


def _digits(value: float, n: int) -> str:
    """A number with n significant digits, such as 0.0123, 12.3, 12,300 or 1.23e7."""
    if value == 0:
        return "0"
    text = f"{value:.{n - 1}e}"
    power = int(text.split("e")[1])
    return f"{float(text):,.{max(0, n - 1 - power)}f}" if -5 < power < 6 else plain(text)


def _luminance(colour: tuple[float, ...]) -> float:
    rgb = np.array(colour[:3])
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
