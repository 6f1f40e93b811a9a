"""Results of a sweep: a quantity of several estimators against the number of samples, over seeds."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array
from funcvae.figures._log_axes import ticks
from funcvae.figures._style import MARKERS, PALETTE, finish, titled

__all__ = ["OverSeeds", "over_seeds"]

Look = dict[str, Any]

_ACROSS = 3  # panels in a row
_TICKS = 8  # numbers of samples that fit as tick labels
_SPREAD = 0.6  # fraction of the distance between two numbers of samples over which estimators are spread
_WIDEST = 1.2  # greatest spread, in octaves
_BESIDE = 0.35  # position of single seeds, as a fraction of the distance to the next estimator


class OverSeeds(NamedTuple):
    """One estimator's results at V numbers of samples and S seeds."""

    samples: ArrayLike
    """Numbers of samples K [V], ascending."""
    mean: ArrayLike
    """Means over the seeds [V]."""
    low: ArrayLike
    """Lower ends of the means' intervals [V]; NaN if there is no interval."""
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

    Single seeds are faint points. If a panel has only one K, its horizontal axis shows the estimators instead.
    Estimators with the same K are drawn side by side, so no interval hides another.

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
        if yscale == "log":
            ticks(ax.yaxis)
        finish(ax)
    _legend(figure, labels if by_samples else [], shown)
    return figure


def _by_samples(ax: Axes, lines: Mapping[str, OverSeeds], labels: Sequence[str], every_k: Sequence[float]) -> None:
    """Draws a line for each estimator over log2 K."""
    ax.set_xscale("log", base=2)
    step = min(_SPREAD * np.diff(np.log2(every_k)).min(), _WIDEST) / len(lines)  # octaves
    for j, (label, line) in enumerate(lines.items()):
        k = np.asarray(line.samples) * 2 ** (step * (j - (len(lines) - 1) / 2))
        ax.plot(k, line.mean, color=_look(labels, label)["color"], linewidth=1.2, alpha=0.7)
        _points(ax, k, k * 2 ** (step * _BESIDE), line, _look(labels, label))
    shown = every_k if len(every_k) <= _TICKS else [k for k in every_k if np.log2(k).is_integer()]
    ax.set_xticks(shown, [f"{k:,.0f}" for k in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(every_k[0] / 2, every_k[-1] * 2), xlabel="samples K")


def _by_estimator(ax: Axes, lines: Mapping[str, OverSeeds], labels: Sequence[str]) -> None:
    for j, (label, line) in enumerate(lines.items()):
        _points(ax, np.array([float(j)]), np.array([j + 0.15]), line, _look(labels, label))
    tilted: Look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(lines) > 3 else {}
    ax.set_xticks(range(len(lines)), [label.replace(" (", "\n(") for label in lines], size="small", **tilted)
    ax.set(xlim=(-0.6, len(lines) - 0.4), xlabel="estimator (target)")


def _points(ax: Axes, x: Floats, beside: Floats, line: OverSeeds, look: Look) -> None:
    """Draws means with their intervals, and single seeds beside them if there are several."""
    mean, low, high, each = (np.asarray(part) for part in line[1:])
    bars = np.isfinite(low) & np.isfinite(high)
    ax.vlines(x[bars], low[bars], high[bars], color=look["color"], linewidth=1.8)
    for end in (low, high):
        ax.plot(x[bars], end[bars], "_", color=look["color"], markersize=7)
    ax.plot(x, mean, linestyle="", markersize=7, markeredgecolor="white", **look)
    if each.shape[1] > 1:
        ax.plot(beside, each, linestyle="", markersize=4, alpha=0.5, markeredgecolor="none", **{**look, "marker": "o"})


def _legend(figure: Figure, labels: Sequence[str], panels: Mapping[str, Mapping[str, OverSeeds]]) -> None:
    """Draws the legend: the estimators' colours, and the markers of means, intervals and seeds."""
    handles = [
        Line2D([], [], markersize=7.5, label=textwrap.fill(label, 40), **_look(labels, label)) for label in labels
    ]
    if any(np.asarray(line.each).shape[1] > 1 for lines in panels.values() for line in lines.values()):
        grey: Look = {"color": "0.4", "linestyle": ""}
        handles += [
            Line2D([], [], marker="o", markersize=7.5, label="mean over seeds", **grey),
            Line2D([], [], marker="|", markersize=11, label="95% interval of the mean", mew=1.8, **grey),
            Line2D([], [], marker="o", markersize=4, alpha=0.5, label="single seed", **grey),
        ]
    if handles:
        cols = min(len(handles), max(2, int(figure.get_figwidth() / 2.1)))
        figure.legend(handles=handles, loc="outside lower center", ncols=cols, frameon=False, fontsize="small",
                      title="estimator (target)" if labels else None, title_fontsize="small")  # fmt: skip


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
        found[label] = OverSeeds(samples, mean, low, high, each)
    return found
