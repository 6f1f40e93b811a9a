"""The variance of gradient estimators: compared as a whole, layer by layer, and against their cost."""

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
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, flags, text, words
from funcvae.figures._log_axes import finish, intervals, limits, plain, positive, ticks
from funcvae.figures._style import DARK, LIGHT, MARKERS, PALETTE, room

__all__ = ["variance_bars", "variance_by_layer", "variance_cost"]
_GREY = "0.85"  # of a cell that has no colour
_TOTAL = "total variance of the gradient"
_AROUND = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])  # the sides of a point


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
    """The variance of each estimator as a dot with its 95% interval, on a log axis; its value stands on the right.

    The axis ends at most a decade beyond the least and the greatest value: an interval that goes farther, as from 0 or
    to infinity, ends in an arrow at the edge. A variance of 0 is written there, for a log axis has no place for it.

    Args:
        names: of the estimators [E], from top to bottom.
        variance: of each [E]; one that is NaN is called undefined.
        low: lower ends of the 95% intervals [E], 0 or less allowed; where an end is NaN there is no interval.
        high: upper ends [E], infinite allowed.
        trusted: whether each interval is to be trusted [E]: where not, its dot is hollow and the interval pale.
        unit: what the horizontal axis shows.
        title: what the figure shows.

    Raises:
        BadValue: the arrays are not [E] with one entry for each name, or a variance is negative.
    """
    text(unit=unit, title=title)
    value, low, high = _of_estimators(names, variance=variance, low=low, high=high)
    firm = np.ones(len(value), dtype=bool) if trusted is None else flags("trusted", trusted)
    if firm.shape != value.shape:
        raise BadValue(f"trusted must be [{len(value)}], one for each name, got {list(firm.shape)}")
    width = room(5.8 + 0.08 * max(map(len, names)), title)
    figure = Figure(figsize=(width, 1.9 + 0.34 * len(value)), layout="constrained")
    figure.suptitle(title)
    ax = figure.add_subplot()
    ax.set(xscale="log", xlim=limits(value, low, high), ylim=(len(value) - 0.4, -0.6), xlabel=unit)
    row = np.arange(len(value))
    ax.set_yticks(row, names)
    ax.tick_params(axis="y", length=0, pad=9)
    drawn, handles = positive(value), []
    kinds = (
        (True, DARK, DARK, "variance and its 95% interval"),
        (False, "white", LIGHT, "hollow: interval not to be trusted"),
    )
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
    finish(ax, ax.xaxis)
    ax.spines["left"].set_visible(False)
    return figure


def variance_by_layer(
    names: Sequence[str],
    layers: Sequence[str],
    variance: ArrayLike,
    *,
    reference: int | None = None,
    title: str = "Variance of the gradient, layer by layer",
) -> Figure:
    """A table of colours: a row for each layer, a column for each estimator, and the number in each cell.

    With a reference, the number is the variance divided by the reference's in the same layer, and colours are centred
    where the two are equal: orange is more, purple is less; they end at a factor of 100 at the most. Without one, it is
    the variance itself, and colours end six decades below the greatest at the most. Cells that are 0, undefined or
    infinite are grey.

    Args:
        names: of the estimators [E], from left to right.
        layers: names of the layers [L], from top to bottom.
        variance: of each estimator in each layer [E, L].
        reference: the index in `names` of the estimator to divide by.
        title: what the figure shows.

    Raises:
        BadValue: variance is not [E, L] or is negative somewhere, or reference is no index of names.
    """
    text(title=title)
    names, layers = words("names", names), words("layers", layers)
    value = as_array("variance", variance, "E L", finite=False)
    if value.shape != (len(names), len(layers)):
        raise BadValue(f"variance must be [{len(names)}, {len(layers)}], [E, L], got {list(value.shape)}")
    _refuse_negative(value)
    if reference is None:
        label, sign, cmap, small = "variance of the gradient", "", "viridis", 3
        shown = value[positive(value)]
        top = shown.max(initial=0) or 1.0
        bottom = max(shown.min(initial=top), top * 1e-6)
        if bottom == top:
            bottom, top = bottom / 1.5, top * 1.5
    else:
        if not 0 <= checks.integer("reference", reference) < len(names):
            raise BadValue(f"reference must be an index of the {len(names)} names, got {checks.describe(reference)}")
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
    figure = Figure(figsize=(room(size[0], title), max(3.0, size[1])), layout="constrained")
    figure.suptitle(title)
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
        black = True
        if np.isfinite(v) and v > 0:
            number = sign + _digits(v, 3 if v >= 0.995 else small)
            black = _luminance(colours(norm(v))) > 0.18  # above it, black has more contrast than white
        else:
            number = "–" if np.isnan(v) else "∞" if v else "0"
        ax.text(e + 0.5, r + 0.5, number, size="small", ha="center", va="center", color="black" if black else "white")
    below, above = (shown < bottom * (1 - 1e-9)).any(), (shown > top * (1 + 1e-9)).any()
    bar = figure.colorbar(
        mesh,
        label=label,
        extend="both" if below and above else "min" if below else "max" if above else "neither",
        shrink=min(1.0, 4 / tall),
        aspect=18,
        anchor=(0, 1),
        panchor=(0, 1),
    )
    ticks(bar.ax.yaxis, sign)
    odd = {"0 is exactly zero": value == 0, "– is undefined": np.isnan(value), "∞ is infinite": np.isinf(value)}
    if seen := [word for word, where in odd.items() if where.any()]:
        patch = Patch(facecolor=_GREY, label="off the scale of colours: " + ", ".join(seen))
        figure.legend(handles=[patch], loc="outside lower center", frameon=False)
    return figure


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
    """The variance of each estimator against the time that one of its gradients takes, both on log axes.

    Averaging n gradients takes n times as long and leaves 1/n of the variance, so it moves an estimator down a
    dashed line: two on one line are equally efficient. The lowest line goes through the most efficient estimator.

    Args:
        names: of the estimators [E].
        seconds: the time of one gradient of each [E], positive.
        variance: of each [E]; one that is 0 or not finite is left out, and a note says so.
        low: lower ends of the 95% intervals [E], 0 or less allowed; where an end is NaN there is no interval.
        high: upper ends [E], infinite allowed.
        trusted: whether each interval is to be trusted [E]; all are unless given. The others are drawn hollow.
        title: what the figure shows.

    Raises:
        BadValue: the arrays are not [E] with one entry for each name, a time is not positive or a variance negative.
    """
    text(title=title)
    value, low, high, seconds = _of_estimators(names, variance=variance, low=low, high=high, seconds=seconds)
    sure = np.ones(len(value), bool) if trusted is None else flags("trusted", trusted)
    if sure.shape != value.shape:
        raise BadValue(f"trusted must be [{len(names)}], one for each name, got {list(sure.shape)}")
    if not positive(seconds).all():
        raise BadValue(f"seconds must be positive and finite, got {seconds[~positive(seconds)][0]}")
    shown = positive(value)
    x, y = 1e3 * seconds[shown], value[shown]
    figure = Figure(figsize=(room(7.6, title), 5.4), layout="constrained")
    figure.suptitle(title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel="time per gradient [ms]", ylabel=_TOTAL)
    across, up = limits(x, x, x, 0.14), limits(y, low[shown], high[shown], 0.08)
    ax.set(xlim=across, ylim=up)
    notes = []
    if len(x):
        decades = math.log10(across[1] * up[1] / (across[0] * up[0]))
        factor = 10 if decades > 2.5 else 2
        least = (x * y).min()
        first = math.ceil(math.log(across[0] * up[0] / least, factor))
        last = math.floor(math.log(across[1] * up[1] / least, factor))
        for k in range(first, last + 1):
            c = least * float(factor) ** k
            ax.plot(across, [c / end for end in across], "--", color="0.8", linewidth=0.9, zorder=0, scalex=False)
        notes.append("along a dashed line: equal variance × time; lower left is better")
        notes.append(f"from one dashed line to the next: {factor} times as much; bars: 95% intervals")
    for k, (place, down, upper) in enumerate(zip(x, low[shown], high[shown], strict=True)):
        colour = PALETTE[k % len(PALETTE)]
        intervals(ax, [place], [down], [upper], colour, vertical=True)
        filled = {"color": colour, "mec": "white"} if sure[shown][k] else {"color": "white", "mec": colour, "mew": 1.6}
        ax.plot(place, y[k], MARKERS[k % len(MARKERS)], markersize=9, **filled)
    gone = [
        f"{name} ({_word(v) if v else 'variance 0'})" for name, v in zip(names, value, strict=True) if not positive(v)
    ]
    if not sure[shown].all():
        notes.append("hollow: interval not to be trusted")
    if gone:
        notes.append(textwrap.fill("left out: " + ", ".join(gone), 95))
    ax.set_title("\n".join(notes), loc="left", size="small", style="italic")  # above, where it hides nothing
    finish(ax, ax.xaxis, ax.yaxis)
    bars = [Bbox([[a, max(b, up[0])], [a, min(c, up[1])]]) for a, b, c in zip(x, low[shown], high[shown], strict=True)]
    _name(figure, ax, [name for name, here in zip(names, shown, strict=True) if here], np.stack([x, y], 1), bars)
    return figure


def _of_estimators(names: Sequence[str], **arrays: ArrayLike) -> list[Floats]:
    """The arrays, each [E] with one entry for each name; a variance is not negative."""
    words("names", names)
    floats = {key: as_array(key, value, "E", finite=False) for key, value in arrays.items()}
    for key, array in floats.items():
        if len(array) != len(names):
            raise BadValue(f"{key} must be [{len(names)}], one for each name, got {list(array.shape)}")
    _refuse_negative(floats["variance"])
    return list(floats.values())


def _refuse_negative(variance: Floats) -> None:
    if (variance < 0).any():
        raise BadValue(f"variance must not be negative, got {variance[variance < 0][0]}")


def _name(figure: Figure, ax: Axes, names: Sequence[str], points: Floats, bars: list[Bbox]) -> None:
    """Write each point's name beside it, at the first place where it hides nothing, or else the least."""
    figure.draw_without_rendering()  # only now is it known where the points are
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
            text.arrow_patch.set_visible(distance > 8)  # a name next to its point needs no line to it
        taken.append(box)


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height


def _wrap(name: str) -> str:
    """A long name in two lines or more, broken at its commas."""
    return name.replace(", ", ",\n")


def _word(value: float) -> str:
    """A variance in three significant digits, or what it is instead."""
    return "undefined" if np.isnan(value) else "infinite" if np.isinf(value) else _digits(value, 3)


def _digits(value: float, n: int) -> str:
    """A number with n significant digits, as 0.0123, 12.3, 12,300 or 1.23e7."""
    if value == 0:
        return "0"
    text = f"{value:.{n - 1}e}"
    power = int(text.split("e")[1])
    return f"{float(text):,.{max(0, n - 1 - power)}f}" if -5 < power < 6 else plain(text)


def _luminance(colour: tuple[float, ...]) -> float:
    """How bright a colour is to the eye, from 0 to 1."""
    rgb = np.array(colour[:3])
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
