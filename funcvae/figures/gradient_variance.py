"""The variance of gradient estimators: ratios by network and by layer, and the variance against its cost."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, words
from funcvae.figures._log_axes import intervals, limits, number, positive, ticks
from funcvae.figures._style import UNRELIABLE, filled, finish, legend_below, looks, members, noise_handles, titled

__all__ = ["Ratios", "variance_by_layer", "variance_cost", "variance_ratios"]
_REACH = 10  # colours of ratios extend from ÷10 to ×10 in every figure, so figures can be compared
_GAP = 0.3  # between the groups of a table, in cells
_GREY = (0.85, 0.85, 0.85, 1)  # cells without a colour
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722, 0])  # of linear red, green and blue; opacity
_AROUND = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])  # directions to a name


class Ratios(NamedTuple):
    """The variance of E estimators' gradients in one network, and its ratio to that of a reference."""

    ratio: ArrayLike
    """[E]; NaN if undefined."""
    low: ArrayLike
    """Lower ends of the ratios' 95% intervals [E], which may be 0 or less; NaN if there is no interval."""
    high: ArrayLike
    """Upper ends [E], which may be infinite."""
    variance: ArrayLike
    """Total variance [E] in nats²."""
    trusted: ArrayLike
    """Whether each interval is reliable [E]."""


@checks.arguments
def variance_ratios(
    names: Sequence[str],
    groups: Sequence[str],
    networks: Mapping[str, Ratios],
    *,
    noise: Sequence[str] | None = None,
    title: str = "Variance of each estimator's gradient",
) -> Figure:
    """The ratio of each estimator's variance to that of a reference with its 95% interval, and a line at 1.

    There is a panel with a log axis for each network. Estimators are sorted by the first network's ratio within their
    group. Ratio and variance are written on the right. An interval that extends more than a decade beyond all ratios
    ends in an arrow. Hollow markers have unreliable intervals.

    Args:
        names: names of the estimators [E]; each name has a colour.
        groups: the group of each estimator [E], such as the target "L_K".
        networks: {name: results [E]}.
        noise: the noise scheme of each estimator [E]; each scheme has a marker.

    Raises:
        BadValue: there is no network, arrays have the wrong shapes, or a ratio or variance is negative.
    """
    names = words("names", names)
    groups, all_looks = words("groups", groups, len(names)), looks(names, noise)
    if not networks:
        raise BadValue("networks is empty: it must have at least one network")
    panels = {name: _as_ratios(name, of, len(names)) for name, of in networks.items()}
    first = np.nan_to_num(next(iter(panels.values()))[0], nan=np.inf)
    place, headings, down = np.zeros(len(names)), {}, 0.0
    for group in dict.fromkeys(groups):
        headings[group] = down
        for e in sorted((e for e, of in enumerate(groups) if of == group), key=lambda e: first[e]):
            down += 1
            place[e] = down
        down += 1.3
    figure = titled(0.6 + 0.08 * max(map(len, names)) + 3.6 * len(panels), 1.6 + 0.3 * down, title)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (network, (ratio, low, high, variance, trusted)) in zip(axes, panels.items(), strict=True):
        ends = limits(ratio, low, high)
        ax.set(xscale="log", xlim=(min(ends[0], 0.7), max(ends[1], 1.4)), ylim=(down - 0.7, -0.7))
        ax.set_title(network)
        ax.set_xlabel("variance / reference's variance")
        ax.axvline(1, color="0.5", linewidth=1, zorder=0.5)
        for e, look in enumerate(all_looks):
            intervals(ax, place[[e]], low[[e]], high[[e]], look["color"], vertical=False)
            if positive(ratio)[e]:
                ax.plot(ratio[e], place[e], markersize=7.5, **filled(look, trusted[e]))
        aside: Any = {"textcoords": "offset points", "ha": "right", "va": "center_baseline", "size": "small"}
        for points, head, values in ((50, "ratio", ratio), (102, "nats²", variance)):
            ax.annotate(head, (1, 1), (points, 6), "axes fraction", style="italic", **aside)
            for y, value in zip(place, values, strict=True):
                ax.annotate(_word(value), (1, y), (points, 0), ax.get_yaxis_transform(), **aside)
        ticks(ax.xaxis)
        finish(ax)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0, pad=7)
    axes[0].set_yticks(place, names)
    for group, at in headings.items():
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        edge = axes[0].get_yaxis_transform()
        axes[0].text(0, at, group, transform=edge, va="center_baseline", size="small", weight="bold", bbox=box)
    note = "nats²: total variance of the gradient, summed over its coordinates; bars: 95% intervals"
    unreliable = not all(of[-1].all() for of in panels.values())
    legend_below(figure, noise_handles(noise), note + f"; {UNRELIABLE}" * unreliable)
    return figure


@checks.arguments
def variance_by_layer(
    names: Sequence[str],
    groups: Sequence[str],
    layers: Sequence[str],
    ratio: ArrayLike,
    *,
    title: str = "Variance of the gradient by layer",
) -> Figure:
    """A heat map of ratios of variances, with a row for each layer and a column for each estimator.

    A ratio of 0.5 is written as ÷2.0. Colours extend from ÷10 (purple) to ×10 (orange) in every figure, so figures
    can be compared. Ratios beyond are bold. Cells that are 0, undefined or infinite are grey. There are gaps between
    networks and between groups of estimators.

    Args:
        names: names of the estimators [E].
        groups: the group of each estimator [E], such as the target "L_K", written above its columns.
        layers: names of the layers [L], such as "encoder/hidden.0.weight", from top to bottom. The part before the
            first "/" is the network.
        ratio: variance of each estimator in each layer, divided by that of the reference [E, L].
    """
    names, layers = words("names", names), words("layers", layers)
    groups = words("groups", groups, len(names))
    value = _not_negative("ratio", ratio, f"{len(names)} {len(layers)}")
    order = [e for group in dict.fromkeys(groups) for e, of in enumerate(groups) if of == group]
    left, top = _places([groups[e] for e in order]), _places([layer.split("/")[0] for layer in layers])

    heads = [names[e].replace(", ", ",\n") for e in order]
    widest = max(len(line) for head in heads for line in head.split("\n"))
    wide, tall = max(0.55, 0.08 * widest + 0.08), 0.3 if len(layers) <= 40 else 0.21
    size = 2 + 0.085 * max(map(len, layers)) + wide * (left[-1] + 1), 2 + tall * (top[-1] + 1)
    figure = titled(size[0], max(3.4, size[1]), title)
    ax = figure.add_subplot()
    ax.set(xlim=(0, left[-1] + 1), ylim=(top[-1] + 1, 0))
    palette = matplotlib.colormaps["PuOr_r"](np.linspace(0.08, 0.92, 255))
    scale = ScalarMappable(LogNorm(1 / _REACH, _REACH, clip=True), ListedColormap(palette))
    value = value[order]
    seen = positive(value)
    bold = seen & ((value < 1 / _REACH) | (value > _REACH))
    colours = np.where(seen[..., None], scale.to_rgba(np.where(seen, value, 1)), _GREY)
    for at, v in np.ndenumerate(value):
        x, y = left[at[0]], top[at[1]]
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=colours[at], edgecolor="white", linewidth=0.6))
        ink = "white" if colours[at] ** 2.2 @ _LUMINANCE < 0.18 else "black"
        text = _factor(v) if seen[at] else "–" if np.isnan(v) else "∞" if v else "0"
        look: Any = {"size": "small", "ha": "center", "va": "center", "weight": 700 if bold[at] else 400}
        ax.text(x + 0.5, y + 0.5, text, color=ink, **look)
    ax.set_yticks([y + 0.5 for y in top], layers, size="small")
    ax.set_xticks([x + 0.5 for x in left], heads, size="small")
    ax.tick_params(length=0, labeltop=True, labelbottom=len(layers) > 40)
    ax.spines[:].set_visible(False)
    above = 16 + 11 * max(head.count("\n") + 1 for head in heads)  # points above the table
    for group in dict.fromkeys(groups):
        here = [x for x, e in zip(left, order, strict=True) if groups[e] == group]
        fitting = textwrap.fill(group, max(10, int(wide * len(here) / 0.085)))
        middle = ((here[0] + here[-1] + 1) / 2, 1)
        ax.annotate(fitting, middle, (0, above), ("data", "axes fraction"), "offset points", ha="center", va="bottom",
                    size="small", weight="bold")  # fmt: skip
    bar = figure.colorbar(
        scale, ax=ax, label="variance / reference's variance", shrink=min(1, 3.5 / size[1]), aspect=18, anchor=(0, 1)
    )
    bar.ax.set_yticks([1 / _REACH, 0.2, 0.5, 1, 2, 5, _REACH], ["÷10", "÷5", "÷2", "1", "×2", "×5", "×10"])
    bar.ax.minorticks_off()
    notes = ["bold: beyond the colours"] * bool(bold.any())
    notes += ["grey: 0 (zero to rounding), – (undefined) or ∞ (infinite)"] * (not seen.all())
    if notes:
        legend_below(figure, [], "; ".join(notes))
    return figure


@checks.arguments
def variance_cost(
    names: Sequence[str],
    seconds: ArrayLike,
    variance: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    slower: ArrayLike | None = None,
    trusted: ArrayLike | None = None,
    noise: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    title: str = "Variance against cost",
) -> Figure:
    """The variance of each estimator against the time of one of its gradients, on two log axes.

    Averaging n gradients takes n times as long and divides the variance by n, so it moves an estimator down along a
    dashed line: all estimators on one line are equally efficient. The lowest line goes through the most efficient one.
    Both axes span at least a factor of two, so small differences look small.

    Args:
        names: names of the estimators [E]; each name has a colour.
        seconds: least time of one gradient of each estimator [E], positive.
        variance: variance of each estimator [E] in nats². A note lists the estimators whose variance is 0 or not
            finite.
        low: lower ends of the variances' 95% intervals [E], which may be 0 or less; NaN if there is no interval.
        high: upper ends of the intervals [E], which may be infinite.
        slower: median times of one gradient [E]; horizontal bars extend to them.
        trusted: whether each interval is reliable [E]; if not, its marker is hollow.
        noise: the noise scheme of each estimator [E]; each scheme has a marker.
        groups: the target of each estimator [E]; if there are several, the legend lists the estimators of each.
    """
    n = str(len(words("names", names)))
    low, high = as_array("low", low, n, finite=False), as_array("high", high, n, finite=False)
    firm = np.ones(len(names), bool) if trusted is None else as_array("trusted", trusted, n) != 0
    value = _not_negative("variance", variance, n)
    seconds = as_array("seconds", seconds, n, finite=False)
    longer = seconds if slower is None else as_array("slower", slower, n, finite=False)
    if bad := [each[~positive(each)][0] for each in (seconds, longer) if not positive(each).all()]:
        raise BadValue(f"a time is {bad[0]}: all must be positive and finite")
    groups = [""] * len(names) if groups is None else words("groups", groups, len(names))
    shown = positive(value)
    x, y, slow, low, high = 1e3 * seconds[shown], value[shown], 1e3 * longer[shown], low[shown], high[shown]
    figure = titled(7.6, 5.6, title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel="time per gradient [ms]", ylabel="total variance of the gradient [nats²]")
    across, up = limits(x, x, slow, 0.14, octave=True), limits(y, low, high, 0.08, octave=True)
    ax.set(xlim=across, ylim=up)
    notes = []
    if len(x):
        least = (x * y).min()
        first, last = (np.log10(a * b / least) for a, b in zip(across, up, strict=True))  # at the corners
        factor = 10 if last - first > 2.5 else 2
        for k in range(math.ceil(first / math.log10(factor)), math.floor(last / math.log10(factor)) + 1):
            c = least * float(factor) ** k
            ax.plot(across, [c / end for end in across], "--", color="0.8", linewidth=0.9, zorder=0, scalex=False)
        notes.append(f"dashed lines: equal variance × time, {factor} times as much at the next; lower left is better")
        bars = "vertical bars: 95% intervals" + f" ({UNRELIABLE})" * (not firm[shown].all())
        notes.append(bars + "; horizontal bars: from the least to the median time" * (slower is not None))
    kept = [e for e, here in enumerate(shown) if here]
    all_looks = looks(names, noise)
    for k, e in enumerate(kept):
        colour = all_looks[e]["color"]
        intervals(ax, [x[k]], [low[k]], [high[k]], colour, vertical=True)
        if slower is not None:
            intervals(ax, [y[k]], [x[k]], [slow[k]], colour, vertical=False)
        ax.plot(x[k], y[k], markersize=8, **filled(all_looks[e], firm[e]))
    reasons = [_word(v) if v else "variance 0" for v in value]
    if gone := [f"{name} ({word})" for name, word, here in zip(names, reasons, shown, strict=True) if not here]:
        notes.append("not shown: " + ", ".join(gone))
    ax.set_title("\n".join(textwrap.fill(note, 105) for note in notes), loc="left", size="small", style="italic")
    ticks(ax.xaxis)
    ticks(ax.yaxis)
    finish(ax)
    handles, targets = noise_handles(noise), members(groups, names)
    if handles or targets:
        legend_below(figure, handles, targets)
    boxes = [Bbox([[a, max(b, up[0])], [a, min(c, up[1])]]) for a, b, c in zip(x, low, high, strict=True)]
    boxes += [Bbox([[a, b], [c, b]]) for a, b, c in zip(x, y, slow, strict=True)]
    _name(figure, ax, [names[e] for e in kept], np.stack([x, y], 1), boxes)
    return figure


def _as_ratios(name: str, of: Ratios, n: int) -> tuple[Floats, ...]:
    """Checks the fields of `Ratios` and returns them as arrays [E]."""
    checks.instance(f"the network {name!r}", of, Ratios)
    ratio, variance = (_not_negative(field, getattr(of, field), f"{n}") for field in ("ratio", "variance"))
    low, high = (as_array(end, getattr(of, end), f"{n}", finite=False) for end in ("low", "high"))
    return ratio, low, high, variance, as_array("trusted", of.trusted, f"{n}")


def _not_negative(name: str, numbers: ArrayLike, axes: str) -> Floats:
    value = as_array(name, numbers, axes, finite=False)
    if (value < 0).any():
        raise BadValue(f"{name} holds {value[value < 0][0]}: it must not be negative")
    return value


def _places(groups: Sequence[str]) -> list[float]:
    """The place of each cell of a table, with a gap before each new group."""
    gaps = np.cumsum([False, *(a != b for a, b in pairwise(groups))])
    return (np.arange(len(groups)) + _GAP * gaps).tolist()


def _name(figure: Figure, ax: Axes, names: Sequence[str], points: Floats, bars: list[Bbox]) -> None:
    """Writes each point's name beside it, at the first place where it hides nothing, or else where it hides least."""
    figure.draw_without_rendering()  # determines the positions of the points
    unit = figure.dpi / 72
    spots = ax.transData.transform(points)
    taken = [bar.transformed(ax.transData).padded(2 * unit) for bar in bars]
    taken += [Bbox([spot - 6 * unit, spot + 6 * unit]) for spot in spots]
    line: Any = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
    for name, point, spot in zip(names, points, spots, strict=True):
        text = ax.annotate(name.replace(", ", ",\n"), point, xytext=(0, 0), textcoords="offset points", arrowprops=line)
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


def _factor(value: float) -> str:
    """A ratio as a factor, such as ×1.5, or as a divisor, such as ÷2.0."""
    if 1 / 1.05 < value < 1.05:
        return "1.0"
    return f"×{_digits(value, 2)}" if value > 1 else f"÷{_digits(1 / value, 2)}"


def _word(value: float) -> str:
    """A variance with three significant digits, or the word for NaN or infinity."""
    return "undefined" if np.isnan(value) else "infinite" if np.isinf(value) else _digits(value, 3)


def _digits(value: float, n: int) -> str:
    """A number with n significant digits, such as 0.0123, 12.3, 12,300 or 1.23e7."""
    if value == 0:
        return "0"
    text = f"{value:.{n - 1}e}"
    power = int(text.split("e")[1])
    return f"{float(text):,.{max(0, n - 1 - power)}f}" if -5 < power < 6 else number(text)
