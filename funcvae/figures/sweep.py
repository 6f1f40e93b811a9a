"""Results of a sweep: a quantity of several estimators against the number of samples, over seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Transform
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array
from funcvae.figures._log_axes import limits, ticks
from funcvae.figures._style import MARKERS, PALETTE, Look, dodge, finish, legend_below, titled

__all__ = ["OverSeeds", "over_seeds"]

_ACROSS = 3  # panels in a row
_TICKS = 8  # numbers of samples that fit as tick labels
_SEEDS = 3  # the fewest for an interval: the 95% interval of two values is 18 times as wide as their distance


class OverSeeds(NamedTuple):
    """One estimator's results at V numbers of samples and S seeds."""

    samples: ArrayLike
    """Numbers of samples K [V], ascending."""
    mean: ArrayLike
    """Means over the seeds [V]."""
    low: ArrayLike
    """Lower ends of the means' 95% intervals [V]; NaN if there is no interval."""
    high: ArrayLike
    """Upper ends of the intervals [V]."""
    each: ArrayLike
    """Values of single seeds [V, S]; NaN if there are fewer seeds."""

    def map(self, f: Callable[[Floats], Floats]) -> "OverSeeds":
        """Applies an ascending function to all fields but `samples`."""
        return OverSeeds(self.samples, *(f(np.asarray(part, dtype=float)) for part in self[1:]))


@checks.arguments
def over_seeds(
    panels: Mapping[str, Mapping[str, OverSeeds]],
    *,
    ylabel: str = "test bound [nats per example]",
    yscale: str = "linear",
    title: str = "Test bound at the end of training",
) -> Figure:
    """Means over seeds with their intervals against the number of samples K, with a panel for each system.

    Intervals are drawn from three seeds on; those of two are too wide to be of use. Single seeds are faint points. If a
    panel has only one K, its horizontal axis shows the estimators instead. Estimators with the same K are drawn side by
    side, so no interval hides another.

    Args:
        panels: {title of the panel: {label: results}}; a label has the same colour in all panels.
        ylabel: the measured quantity and its unit.
        yscale: "linear" or "log".

    Raises:
        BadValue: there is no panel or an empty one, arrays have the wrong shapes, K is below 1 or does not ascend, or a
            number on a log axis is not positive.
    """
    checks.known("yscale", yscale, ("linear", "log"))
    shown = {name: _as_floats(name, lines, yscale) for name, lines in panels.items()}
    if not shown:
        raise BadValue("panels is empty: it must have at least one panel")
    labels = list(dict.fromkeys(label for lines in shown.values() for label in lines))
    across = min(len(shown), _ACROSS if len(shown) != 4 else 2)
    down = -(-len(shown) // across)
    figure = titled(max(6.4, 1.2 + 3.6 * across), 1.4 + 3.2 * down, title)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(shown) :]:
        ax.remove()
    by_samples = False
    for i, (ax, (name, lines)) in enumerate(zip(axes, shown.items(), strict=False)):
        every_k = sorted({k for line in lines.values() for k in np.asarray(line.samples)})
        ax.set(yscale=yscale, ylabel=ylabel if i % across == 0 else "")
        if len(every_k) > 1:
            by_samples = True
            _by_samples(ax, lines, labels, every_k)
            ax.set_title(name)
        else:
            _by_estimator(ax, lines, labels)
            ax.set_title(f"{name}, K = {every_k[0]:,.0f}")
        ends = np.concatenate([np.ravel(part) for line in lines.values() for part in line[1:]])
        ax.set_ylim(_limits(ends[np.isfinite(ends)], yscale))
        if yscale == "log":
            ticks(ax.yaxis)
        finish(ax)
    _legend(figure, labels if by_samples else [], shown)
    return figure


def _by_samples(ax: Axes, lines: Mapping[str, OverSeeds], labels: Sequence[str], every_k: Sequence[float]) -> None:
    """Draws a line for each estimator over log2 K."""
    ax.set_xscale("log", base=2)
    for j, (label, line) in enumerate(lines.items()):
        look, place, beside = _look(labels, label), dodge(ax, j, len(lines)), dodge(ax, j + 0.5, len(lines))
        ax.plot(line.samples, line.mean, color=look["color"], linewidth=1.2, alpha=0.7, transform=place)
        _points(ax, np.asarray(line.samples), line, look, place, beside)
    shown = every_k if len(every_k) <= _TICKS else [k for k in every_k if np.log2(k).is_integer()]
    ax.set_xticks(shown, [f"{k:,.0f}" for k in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(every_k[0] / 2, every_k[-1] * 2), xlabel="samples K")


def _by_estimator(ax: Axes, lines: Mapping[str, OverSeeds], labels: Sequence[str]) -> None:
    for j, (label, line) in enumerate(lines.items()):
        _points(ax, np.array([float(j)]), line, _look(labels, label), dodge(ax, 0, 1), dodge(ax, 1, 1))
    tilted: Look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(lines) > 3 else {}
    ax.set_xticks(range(len(lines)), [label.replace(" (", "\n(") for label in lines], size="small", **tilted)
    ax.set(xlim=(-0.6, len(lines) - 0.4), xlabel="estimator (target)")


def _points(ax: Axes, x: Floats, line: OverSeeds, look: Look, place: Transform, beside: Transform) -> None:
    """Draws means with their intervals, and single seeds beside them if there are several."""
    mean, low, high, each = (np.asarray(part) for part in line[1:])
    ax.vlines(x, low, high, color=look["color"], linewidth=1.8, transform=place)
    for end in (low, high):
        ax.plot(x, end, "_", color=look["color"], markersize=7, transform=place)
    ax.plot(x, mean, linestyle="", markersize=7, markeredgecolor="white", transform=place, **look)
    if each.shape[1] > 1:
        single: Look = {**look, "marker": "o", "markersize": 4, "alpha": 0.5, "markeredgecolor": "none"}
        ax.plot(x, each, linestyle="", transform=beside, **single)


def _legend(figure: Figure, labels: Sequence[str], panels: Mapping[str, Mapping[str, OverSeeds]]) -> None:
    """Draws the legend of the estimators, below a note about means, intervals and seeds."""
    handles = [Line2D([], [], markersize=7.5, label=label, **_look(labels, label)) for label in labels]
    lines = [line for panel in panels.values() for line in panel.values()]
    seeds = np.concatenate([np.isfinite(np.asarray(line.each)).sum(1) for line in lines])
    note = ""
    if seeds.max() > 1:
        note = "large: mean over the seeds; small and faint: single seeds"
        note += "; bars: 95% intervals of the mean" * bool(seeds.max() >= _SEEDS)
        note += f" (none below {_SEEDS} seeds)" * bool(seeds.min() < _SEEDS)
    legend_below(figure, handles, note)


def _limits(ends: Floats, yscale: str) -> tuple[float, float]:
    """Ends of an axis that shows these numbers, with a margin."""
    if yscale == "log":
        return limits(ends, ends, ends)
    margin = 0.06 * (np.ptp(ends) or abs(ends[0]) or 1)
    return float(ends.min() - margin), float(ends.max() + margin)


def _look(labels: Sequence[str], label: str) -> Look:
    """The colour and marker of an estimator, the same in all panels."""
    k = list(labels).index(label)
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}


def _as_floats(name: str, lines: Mapping[str, OverSeeds], yscale: str) -> dict[str, OverSeeds]:
    if not checks.mapping(f"the panel {name!r}", lines):
        raise BadValue(f"the panel {name!r} is empty: it must have at least one estimator")
    found = {}
    for label, line in lines.items():
        checks.instance(f"{label!r}", line, OverSeeds)
        samples = as_array("samples", line.samples, "V")
        n = str(len(samples))
        mean, each = as_array("mean", line.mean, n), as_array("each", line.each, f"{n} S", finite=False)
        low, high = (as_array(end, getattr(line, end), n, finite=False) for end in ("low", "high"))
        if samples[0] < 1 or (np.diff(samples) <= 0).any():
            raise BadValue(f"samples is {checks.describe(samples.tolist())}: it must ascend and be at least 1")
        if yscale == "log" and any((part <= 0).any() for part in (mean, low, high, each)):
            raise BadValue(f"{label!r} has numbers that are not positive: a log axis cannot show them")
        several = np.isfinite(each).sum(1) >= _SEEDS
        low, high = (np.where(several, end, np.nan) for end in (low, high))
        found[label] = OverSeeds(samples, mean, low, high, each)
    return found
