"""The variance of gradient estimators: compared as a whole, layer by layer, against their cost, and along a sweep."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from funcvae._support import checks
from funcvae.errors import BadType, BadValue
from funcvae.figures._arrays import Floats, as_array, flags, text, words
from funcvae.figures._style import DARK, LIGHT, PALETTE, room

_MARKERS = "os^Dv<>*Pp"  # one for each colour of PALETTE
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
    ax.set(xscale="log", xlim=_limits(value, low, high), ylim=(len(value) - 0.4, -0.6), xlabel=unit)
    row = np.arange(len(value))
    ax.set_yticks(row, names)
    ax.tick_params(axis="y", length=0, pad=9)
    positive, handles = _positive(value), []
    kinds = (
        (True, DARK, DARK, "variance and its 95% interval"),
        (False, "white", LIGHT, "hollow: interval not to be trusted"),
    )
    for kind, fill, colour, label in kinds:
        here = firm == kind
        if here.any():
            known = here & ~np.isnan(value)
            _intervals(ax, row[known], low[known], high[known], colour, vertical=False)
            look: Any = {"marker": "o", "color": colour, "mfc": fill, "mec": DARK, "mew": 1.6, "markersize": 7}
            ax.plot(value[here & positive], row[here & positive], linestyle="", **look)
            handles.append(Line2D([], [], label=label, **look))
    beside = ax.get_yaxis_transform()
    for y, v in enumerate(value):
        ax.text(1.03, y, _word(v), transform=beside, va="center_baseline")
        if v == 0:
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.plot(0, y, "<", color=DARK, transform=beside, clip_on=False)
            ax.text(0.016, y, "0", transform=beside, va="center_baseline", bbox=white)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    _finish(ax, ax.xaxis)
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
        shown = value[_positive(value)]
        top = shown.max(initial=0) or 1.0
        bottom = max(shown.min(initial=top), top * 1e-6)
        if bottom == top:
            bottom, top = bottom / 1.5, top * 1.5
    else:
        if not 0 <= checks.whole("reference", reference) < len(names):
            raise BadValue(f"reference must be an index of the {len(names)} names, got {checks.shown(reference)}")
        label, sign, cmap, small = f"variance relative to\n{_wrap(names[reference])}", "×", "PuOr_r", 2
        base = np.where(np.isfinite(value[reference]), value[reference], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = value / base
        shown = value[_positive(value)]
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
    cells = np.ma.masked_where(~_positive(value), value).T
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
    _ticks(bar.ax.yaxis, sign)
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
    if not _positive(seconds).all():
        raise BadValue(f"seconds must be positive and finite, got {seconds[~_positive(seconds)][0]}")
    shown = _positive(value)
    x, y = 1e3 * seconds[shown], value[shown]
    figure = Figure(figsize=(room(7.6, title), 5.4), layout="constrained")
    figure.suptitle(title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel="time per gradient [ms]", ylabel=_TOTAL)
    across, up = _limits(x, x, x, 0.14), _limits(y, low[shown], high[shown], 0.08)
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
        _intervals(ax, [place], [down], [upper], colour, vertical=True)
        filled = {"color": colour, "mec": "white"} if sure[shown][k] else {"color": "white", "mec": colour, "mew": 1.6}
        ax.plot(place, y[k], _MARKERS[k % len(_MARKERS)], markersize=9, **filled)
    gone = [
        f"{name} ({_word(v) if v else 'variance 0'})" for name, v in zip(names, value, strict=True) if not _positive(v)
    ]
    if not sure[shown].all():
        notes.append("hollow: interval not to be trusted")
    if gone:
        notes.append(textwrap.fill("left out: " + ", ".join(gone), 95))
    ax.set_title("\n".join(notes), loc="left", size="small", style="italic")  # above, where it hides nothing
    _finish(ax, ax.xaxis, ax.yaxis)
    bars = [Bbox([[a, max(b, up[0])], [a, min(c, up[1])]]) for a, b, c in zip(x, low[shown], high[shown], strict=True)]
    _name(figure, ax, [name for name, here in zip(names, shown, strict=True) if here], np.stack([x, y], 1), bars)
    return figure


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
            raise BadType(f"{name} must be a dict by label, got {checks.shown(given)}")
        for label, pair in given.items():
            text(label=label)
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise BadType(f"{name} must have pairs, (what was measured, its error), got {checks.shown(pair)}")
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
    y, error = np.where(_positive(y), y, np.nan), np.where(np.isfinite(error), error, np.nan)
    labels = [label + _slope(*slopes[label]) if label in slopes else label for label in series]
    longest = max(map(len, labels))
    cols = 2 if longest <= 42 else 1
    size = room(max(7.6, 1 + 0.085 * longest), title), 4.7 + 0.22 * math.ceil(len(labels) / cols)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set(xlim=_limits(x, x, x), ylim=_limits(y, y - 2 * error, y + 2 * error))
    for k, label in enumerate(series):
        colour = PALETTE[k % len(PALETTE)]
        _intervals(ax, x, y[k] - 2 * error[k], y[k] + 2 * error[k], colour, vertical=True)
        look: Any = {"marker": _MARKERS[k % len(_MARKERS)], "color": colour, "mec": "white", "markersize": 8}
        ax.plot(x, y[k], linewidth=0.9, label=labels[k], **look)
        here = np.isfinite(y[k])
        if label in slopes and np.isfinite(slopes[label][0]) and here.any():
            known = _positive(error[k][here]).all()
            weight = (y[k][here] / error[k][here]) ** 2 if known else np.ones(here.sum())
            log_x, log_y = (np.average(np.log(v[here]), weights=weight) for v in (x, y[k]))
            fit = np.exp(log_y + slopes[label][0] * (np.log(x[[0, -1]]) - log_x))
            ax.plot(x[[0, -1]], fit, "--", color=colour, linewidth=1.8, zorder=1.5)
    notes = ["bars: two standard errors"]
    if slopes:
        notes.append("dashed: fits, slopes ± one standard error")
    ax.set_title("; ".join(notes), loc="left", size="small", style="italic")
    figure.legend(loc="outside lower center", ncols=cols, frameon=False)
    _finish(ax, ax.xaxis, ax.yaxis)
    low, high = ax.get_xlim()
    if sum(low <= tick <= high for tick in ax.get_xticks()) < 3 and len(x) <= 8:
        ax.set_xticks(x, [f"{v:,g}" for v in x])
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


_STEEPEST = 1000


def _refuse_negative(variance: Floats) -> None:
    if (variance < 0).any():
        raise BadValue(f"variance must not be negative, got {variance[variance < 0][0]}")


def _along(x: Floats, label: str, value: ArrayLike) -> Floats:
    """One of a series' two arrays [V]."""
    array = as_array(label, value, "V", finite=False)
    if array.shape != x.shape:
        raise BadValue(f"{label} must be [{len(x)}], one for each of the values, got {list(array.shape)}")
    return array


def _positive(value: Floats) -> NDArray[np.bool_]:
    """Where a log axis has a place for it."""
    return np.isfinite(value) & (value > 0)


def _limits(value: Floats, low: Floats, high: Floats, margin: float = 0.06) -> tuple[float, float]:
    """Ends of a log axis with all values that it can show, and the intervals' ends up to a decade beyond these."""
    shown = value[_positive(value)]
    if not shown.size:
        shown = high[_positive(high)] if _positive(high).any() else np.array([0.1, 10])
    ends = np.concatenate([low.ravel(), high.ravel()])
    ends = ends[(ends >= shown.min() / 10) & (ends <= shown.max() * 10)]
    ends = np.log(np.concatenate([shown, ends]))
    spare = max(margin * np.ptp(ends), 0.1)
    return float(np.exp(ends.min() - spare)), float(np.exp(ends.max() + spare))


def _intervals(ax: Axes, place: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, vertical: bool) -> None:
    """Bars from low to high; an end outside the axis, such as 0 or infinity, is an arrow at its edge."""
    place, low, high = (np.asarray(a, dtype=float) for a in (place, low, high))
    least, most = ax.get_ylim() if vertical else ax.get_xlim()
    inside = (high > least) & (low < most)  # and neither is NaN
    place, low, high = place[inside], low[inside], high[inside]
    bars = ax.vlines if vertical else ax.hlines
    bars(place, low.clip(min=least), high.clip(max=most), color=colour, linewidth=1.6)
    caps = ("_", "v", "^") if vertical else ("|", "<", ">")
    for end, beyond, edge, arrow in ((low, low < least, least, caps[1]), (high, high > most, most, caps[2])):
        for here, where, marker in ((~beyond, end, caps[0]), (beyond, np.full_like(end, edge), arrow)):
            spots = (place[here], where[here]) if vertical else (where[here], place[here])
            if here.any():  # a line without points would reach to the figure's corner
                ax.plot(*spots, marker, color=colour, markersize=7, clip_on=False)


def _slope(slope: float, error: float) -> str:
    """A slope and its standard error for the legend, with as many decimals as the error is worth."""
    if not np.isfinite(slope):
        return ": slope undefined"
    known = np.isfinite(error) and error > 0
    decimals = int(np.clip(-math.floor(math.log10(error)), 2, 4)) if known else 2
    text = f": slope {slope:+.{decimals}f}".replace("-", "−")
    return text + f" ± {error:.{decimals}f}" * bool(np.isfinite(error))


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
    return f"{float(text):,.{max(0, n - 1 - power)}f}" if -5 < power < 6 else _plain(text)


def _plain(text: str) -> str:
    """A number's text with a short exponent: 1e−7 for 1e-07."""
    mantissa, e, power = text.partition("e")
    return mantissa + (e and f"e{int(power)}".replace("-", "−"))


def _luminance(colour: tuple[float, ...]) -> float:
    """How bright a colour is to the eye, from 0 to 1."""
    rgb = np.array(colour[:3])
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def _ticks(axis: Axis, sign: str = "") -> None:
    """Plain numbers along a log axis, as many as it has room for, after a sign."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: sign + _plain(f"{v:,g}")))
    axis.set_minor_formatter(NullFormatter())


def _finish(ax: Axes, *log: Axis) -> None:
    """What all axes here share; `log` are those that are logarithmic."""
    for axis in log:
        _ticks(axis)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
